# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A table of numbers and categories through the commands: training, evaluation, prediction, pipeline, adapters."""

import csv
import json
import random

import datasets
import pytest
from helpers.builders import drawing
from transformers import pipeline

from modeling_mm import cli
from modeling_mm.checkpoint import load_checkpoint

HEADER = ["image", "note", "age", "fare", "sex", "constant", "id", "label"]
TOWERS = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--text_column", "note"]
TABLE = ["--number_columns", "age,fare", "constant", "--category_columns", "sex"]
TRAIN = ["--task", "classification", *TOWERS, "--per_device_train_batch_size", "16", "--learning_rate", "2e-3"]
QUIET = ["--use_cpu", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true"]


def write_rows(path, count=64, changes=None):
    """Rows in which old passengers of one sex survive; each fifth lacks its age, each seventh its image."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for number in range(count):
            age, sex = draw.randint(1, 80), draw.choice(["f", "m"])
            label = "yes" if (age > 40) == (sex == "f") else "no"
            cells = [
                "" if number % 7 == 3 else "red.png",
                "a passenger",
                "" if number % 5 == 4 else age,
                f"{draw.uniform(5, 90):.2f}",
                sex,
                1,
                number,
                label,
            ]
            cells = (changes or {}).get(number, dict)() or cells
            writer.writerow(cells)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    drawing((200, 30, 30)).save(folder / "red.png")
    write_rows(folder / "train.csv")
    write_rows(folder / "test.csv", 40)
    return folder


def train(folder, name, *argv, file="train.csv"):
    options = ["--train_file", str(folder / file), "--output_dir", str(folder / name)]
    return cli.main(["train", *TRAIN, *QUIET, *options, *argv])


def answers(folder, capsys, name, *argv):
    assert cli.main(["predict", "--model", str(folder / name), "--device", "cpu", *argv]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["results"]


@pytest.fixture(scope="module")
def trained(folder):
    """A model of image, text and table by both kinds of fusion."""
    both = ["--late_fusion", "concat", "--cross_attention", "true", "--num_train_epochs", "12"]
    assert train(folder, "both", *TABLE, *both) == 0
    return folder


def test_the_columns_are_in_config_and_processor_and_a_constant_one_is_left_out(trained, caplog):
    model, processor = load_checkpoint(str(trained / "both"))
    assert [column["name"] for column in model.config.table_columns] == ["age", "fare", "sex"]
    assert processor.table_columns[2] == {"name": "sex", "kind": "category", "values": ["f", "m"]}
    assert "bins" in model.config.table_columns[0] and "bins" not in processor.table_columns[0]


def test_evaluation_reads_the_columns_and_scores_without_the_table_and_each_column(trained, capsys):
    argv = ["--model", str(trained / "both"), "--test_file", str(trained / "test.csv"), "--text_column", "note"]
    assert cli.main(["evaluate", *argv]) == 0
    scores = json.loads((trained / "both" / "evaluation" / "metrics.json").read_text())
    assert {"without table", "table alone", "without image"} <= set(scores["modalities"])
    assert set(scores["without_columns"]) == {"age", "fare", "sex"}
    assert scores["accuracy"] > 0.8 > scores["modalities"]["without table"]
    assert scores["without_columns"]["sex"] < scores["accuracy"]
    report = (trained / "both" / "evaluation" / "report.html").read_text()
    assert "Columns of the table" in report


def test_predict_and_the_pipeline_give_the_same_answer(trained, capsys):
    cells = {"age": 61, "sex": "f"}
    image = str(trained / "red.png")
    (row,) = answers(trained, capsys, "both", "--table", json.dumps(cells), "--image", image, "--text", "a passenger")
    model, processor = load_checkpoint(str(trained / "both"))
    classify = pipeline("multimodal-classification", model=model, processor=processor)
    rows = [{"table": cells, "image": image, "text": "a passenger"}, {"text": "a passenger"}, {"table": cells}]
    alone = [classify(row, top_k=None) for row in rows]
    assert classify(rows, top_k=None, batch_size=3) == [
        [{"label": part["label"], "score": pytest.approx(part["score"], abs=1e-5)} for part in row] for row in alone
    ]
    for part in alone[0]:
        assert part["score"] == pytest.approx(row["probabilities"][part["label"]], abs=1e-4)
    (table_only,) = answers(trained, capsys, "both", "--table", json.dumps(cells))
    assert table_only["probabilities"] != row["probabilities"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ('{"heigth": 3}', "no column 'heigth'; it has age, fare, sex"),
        ('{"age": "12,5 kg"}', "'age' is '12,5 kg'; expected a number without a unit"),
        ("age=3", "expected a JSON object"),
        ("[3]", "expected a JSON object"),
    ],
)
def test_predict_refuses_a_bad_table(trained, capsys, table, reason):
    assert cli.main(["predict", "--model", str(trained / "both"), "--table", table]) == 2
    assert reason in capsys.readouterr().err


def test_explain_still_draws(trained, capsys):
    drawn = trained / "look.png"
    image = ["--image", str(trained / "red.png"), "--explain", str(drawn)]
    answers(trained, capsys, "both", *image, "--table", '{"age": 61}', "--text", "a passenger")
    assert drawn.is_file()


def test_a_file_without_the_columns_of_the_model_is_refused(trained, capsys, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("note,age,label\na,3,yes\n")
    argv = ["--model", str(trained / "both"), "--test_file", str(other), "--text_column", "note"]
    assert cli.main(["evaluate", *argv, "--image_column", ""]) == 2
    assert "has no column 'fare'" in capsys.readouterr().err
    columns = ["--text_column", "note", "--image_column", ""]
    argv = ["--model", str(trained / "both"), "--train_file", str(other), "--output_dir", str(tmp_path / "run")]
    assert cli.main(["train", *TRAIN[:2], *QUIET, *argv, *columns]) == 2
    assert "has no column 'fare'" in capsys.readouterr().err


def test_training_continues_with_the_columns_of_the_model(trained, capsys):
    argv = ["--model", str(trained / "both"), "--max_steps", "1", "--text_column", "note", "--task", "classification"]
    files = ["--train_file", str(trained / "train.csv"), "--output_dir", str(trained / "continued")]
    assert cli.main(["train", *QUIET, *files, *argv]) == 0
    old, new = (load_checkpoint(str(trained / name))[0] for name in ("both", "continued"))
    assert old.config.table_columns == new.config.table_columns
    assert cli.main(["train", *QUIET, *files, *argv, "--number_columns", "id"]) == 2
    assert "cannot be changed" in capsys.readouterr().err


@pytest.mark.parametrize("flags, fusion", [([], "sum"), (["--cross_attention", "true"], None)])
def test_a_table_alone_trains_by_late_fusion_or_cross_attention(folder, flags, fusion):
    nothing = ["--image_column", "", "--text_column", "", "--max_steps", "2"]
    assert train(folder, "alone", *TABLE, *nothing, *flags) == 0
    model, _ = load_checkpoint(str(folder / "alone"))
    assert model.config.late_fusion == fusion and model.config.cross_attention is bool(flags)


def test_the_table_trains_in_full_beside_adapters_and_is_reloaded(folder, capsys):
    lora = ["--use_peft", "true", "--late_fusion", "gated", "--cross_attention", "true", "--max_steps", "3"]
    assert train(folder, "lora", *TABLE, *lora) == 0
    base, _ = load_checkpoint(str(folder / "lora" / "base"))
    merged, _ = load_checkpoint(str(folder / "lora"))
    name = "model.fusion.table_tower.number_weight"
    assert not base.get_parameter(name).equal(merged.get_parameter(name))
    argv = ["--table", '{"age": 61, "sex": "m"}', "--text", "a passenger"]
    assert answers(folder, capsys, "lora", *argv)[0]["label"] in ("yes", "no")


@pytest.mark.parametrize("cell", ["12,5 kg", "inf", "many"])
def test_bad_cells_are_named_or_skipped(folder, capsys, cell):
    file = f"bad_{cell.split(',')[0]}.csv"
    write_rows(folder / file, changes={5: lambda: ["", "a passenger", cell, 3, "f", 1, 0, "yes"]})
    assert train(folder, "bad", *TABLE, "--max_steps", "1", file=file) == 2
    assert f"row 6: 'age' is '{cell}'; expected a" in capsys.readouterr().err
    assert train(folder, "bad", *TABLE, "--max_steps", "1", "--on_bad_row", "skip", file=file) == 0
    (bad,) = map(json.loads, (folder / "bad" / "bad_rows.jsonl").read_text().splitlines())
    assert bad["row"] == 6 and "'age'" in bad["reason"]


def test_decimal_commas_are_read_with_the_flag(folder, capsys):
    cells = {place: lambda: ["", "a passenger", "12,5", "", "f", 1, 0, "yes"] for place in range(64) if place % 2}
    cells |= {place: lambda: ["", "a passenger", "61,5", "", "m", 1, 0, "no"] for place in range(64) if not place % 2}
    write_rows(folder / "comma.csv", changes=cells)
    assert train(folder, "comma", "--number_columns", "age", "--max_steps", "1", file="comma.csv") == 2
    assert "--decimal , reads a decimal comma" in capsys.readouterr().err
    flag = ["--decimal", ",", "--max_steps", "1"]
    assert train(folder, "comma", "--number_columns", "age", *flag, file="comma.csv") == 0
    (column,) = load_checkpoint(str(folder / "comma"))[0].config.table_columns
    assert (column["bins"][0], column["bins"][-1]) == (12.5, 61.5)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--number_columns", "constant"], "no column of --number_columns and --category_columns has two different"),
        (["--number_columns", "heigth"], "has no column 'heigth'"),
        (["--number_columns", "age", "--category_columns", "age"], "as a number and as a category"),
        (["--number_columns", "label"], "has another use"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(folder, capsys, argv, reason):
    assert train(folder, "refused", *argv, "--max_steps", "1") == 2
    assert reason in capsys.readouterr().err


def test_a_frozen_tower_may_be_cached_beside_a_table(folder):
    frozen = ["--vision_trainable", "false", "--cache_features", str(folder / "features"), "--max_steps", "2"]
    assert train(folder, "cached", *TABLE, *frozen) == 0
    assert load_checkpoint(str(folder / "cached"))[0].config.table_columns is not None


def test_answers_are_generated_from_a_table(folder, capsys):
    task = ["--task", "generation", "--label_column", "label", "--max_steps", "2"]
    assert train(folder, "generating", *TABLE, *task) == 0
    argv = ["--table", '{"age": 61, "sex": "m"}', "--text", "survives?", "--image", str(folder / "red.png")]
    results = answers(folder, capsys, "generating", *argv, "--explain", str(folder / "generated.png"))
    assert "answer" in results[0]


def test_a_regression_reads_a_table(folder):
    task = ["--task", "regression", "--label_column", "id", "--max_steps", "2", "--late_fusion", "product"]
    assert train(folder, "regression", *TABLE, *task) == 0


def test_retrieval_takes_no_table(folder, capsys):
    argv = ["--task", "retrieval", *TOWERS, "--train_file", str(folder / "train.csv"), *TABLE]
    assert cli.main(["train", *argv, *QUIET, "--output_dir", str(folder / "retrieval")]) == 2
    assert "leave out --number_columns and --category_columns" in capsys.readouterr().err


def test_a_stream_has_the_columns_of_its_first_rows(folder):
    source = datasets.Dataset.from_csv(str(folder / "train.csv")).remove_columns(["image", "constant"])
    source.to_parquet(str(folder / "train.parquet"))
    argv = ["--streaming", "true", "--validation_file", str(folder / "train.parquet"), "--image_column", ""]
    table = ["--number_columns", "age,fare", "--category_columns", "sex"]
    assert train(folder, "stream", *table, *argv, "--max_steps", "2", file="train.parquet") == 0
    assert len(load_checkpoint(str(folder / "stream"))[0].config.table_columns) == 3
