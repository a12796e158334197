# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""What a row goes without for once in training: some of its modalities, some of its words."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .data import Row

CELLS = {
    "image": "images",
    "audio": "audio",
    "video": "videos",
}  # fields of a row


def present_modalities(row: Row, markers: Mapping[str, str]) -> list[str]:
    """Which modalities a row has; a text of markers alone is none.

    Args:
        markers: of each modality beside the text, by its name.
    """
    text = row.text
    for marker in markers.values():
        text = text.replace(marker, "")
    return [*(["text"] if text.strip() else []), *(m for m, cells in CELLS.items() if vars(row)[cells])]


def without(row: Row, left_out: Collection[str], markers: Mapping[str, str]) -> Row:
    """The row as if the cells of these modalities were empty; the markers of what is left out leave the text."""
    changed: dict[str, Any] = {"text": row.text}
    for modality in set(left_out) - {"text"}:
        changed[CELLS[modality]] = []
        changed["text"] = changed["text"].replace(markers[modality], "")
    if "text" in left_out:
        changed["text"] = ""
    return replace(row, **changed)


def drop_modalities(row: Row, share: float, markers: Mapping[str, str], generator: np.random.Generator) -> Row:
    """The row without some of its modalities, each left out with probability `share`, but never all of them.

    Where every one would go, each is equally likely to stay.
    """
    draws = {modality: generator.random() for modality in ("text", *CELLS)}
    present = present_modalities(row, markers)
    stays = max(present, key=lambda modality: draws[modality], default=None)
    return without(row, [m for m in present if m != stays and draws[m] < share], markers)


def drop_words(text: str, share: float, markers: Collection[str], generator: np.random.Generator) -> str:
    """A text without some of its words, each left out with probability `share`, but never all; markers stay."""
    marker = "|".join(map(re.escape, markers))
    pieces = re.findall(rf"(?:{marker})\s*|(?:(?!{marker})\S)+\s*|\s+", text)  # each with the space behind it
    words = [i for i, piece in enumerate(pieces) if piece.strip() and piece.strip() not in markers]
    draws = generator.random(len(words))
    left_out = {i for i, draw in zip(words, draws, strict=True) if draw < share and draw < draws.max()}
    if not left_out:
        return text
    return "".join(piece for i, piece in enumerate(pieces) if i not in left_out).rstrip()
