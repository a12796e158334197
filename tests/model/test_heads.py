# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Regression, several labels and matching: label columns, training, class weights, calibration and reports."""

import json
import re

import numpy as np
import pytest
import torch
from helpers.builders import drawing, mm_model, pictures, token_row
from sklearn import metrics as sklearn_metrics
from torch.nn import functional

from modeling_mm import MMForSequenceClassification, cli
from modeling_mm.checkpoint import load_checkpoint, read_config
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.media import BadRow
from modeling_mm.data.negatives import choose_negatives, with_negatives
from modeling_mm.data.rows import Row
from modeling_mm.data.targets import balanced_weights, head_options, read_labels, read_numbers
from modeling_mm.evaluation import metrics
from modeling_mm.evaluation.calibration import expected_calibration_error, fit_temperature
from modeling_mm.tasks import task_of

SCRATCH = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--fusion_layers", "0", "1"]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no"]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}


@pytest.fixture
def folder(tmp_path):
    """A folder with images of one colour and `t.csv`, which has a column for every task."""
    lines = ["image,text,label,price,weight,tags,caption"]
    for i in range(24):
        name = list(COLOURS)[i % 4]
        drawing([min(255, c + i) for c in COLOURS[name]], 64).save(tmp_path / f"{i}.png")
        tags = ["warm", "cold|dark", "cold", "[]"][i % 4]
        lines.append(f"{i}.png,piece {i % 3},{name},{1000 + 10 * (i % 4)},{i % 4 / 10},{tags},a {name} square")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def command(capsys, *argv):
    """The results of a command that must succeed."""
    assert cli.main([*map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def train(folder, *argv, out="out"):
    few = ["--num_train_epochs", 1, "--per_device_train_batch_size", 8, "--learning_rate", "2e-3"]
    return ["train", "--train_file", folder / "t.csv", *SCRATCH, *QUIET, *few, "--output_dir", folder / out, *argv]


def evaluate(folder, *argv):
    return ["evaluate", "--model", folder / "out", "--test_file", folder / "t.csv", "--device", "cpu", *argv]


def refuse(capsys, *argv):
    """The error message of a command that must fail."""
    assert cli.main([*map(str, argv)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_numbers_are_learnt_scaled_and_said_in_their_unit(folder, capsys):
    report = command(
        capsys, *train(folder, "--task", "regression", "--label_column", "price,weight", "--num_train_epochs", 4)
    )
    assert {"mae", "rmse", "r2", "pearson", "blind_r2"} <= set(report)
    config = read_config(str(folder / "out"))
    assert config.id2label == {0: "price", 1: "weight"} and config.problem_type == "regression"
    output = command(capsys, "predict", "--model", folder / "out", "--image", folder / "1.png", "--text", "piece 1")
    numbers = output["results"][0]["numbers"]
    assert 980 < numbers["price"] < 1050 and -0.2 < numbers["weight"] < 0.5
    again = command(capsys, *evaluate(folder, "--label_column", "price,weight"))
    assert set(again["modalities"]) == {"all", "image alone", "text alone"}
    assert again["mae"] < 25  # for prices around 1015, so that the error is not in scaled units


def test_several_labels_are_learnt_together(folder, capsys):
    argv = ["--task", "multilabel", "--label_column", "tags", "--class_weights", "balanced", "--calibrate", "true"]
    report = command(capsys, *train(folder, *argv))
    assert {"micro_f1", "macro_f1", "map", "ece", "ece_uncalibrated", "blind_micro_f1"} <= set(report)
    model, _ = load_checkpoint(str(folder / "out"))
    assert list(model.config.id2label.values()) == ["cold", "dark", "warm"] and task_of(model) == "multilabel"
    assert len(model.config.class_weights) == 3
    again = command(capsys, *evaluate(folder, "--label_column", "tags"))
    rows = [json.loads(line) for line in (folder / "out/evaluation/predictions.jsonl").read_text().splitlines()]
    assert rows[1]["truth"] == ["cold", "dark"] and rows[3]["truth"] == [] and again["rows"] == 24
    (result,) = command(capsys, "predict", "--model", folder / "out", "--image", folder / "1.png")["results"]
    assert result["labels"] == [name for name, share in result["probabilities"].items() if share > 0.5]


def test_matching_learns_which_text_belongs_to_a_picture(folder, capsys):
    argv = ["--task", "matching", "--text_column", "caption", "--late_fusion", "gated"]
    report = command(capsys, *train(folder, *argv, "--calibrate", "true"))
    assert {"accuracy", "auc", "ece", "blind_accuracy"} <= set(report) and report["blind_accuracy"] == 0.5
    model, _ = load_checkpoint(str(folder / "out"))
    assert task_of(model) == "matching" and model.config.calibration_temperature > 0
    again = command(capsys, *evaluate(folder, "--text_column", "caption"))
    assert again["rows"] == 48 and again["modalities"]["text alone"] == again["modalities"]["image alone"] == 0.5
    texts = ["a red square", "a blue square"]
    output = command(capsys, "predict", "--model", folder / "out", "--image", folder / "0.png", "--text", *texts)
    assert set(output["results"][0]["probabilities"]) == {"match", "mismatch"}


@pytest.mark.parametrize("peft", ["false", "true"])
def test_the_report_is_one_file_with_all_in_it(folder, capsys, peft):
    argv = ["--task", "classification", "--late_fusion", "weighted", "--calibrate", "true", "--use_peft", peft]
    report = command(capsys, *train(folder, *argv))
    again = command(capsys, *evaluate(folder))
    page = (folder / "out/evaluation/report.html").read_text()
    for heading in (
        "Scores",
        "Modalities",
        "Learned weights",
        "Confusion",
        "Scores by label",
        "Calibration",
        "Samples",
    ):
        assert f"<h2>{heading}" in page
    assert page.count('src="data:image/png;base64,') == 5 and "prefers-color-scheme: dark" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert set(again["modality_weights"]) == {"text", "image"} and sum(
        again["modality_weights"].values()
    ) == pytest.approx(1)
    assert again["modalities"]["all"] == again["accuracy"] and "ece_uncalibrated" in again
    temperature = read_config(str(folder / ("out/base" if peft == "true" else "out"))).calibration_temperature
    assert temperature is not None and 0.05 <= temperature <= 20
    assert report["evaluated_on"] == "validation"
    assert "late fusion" in (folder / "out/README.md").read_text()


def test_labels_read_from_every_way_to_write_them():
    for cell in ("b|a", '["a", "b"]', ["b", "a", "a"], " a | b |"):
        assert read_labels(cell, "tags") == ["a", "b"]
    assert read_labels("[]", "tags") == [] and read_labels("", "tags") is None and read_labels(None, "tags") is None
    assert read_numbers({"a": "1e3", "b": 2}, ["a", "b"]) == [1000.0, 2.0]
    assert read_numbers({"a": "", "b": None}, ["a", "b"]) is None
    for cell in ("cheap", "nan", "inf", None, "1,5"):
        with pytest.raises(BadRow, match="'b' is .*expected a"):
            read_numbers({"a": 1, "b": cell}, ["a", "b"])


@pytest.mark.parametrize(
    "task, column, cell, message",
    [
        ("regression", "price", "cheap", "row 25: 'price' is 'cheap'; expected a number"),
        ("regression", "price", "", "row 25: 'price' is empty; expected a value"),
        ("multilabel", "tags", "", "row 25: 'tags' is empty; expected a value"),
        ("multilabel", "tags", "[warm", "row 25: 'tags' is '[warm'; expected labels like a|b or a JSON list"),
        ("classification", "label", "", "row 25: 'label' is empty; expected a value"),
        ("matching", "caption", "", "row 25: 'caption' is empty; matching needs an image and a text"),
    ],
)
def test_a_bad_label_is_named_by_row(folder, capsys, task, column, cell, message):
    names = (folder / "t.csv").read_text().splitlines()[0].split(",")
    values = {
        "image": "0.png",
        "text": "x",
        "label": "red",
        "price": "1",
        "tags": "warm",
        "caption": "y",
        column: cell,
    }
    with (folder / "t.csv").open("a") as file:
        file.write(",".join(values.get(name, "1") for name in names) + "\n")
    flag = ["--text_column", column] if task == "matching" else ["--label_column", column]
    assert message in refuse(capsys, *train(folder, "--task", task, *flag))


def test_what_cannot_be_learnt_is_refused(folder, capsys):
    def say(task, *argv):
        return refuse(capsys, *train(folder, "--task", task, *argv))

    lines = (folder / "t.csv").read_text().splitlines()
    (folder / "v.csv").write_text("\n".join([lines[0], "0.png,x,purple,1,1,purple,y"]) + "\n")
    for task, column in (("classification", "label"), ("multilabel", "tags")):
        message = say(task, "--label_column", column, "--validation_file", folder / "v.csv")
        assert "v.csv, row 1: the label 'purple' is unknown; expected one of" in message
    assert "--class_weights balanced is for classification" in say("matching", "--class_weights", "balanced")
    assert "--task regression predicts none" in say("regression", "--label_column", "price", "--calibrate", "true")
    assert "--task generation needs cross-attention" in say("generation", "--late_fusion", "sum")
    assert "has no column 'size'" in say("regression", "--label_column", "price,size")
    same = [",".join([*line.split(",")[:2], "red", "7", "1", "warm", "a square"]) for line in lines[1:]]
    (folder / "t.csv").write_text("\n".join([lines[0], *same]) + "\n")
    assert "has only the label 'red'; expected at least two" in say("classification")
    assert "has only the label 'warm'; expected at least two" in say("multilabel", "--label_column", "tags")
    assert "has only the number 7 in 'price'" in say("regression", "--label_column", "price")
    assert "no two rows whose texts differ" in say("matching", "--text_column", "caption")


def test_negatives_are_wrong_and_the_same_for_a_seed():
    rows = [Row(i, [f"{i % 6}.png"], f"text {i % 4}") for i in range(24)]
    chosen = choose_negatives(rows, seed=0)
    positives = {(row.images[0], row.text) for row in rows}
    assert chosen == choose_negatives(rows, seed=0) != choose_negatives(rows, seed=1)
    assert None not in chosen
    assert not any((row.images[0], rows[other].text) in positives for row, other in zip(rows, chosen, strict=True))
    pairs = with_negatives(rows, seed=0)
    assert [pair.target for pair in pairs] == [1] * 24 + [0] * 24
    assert [pair.images for pair in pairs[24:]] == [row.images for row in rows]
    grouped = [Row(i, [f"{i}.png"], f"text {i}", target=str(i % 2)) for i in range(8)]
    assert all(i % 2 != other % 2 for i, other in enumerate(choose_negatives(grouped, seed=0)))
    assert choose_negatives([Row(i, [f"{i}.png"], "same") for i in range(3)], 0) == [None] * 3


def test_a_batch_of_a_matching_holds_each_picture_once(folder, processor):
    rows = [Row(i, [str(folder / f"{i}.png")], f"text {i}") for i in range(4)]
    batch = MMCollator(processor, "matching", negatives_seed=0)(rows)
    assert batch["labels"].tolist() == [1] * 4 + [0] * 4
    assert batch["pixel_values"].shape[0] == 4 and batch["image_index"].flatten().tolist() == [0, 1, 2, 3] * 2


def head(**fields):
    return mm_model("bert", head=MMForSequenceClassification, **fields)


def test_weighted_rows_count_as_they_say_in_any_batch():
    ids = torch.stack([token_row(5) for _ in range(4)])
    labels = torch.tensor([0, 2, 2, 1])
    model = head(num_labels=3, class_weights=[2.0, 0.5, 1.0])
    rows = functional.cross_entropy(model(ids).logits, labels, reduction="none")
    whole = model(ids, labels=labels).loss
    torch.testing.assert_close(whole, (rows * torch.tensor([2.0, 1.0, 1.0, 0.5])).mean())
    halves = [model(ids[half], labels=labels[half]).loss for half in (slice(2), slice(2, 4))]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
    several = torch.eye(3)[labels]
    model = head(num_labels=3, class_weights=[2.0, 1.0, 3.0], problem_type="multi_label_classification")
    weights = torch.where(several > 0, torch.tensor([2.0, 1.0, 3.0]), 1.0)
    expected = functional.binary_cross_entropy_with_logits(model(ids).logits, several, weight=weights)
    torch.testing.assert_close(model(ids, labels=several).loss, expected)


def test_balanced_weights_make_classes_count_the_same():
    targets = ["a"] * 6 + ["b"] * 3 + ["c"]
    weights = balanced_weights("classification", ["a", "b", "c"], targets)
    assert np.allclose([6 * weights[0], 3 * weights[1], weights[2]], 10 / 3)
    assert balanced_weights("multilabel", ["a", "b"], [["a"], ["a", "b"], ["a"], []]) == [1 / 3, 3.0]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_regression_s_output_is_in_the_label_s_unit(dtype, tmp_path):
    numbers = [[1000.0, 0.1], [3000.0, 0.5], [2000.0, 0.3]]
    options = head_options("regression", ["price", "weight"], numbers, False, "t.csv")
    model = head(**options).to(dtype)
    raw = []
    model.classifier.register_forward_hook(lambda module, args, output: raw.append(output.float()))
    ids, labels = torch.stack([token_row(5) for _ in range(3)]), torch.tensor(numbers)
    output = model(ids, **pictures(3), labels=labels)
    mean, scale = (torch.tensor(np.array(f(numbers, axis=0)), dtype=torch.float32) for f in (np.mean, np.std))
    torch.testing.assert_close(output.logits, raw[0] * scale + mean)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(output.loss.float(), functional.mse_loss(raw[0], (labels - mean) / scale), **tolerance)
    model.save_pretrained(tmp_path)
    assert MMForSequenceClassification.from_pretrained(tmp_path).config.label_scale == options["label_scale"]


@torch.no_grad()
def test_a_temperature_divides_the_logits_and_no_loss():
    ids, labels = torch.stack([token_row(5), token_row(5)]), torch.tensor([0, 2])
    model = head(num_labels=3)
    before = model(ids, labels=labels)
    model.config.calibration_temperature = 2.5
    after = model(ids, labels=labels)
    torch.testing.assert_close(after.logits, before.logits / 2.5)
    assert torch.equal(after.loss, before.loss)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_calibration_finds_the_temperature_that_labels_were_drawn_with(task):
    generator = np.random.default_rng(0)
    honest = generator.normal(size=(20000, 4)) * 2
    shares = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    labels = np.array([generator.choice(4, p=p) for p in shares])
    if task == "multilabel":
        labels = (generator.random(honest.shape) < 1 / (1 + np.exp(-honest))).astype(int)
    assert fit_temperature(task, honest * 3, labels) == pytest.approx(3, rel=0.05)
    assert expected_calibration_error(task, honest, labels) < 0.02 < 0.1 < expected_calibration_error(
        task, honest * 3, labels
    )  # fmt: skip


def test_metrics_are_scikit_learn_s():
    generator = np.random.default_rng(0)
    truths = generator.normal(size=(50, 1)) * 9
    predictions = truths + generator.normal(size=truths.shape)
    ours = metrics.regression_metrics(predictions, truths)
    assert ours["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(truths, predictions))
    assert ours["rmse"] == pytest.approx(sklearn_metrics.root_mean_squared_error(truths, predictions))
    assert ours["r2"] == pytest.approx(sklearn_metrics.r2_score(truths, predictions))
    assert ours["pearson"] == pytest.approx(np.corrcoef(truths[:, 0], predictions[:, 0])[0, 1])
    assert np.isnan(metrics.regression_metrics(predictions[:1], truths[:1])["r2"])
    only_one_kind = metrics.head_metrics("matching", np.eye(2), np.array([1, 1]))
    assert only_one_kind["accuracy"] == 0.5 and np.isnan(only_one_kind["auc"])
