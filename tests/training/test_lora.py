"""LoRA by parts: adapters are added to the requested layers only, learn, reload and merge."""

import re
import subprocess
import sys

import pytest
import torch
from helpers.builders import ALL_TEXT, REENTRANT, VISION, mm_model
from helpers.lora import adapted_layers, batch_for, learn, logits, saved_base
from peft import (
    AutoPeftModel,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    PeftModelForCausalLM,
    get_peft_model,
)
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.checkpoint import merge_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]
# Linear layers in one layer of each kind of backbone, and in two dense layers of a mixture of experts
PER_LAYER = {"gpt2": 4, "gpt_neox": 4, "modernbert": 4, "phi3": 4, "qwen3_moe": 4} | dict.fromkeys(
    ["bert", "distilbert", "roberta", "xlm-roberta", "electra", "opt", "phi"], 6
)
TEXT = {kind: 3 * PER_LAYER.get(kind, 7) for kind in ALL_TEXT} | {"lfm2": 2 * 5 + 7}
TOWERS = dict.fromkeys(VISION, 2 * 6) | {"swin": 2 * 6 + 1, "convnext": 2 * 2}
FUSION = 2 + 2 * 4  # projector, kv_proj; queries, output and the MLP of each of two layers
PARTS = {"text": "text_model", "fusion": "fusion", "vision": "vision_tower"}


@pytest.mark.parametrize("kind", ALL_TEXT)
def test_adapters_land_in_the_parts_asked_for(kind, capsys):
    model = mm_model(kind, head=MMModel)
    for part, count in (("text", TEXT[kind]), ("fusion", FUSION)):
        targets = model.lora_targets(part)
        assert capsys.readouterr().out == f"lora_targets: {part} {count} linear layers\n"
        names = [name for name, _ in model.named_modules() if re.fullmatch(targets, name)]
        assert len(names) == count and all(name.startswith(f"{PARTS[part]}.") for name in names)
    both = model.lora_targets("text", "fusion")
    assert capsys.readouterr().out == f"lora_targets: text {TEXT[kind]}, fusion {FUSION} linear layers\n"
    adapted = adapted_layers(get_peft_model(model, LoraConfig(r=2, target_modules=both)))
    assert len(adapted) == TEXT[kind] + FUSION
    assert {name.split(".")[2] for name in adapted} == {"text_model", "fusion"}


@pytest.mark.parametrize("vision", [kind for kind in VISION if kind != "resnet"])
def test_every_adapter_of_a_vision_tower_learns(vision):
    model = mm_model("llama", vision)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=model.lora_targets("vision")))
    names = adapted_layers(model)
    assert len(names) == TOWERS[vision] and all(".vision_tower." in name for name in names)
    model(**batch_for(model.base_model.model)).loss.backward()
    assert [name for name, p in model.named_parameters() if "lora_B" in name and not p.grad.any()] == []


@pytest.mark.parametrize("head", [MMModel, MMForConditionalGeneration, MMForSequenceClassification])
def test_all_means_every_linear_layer_but_embeddings_poolers_and_heads(head):
    model = mm_model("llama" if head is MMForConditionalGeneration else "electra", "siglip2_vision_model", head=head)
    targets = model.lora_targets("all")
    linear = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    chosen = {name for name, _ in model.named_modules() if re.fullmatch(targets, name)}
    assert chosen < linear
    assert all(re.search(r"lm_head|classifier|embed|vision_tower\.head\.", name) for name in linear - chosen)


def test_resampler_and_single_parts_add_up():
    model = mm_model(num_latents=2, gate=0.5)
    names = [name for name, _ in model.named_modules()]
    count = {part: sum(bool(re.fullmatch(model.lora_targets(part), name)) for name in names) for part in PARTS}
    assert count == {"text": 21, "fusion": FUSION + 2 * 5, "vision": 12}
    together = model.lora_targets(*PARTS)
    assert together == model.lora_targets("all")
    assert sum(bool(re.fullmatch(together, name)) for name in names) == sum(count.values())


