# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A small table of numbers and categories, and models that take it."""

import torch
from helpers.builders import mm_model

from modeling_mm import MMForConditionalGeneration

NAN = float("nan")
COLUMNS = [
    {"name": "age", "kind": "number", "bins": [0.0, 18.0, 40.0, 90.0], "mean": 35.0, "scale": 20.0},
    {"name": "sex", "kind": "category", "values": ["f", "m"]},
    {"name": "fare", "kind": "number", "bins": [0.0, 100.0], "mean": 30.0, "scale": 10.0},
]
# complete, without any cell, an unknown category beside missing cells and an outlier
VALUES = torch.tensor([[30.0, 1.0, 7.5], [NAN, NAN, NAN], [NAN, 2.0, 1e9], [5.0, 0.0, NAN]])


def table_model(text="llama", head=MMForConditionalGeneration, **fields):
    """A model with the columns of `COLUMNS` and open gates."""
    return mm_model(text, head=head, table_columns=COLUMNS, **fields)
