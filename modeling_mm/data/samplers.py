# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The order of the rows in an epoch. It depends on seed and epoch alone, so that all processes, and a training that is
resumed, draw the same."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpochSampler(Sampler[int]):
    """A sampler whose draws depend on its seed and on the epoch that the loader sets."""

    def __init__(self, seed: int):
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + self.epoch)


class ImageGroupSampler(EpochSampler):
    """A new random order of images in each epoch, the rows about one image side by side.

    With it a batch of B rows holds few distinct images, and the vision tower works once for each.

    Args:
        groups: indices of the rows about each image.
        seed: seed of the order.
        size: maximum number of rows about one image side by side, drawn anew in each epoch; default: all of them.
    """

    def __init__(self, groups: Sequence[Sequence[int]], seed: int, size: int | None = None):
        super().__init__(seed)
        self.groups, self.size = groups, size

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def __iter__(self) -> Iterator[int]:
        generator = self.generator()
        groups: Sequence[Sequence[int]] = self.groups
        if self.size is not None:
            drawn = [[group[i] for i in torch.randperm(len(group), generator=generator)] for group in groups]
            groups = [group[i : i + self.size] for group in drawn for i in range(0, len(group), self.size)]
        for g in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[g]


class LengthSampler(EpochSampler):
    """A new random order in each epoch, rows of about the same length side by side, so that little is padded.

    Args:
        lengths: the rows' lengths in tokens.
        together: rows of a step; the first step has the longest rows, so that a lack of memory shows at once.
        seed: seed of the order.
    """

    def __init__(self, lengths: Sequence[int], together: int, seed: int):
        super().__init__(seed)
        self.lengths, self.together = lengths, together

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(get_length_grouped_indices(self.lengths, self.together, generator=self.generator()))
