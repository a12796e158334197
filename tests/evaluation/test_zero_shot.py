# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Zero-shot classification: the pipeline's answers, several templates per class, one-sentence errors."""

import json

import numpy as np
import pytest
import torch
from helpers.builders import drawing, save
from helpers.retrieval import COLOURS, QUIET, SCRATCH, command
from torch.nn import functional
from transformers import pipeline

from modeling_mm import MMForImageTextRetrieval, MMForSequenceClassification, cli
from modeling_mm.checkpoint import load_checkpoint
from modeling_mm.data.collator import RetrievalCollator
from modeling_mm.evaluation.zero_shot import class_embeddings, evaluate_zero_shot, labelled_images

TEMPLATES = ["what colour is the {}", "is there a {} square", "{}"]


@pytest.fixture
def finder(tmp_path, processor):
    """A folder with an untrained retrieval model."""
    return save(tmp_path / "finder", processor, MMForImageTextRetrieval, "bert")


@pytest.fixture
def table(tmp_path):
    """The table `t.csv` of images of seven classes, three of each."""
    words = ["red", "blue", "green", "circle", "square", "small", "blue circle"]  # that the tokenizer knows
    shades = dict(zip(words, [*COLOURS.values(), (9, 9, 9), (250, 250, 250), (240, 240, 150)], strict=True))
    lines = ["image,label"]
    for i, name in enumerate([*shades] * 3):
        drawing([min(255, part + i) for part in shades[name]], 32).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{name}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.csv"


def evaluate(capsys, model, table, *argv):
    return command(
        capsys, "evaluate", "--model", model, "--test_file", table, "--label_column", "label", "--device", "cpu", *argv
    )


def test_with_one_template_it_answers_as_the_pipeline(finder, table, capsys):
    result = evaluate(capsys, finder, table, "--prompt_templates", TEMPLATES[0], "--batch_size", 4)
    model, processor = load_checkpoint(finder)
    rows = labelled_images(str(table), "test", "image", "label", skip=False)
    evaluation = evaluate_zero_shot(model, RetrievalCollator(processor, "retrieval"), rows, TEMPLATES[:1], 5)
    ask = pipeline("zero-shot-image-classification", model=finder)
    lines = (table.parent / "finder/evaluation/predictions.jsonl").read_text().splitlines()
    predictions, right, top = [json.loads(line) for line in lines], 0, 0
    for index, row in enumerate(predictions):
        answers = ask(str(table.parent / f"{index}.png"), rows.labels, hypothesis_template=TEMPLATES[0])
        shares = torch.tensor(evaluation.logits[index]).softmax(dim=0).tolist()
        expected = {answer["label"]: answer["score"] for answer in answers}
        assert dict(zip(rows.labels, shares, strict=True)) == pytest.approx(expected, abs=1e-5)
        assert row["prediction"] == answers[0]["label"]
        right += answers[0]["label"] == row["truth"]
        top += row["truth"] in [answer["label"] for answer in answers[:5]]
    assert len(predictions) == 21 and len({row["prediction"] for row in predictions}) > 1
    assert result["accuracy"] == pytest.approx(right / 21, abs=1e-6)
    assert result["top5_accuracy"] == pytest.approx(top / 21, abs=1e-6)
    assert result["interval"]["accuracy"][0] <= right / 21 <= result["interval"]["accuracy"][1]
    assert result["classes"] == 7 and result["templates"] == TEMPLATES[:1] and result["rows"] == 21


def test_a_class_is_the_mean_of_its_sentences(finder):
    model, processor = load_checkpoint(finder)
    names = ["red", "blue circle"]
    found = class_embeddings(model, RetrievalCollator(processor, "retrieval"), names, TEMPLATES, 4)
    for name, embedding in zip(names, found, strict=True):
        embeds = []
        for template in TEMPLATES:
            tokens = processor.tokenizer(template.format(name), return_tensors="pt")
            with torch.no_grad():
                embeds.append(model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output[0])
        assert np.ptp(torch.stack(embeds).numpy(), axis=0).max() > 1e-3
        torch.testing.assert_close(embedding, functional.normalize(torch.stack(embeds).mean(dim=0), dim=0))


