# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Assignment of media to rows: a caller's items to its texts, and flat tensors to the markers in the texts.

Shapes: B rows, N items per row, T text tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .media_mm import Modality


def items_per_row(
    items: Any, rows: int | None, markers: Sequence[int], is_item: Callable[[Any], bool], plural: str
) -> list[list]:
    """One list of items for each row, from a single item, one item (or None) per row, or one list per row.

    A flat list with one item per marker is assigned to the markers in their order; for a single row, all items of a
    flat list belong to it.

    Args:
        rows: number of rows; None without texts. markers: number of markers in each row; empty without texts.
        is_item: True for a single item, False for a list of items. plural: the noun for messages.

    Raises:
        ValueError: the number of items is neither that of the rows nor that of the markers.
    """
    items = [items] if is_item(items) else list(items)
    flat = all(item is not None and is_item(item) for item in items)
    if flat and len(items) == sum(markers):
        following = iter(items)
        return [[next(following) for _ in range(count)] for count in markers]
    nested = [[] if item is None else [item] if is_item(item) else list(item) for item in items]
    if rows is None or len(nested) == rows:
        return nested
    if rows == 1 and flat:
        return [items]
    raise ValueError(
        f"{len(nested)} {plural} or lists of {plural} came with {rows} texts; give one, one list of {plural} or None "
        f"for each text, or a flat list, for which the {plural.removesuffix('s')} tokens in the prompts should be the "
        f"same as the number of {plural}"
    )


def distinct_items(rows: list[list]) -> tuple[list[Any], torch.Tensor]:
    """The distinct images or clips of all rows, and the index (B, N) of each row's items, -1 beyond its last one."""
    position: dict[int | str, int] = {}
    distinct: list[Any] = []
    index = torch.full((len(rows), max((len(items) for items in rows), default=0)), -1)
    for row, items in enumerate(rows):
        for column, item in enumerate(items):
            key = item if isinstance(item, str) else id(item)
            if key not in position:
                position[key] = len(distinct)
                distinct.append(item)
            index[row, column] = position[key]
    return distinct, index


def drop_items(index: torch.Tensor, markers: Sequence[int], truncation_side: str) -> int:
    """Drop the items of an index (B, N) for which a row has no marker left; returns the number of dropped items.

    They are dropped from the side on which the text was truncated.
    """
    counts = (index >= 0).sum(dim=1).tolist()
    dropped = 0
    for row, (count, left) in enumerate(zip(counts, markers, strict=True)):
        if count > left:
            items = index[row][index[row] >= 0]
            remaining = items[count - left :] if truncation_side == "left" else items[:left]
            index[row] = -1
            index[row, :left] = remaining
            dropped += count - left
    return dropped


def is_flat(modality: Modality, media: dict[str, torch.Tensor]) -> bool:
    """True if the items of a modality are one flat batch, not (B, N, C, H, W) or another shape."""
    is_pixels = modality.name == "image" and modality.tensor in media and "pixel_attention_mask" not in media
    return not is_pixels or media[modality.tensor].dim() == 4


def index_from_markers(
    modality: Modality, items: int, rows: int, markers: torch.Tensor | None, before: int | torch.Tensor = 0
) -> torch.Tensor | None:
    """The index (B, N) of flat media that came without one: assigned to the markers, row by row, in their order.

    Texts without markers have one item per row, and so has every row of a graph that is being traced, where the
    markers cannot be counted. If a cache holds earlier turns of a single row, all items belong to that row.

    Args:
        items: number of items. markers: (B, T) bool, True at markers; None for texts that can have none.
        before: number of columns in the cache.

    Returns:
        the index, or None for one item per row.

    Raises:
        ValueError: the number of items is not that of the markers nor, without any marker, that of the rows.
    """
    if markers is None or markers.is_meta or torch.compiler.is_compiling():
        return None
    counts = markers.sum(dim=1)
    total = int(counts.sum())
    if items == total and not (counts == 1).all():
        place = torch.arange(int(counts.max()), device=counts.device)
        index = (counts.cumsum(dim=0) - counts)[:, None] + place  # (B, N)
        return torch.where(place < counts[:, None], index, -1)
    later = bool(before > 0)  # markers of earlier turns are in the cache
    if items and rows == 1 and later:
        return torch.arange(items, device=markers.device)[None]
    if items == total or (items == rows and (total == 0 or later)) or (items == 0 and later):
        return None
    raise ValueError(
        f"{items} {modality.items} came without `{modality.index}`, but the {rows} texts hold {total} markers of "
        f"{modality.items}; expected one of the {modality.items} per marker, one per text where no text has a marker, "
        f"or the `{modality.index}` (B, N)"
    )


def check_stacked(modality: Modality, items: int, index: torch.Tensor) -> None:
    """Refuse stacked rows that were prepared alone, each with an index from 0: all would get the first items.

    On a GPU the check is asynchronous, and a wrong index stops the program.

    Raises:
        ValueError: the index is the one of such rows.
    """
    if index.shape[0] < 2 or index.is_meta or torch.compiler.is_compiling():
        return
    last = index.amax(dim=1) + 1  # (B,), number of items that a row would have alone
    highest = torch.nn.functional.pad(index, (1, 0), value=-1).cummax(dim=1).values
    counted = (highest.diff(dim=1) <= 1).all()  # every row numbers its items 0, 1, ... as they first occur
    stacked = counted & (last.sum() == items) & (last.amax() < items)
    reason = (
        f"`{modality.index}` looks like that of rows which were prepared alone and then stacked: it counts from 0 in "
        f"each row, and leaves some of the {items} {modality.items} unused; leave it out if every text has its "
        "markers, or prepare the rows together"
    )
    if index.is_cuda:
        torch._assert_async(~stacked, reason)
    elif stacked:
        raise ValueError(reason)
