# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Numbers and categories of a file: read as they stand, left out like other modalities, counted in training rows."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest

from modeling_mm.data import dataset as data
from modeling_mm.data import table_columns as statistics
from modeling_mm.data.augmentation import drop_modalities
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.media import BadRow
from modeling_mm.data.rows import Columns, Row, RowReader, media_markers, present_modalities, without
from modeling_mm.data.table_columns import names_by_kind, number_statistics, table_columns
from modeling_mm.data.tables import read_table
from modeling_mm.model.configuration_mm import check_table_columns

COLUMNS = Columns("", "", "label", numbers=("age",), categories=("sex",))


def dataset_of(path, columns=COLUMNS):
    table, folder = read_table(str(path))
    return MMDataset(path.name, table, folder, columns, task="classification")


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("age,sex,label\n61,f,a\n,m,b\n7.5,,a\n1e1,f,b\n")
    return path


def test_cells_are_numbers_and_texts_without_missing_ones(csv_file):
    dataset = dataset_of(csv_file).check()
    expected = [{"age": 61.0, "sex": "f"}, {"sex": "m"}, {"age": 7.5}, {"age": 10.0, "sex": "f"}]
    assert [dataset[i].table for i in range(4)] == expected


def test_every_format_gives_the_same_cells(csv_file, tmp_path):
    expected = [dataset_of(csv_file)[i].table for i in range(4)]
    typed = {"age": [61.0, None, 7.5, 10.0], "sex": ["f", "m", None, "f"], "label": list("abab")}
    datasets.Dataset.from_dict(typed).to_parquet(str(tmp_path / "t.parquet"))
    rows = [dict(zip(typed, cells, strict=True)) for cells in zip(*typed.values(), strict=True)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("t.parquet", "t.jsonl"):
        assert [dataset_of(tmp_path / name)[i].table for i in range(4)] == expected


def test_rows_of_a_table_alone_are_read_once_and_copied(csv_file, monkeypatch):
    dataset = dataset_of(csv_file)
    with_text = dataset_of(csv_file, replace(COLUMNS, text="sex", categories=()))
    assert dataset.is_table_only and not with_text.is_table_only
    dataset.labels = ["a", "b"]
    assert [dataset[0].target, dataset[0].target, dataset.row(0).target] == [0, 0, "a"]
    first = dataset.row(0)
    monkeypatch.setattr(RowReader, "row", lambda *_: pytest.fail("read again"))
    assert dataset.row(0) == first and dataset.row(0) is not first


def test_rows_beyond_the_bound_are_read_in_each_epoch(csv_file, monkeypatch):
    monkeypatch.setattr(data, "KEPT_CELLS", 3)  # two rows of two cells
    dataset = dataset_of(csv_file)
    assert [dataset.row(number).number for number in (0, 1, 2, 3, 3)] == [1, 2, 3, 4, 4]
    assert list(dataset.read_rows) == [0, 1]


def test_an_empty_row_and_a_bad_cell_are_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("age,sex,label\n61,f,a\n,,b\n")
    with pytest.raises(BadRow, match="row 2: the table of numbers and categories is empty"):
        dataset_of(path).check()
    path.write_text("age,sex,label\n61 years,f,a\n3,m,b\n")
    with pytest.raises(BadRow, match="row 1: 'age' is '61 years'; expected a number without a unit"):
        dataset_of(path).check()
    left = dataset_of(path).check(skip=True)
    assert len(left) == 1 and left.bad_rows[0]["row"] == 1


def test_a_table_is_a_modality_that_can_be_left_out_and_dropped():
    row, markers = Row(1, ["a.png"], "words", table={"age": 3.0}), media_markers()
    assert present_modalities(row, markers) == ["text", "image", "table"]
    assert without(row, ["table"], markers).table == {} and without(row, ["image"], markers).table
    rng = np.random.default_rng(0)
    left = [tuple(present_modalities(drop_modalities(row, 0.5, markers, rng), markers)) for _ in range(200)]
    assert set(left) >= {("text",), ("image",), ("table",), ("text", "image", "table")} and () not in left


def test_draws_for_rows_without_a_table_are_what_they_were():
    row, markers = Row(1, ["a.png"], "words"), media_markers()
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    drop_modalities(row, 0.5, markers, rng)
    same.random(4)  # text, image, audio, video
    assert rng.random() == same.random()


def test_statistics_are_those_of_the_training_rows(csv_file):
    columns = table_columns(dataset_of(csv_file))
    check_table_columns(columns)
    assert names_by_kind(columns) == (("age",), ("sex",))
    age, sex = columns
    assert (age["bins"][0], age["bins"][-1]) == (7.5, 61.0) and sex["values"] == ["f", "m"]
    assert age["mean"] == pytest.approx(np.mean([61, 7.5, 10]))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_statistics_fit_into_32_bits(scale):
    numbers = np.float32(np.random.default_rng(0).standard_normal(500) * scale)
    check_table_columns([{"name": "x", "kind": "number", **number_statistics(numbers)}])
    few = number_statistics(np.float32([0, 0, 0, 0, 0, 0, 0, 0, 0, scale]))
    assert few["bins"][0] == 0 and few["bins"][-1] == pytest.approx(scale)


def test_columns_with_one_value_are_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "t.csv"
    path.write_text("age,sex,label\n3,,a\n3,,b\n")
    with pytest.raises(ValueError, match="has two different values in 't.csv'"):
        table_columns(dataset_of(path))
    assert "the column 'age' has only the value 3" in caplog.text and "'sex' has no value" in caplog.text


def test_too_many_categories_are_refused_and_single_ones_remarked(csv_file, tmp_path, monkeypatch, caplog):
    path = tmp_path / "ids.csv"
    path.write_text("age,sex,label\n" + "".join(f"{i},id{i},a\n" for i in range(6)))
    table_columns(dataset_of(path))
    assert "'sex' of 'ids.csv' has 6 values in 6 rows" in caplog.text
    monkeypatch.setattr(statistics, "MOST_VALUES", 5)
    with pytest.raises(ValueError, match="'sex' of 'ids.csv' has 6 different categories; expected at most 5"):
        table_columns(dataset_of(path))
