# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Pairs for image-text matching: each image with its own text, and with the text of another row.

Draws depend on the seed and on the rows of the batch, on no state: a resumed training draws what an uninterrupted one
would have drawn.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from .dataset import MMDataset
from .rows import Row
from .targets import normalize


def choose_negatives(rows: Sequence[Row], seed: int) -> list[int | None]:
    """The index, for each row, of a row whose text is wrong for its image; None if there is none.

    A text is wrong if no row has it beside the same first image and, where targets are groups, if its row is of
    another group.
    """
    numbers = zlib.crc32(repr((seed, [row.number for row in rows])).encode())
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(numbers)).tolist()
    keys, texts = [row.images[0].key for row in rows], [normalize(row.text) for row in rows]
    true_texts: dict[str, set[str]] = {}
    for key, text in zip(keys, texts, strict=True):
        true_texts.setdefault(key, set()).add(text)
    chosen: list[int | None] = [None] * len(rows)
    for place, index in enumerate(order):
        row = rows[index]
        for other in (order[(place + step) % len(rows)] for step in range(1, len(rows))):
            same_group = row.target is not None and row.target == rows[other].target
            if texts[other] not in true_texts[keys[index]] and not same_group:
                chosen[index] = other
                break
    return chosen


def with_negatives(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows with target 1, then each row that has a wrong text again with that text and target 0."""
    negatives = [
        replace(row, text=rows[other].text, target=0)
        for row, other in zip(rows, choose_negatives(rows, seed), strict=True)
        if other is not None
    ]
    return [*(replace(row, target=1) for row in rows), *negatives]


class MatchingPairs(torch.utils.data.Dataset):
    """All rows of a dataset with their true text and with a wrong one; the same for the same seed.

    Raises:
        ValueError: no row has a wrong text to go with it.
    """

    def __init__(self, dataset: MMDataset, seed: int):
        self.labels = dataset.labels
        self.rows = with_negatives([dataset[i] for i in range(len(dataset))], seed)
        if len(self.rows) == len(dataset):
            raise ValueError(f"'{dataset.source}' has no two rows whose texts differ; matching needs wrong texts")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]
