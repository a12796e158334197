"""Presets: arguments that nothing sets get values that suit the situation, and whatever is set stays."""

import json

import pytest
from helpers.digits import write_digits

from modeling_mm import cli
from modeling_mm.commands.arguments import MMParser
from modeling_mm.training.arguments import DataArguments, ModelArguments
from modeling_mm.training.presets import (
    Choice,
    applied,
    choices_table,
    preset_for,
    training_choices,
    uneven_classes,
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
    assert report["preset"] == "scratch" and report["defaults"]["late_fusion"]["value"] == "product"
    assert "learning_rate" not in report["defaults"] and "num_train_epochs" not in report["defaults"]
    assert "preset scratch, for what no flag sets:" in capsys.readouterr().err
