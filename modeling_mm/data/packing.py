# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Packs: rows whose tokens together fill one row of the batch, so that hardly any of it is padding.

Rows are shuffled once, by the seed, and put one after the other into the first of a window of open packs that has
room for them. Each epoch has the same packs in another order, so that a resumed training gets the batches that an
uninterrupted one would get.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .dataset import MMDataset
from .rows import Row

WINDOW = 64  # open packs, among which a row is put into the first with room


def first_fit(lengths: Sequence[int], size: int, window: int = WINDOW) -> list[list[int]]:
    """Indices of the rows of each pack, whose lengths sum to at most `size`; a longer row is a pack by itself."""
    packs: list[list[int]] = []
    rooms: list[tuple[int, list[int]]] = []  # of the open packs, in the order in which they were opened
    for index, length in enumerate(lengths):
        place = next((i for i, (room, _) in enumerate(rooms) if room >= length), None)
        if place is not None:
            room, pack = rooms[place]
            pack.append(index)
            rooms[place] = (room - length, pack)
            continue
        packs.append([index])
        rooms.append((size - length, packs[-1]))
        if len(rooms) > window:
            rooms.remove(min(rooms, key=lambda entry: entry[0]))  # the fullest
    return packs


@dataclass
class PackedRows(torch.utils.data.Dataset):
    """Packs of the rows of a dataset; an item is the list of a pack's rows.

    Args:
        lengths: number of tokens of each row.
        size: maximum number of tokens of a pack.
        seed: of the order in which rows are packed.
        groups: indices of rows that stay together as far as packs have room, such as those about one image.
    """

    dataset: MMDataset
    lengths: Sequence[int]
    size: int
    seed: int = 0
    groups: Sequence[Sequence[int]] | None = None
    packs: list[list[int]] = field(init=False)

    def __post_init__(self):
        groups = [[index] for index in range(len(self.lengths))] if self.groups is None else self.groups
        shuffled = torch.randperm(len(groups), generator=torch.Generator().manual_seed(self.seed)).tolist()
        order = [index for place in shuffled for index in groups[place]]
        window = WINDOW if self.groups is None else 2  # so that a group's rows meet in few packs
        packs = first_fit([self.lengths[index] for index in order], self.size, window)
        self.packs = [[order[place] for place in pack] for pack in packs]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> list[Row]:
        return [self.dataset[row] for row in self.packs[index]]

    @property
    def fill(self) -> float:
        """The share of the tokens of all packs that are not padding."""
        return sum(self.lengths) / (self.size * len(self.packs))
