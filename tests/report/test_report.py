# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Reports of evaluations: intervals of scores that hold, weights and gates of a model."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers.builders import drawing, mixed_rows, mm_model, padded, pictures
from PIL import Image
from sklearn.metrics import f1_score

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, cli
from modeling_mm.evaluation import metrics
from modeling_mm.evaluation.predictions import Evaluation, interval, main_score, with_intervals
from modeling_mm.report import figures
from modeling_mm.report.html import Section, cell, write_page, write_report
from modeling_mm.report.sections import search_section
from modeling_mm.tasks import TASKS


def classifier(kind, **fields):
    return mm_model("bert", head=MMForSequenceClassification, late_fusion=kind, num_labels=3, **fields)


def batch():
    """Four rows, the first without an image."""
    rows, index = mixed_rows()
    inputs = {name: value for name, value in padded(rows).items() if name != "position_ids"}
    return {**inputs, **pictures(2), "image_index": index}


@pytest.mark.parametrize("kind", ["weighted", "gated"])
def test_the_weights_of_a_row_add_up_to_one_over_what_it_has(kind):
    model = classifier(kind)
    torch.nn.init.normal_(model.late_fusion.modality_logits if kind == "weighted" else model.late_fusion.gate.weight)
    weights = model.modality_weights(**batch())
    assert list(weights) == ["text", "image"]
    torch.testing.assert_close(weights["text"] + weights["image"], torch.ones(4))
    assert weights["image"].eq(0).tolist() == [True, False, False, False]
    if kind == "weighted":
        learned = model.late_fusion.modality_weights()
        torch.testing.assert_close(weights["image"][1:], torch.full((3,), learned["image"]))
    else:
        assert weights["image"][1:].unique().numel() == 3  # they depend on the row
    assert not model.late_fusion._forward_hooks


@pytest.mark.parametrize("kind", [None, "sum", "product"])
def test_a_model_that_does_not_weigh_has_no_weights(kind):
    assert classifier(kind).modality_weights(**batch()) is None


def test_gates_are_told_by_the_layer_they_stand_before():
    model = mm_model("llama", gate=0.5)
    expected = pytest.approx(np.tanh(0.5))
    for module in (model, model.model):
        gates = module.fusion_gates()
        assert [gate["before_text_layer"] for gate in gates] == [0, 2]
        assert all(gate["cross_attention"] == expected and gate["mlp"] == expected for gate in gates)
    assert "mlp" not in mm_model(fusion_mlp=False).fusion_gates()[0]
    closed = mm_model(head=MMForConditionalGeneration, gate=0.0).fusion_gates()
    assert [gate["cross_attention"] for gate in closed] == [0, 0]
    assert classifier("gated").fusion_gates() == []


def test_an_interval_of_a_share_holds_it_and_narrows_with_rows():
    for right, rows in ((0, 20), (20, 20), (7, 20), (700, 2000)):
        low, high = metrics.wilson(right, rows)
        assert 0 <= low <= right / rows <= high <= 1 and high > low
    assert np.diff(metrics.wilson(700, 2000)) < np.diff(metrics.wilson(7, 20)) / 5


def scored(logits, truths):
    """An evaluation with these outputs and labels; an interval does not need the metrics."""
    return Evaluation({}, [None] * len(logits), [None] * len(truths), logits, truths)


def test_drawn_intervals_hold_the_score_of_all_rows_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    held = []
    for _ in range(60):
        truths = generator.normal(size=(80, 1))
        predictions = truths + generator.normal(size=truths.shape)  # R2 over all such rows: 1 - 1 / 1 = 0
        low, high = interval("regression", scored(predictions, truths))
        held.append(low <= 0 <= high)
    assert 0.8 < np.mean(held) <= 1


def test_main_scores_are_those_of_the_metrics():
    generator = np.random.default_rng(0)
    logits, several = generator.normal(size=(40, 3)), generator.integers(2, size=(40, 3))
    numbers = logits + generator.normal(size=logits.shape)
    for task, truths in (("multilabel", several), ("regression", numbers)):
        expected = metrics.head_metrics(task, logits, truths)[TASKS[task].main_metric]
        assert main_score(task, scored(logits, truths))(np.arange(40)) == pytest.approx(expected)
    assert interval("regression", scored(logits[:1], numbers[:1])) is None
    assert cell((0.25, 0.7512345)) == "0.250 to 0.751"


