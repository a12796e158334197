# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Cells of a table: what a number and a category may look like, and what is refused."""

from decimal import Decimal

import numpy as np
import pytest
import torch
from helpers.table import COLUMNS, NAN

from modeling_mm import MMProcessor
from modeling_mm.model.table_mm import read_category, read_number, table_tensor


@pytest.fixture
def clerk(processor):
    """A processor with a table."""
    return MMProcessor(processor.image_processor, processor.tokenizer, table_columns=COLUMNS)


@pytest.mark.parametrize("cell", [61, 61.0, "61", " 61.0 ", "6.1e1", Decimal("61"), np.float32(61), np.int64(61)])
def test_a_number_may_be_written_in_many_ways(cell):
    assert read_number(cell, "age") == 61


@pytest.mark.parametrize("cell", [None, "", "  ", NAN, "nan", "NaN", np.float32("nan")])
def test_missing_cells(cell):
    assert read_number(cell, "age") is None


@pytest.mark.parametrize("cell", [None, "", " ", NAN])
def test_missing_categories(cell):
    assert read_category(cell, "sex") is None


@pytest.mark.parametrize("cell", ["12,5 kg", "12 kg", "1_000", "1.234.567", "inf", "-Infinity", "NA", True, [1], "٣"])
def test_a_cell_that_is_no_number_is_refused_by_column_and_value(cell):
    with pytest.raises(ValueError, match="'weight' is .*expected a number"):
        read_number(cell, "weight")


@pytest.mark.parametrize("cell", [1e39, "1e39", np.inf])
def test_a_number_too_large_for_32_bits_is_refused(cell):
    with pytest.raises(ValueError, match="expected a finite number"):
        read_number(cell, "weight")


def test_a_decimal_comma_is_refused_with_the_flag_that_reads_it():
    with pytest.raises(ValueError, match="'weight' is '12,5'; .*--decimal , reads a decimal comma"):
        read_number("12,5", "weight")
    assert read_number("12,5", "weight", ",") == 12.5
    assert read_number(12.5, "weight", ",") == 12.5
    for cell in ("12.5", "1.234,5", "12,5 kg"):
        with pytest.raises(ValueError, match="with the decimal mark ','"):
            read_number(cell, "weight", ",")


def test_rows_become_numbers_and_places_of_categories():
    rows = [{"age": "61", "sex": "m"}, None, {"sex": "x", "fare": 1}, {"sex": "", "age": None}]
    expected = [[61, 1, NAN], [NAN] * 3, [NAN, 2, 1], [NAN] * 3]
    assert torch.equal(table_tensor(rows, COLUMNS).nan_to_num(-9), torch.tensor(expected).nan_to_num(-9))


def test_a_number_finds_its_category_however_it_is_written():
    columns = [{"name": "class", "kind": "category", "values": ["1", "2.0", "True"]}]
    rows = [{"class": cell} for cell in (1, 1.0, "1", 2, 2.0, "2.0", "2", True, np.int64(2))]
    assert table_tensor(rows, columns).flatten().tolist() == [0, 0, 0, 1, 1, 1, 3, 2, 1]


def test_the_processor_takes_one_row_or_several(clerk):
    assert clerk(text="yes", table={"age": 3})["table_values"].shape == (1, 3)
    batch = clerk(text=["yes", "no"], table=[{"age": 3}, None], padding=True, return_tensors="pt")
    assert batch["table_values"].isnan().all(dim=1).tolist() == [False, True]
    assert set(clerk(table=[{"age": 3}])) == {"table_values"}


def test_the_processor_refuses_what_it_does_not_know(clerk, processor):
    with pytest.raises(ValueError, match="no column 'heigth'; it has age, sex, fare"):
        clerk(text="yes", table={"heigth": 3})
    with pytest.raises(ValueError, match="2 table rows came with 1 texts"):
        clerk(text=["yes"], table=[{}, {}])
    with pytest.raises(ValueError, match="row 0 of the table is 3; expected a dict"):
        clerk(text=["yes"], table=[3])
    with pytest.raises(ValueError, match="without `table_columns`"):
        processor(text="yes", table={"age": 3})


def test_the_columns_are_saved_without_statistics(clerk, tmp_path):
    clerk.save_pretrained(tmp_path)
    loaded = MMProcessor.from_pretrained(tmp_path)
    assert loaded.table_columns == [
        {"name": "age", "kind": "number"},
        {"name": "sex", "kind": "category", "values": ["f", "m"]},
        {"name": "fare", "kind": "number"},
    ]
