"""Settings of the library's trainer that could be silently wrong here: they work, or are refused in one sentence."""

import csv
import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.builders import drawing, mm_model, padded, pictures, token_row
from torch.nn import functional
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from modeling_mm import MMForSequenceClassification, cli
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.tables import read_table
from modeling_mm.training.smoothing import smoothed_loss

TINY = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--use_cpu", "true", "--report_to", "none"]


def write_table(folder, labels, name="t.csv"):
    for i in range(4):
        drawing(60 * i).save(folder / f"{i}.png")
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "label"])
        writer.writerows([f"{i % 4}.png", f"what is {i}", label] for i, label in enumerate(labels))
    return str(folder / name)


@torch.no_grad()
def test_smoothed_answers_are_those_of_the_library_shifted():
    model = mm_model().eval()
    batch = {**padded([token_row(8, [1]), token_row(6, [0])]), **pictures(2)}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    logits = model(**batch).logits
    expected = LabelSmoother(epsilon=0.1)({"logits": logits}, labels, shift_labels=True)
    loss, plain = smoothed_loss(model, 0.1), model(**batch, labels=labels).loss
    torch.testing.assert_close(loss({"logits": logits}, labels), plain)  # evaluation does not smooth
    model.train()
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    torch.testing.assert_close(smoothed_loss(model, 0.0)({"logits": logits}, labels), plain)
    # the losses of parts, each divided by the labels of the whole batch, sum up to its loss
    count = (labels != -100).sum()
    parts = [loss({"logits": logits[i : i + 1]}, labels[i : i + 1], num_items_in_batch=count) for i in range(2)]
    assert abs((labels[:, 0] != -100).sum() - 2) == 0
    kept = (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(sum(parts) * count / kept, expected)


@torch.no_grad()
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5]])
def test_smoothed_labels_keep_class_weights(weights):
    names = {0: "a", 1: "b", 2: "c"}
    model = mm_model("bert", head=MMForSequenceClassification, id2label=names, class_weights=weights).eval()
    batch, labels = {**padded([token_row(6, [])] * 3), **pictures(3)}, torch.tensor([0, 1, 1])
    output = model(**batch, labels=labels)
    torch.testing.assert_close(smoothed_loss(model, 0.0)(output, labels), output.loss)
    rows = functional.cross_entropy(output.logits, labels, label_smoothing=0.2, reduction="none")
    expected = (rows * torch.tensor(weights or [1.0] * 3)[labels]).mean()
    model.config.calibration_temperature = 2.0
    calibrated = model(**batch, labels=labels)
    torch.testing.assert_close(smoothed_loss(model, 0.2)(calibrated, labels), calibrated.loss)
    model.config.calibration_temperature = None
    model.train()
    torch.testing.assert_close(smoothed_loss(model, 0.2)(output, labels), expected)


@pytest.mark.parametrize(
    "flags,sentence",
    [
        (["--task", "regression", "--label_smoothing_factor", "0.1"], "which --task regression does not have"),
        (["--task", "multilabel", "--label_smoothing_factor", "0.1"], "which --task multilabel does not have"),
        (["--task", "retrieval", "--label_smoothing_factor", "0.1"], "which --task retrieval does not have"),
        (["--label_smoothing_factor", "1.5"], "expected at least 0 and less than 1"),
        (["--push_to_hub", "true"], "modeling-mm push --model .* --repo_id USER/NAME"),
        (["--early_stopping_patience", "2"], "give --load_best_model_at_end true"),
        (["--early_stopping_patience", "0"], "expected 1 or more"),
    ],
)
def test_what_would_not_do_what_it_says_is_refused(tmp_path, capsys, flags, sentence):
    argv = ["train", "--train_file", write_table(tmp_path, "ab" * 4), *TINY, "--output_dir", str(tmp_path / "out")]
    task = [] if "--task" in flags else ["--task", "classification"]
    assert cli.main([*argv, *task, *flags]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_early_stopping_stops(tmp_path, capsys):
    table = write_table(tmp_path, "ab" * 4)
    argv = ["train", "--task", "classification", "--train_file", table, "--validation_file", table, *TINY]
    argv += ["--output_dir", str(tmp_path / "out"), "--num_train_epochs", "30", "--learning_rate", "0"]
    argv += ["--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end", "true"]
    argv += [
        "--metric_for_best_model",
        "accuracy",
        "--early_stopping_patience",
        "2",
        "--label_smoothing_factor",
        "0.1",
    ]
    assert cli.main(argv) == 0
    json.loads(capsys.readouterr().out.splitlines()[-1])
    state = json.loads(next((tmp_path / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["epoch"] <= 3


def test_holding_out_leaves_every_class_rows_to_learn_from(tmp_path, caplog):
    labels = ["common"] * 60 + ["rare"] * 2 + ["once"]
    source = write_table(tmp_path, labels)
    with open(source) as file:
        rows = [line.replace(".png", f"{i}.png", 1) if i else line for i, line in enumerate(file)]
    (tmp_path / "t.csv").write_text("".join(rows))  # one image per row
    table, folder = read_table(source)
    for seed in range(20):
        dataset = MMDataset(source, table, folder, Columns("", "text", "label"), task="classification")
        rest, held = dataset.hold_out(0.5, seed)
        assert set(rest.targets()) == {"common", "rare", "once"} and Counter(held.targets())["once"] == 0
        assert len(rest) + len(held) == len(labels) and 30 <= len(held) <= 32
    assert "2 classes have fewer than 5 rows: once, rare" in caplog.text


def test_predictions_of_the_plain_trainer_are_logits(tmp_path):
    model = mm_model("bert", head=MMForSequenceClassification, id2label={0: "a", 1: "b"})
    batch = {**padded([token_row(6, [])] * 4), **pictures(4)}
    rows = [{name: value[i] for name, value in batch.items()} | {"labels": i % 2} for i in range(4)]
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    found = Trainer(model=model, args=args).predict(rows)
    assert isinstance(found.predictions, np.ndarray) and found.predictions.shape == (4, 2)
    assert SimpleNamespace(**found.metrics).test_loss > 0


def test_fields_of_a_new_config_can_be_set(tmp_path):
    argv = ["train", "--train_file", write_table(tmp_path, ["a", "b"] * 8), "--output_dir", str(tmp_path / "run")]
    argv += ["--task", "classification", "--max_steps", "1", "--projector_norm", "layer", "--config_overrides"]
    assert cli.main([*argv, "fusion_gate_init=0,initializer_range=0.05", "classifier_dropout=0.25", *TINY]) == 0
    config = MMForSequenceClassification.from_pretrained(tmp_path / "run").config
    assert (config.fusion_gate_init, config.initializer_range, config.classifier_dropout) == (0, 0.05, 0.25)
    assert config.projector_norm == "layer"


@pytest.mark.parametrize("override", ["gates=0", "fusion_gate_init", "projector_norm=batch"])
def test_wrong_fields_of_a_config_are_refused(tmp_path, capsys, override):
    argv = ["train", "--train_file", write_table(tmp_path, ["a", "b"] * 8), "--output_dir", str(tmp_path / "run")]
    argv += ["--task", "classification", "--max_steps", "1"]
    assert cli.main([*argv, "--config_overrides", override, *TINY]) != 0
    assert override.partition("=")[0] in capsys.readouterr().err
