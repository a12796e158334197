# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tables: the number and category columns of a row, and the reading of their cells.

A column is a dict, so that configs and processors hold it as JSON: `{"name", "kind": "number"}`, in a config with its
"bins" (increasing edges), "mean" and "scale" in the training rows; or `{"name", "kind": "category", "values"}`, the
texts that occur there. A table row maps names to cells; a missing cell is absent, None, "" or NaN.

Shapes: B rows, C columns.
"""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import torch

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
LARGEST = float(np.finfo(np.float32).max)
LISTED = 20  # column names in an error message


def is_empty(cell: Any) -> bool:
    """True for None, an empty text and NaN."""
    return cell is None or (not cell.strip() if isinstance(cell, str) else bool(cell != cell))


def read_number(cell: Any, column: str, decimal: str = ".") -> float | None:
    """The number in a cell; None if it is missing.

    Args:
        column: the column's name, for messages. decimal: the decimal mark in texts, "." or ",".

    Raises:
        ValueError: names the column and the value that is no finite number.
    """
    if type(cell) is float and -LARGEST <= cell <= LARGEST:
        return cell
    if is_empty(cell) or str(cell).strip().lower() == "nan":
        return None
    found = f"'{column}' is {cell!r:.60}"
    if isinstance(cell, str):
        text = cell.strip()
        marked = text if decimal == "." else text.replace(".", "?").replace(decimal, ".")
        if not NUMBER.fullmatch(marked):
            hint = " (--decimal , reads a decimal comma)" if NUMBER.fullmatch(text.replace(",", ".")) else ""
            hint = f" with the decimal mark '{decimal}'" if decimal != "." else hint
            raise ValueError(f"{found}; expected a number without a unit{hint}, or an empty cell if it is missing")
        cell = marked
    elif isinstance(cell, bool) or not isinstance(cell, (int, float, Decimal, np.number)):
        raise ValueError(f"{found}; expected a number")
    number = float(cell)
    if not abs(number) <= LARGEST:
        raise ValueError(f"{found}; expected a finite number")
    return number


def read_category(cell: Any, column: str) -> str | None:
    """The text of a category; None if it is missing.

    Raises:
        ValueError: the cell holds a list or a structure.
    """
    if not isinstance(cell, (list, dict)) and is_empty(cell):
        return None
    if not isinstance(cell, (str, int, float, Decimal, np.generic)):
        raise ValueError(f"'{column}' is {cell!r:.60}; expected one plain value")
    return str(cell).strip()


def category_index(cell: Any, column: dict[str, Any]) -> int:
    """The place of a category among the column's values, or their number if it is unknown.

    A number finds its value however that is written: 3 finds "3" and "3.0".
    """
    values, text = column["values"], read_category(cell, column["name"])
    if text not in values and isinstance(cell, (int, float, np.number)) and not isinstance(cell, bool):
        text = next((name for name in (f"{cell:g}", str(float(cell))) if name in values), text)
    return values.index(text) if text in values else len(values)


def table_tensor(
    rows: Mapping[str, Any] | Sequence[Mapping[str, Any] | None],
    columns: Sequence[dict[str, Any]] | None,
    texts: Sequence[str] | None = None,
) -> torch.Tensor:
    """`table_values` (B, C), float32: numbers in their unit, categories by their index, NaN for missing cells.

    Args:
        rows: one row, or one or None for each text. texts: the texts of the rows, to be compared in number.

    Raises:
        ValueError: there are no columns, rows and texts differ in number, a row has an unknown column, or a cell that
            its column cannot hold; names column and value.
    """
    if columns is None:
        raise ValueError("a table came to a processor without `table_columns`; its model takes none")
    rows = [rows] if isinstance(rows, Mapping) else list(rows)
    if texts is not None and len(rows) != len(texts):
        raise ValueError(f"{len(rows)} table rows came with {len(texts)} texts; expected a dict or None for each")
    values = [[math.nan] * len(columns) for _ in rows]  # a tensor is slow to fill cell by cell
    known = [column["name"] for column in columns]
    for place, row in enumerate(rows):
        if row is not None and not isinstance(row, Mapping):
            raise ValueError(
                f"row {place} of the table is {row!r:.60}; expected a dict of {', '.join(known[:LISTED])}"
            )
        if unknown := [name for name in row or {} if name not in known]:
            raise ValueError(f"the table has no column '{unknown[0]}'; it has {', '.join(known[:LISTED])}")
        for number, column in enumerate(columns):
            cell = (row or {}).get(column["name"])
            if column["kind"] == "number":
                cell = read_number(cell, column["name"])
            elif read_category(cell, column["name"]) is not None:
                cell = category_index(cell, column)
            else:
                cell = None
            if cell is not None:
                values[place][number] = cell
    return torch.tensor(values, dtype=torch.float32).reshape(len(rows), len(columns))


def cells_only(columns: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The columns without statistics, as a processor holds them."""
    kept = ("name", "kind", "values")
    return None if columns is None else [{key: column[key] for key in kept if key in column} for column in columns]


__all__ = ["read_category", "read_number", "table_tensor"]
