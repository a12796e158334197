"""Presets: arguments that nothing sets get values that suit the situation, and whatever is set stays."""

import json
from types import SimpleNamespace

import pytest
from helpers.builders import save_towers
from helpers.digits import write_digits

from modeling_mm import cli
from modeling_mm.checkpoint import load_checkpoint
from modeling_mm.commands.arguments import MMParser
from modeling_mm.training.arguments import DataArguments, ModelArguments
from modeling_mm.training.presets import (
    AUGMENTED,
    TABLE_EPOCHS,
    Choice,
    applied,
    choices_table,
    data_choices,
    preset_for,
    training_choices,
    uneven_classes,
    uses_muon,
)

SCRATCH = {"vision_tower": "scratch-tiny", "text_model": "scratch-tiny"}
PRETRAINED = {"vision_tower": "a/vision", "text_model": "a/text"}


@pytest.mark.parametrize(
    "flags,preset",
    [
        ({}, "scratch"),
        (SCRATCH, "scratch"),
        ({**SCRATCH, "use_peft": True}, "scratch"),
        ({"vision_tower": "a/vision", "text_model": "scratch-small"}, "scratch"),
        (PRETRAINED, "frozen"),
        ({**PRETRAINED, "use_peft": True}, "lora"),
        ({**PRETRAINED, "vision_trainable": True, "text_trainable": True}, "full"),
        ({**PRETRAINED, "vision_trainable": True}, "frozen"),
        ({"model": "runs/before"}, "frozen"),
    ],
)
def test_the_preset_follows_from_the_towers(flags, preset):
    assert preset_for(ModelArguments(**flags), None) == preset


@pytest.mark.parametrize(
    "flags,preset,sentence",
    [
        ({}, "frozen", "--preset frozen is for pretrained towers, but the text model is not set"),
        (SCRATCH, "lora", "--preset lora is for pretrained towers, but the text model is scratch-tiny"),
        (PRETRAINED, "scratch", "--preset scratch is for untrained towers, but the text model is a/text"),
    ],
)
def test_a_preset_that_does_not_fit_is_refused(flags, preset, sentence):
    with pytest.raises(ValueError, match=sentence):
        preset_for(ModelArguments(**flags), preset)


def test_flags_of_any_spelling_are_explicit(tmp_path):
    (tmp_path / "c.yaml").write_text("max_length: 9\nfusion_mlp: false\n")
    parser = MMParser((ModelArguments, DataArguments), prog="test")
    parser.parse(
        ["--config", str(tmp_path / "c.yaml"), "--text_lay", "2", "--calibrate=false", "--no_fusion_trainable"]
    )
    assert parser.explicit == {"max_length", "fusion_mlp", "text_layers", "calibrate", "fusion_trainable"}


def test_explicit_values_stay():
    model, data = ModelArguments(**SCRATCH), DataArguments(max_length=9)
    choices = [Choice("fusion_mlp", True, "why"), Choice("max_length", 5, "why")]
    assert applied(choices, {"max_length"}, model, data) == choices[:1]
    assert model.fusion_mlp and data.max_length == 9


@pytest.mark.parametrize("rows", [1, 40, 500, 4000, 10**6])
@pytest.mark.parametrize("preset", ["scratch", "frozen", "lora", "full"])
def test_no_preset_leaves_three_epochs_at_5e_5_to_untrained_towers(preset, rows):
    chosen = {c.name: c.value for c in training_choices(preset, "classification", rows, False, ())}
    assert chosen["learning_rate"] >= 1e-3 or preset in ("lora", "full")
    assert 3 <= chosen["num_train_epochs"] <= 60 and 8 <= chosen["per_device_train_batch_size"] <= 64
    longer = {c.name: c.value for c in training_choices(preset, "classification", rows, True, ())}
    assert longer["num_train_epochs"] >= chosen["num_train_epochs"]


def test_steps_and_evaluation_that_are_set_are_left_alone():
    explicit = {"max_steps", "eval_strategy", "logging_steps"}
    names = {c.name for c in training_choices("scratch", "classification", 100, False, explicit)}
    assert not names & {"num_train_epochs", "save_strategy", "load_best_model_at_end", "logging_strategy"}


def test_only_uneven_classes_are_weighted():
    assert not uneven_classes("classification", ["a"] * 9 + ["b"])
    assert uneven_classes("classification", ["a"] * 10 + ["b"])[0].value == "balanced"
    assert not uneven_classes("regression", [1.0] * 10 + [2.0])


def test_the_table_of_choices_has_a_line_for_each():
    lines = (
        choices_table("scratch", [Choice("a", 1, "because"), Choice("longer_name", "x", "too")]).strip().splitlines()
    )
    assert lines[1:] == ["  a            1  because", "  longer_name  x  too"]


