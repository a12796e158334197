# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Several columns of one modality: their texts become lines, their media one list, in a table and in a stream."""

import pytest
from helpers.builders import drawing
from helpers.tables import write_rows

from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.shards import open_shards
from modeling_mm.data.stream import MMStream
from modeling_mm.data.tables import read_table

JOINED = Columns("front, back", "title,notes", "label")


@pytest.fixture
def path(tmp_path):
    for name in ("a", "b", "c"):
        drawing(ord(name)).save(tmp_path / f"{name}.png")
    rows = [
        ["a.png", "b.png;c.png", "chair", "old", "x"],
        [None, "b.png", None, "a lamp", "y"],
        ["c.png", None, None, "  ", "x"],
    ]
    return write_rows(tmp_path / "t.csv", ["front", "back", "title", "notes", "label"], rows)


def read(path, columns):
    return MMDataset(str(path), *read_table(str(path)), columns, task="classification").check()


def shown(row):
    return [medium.path.rpartition("/")[2] for medium in row.images], row.text


def test_texts_and_images_of_several_columns_are_joined(path):
    dataset = read(path, JOINED)
    assert list(map(shown, dataset)) == [
        (["a.png", "b.png", "c.png"], "title: chair\nnotes: old"),
        (["b.png"], "notes: a lamp"),
        (["c.png"], ""),
    ]
    stream = iter(MMStream(open_streamable(path, dataset), JOINED, "classification", ["x", "y"], shuffle_buffer=0))
    assert [(len(row.images), row.text) for row in (next(stream) for _ in range(3))] == [
        (len(row.images), row.text) for row in dataset
    ]


def open_streamable(path, dataset):
    """The same rows as a Parquet shard beside the images."""
    dataset.table.to_parquet(path.parent / "t.parquet")
    return open_shards(str(path.parent / "t.parquet"))


def test_the_text_of_a_single_column_is_its_cell(path):
    assert [row.text for row in read(path, Columns("front", "notes", "label"))] == ["old", "a lamp", "  "]


def test_a_name_with_a_comma_is_one_column(tmp_path):
    path = write_rows(tmp_path / "t.csv", ["what, where", "label"], [["here", "a"], ["there", "b"]])
    assert [row.text for row in read(path, Columns("", "what, where", "label"))] == ["here", "there"]


@pytest.mark.parametrize("columns", [Columns("front,side", "title", "label"), Columns("front", "title,more", "label")])
def test_a_missing_column_among_several_is_named(path, columns):
    with pytest.raises(ValueError, match="has no column '(side|more)'; it has front, back"):
        read(path, columns)
