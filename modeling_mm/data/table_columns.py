# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Statistics of number and category columns in the training rows, for the config and the processor."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from .dataset import MMDataset

logger = logging.getLogger(__name__)
MOST_BINS = 48  # of a number column
ROWS_PER_BIN = 8
MOST_VALUES = 10_000  # of a category column


def names_by_kind(columns: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the number columns and of the category columns."""
    numbers, categories = (
        tuple(column["name"] for column in columns if column["kind"] == kind) for kind in ("number", "category")
    )
    return numbers, categories


def table_columns(train: MMDataset) -> list[dict[str, Any]]:
    """The `table_columns` of a config: bins, mean and scale of numbers, values of categories.

    A column that is empty or has one value only is left out with a warning.

    Raises:
        ValueError: no column is left, or a category has more than `MOST_VALUES` values.
    """
    cells: dict[str, list[Any]] = {name: [] for name in train.columns.table}
    for number in train.kept:
        for name, cell in train.row(number).table.items():
            cells[name].append(cell)
    columns = []
    for name in train.columns.table:
        values = np.unique(cells[name]) if cells[name] else np.array([])
        if name in train.columns.numbers:
            values = np.unique(values.astype(np.float32))
        if len(values) < 2:
            found = f"only the value {values[0]}" if len(values) else "no value"
            logger.warning(f"the column '{name}' has {found} in the training rows of '{train.source}' and is left out")
        elif name in train.columns.numbers:
            columns.append(
                {"name": name, "kind": "number", **number_statistics(np.array(cells[name], dtype=np.float32))}
            )
        elif len(values) > MOST_VALUES:
            raise ValueError(
                f"the column '{name}' of '{train.source}' has {len(values)} different categories; expected at most "
                f"{MOST_VALUES}, so leave it out of --category_columns, or read it as a text or a number"
            )
        else:
            if 2 * len(values) > len(cells[name]):
                logger.warning(
                    f"the category column '{name}' of '{train.source}' has {len(values)} values in {len(cells[name])} "
                    "rows, so that new rows will hardly have one of them; expected categories that recur"
                )
            columns.append({"name": name, "kind": "category", "values": values.tolist()})
    if not columns:
        raise ValueError(
            f"no column of --number_columns and --category_columns has two different values in '{train.source}'"
        )
    return columns


def number_statistics(numbers: np.ndarray) -> dict[str, Any]:
    """Bins at quantiles, mean and scale of numbers (R,), with two or more different ones, in 32 bits."""
    count = int(np.clip(len(numbers) // ROWS_PER_BIN, 2, MOST_BINS))
    bins = np.unique(np.quantile(numbers.astype(np.float64), np.linspace(0, 1, count + 1)).astype(np.float32))
    mean, scale = numbers.astype(np.float64).mean(), numbers.astype(np.float64).std()
    return {"bins": bins.astype(float).tolist(), "mean": float(mean), "scale": float(scale)}