def test_a_run_without_flags_reports_what_was_chosen(tmp_path, capsys):
    write_digits(tmp_path, "t.csv", 0, 60, ("image", "text", "label"))
    argv = ["--train_file", tmp_path / "t.csv", "--output_dir", tmp_path / "out", "--max_steps", 2, "--use_cpu"]
    assert cli.main(["train", *map(str, argv), "--learning_rate", "0.002", "--disable_tqdm", "true"]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["preset"] == "scratch" and report["defaults"]["late_fusion"]["value"] == "product_mlp"
    assert "learning_rate" not in report["defaults"] and "num_train_epochs" not in report["defaults"]
    assert "Defaults of preset scratch, for arguments that are not set:" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--cross_attention", "true"]])
def test_rows_that_are_a_table_alone_train_nothing_but_its_tower(tmp_path, flags):
    rows = [f"{number % 7},{number * 0.37:.2f},{'ab'[number % 2]},{number % 2}" for number in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["size,price,kind,label", *rows]) + "\n")
    argv = ["--train_file", tmp_path / "t.csv", "--output_dir", tmp_path / "out", "--max_steps", 2, "--use_cpu"]
    assert cli.main(["train", *map(str, argv), "--disable_tqdm", "true", *flags]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    chosen = {name: entry["value"] for name, entry in report["defaults"].items()}
    if flags:
        assert "text_layers" not in chosen and chosen["metric_for_best_model"] == "accuracy"
        return
    assert chosen["late_fusion"] == "sum" and chosen["text_layers"] == 1
    assert not any(chosen[name] for name in ("cross_attention", "text_trainable", "vision_trainable"))
    assert chosen["metric_for_best_model"] == "loss" and chosen["greater_is_better"] is False
    model, _ = load_checkpoint(str(tmp_path / "out"))
    assert not model.config.cross_attention and model.config.text_config.num_hidden_layers == 1


@pytest.mark.parametrize("rows", [100, 1000, 10**5])
@pytest.mark.parametrize("limited", [False, True])
def test_a_small_table_is_not_read_more_often_with_a_time_limit(rows, limited):
    flags = ("scratch", "classification", rows, limited, ())
    chosen, media = ({c.name: c.value for c in training_choices(*flags, table_only=is_table)} for is_table in (1, 0))
    assert chosen["num_train_epochs"] == min(TABLE_EPOCHS, media["num_train_epochs"])


@pytest.mark.parametrize(
    "flags,rows,chosen",
    [
        ({}, AUGMENTED, {"image_cache_mb", "augment_images"}),
        ({}, AUGMENTED + 1, {"image_cache_mb"}),
        ({"vision_tower": "a/vision"}, 9, {"image_cache_mb", "cache_features"}),
        ({"text_model": "a/text"}, 9, set()),
        ({"vision_tower": "a/vision", "text_model": "a/text"}, 9, {"cache_features"}),
        ({"vision_tower": "a/vision", "text_model": "a/text", "lora_parts": ["text,vision"]}, 9, set()),
        ({"vision_tower": "a/vision", "text_model": "a/text", "vision_trainable": True}, 9, set()),
    ],
)
def test_only_frozen_towers_are_cached_and_only_untrained_ones_with_few_rows_augmented(flags, rows, chosen):
    model, data = ModelArguments(**{**SCRATCH, **flags}), DataArguments(task="classification")
    splits = SimpleNamespace(train=range(rows), stream=None, validation=range(9), longest_clip=0.0)
    choices = data_choices(preset_for(model, None), model, data, {"image"}, splits, "out")
    assert {choice.name for choice in choices} == chosen


@pytest.mark.parametrize(
    "task,flags,sharded,present,explicit,expected",
    [
        ("classification", {}, "", {"image"}, (), True),
        ("generation", {}, "", {"image"}, (), True),
        ("generation", {}, "", {"image"}, ("learning_rate",), False),
        ("retrieval", {}, "", {"image"}, (), False),
        ("classification", {"use_peft": True}, "", {"image"}, (), False),
        ("classification", {}, "fsdp", {"image"}, (), False),
        ("classification", {}, "launcher", {"image"}, (), False),
        ("classification", {}, "", {"image", "video"}, (), False),
    ],
)
def test_muon_is_for_whole_weights_of_untrained_models_that_do_not_embed(
    monkeypatch, task, flags, sharded, present, explicit, expected
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true" if sharded == "launcher" else "false")
    args = SimpleNamespace(fsdp="full_shard" if sharded == "fsdp" else "", deepspeed=None)
    assert uses_muon("scratch", task, ModelArguments(**SCRATCH, **flags), args, present, explicit) is expected


@pytest.mark.parametrize("flags,norm", [((), "batch"), (("--learning_rate", "1e-3"), "layer")])
def test_towers_of_a_generating_model_from_scratch_have_batch_norm_beside_muon(tmp_path, flags, norm):
    write_digits(tmp_path, "t.csv", 0, 40, ("image", "text", "answer"))
    argv = ["--train_file", tmp_path / "t.csv", "--output_dir", tmp_path / "out", "--max_steps", 1, "--use_cpu"]
    assert cli.main(["train", *map(str, argv), "--disable_tqdm", "true", *flags]) == 0
    assert load_checkpoint(str(tmp_path / "out"))[0].config.projector_norm == norm


@pytest.fixture
def towers(tmp_path, tokenizer):
    """Flags of small pretrained towers, and of a table of digits."""
    folder = tmp_path / "towers"
    folder.mkdir()
    write_digits(folder, "t.csv", 0, 40, ("image", "text", "label"))
    return ["--train_file", folder / "t.csv", *save_towers(folder, tokenizer)]


@pytest.mark.parametrize("preset", ["frozen", "lora", "full"])
def test_each_preset_of_pretrained_towers_restores_its_best_checkpoint(towers, tmp_path, capsys, preset):
    out = tmp_path / "out"
    argv = [*towers, "--output_dir", out, "--num_train_epochs", 2, "--use_cpu", "--disable_tqdm", "true"]
    argv += ["--preset", preset, "--baselines", "false"]
    assert cli.main(["train", *map(str, argv)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["preset"] == preset and report["defaults"]["load_best_model_at_end"]["value"]
    assert ("cache_features" in report["defaults"]) is (preset != "full") is (out / "features").is_dir()
    assert (out / "adapter_config.json").is_file() is (preset == "lora")
    capsys.readouterr()
    test = ["--test_file", towers[1], "--output_dir", out / "again", "--device", "cpu"]
    assert cli.main(["evaluate", "--model", str(out), *map(str, test)]) == 0
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] <= 1