@pytest.mark.slow
def test_a_trained_model_knows_classes_by_name(tmp_path, capsys):
    lines = ["image,caption,colour"]
    for i, name in enumerate([*COLOURS] * 8):
        drawing([min(255, part + i) for part in COLOURS[name]], 64).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,a {name} square,{name}")
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("\n".join(lines[:25]) + "\n")
    test.write_text("\n".join([lines[0], *lines[25:]]) + "\n")
    few = ["--num_train_epochs", 12, "--per_device_train_batch_size", 8, "--learning_rate", "3e-3"]
    columns = ["--task", "retrieval", "--text_column", "caption", "--output_dir", tmp_path / "out"]
    command(capsys, "train", "--train_file", train, *columns, *SCRATCH, *QUIET, *few)
    asked = ["--label_column", "colour", "--prompt_templates", "a {} square", "{}"]
    result = command(capsys, "evaluate", "--model", tmp_path / "out", "--test_file", test, "--device", "cpu", *asked)
    assert result["accuracy"] >= 0.75 and result["rows"] == 8  # by chance, a quarter
    assert result["top5_accuracy"] is None  # of four classes
    report = (tmp_path / "out/evaluation/report.html").read_text()
    assert "Prompts: the names of 4 classes in: a {} square; {}." in report and "Scores by label" in report


@pytest.mark.parametrize(
    "asked, message",
    [
        (["--prompt_templates", "a photo"], "--prompt_templates has 'a photo'; expected a sentence with {} for"),
        (["--rerank", 3], "--rerank is for retrieval; leave it out with --label_column"),
        (["--audio_column", "sound"], "retrieval models are evaluated on images and texts; leave out --audio_column"),
        (["--label_column", "colour"], "has no column 'colour'; it has image, label"),
    ],
)  # fmt: skip
def test_bad_flags_are_refused(finder, table, capsys, asked, message):
    argv = ["evaluate", "--model", finder, "--test_file", table, "--label_column", "label", *asked]
    assert cli.main([*map(str, argv)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "row, message",
    [
        (",red", "row 22: 'image' is empty"),
        ("0.png,", "row 22: 'label' is empty; expected a value"),
        ("gone.png,red", "row 22: the image"),
    ],
)
def test_bad_rows_are_refused_or_left_out(finder, table, capsys, row, message):
    table.write_text(table.read_text() + row + "\n")
    argv = ["evaluate", "--model", finder, "--test_file", table, "--label_column", "label"]
    assert cli.main([*map(str, argv)]) == 2
    assert message in capsys.readouterr().err
    result = evaluate(capsys, finder, table, "--on_bad_row", "skip")
    assert result["rows"] == 21 and result["skipped_rows"] == 1 and result["templates"] == ["a photo of a {}"]


def test_one_class_is_refused(finder, table, capsys):
    table.write_text("image,label\n0.png,red\n1.png,red\n")
    argv = ["evaluate", "--model", finder, "--test_file", table, "--label_column", "label"]
    assert cli.main([*map(str, argv)]) == 2
    assert "has only the label 'red'; expected at least two labels" in capsys.readouterr().err


def test_templates_are_for_retrieval_with_classes(finder, table, tmp_path, processor, capsys):
    labels = {0: "red", 1: "blue"}
    classifier = save(tmp_path / "classifier", processor, MMForSequenceClassification, "bert", id2label=labels)
    for model, argv in ((classifier, ["--label_column", "label"]), (finder, [])):
        asked = ["evaluate", "--model", model, "--test_file", table, "--prompt_templates", "a {}", *argv]
        assert cli.main([*map(str, asked)]) == 2
        assert "--prompt_templates is for retrieval models with a --label_column" in capsys.readouterr().err
