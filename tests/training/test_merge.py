"""An adapter is merged completely or not at all, and the commands adapt the requested parts."""

import logging
import re
import shutil

import pytest
import torch
from helpers.builders import drawing, mm_model
from helpers.lora import batch_for, learn, saved_base
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from modeling_mm import MMForConditionalGeneration, cli
from modeling_mm.checkpoint import load_checkpoint, merge_adapter
from modeling_mm.training.arguments import ModelArguments
from modeling_mm.training.trainable import lora_pattern

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder with a base and, beside it, an adapter of its text backbone, whose fusion trained in full."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    base = saved_base(folder / "base")
    model = get_peft_model(base, LoraConfig(target_modules=base.lora_targets("text"), modules_to_save=["fusion"]))
    learn(model, batch_for(base))
    model.save_pretrained(folder / "adapter")
    return folder


def tampered(adapter, folder, change):
    """A copy of the adapter with tensors changed by `change`."""
    shutil.copytree(adapter / "adapter", folder)
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return str(folder)


LORA_B = "base_model.model.model.text_model.layers.1.self_attn.q_proj.lora_B.weight"
GATE = "base_model.model.model.fusion.layers.0.cross_attn_gate"
TAMPERED = {
    "renamed": (
        lambda weights: {name.replace(".text_model.", ".language_model."): value for name, value in weights.items()},
        r"has no weight '.*\.text_model\.layers\.0\..*' \(42 of 73 missing\)",
    ),
    "missing": (
        lambda weights: {n: v for n, v in weights.items() if n != LORA_B},
        f"has no weight '{LORA_B}' .1 of 73",
    ),
    "gate": (lambda weights: {n: v for n, v in weights.items() if n != GATE}, f"has no weight '{GATE}' .1 of 73"),
    "more": (
        lambda weights: weights | {"base_model.model.model.text_model.norm.lora_A.weight": torch.zeros(8, 32)},
        r"a weight 'base_model\.model\.model\.text_model\.norm\.lora_A\.weight' that its base lacks",
    ),
    "narrow": (
        lambda weights: weights | {LORA_B: torch.zeros(16, 8)},
        r"of shape \(16, 8\); its base expects \(32, 8\)",
    ),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_an_adapter_that_does_not_map_is_not_merged(adapter, tmp_path, kind):
    change, sentence = TAMPERED[kind]
    folder = tampered(adapter, tmp_path / "tampered", change)
    base = MMForConditionalGeneration.from_pretrained(adapter / "base")
    with pytest.raises(ValueError, match=sentence):
        merge_adapter(base, folder)


@pytest.mark.parametrize(
    "base,sentence",
    [
        ({"text": "gpt2"}, "the adapter in '.*' does not fit its base: No modules were targeted"),
        ({"text": "qwen3"}, r"'.*\.kv_proj\.weight' of shape \(64, 32\); its base expects \(128, 32\)"),
        ({"fusion_mlp": False}, r"'.*\.fusion\.layers\.0\.mlp\.0\.bias' that its base lacks"),
        ({"fusion_layers": [0, 1, 2]}, r"has no weight '.*\.fusion\.layers\.2\..*' \(12 of 85 missing\)"),
    ],
)
def test_an_adapter_of_another_base_is_not_merged(adapter, base, sentence):
    with pytest.raises(ValueError, match=sentence):
        merge_adapter(mm_model(**base), str(adapter / "adapter"))


def test_merging_tells_how_far_the_merged_layers_are(adapter, caplog):
    base = MMForConditionalGeneration.from_pretrained(adapter / "base").eval()
    with caplog.at_level(logging.INFO, "modeling_mm.checkpoint"):
        merge_adapter(base, str(adapter / "adapter"))
    (gap,) = re.findall(r"merged 21 layers of .*; their outputs changed by at most (\S+)", caplog.text)
    assert 0 < float(gap) < 1e-5


SCRATCH = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny"]
FEW = ["--max_steps", 2, "--learning_rate", "1e-2", "--use_cpu", "--disable_tqdm", "true", "--report_to", "none"]


def train(table, *argv):
    """Run `modeling-mm train` on a small table, validated on itself; returns the exit code."""
    files = ["--train_file", table, "--validation_file", table, "--max_new_tokens", 2, "--save_strategy", "no"]
    return cli.main(list(map(str, ["train", *files, *FEW, *argv])))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A table of drawings, and the folder of a model trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    rows = []
    for colour, name in enumerate(("black", "grey", "white", "dark")):
        drawing(80 * colour).save(folder / f"{name}.png")
        rows.append(f"{name}.png,what colour?,{name}")
    (folder / "t.csv").write_text("\n".join(["image,text,answer", *rows]) + "\n", encoding="utf-8")
    assert train(folder / "t.csv", *SCRATCH, "--output_dir", folder / "model") == 0
    return folder / "t.csv", folder / "model"


@pytest.mark.parametrize(
    "parts,adapted,whole",
    [
        (["--lora_parts", "text,fusion"], {"text_model", "fusion"}, set()),
        pytest.param([], {"text_model"}, {"fusion"}, marks=pytest.mark.slow),
        pytest.param(["--fusion_trainable", "false"], {"text_model"}, set(), marks=pytest.mark.slow),
    ],
)
def test_the_command_adapts_the_parts_asked_for(trained, tmp_path, parts, adapted, whole):
    table, model = trained
    assert train(table, "--model", model, "--use_peft", "true", *parts, "--output_dir", tmp_path) == 0
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert {name.split(".")[3] for name in names if ".lora_" in name} == adapted
    assert {name.split(".")[3] for name in names if ".lora_" not in name} == whole
    merged, before = load_checkpoint(str(tmp_path))[0], load_checkpoint(str(model))[0].state_dict()
    moved = {name.split(".")[1] for name, value in merged.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == adapted | whole


def test_a_fusion_with_closed_gates_cannot_be_adapted():
    model, args = mm_model(gate=0.0), ModelArguments(lora_parts=["text", "fusion"])
    with pytest.raises(ValueError, match="text fusion puts LoRA into a fusion whose gates are still zero"):
        lora_pattern(model, args)


@pytest.mark.parametrize(
    "parts,sentence",
    [
        (["audio"], "this model has no audio tower to adapt; it has text, fusion, vision"),
        (["text,txt"], "'txt' is no part to adapt; expected one or more of text, fusion, vision, or all"),
        (["vision"], "the vision part, a ResNetModel, has no linear layers for LoRA to adapt; leave it frozen"),
    ],
)
def test_parts_that_cannot_be_adapted_are_one_sentence(trained, tmp_path, capsys, parts, sentence):
    out = tmp_path / "out"
    assert train(trained[0], *SCRATCH, "--use_peft", "true", "--lora_parts", *parts, "--output_dir", out) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"modeling-mm train: {sentence}")
    assert not out.exists()


@pytest.mark.slow
def test_an_adapter_that_does_not_map_stops_the_commands(trained, tmp_path, capsys):
    table, model = trained
    assert train(table, "--model", model, "--use_peft", "true", "--output_dir", tmp_path) == 0
    file = tmp_path / "adapter_model.safetensors"
    save_file(
        {name.replace(".self_attn.q_proj.", ".self_attn.query."): value for name, value in load_file(file).items()},
        file,
    )
    capsys.readouterr()
    assert cli.main(["evaluate", "--model", str(tmp_path), "--test_file", str(table), "--device", "cpu"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "has no weight 'base_model.model.model.text_model.layers.0.self_attn.q_proj.lora_A.weight'" in message


def test_a_model_with_every_part_frozen_is_one_sentence(trained, tmp_path, capsys):
    table, model = trained
    assert train(table, "--model", model, "--fusion_trainable", "false", "--output_dir", tmp_path) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("modeling-mm train: every part is frozen; train one by --fusion_trainable")
