# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Rows to evaluate: each answer of a conversation, after the true turns before it; pairs for matching."""

from dataclasses import replace
from typing import Any

import torch

from ..tasks import TASKS
from .conversations import transcript
from .dataset import MMDataset
from .negatives import MatchingPairs
from .rows import Row, with_turns


class AnswerTurns(torch.utils.data.Dataset):
    """The learned answers of a dataset of conversations, a row each: the turns up to it, and its words as target."""

    def __init__(self, dataset: MMDataset):
        self.dataset, self.labels, self.source = dataset, dataset.labels, dataset.source
        self.places = [
            (index, turn)
            for index in range(len(dataset))
            for turn, content in enumerate(dataset[index].turns)
            if content.learned
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Row:
        number, last = self.places[index]
        row = self.dataset[number]
        *before, answer = row.turns[: last + 1]
        turns = [*(replace(turn, learned=False) for turn in before), answer]
        return replace(with_turns(row, turns), text=transcript(before), target=answer.text)

    def group(self, index: int) -> tuple[int, str]:
        """The number, from 1, of a row's answer among those of its conversation, and its kind."""
        number, last = self.places[index]
        turns = self.dataset[number].turns[: last + 1]
        return sum(turn.role == "assistant" for turn in turns), turns[-1].kind


def evaluation_rows(dataset: MMDataset, seed: int) -> Any:
    """The rows that evaluation scores: those of the dataset, its matching pairs, or its answers turn by turn."""
    if TASKS[dataset.task].pairs:
        return MatchingPairs(dataset, seed)
    return AnswerTurns(dataset) if dataset.columns.conversation else dataset