def test_f1_is_scikit_learn_s_and_of_one_label_that_of_the_label():
    generator = np.random.default_rng(0)
    for columns in (1, 4):
        logits, truths = generator.normal(size=(30, columns)), generator.integers(2, size=(30, columns))
        truths[:, 1:2] = 0  # a label that no row has
        scores = metrics.head_metrics("multilabel", logits, truths)
        micro, macro = ("micro", "macro") if columns > 1 else ("binary", "binary")
        assert scores["micro_f1"] == pytest.approx(f1_score(truths, logits > 0, average=micro))
        assert scores["macro_f1"] == pytest.approx(f1_score(truths, logits > 0, average=macro, zero_division=0))
    assert metrics.micro_f1(-np.ones((3, 2)), np.zeros((3, 2))) == 0


def test_of_equal_numbers_neither_r2_nor_pearson_says_anything(recwarn):
    equal, numbers = np.ones((20, 2)), np.random.default_rng(0).normal(size=(20, 2))
    for predictions, truths in ((equal, numbers), (numbers, equal), (equal, equal)):
        scores = metrics.regression_metrics(predictions, truths)
        assert np.isnan(scores["pearson"]) and np.isfinite(scores["r2"]) == (truths is numbers)
        assert (interval("regression", scored(predictions, truths)) is None) == (truths is equal)
    rare = np.zeros((20, 2))
    rare[0, 0] = rare[1, 1] = 1  # 36 % of the resamples lack a row of one column, 60 % that of either
    assert None not in interval("regression", scored(numbers[:, :1], rare[:, :1]))
    assert interval("regression", scored(numbers, rare)) is None
    assert not recwarn.list


def test_what_changes_is_scored_on_the_same_resampled_rows():
    generator = np.random.default_rng(0)
    truths = generator.normal(size=(60, 1))
    predictions = truths + generator.normal(size=truths.shape)
    whole, shifted = (scored(values, truths) for values in (predictions, predictions + 1e-3))
    whole.metrics["r2"] = shifted.metrics["r2"] = 0.0
    assert with_intervals("regression", whole, whole)["its interval"] is None
    row = with_intervals("regression", shifted, whole)
    assert np.ptp(row["its interval"]) < 0.02 < np.ptp(row["interval"])
    assert interval("regression", whole) == interval("regression", whole)  # the seed is fixed
    same = scored(predictions.copy(), truths)
    same.metrics["r2"] = 0.0
    assert with_intervals("regression", same, whole)["its interval"] == (0, 0)


def ink(path):
    """The share of an image's pixels that are not white."""
    return float((np.asarray(Image.open(path).convert("L")) < 250).mean())


def test_pictures_take_many_classes_long_names_and_negative_numbers(tmp_path):
    names = [f"a class with a name that is much too long for its place, number {i}" for i in range(57)]
    figures.draw_confusion(names, names, tmp_path / "c.png", order=names)
    figures.draw_bars([(name, 0.5) for name in names], "F1", tmp_path / "b.png")
    figures.draw_bars([("mlp", -0.004), ("attention", 0.003)], "gate", tmp_path / "g.png", signed=True)
    figures.draw_bars([("all", -0.2), ("none", 0.0)], "r2", tmp_path / "r.png", ends=[(-0.9, 0.1), None])
    figures.draw_reliability({"": [(0.99, 1.0, 3)], "before": [(0.1, 0.0, 1), (0.5, 0.4, 10)]}, tmp_path / "k.png")
    figures.draw_scatter(np.arange(3.0), np.zeros(3), ["x"], tmp_path / "s.png")
    for path in tmp_path.glob("*.png"):
        width, height = Image.open(path).size
        assert 300 < width < 2600 and 100 < height < 2600 and ink(path) > 0.005, path


