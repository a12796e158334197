# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Metrics of answers have the values of their definitions, and refuse what they cannot compute in a sentence."""

import pytest

from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns, Row
from modeling_mm.data.tables import read_table
from modeling_mm.evaluation import text_metrics as module
from modeling_mm.evaluation.text_metrics import SCORES, normalized_answer, text_metrics

TEXT_METRICS = tuple(SCORES)

TEN = ["red"] * 3 + ["dark red"] * 6 + ["green"]


@pytest.mark.parametrize(
    "prediction, answers, expected",
    [
        ("dark red", TEN, 1.0),
        ("Red.", TEN, (3 * 2 / 3 + 7 * 1) / 10),  # of each nine of ten answers
        ("green", TEN, 9 * (1 / 3) / 10),
        ("blue", TEN, 0.0),
        ("the two dogs", ["2 dogs"], 1.0),
    ],
)
def test_vqa_accuracy_counts_people(prediction, answers, expected):
    assert text_metrics(["vqa_accuracy"], [prediction], [answers])["vqa_accuracy"] == pytest.approx(expected, abs=1e-6)


def test_answers_are_compared_as_the_benchmark_does():
    assert normalized_answer("A man's hat, 3.5 (red)!") == "mans hat 3.5 red"
    assert normalized_answer("1,000.") == "1000" and normalized_answer("5.") == "5"


def test_each_metric_is_perfect_for_equal_answers_and_low_for_others():
    answers = ["a red circle on the left side", "two small dogs run over the grass"]
    equal = text_metrics(TEXT_METRICS, answers, [[answer] for answer in answers])
    assert {name: equal[name] for name in TEXT_METRICS[:4]} == dict.fromkeys(TEXT_METRICS[:4], 1.0)
    assert equal["cider"] == pytest.approx(10)
    other = text_metrics(TEXT_METRICS, ["nothing at all", "xyz"], [[answer] for answer in answers])
    assert all(value < 0.05 for value in other.values())


def test_a_table_holds_the_answers_of_several_people(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "how many", "answer": ["2", " two", "2", null]}\n')
    table, folder = read_table(str(tmp_path / "t.jsonl"))
    row = MMDataset("t", table, folder, Columns("", target="answer"), task="generation").check()[0]
    assert row.target == "2" and row.references == ["2", "2", "two"]
    assert Row(1, [], "", "yes").references == ["yes"]


def test_anls_is_zero_below_one_half():
    assert text_metrics(["anls"], ["abcd"], [["abce", "xyz"]])["anls"] == pytest.approx(0.75)
    assert text_metrics(["anls"], ["abcd"], [["axyz"]])["anls"] == 0


def test_rows_with_different_numbers_of_references():
    scores = text_metrics(
        ["bleu", "rouge_l"], ["a red circle here", "a dog"], [["a red circle here"], ["a cat", "a dog"]]
    )
    assert scores["rouge_l"] == 1.0 and scores["bleu"] > 0.9


def test_an_unknown_name_and_a_missing_library_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="names 'meteor'; expected vqa_accuracy, anls"):
        text_metrics(["meteor"], ["a"], [["a"]])
    monkeypatch.setattr(module.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError()))
    with pytest.raises(ValueError, match=r"needs the package sacrebleu: pip install 'modeling_mm\[text_metrics\]'"):
        text_metrics(["bleu"], ["a"], [["a"]])
