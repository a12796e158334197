# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Which modalities a model leans on: its score with each one left out, and with each one alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .data import Row


class Without(torch.utils.data.Dataset):
    """The rows of a data set with some modalities left out, as if their cells were empty."""

    def __init__(self, dataset: Any, left_out: tuple[str, ...], markers: dict[str, str]):
        self.dataset, self.left_out, self.markers = dataset, left_out, markers
        self.labels = dataset.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Row:
        row = self.dataset[index]
        for modality, cells in (("image", "images"), ("audio", "audio"), ("video", "videos")):
            if modality in self.left_out:
                row = replace(row, text=row.text.replace(self.markers[modality], ""), **{cells: []})
        return replace(row, text="") if "text" in self.left_out else row


def modality_report(
    score: Callable[[Any], dict[str, Any]], dataset: Any, markers: dict[str, str]
) -> list[dict[str, Any]]:
    """The metrics of `score` on all modalities, without each, and with each alone; each subset is scored once.

    Args:
        markers: of each modality beside the text, by its name.

    Returns:
        one row per subset, `modalities` its name.
    """
    modalities = (*markers, "text")
    subsets: list[tuple[str, ...]] = [modalities]
    subsets += [tuple(m for m in modalities if m != left_out) for left_out in modalities]
    subsets += [(alone,) for alone in modalities]
    table = []
    for kept in dict.fromkeys(subsets):
        left_out = tuple(m for m in modalities if m not in kept)
        name = "all" if not left_out else f"{kept[0]} alone" if len(kept) == 1 else f"without {left_out[0]}"
        table.append({"modalities": name, **score(Without(dataset, left_out, markers) if left_out else dataset)})
    return table