class Page(HTMLParser):
    """Parser that collects the tags of a page, their attributes' names and values, and its texts."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_report_of_a_searched_model_shows_its_trials(tmp_path):
    assert search_section(tmp_path) == []
    for text in ("{}", '{"search": {"tri'):
        (tmp_path / "report.json").write_text(text)
        assert search_section(tmp_path) == []
    rows = [
        {"trial": 0, "state": "complete", "eval_r2": 0.5, "seconds": 9.5, "values": {}},
        {"trial": 1, "state": "pruned", "eval_r2": None, "seconds": 2.0, "values": {"augment_images": [], "lr": 1.0}},
    ]
    search = {"metric": "eval_r2", "best_trial": 0, "importance": {}, "trials": rows}
    (tmp_path / "report.json").write_text(json.dumps({"search": search}))
    drawing((200, 30, 30)).save(tmp_path / "search.png")
    write_report(tmp_path / "report.html", "title", "", search_section(tmp_path))
    page = Page(tmp_path / "report.html")
    assert {"Search", "eval r2", "augment images", "pruned", "none", "–", "9.5"} <= set(page.texts)
    assert any("by eval r2" in text and "Trial 0 was trained" in text for text in page.texts) and "img" in page.tags


def test_pages_escape_every_text_of_the_data(tmp_path):
    hostile = "<script>alert('{{ 7 * 7 }}')<b> \" onload=\"x"
    drawing((200, 30, 30)).save(tmp_path / "p.png")
    table = [{"a_b": hostile, hostile: None}, {"later": 0.123456}]
    write_report(
        tmp_path / "report.html",
        hostile,
        hostile,
        [Section(hostile, hostile, table, tmp_path / "p.png"), Section("x")],
    )
    hit = {"rank": 1, "id": hostile, "image": str(tmp_path / "p.png"), "score": 0.5, "matching": None}
    hits = [hit | {"metadata": {hostile: hostile, "absent": None}}, hit | {"image": "missing.png", "metadata": {}}]
    write_page(tmp_path / "new" / "search.html", hostile, str(tmp_path / "p.png"), hostile, hits)
    report, search = Page(tmp_path / "report.html"), Page(tmp_path / "new" / "search.html")
    for page in (report, search):
        assert not page.tags & {"script", "b"} and {"img", "h1"} <= page.tags
        names = {"lang", "charset", "name", "content", "class", "alt", "src", "title"}
        assert {name for name, _ in page.attributes} <= names and ("alt", hostile) in page.attributes
    assert report.texts.count(hostile) == 7  # title twice, subtitle; heading, text, column and cell of the section
    assert report.texts.count("–") == 4 and {"0.1235", "a b"} <= set(report.texts)
    assert search.texts.count(hostile) == 4 and ("title", hostile) in search.attributes
    assert search.texts.count("image cannot be read") == 1 and not {"absent", "matching"} & set(search.texts)


def test_an_evaluation_tells_rows_intervals_weights_and_gates(tmp_path, capsys):
    lines = ["image,text,label"]
    for i in range(16):
        drawing((15 * i, 240 - 15 * i, 90), 64).save(tmp_path / f"{i}.png")
        lines.append(f"{'' if i % 4 == 0 else f'{i}.png'},{'' if i % 4 == 1 else 'what'},{'ab'[i % 2]}")
    (tmp_path / "t.csv").write_text("\n".join([*lines, ",,a"]) + "\n")
    files = ["--train_file", tmp_path / "t.csv", "--validation_file", tmp_path / "t.csv", "--on_bad_row", "skip"]
    scratch = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--fusion_layers", "0", "1"]
    fusion = ["--late_fusion", "gated", "--cross_attention", "true", "--learning_rate", "1e-2"]
    quiet = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no", "--max_steps", "2"]
    argv = ["train", "--task", "classification", *files, *scratch, *fusion, *quiet, "--output_dir", tmp_path / "out"]
    assert cli.main([*map(str, argv)]) == 0
    argv = ["evaluate", "--model", tmp_path / "out", "--test_file", tmp_path / "t.csv", "--on_bad_row", "skip"]
    assert cli.main([*map(str, argv), "--device", "cpu", "--batch_size", "5"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    low, high = result["interval"]["accuracy"]
    assert low <= result["accuracy"] <= high and result["modality_intervals"]["all"] == [low, high]
    assert {row["modality"]: row["rows"] for row in result["modality_weights_of_rows"]} == {"text": 12, "image": 12}
    assert all(0 < weight <= 1 for weight in result["modality_weights"].values())
    assert len(result["fusion_gates"]) == 2 and all(gate["cross_attention"] for gate in result["fusion_gates"])
    page = (tmp_path / "out" / "evaluation" / "report.html").read_text()
    for words in (
        "16 rows of",
        "1 bad rows left out",
        "The 95 % interval of",
        "Gates of cross-attention",
        "Rows left out",
    ):
        assert words in page
    assert page.count("data:image/png;base64,") == 6