def test_a_second_adapter_has_the_targets_of_the_first():
    model = mm_model()
    first = model.lora_targets("text", "vision")
    model.add_adapter(LoraConfig(target_modules=first), "first")
    assert model.lora_targets("text", "vision") == first


@pytest.mark.parametrize(
    "parts,sentence",
    [
        (["audio"], "this model has no audio tower to adapt; it has text, fusion, vision"),
        (["text", "txt"], "'txt' is no part to adapt; expected one or more of text, fusion, vision, or all"),
        ([], "'' is no part to adapt; expected one or more of text, fusion, vision, or all"),
    ],
)
def test_a_part_that_the_model_lacks_is_refused(parts, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        mm_model().lora_targets(*parts)


def test_a_convolutional_tower_is_refused_with_advice_that_works(tmp_path):
    model = mm_model("llama", "resnet")
    with pytest.raises(ValueError, match=r"ResNetModel, has no linear layers .* `modules_to_save=\['vision_tower'\]`"):
        model.lora_targets("vision")
    targets = model.lora_targets("all")
    assert targets == mm_model("llama", "convnext").lora_targets("text", "fusion")
    model = get_peft_model(model, LoraConfig(target_modules=targets, modules_to_save=["vision_tower"])).train()
    model(**batch_for(model.base_model.model)).loss.backward()
    assert all(p.grad is not None for p in model.base_model.model.model.vision_tower.parameters() if p.requires_grad)


def test_closed_gates_are_warned_of(caplog):
    model = mm_model(gate=0.0)
    model.lora_targets("text")
    assert not caplog.records
    model.lora_targets("fusion")
    assert "gates of the fusion are zero" in caplog.text
    caplog.clear()
    mm_model(gate=0.1).lora_targets("fusion")
    assert not caplog.records


@pytest.mark.parametrize("kind", ALL_TEXT)
def test_by_default_queries_and_values_of_the_text_backbone_are_adapted(kind):
    model = get_peft_model(mm_model(kind, head=MMModel), LoraConfig(r=2, task_type="FEATURE_EXTRACTION"))
    names = adapted_layers(model)
    joined = kind in ("gpt2", "modernbert", "phi3", "gpt_neox")  # one linear layer for queries, keys and values
    attention_layers = 1 if kind == "lfm2" else 3
    assert len(names) == attention_layers * (1 if joined else 2)
    assert all(re.search(r"\.text_model\..*\.(self_attn|attn|attention)\.", name) for name in names)


ORDERS = {
    "before": "import peft, modeling_mm, transformers",
    "after": "import modeling_mm, transformers; assert 'peft' not in sys.modules",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_the_default_is_there_whenever_peft_is_imported_and_does_not_import_it(order, tmp_path):
    mm_model().save_pretrained(tmp_path)
    code = f"""
import sys
{ORDERS[order]}
model = transformers.AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})
assert "peft" in sys.modules or {order!r} == "after"
from peft import LoraConfig, get_peft_model
print(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")).peft_config["default"].target_modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert r"text_model\..*\.(q_proj|v_proj" in done.stdout


def test_the_tasks_of_peft_train_and_generate():
    model = get_peft_model(mm_model(), LoraConfig(task_type="CAUSAL_LM"))
    assert type(model) is PeftModelForCausalLM
    batch = batch_for(model.base_model.model)
    losses = learn(model, batch)
    assert losses[-1] < losses[0]
    ids = batch["input_ids"][2:3]
    assert model.generate(input_ids=ids, pixel_values=batch["pixel_values"][None], max_new_tokens=3).shape == (1, 14)
    model = get_peft_model(mm_model("bert", head=MMForSequenceClassification), LoraConfig(task_type="SEQ_CLS"))
    assert model.peft_config["default"].modules_to_save == ["classifier", "score"]
    losses = learn(model, batch_for(model.base_model.model))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "part,options",
    [
        *((part, {}) for part in ("text", "fusion", "vision", "all")),
        ("all", {"use_dora": True}),
        ("all", {"use_rslora": True}),
    ],
)
def test_an_adapter_learns_reloads_and_merges(part, options, tmp_path):
    base = saved_base(tmp_path / "base")
    frozen = {name: value.clone() for name, value in base.state_dict().items()}
    batch = batch_for(base)
    plain = logits(base, batch)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=base.lora_targets(part), **options))
    losses = learn(model, batch)
    assert losses[-1] < losses[0]
    expected = logits(model, batch)
    assert (expected - plain).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapter")
    base = MMForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), batch), expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, atol=1e-5, rtol=0)
    moved = {name for name, value in merged.state_dict().items() if not torch.equal(value, frozen[name])}
    expected_layers = {n for n, _ in merged.named_modules() if re.fullmatch(merged.lora_targets(part), n)}
    assert moved == {f"{name}.weight" for name in expected_layers}


@pytest.mark.parametrize("kind", ["gpt2", "qwen3_moe", "gemma2"])
def test_adapters_of_other_backbones_merge(kind, tmp_path):
    base = saved_base(tmp_path / "base", text=kind)
    batch = batch_for(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=base.lora_targets("all"), modules_to_save=["lm_head"]))
    learn(model, batch)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "adapter")
    base = MMForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    torch.testing.assert_close(logits(merge_adapter(base, tmp_path / "adapter"), batch), expected, atol=1e-5, rtol=0)


def test_a_fusion_saved_whole_stays_out_of_the_adapter(tmp_path):
    base = saved_base(tmp_path / "base")
    batch = batch_for(base)
    model = get_peft_model(base, LoraConfig(target_modules=base.lora_targets("text"), modules_to_save=["fusion"]))
    learn(model, batch)
    model.save_pretrained(tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert sum(".text_model." in name for name in names) == 2 * TEXT["llama"]
    whole = {name.removeprefix("base_model.model.model.fusion.") for name in names if ".text_model." not in name}
    assert whole == set(base.base_model.fusion.original_module.state_dict())
    base = MMForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    merged = merge_adapter(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(merged, batch), logits(model, batch), atol=1e-5, rtol=0)


def test_auto_peft_models_find_the_base(tmp_path):
    base = saved_base(tmp_path / "base")
    batch = batch_for(base)
    model = get_peft_model(base, LoraConfig(target_modules=base.lora_targets("text", "fusion")))
    learn(model, batch)
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["modeling_mm"]).eval()
    assert torch.equal(logits(again, batch), logits(model, batch))
    config = tmp_path / "adapter" / "adapter_config.json"
    now = config.read_text()
    assert '"modeling_mm.model.generation_mm"' in now
    config.write_text(now.replace("modeling_mm.model.", "modeling_mm."))  # as in adapters of the former, flat package
    again = AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["modeling_mm"]).eval()
    assert torch.equal(logits(again, batch), logits(model, batch))

    mm_model("bert", head=MMForSequenceClassification).save_pretrained(tmp_path / "bert")
    base = MMForSequenceClassification.from_pretrained(tmp_path / "bert")
    batch = batch_for(base)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS"))
    learn(model, batch)
    model.save_pretrained(tmp_path / "labels")
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "labels").eval()
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_the_library_s_own_adapters_save_and_load(tmp_path):
    model = saved_base(tmp_path / "base")
    batch = batch_for(model)
    plain = logits(model, batch)
    model.add_adapter(LoraConfig(target_modules=model.lora_targets("all")))
    losses = learn(model, batch)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")
    again = MMForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(again.eval(), batch), logits(model, batch))
    again.disable_adapters()
    assert torch.equal(logits(again, batch), plain)


@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=REENTRANT)])
@pytest.mark.parametrize("part", ["vision", "fusion", "text"])
def test_checkpointing_gives_every_adapter_the_same_gradient(part, reentrant):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = mm_model()
        targets, batch = model.lora_targets(part), batch_for(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model = get_peft_model(model, LoraConfig(target_modules=targets, init_lora_weights=False)).train()
        model(**batch).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    plain, checkpointed = found
    assert [name for name, gradient in checkpointed.items() if gradient is None or not gradient.any()] == []
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-5, rtol=1e-4)
