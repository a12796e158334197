# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Media dealt out to rows: what a caller gives to its texts, and flat tensors to the markers in them.

Shapes: B rows, N items per row, T text tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .media_mm import Modality


def items_per_row(
    items: Any, rows: int | None, markers: Sequence[int], is_item: Callable[[Any], bool], plural: str
) -> list[list]:
    """One list of items for each row, from a single item, one item (or None) per row, or lists of them.

    A flat list of as many items as there are markers is dealt out to these in their order; all items of a flat list
    belong to a single row.

    Args:
        rows: how many there are; None without texts. markers: of each row; empty without texts.
        is_item: whether a value is one item, and not a list of them. plural: what items are called.

    Raises:
        ValueError: the items are not as many as the rows, nor as the markers.
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
    """The distinct images or clips of all rows, and (B, N) which of them each row has, -1 where fewer than N."""
    position: dict[int | str, int] = {}
    distinct: list[Any] = []
    index = torch.full((len(rows), max((len(own) for own in rows), default=0)), -1)
    for row, own in enumerate(rows):
        for column, item in enumerate(own):
            key = item if isinstance(item, str) else id(item)
            if key not in position:
                position[key] = len(distinct)
                distinct.append(item)
            index[row, column] = position[key]
    return distinct, index


def drop_items(index: torch.Tensor, markers: Sequence[int], truncation_side: str) -> int:
    """Leave each row of an index (B, N) only as many items as it has markers; returns how many went.

    They go from the side on which the text was truncated.
    """
    counts = (index >= 0).sum(dim=1).tolist()
    dropped = 0
    for row, (count, left) in enumerate(zip(counts, markers, strict=True)):
        if count > left:
            items = index[row][index[row] >= 0]
            kept = items[count - left :] if truncation_side == "left" else items[:left]
            index[row] = -1
            index[row, :left] = kept
            dropped += count - left
    return dropped


def is_flat(modality: Modality, media: dict[str, torch.Tensor]) -> bool:
    """Whether the items of a modality are given one after the other, not (B, N, C, H, W) or in some other shape."""
    plain = modality.name == "image" and modality.tensor in media and "pixel_attention_mask" not in media
    return not plain or media[modality.tensor].dim() == 4


def dealt_index(
    modality: Modality, items: int, rows: int, markers: torch.Tensor | None, before: int | torch.Tensor = 0
) -> torch.Tensor | None:
    """The index (B, N) of media that came flat and without one: dealt out to the markers, row by row, in their order.

    Texts without markers have one item per row, and so has every row of a graph that is being traced, where the
    markers cannot be counted. Where a cache holds earlier turns, all items belong to a single row.

    Args:
        items: how many came. markers: (B, T) bool, where the texts have markers; None where they can have none.
        before: columns that the cache holds.

    Returns:
        None for one item per row.

    Raises:
        ValueError: the items are not as many as the markers, nor, without any marker, as the rows.
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
    """Refuse rows that were prepared alone, each with an index from 0, and stacked: all would get the first items.

    On a GPU the check does not wait for the tensors, and what is wrong stops the program.

    Raises:
        ValueError: the index is that of such rows.
    """
    if index.shape[0] < 2 or index.is_meta or torch.compiler.is_compiling():
        return
    last = index.amax(dim=1) + 1  # (B,), how many items a row would have alone
    highest = torch.nn.functional.pad(index, (1, 0), value=-1).cummax(dim=1).values
    counted = (highest.diff(dim=1) <= 1).all()  # every row numbers its items 0, 1, ... as they first occur
    stacked = counted & (last.sum() == items) & (last.amax() < items)
    reason = (
        f"`{modality.index}` looks like that of rows which were prepared alone and then stacked: it counts from 0 in "
        f"each row, and leaves some of the {items} {modality.items} unused; leave it out where every text has its "
        "markers, or prepare the rows together"
    )
    if index.is_cuda:
        torch._assert_async(~stacked, reason)
    elif stacked:
        raise ValueError(reason)
