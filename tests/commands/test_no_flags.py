# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A table of ten columns: train with no flag but the file, evaluate and predict with none but the model."""

import json
from pathlib import Path

import pytest
from helpers.tables import TEN_KINDS, write_rows, write_ten_columns
from transformers import AutoConfig

from modeling_mm import cli

QUIET = ["--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "tables.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ten")
    write_ten_columns(folder)
    write_ten_columns(folder, 12, "test.csv", seed=1)
    return folder


@pytest.mark.slow
def test_a_table_of_ten_columns_trains_and_travels(folder, capsys):
    out = folder / "out"
    assert cli.main(["train", "--train_file", str(folder / "t.csv"), "--output_dir", str(out), *QUIET]) == 0
    captured = capsys.readouterr()
    result, page = json.loads(captured.out), captured.err.splitlines()
    assert "columns" not in result and 0 <= result["accuracy"] <= 1
    documented = DOCUMENT.read_text(encoding="utf-8").split("```\n")[1].splitlines()
    assert page[1 : 1 + len(documented)] == documented and documented[0].startswith("column    kind")
    assert any(line.endswith(r"--text $'title: ...\nnotes: ...'") for line in page)
    report = json.loads((out / "report.json").read_text())
    assert {name: column["kind"] for name, column in report["columns"].items()} == TEN_KINDS
    assert report["columns"]["weight"]["missing"] == 0.1 and len(report["columns"]["price"]["examples"]) == 2
    assert "title: ...\nnotes: ..." in (out / "README.md").read_text()
    columns = AutoConfig.from_pretrained(out).columns
    assert (columns["image"], columns["text"], columns["target"]) == ("photo", "title,notes", "label")

    evaluate = ["evaluate", "--model", str(out), "--test_file", str(folder / "test.csv"), "--device", "cpu"]
    assert cli.main(evaluate) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["rows"] == 12 and {"text alone", "image alone"} <= set(scores["modalities"])
    texts = [json.loads(line)["text"] for line in (out / "evaluation" / "predictions.jsonl").open()]
    assert all(text.startswith("title: ") for text in texts)
    assert cli.main([*evaluate, "--image_column", "", "--text_column", "title", "--label_column", "label"]) == 0
    assert "image alone" not in json.loads(capsys.readouterr().out)["modalities"]
    row = ["--image", str(folder / "img" / "1_0.png"), "--text", texts[0]]
    assert cli.main(["predict", "--model", str(out), *row, "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["label"] in ("bad", "fine", "good")


def test_a_question_is_one_sentence_and_nothing_is_trained(folder, capsys):
    text = (folder / "t.csv").read_text()
    (folder / "two.csv").write_text(text.replace("material,label", "target,label", 1))
    out = folder / "nothing"
    assert cli.main(["train", "--train_file", str(folder / "two.csv"), "--output_dir", str(out), *QUIET]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and not out.exists()
    assert (
        captured.err.strip()
        .splitlines()[-1]
        .endswith(
            "two.csv' has 2 columns that may be the label, target and label; name it, for example by --columns "
            '"target=label,label=ignore"'
        )
    )


def test_dates_and_marked_numbers_are_read_alike_in_all_verbs(tmp_path, capsys):
    """The label follows the date, and no number of the model is that of a day written otherwise."""
    rows = [
        [f"{1 + i % 28}.{1 + i % 12}.20{10 + i % 2}", f"{i},5 kg" if i % 9 else "NA", "old" if i % 2 == 0 else "new"]
        for i in range(60)
    ]
    path = write_rows(tmp_path / "t.csv", ["sold", "weight", "label"], rows)
    out, few = tmp_path / "out", ["--num_train_epochs", "30", "--learning_rate", "1e-2"]
    kinds = ["--columns", "weight=comma_number"]
    assert cli.main(["train", "--train_file", str(path), "--output_dir", str(out), *kinds, *few, *QUIET]) == 0
    assert "dates of the form %d.%m.%Y" in capsys.readouterr().err
    config = AutoConfig.from_pretrained(out)
    assert config.columns["forms"] == {"sold": "%d.%m.%Y", "weight": "comma"}
    sold, weight = config.table_columns
    assert 14_610 <= sold["mean"] <= 15_340 and 25 <= weight["mean"] <= 35  # days from 1970 to 2010 and 2011; kg
    assert cli.main(["evaluate", "--model", str(out), "--test_file", str(path), "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] >= 0.9
    for cell, label in (("3.3.2010", "old"), ("3.3.2011", "new")):
        table = json.dumps({"sold": cell, "weight": "12,5 kg"})
        assert cli.main(["predict", "--model", str(out), "--table", table, "--device", "cpu"]) == 0
        assert json.loads(capsys.readouterr().out)["results"][0]["label"] == label
    assert cli.main(["predict", "--model", str(out), "--table", '{"sold": "2010-03-03"}', "--device", "cpu"]) == 2
    assert "'sold' is '2010-03-03'; expected a date like %d.%m.%Y" in capsys.readouterr().err
    write_rows(tmp_path / "bad.csv", ["sold", "weight", "label"], [["13.13.2010", "1,5", "old"]])
    assert (
        cli.main(["evaluate", "--model", str(out), "--test_file", str(tmp_path / "bad.csv"), "--device", "cpu"]) == 2
    )
    assert "bad.csv, row 1: 'sold' is '13.13.2010'; expected a date" in capsys.readouterr().err
