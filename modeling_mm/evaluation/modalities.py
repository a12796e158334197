# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Which modalities a model leans on: its score with each one left out, and with each one alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from ..data.rows import Row, without
from ..tasks import TASKS, task_of


class WithoutModality(torch.utils.data.Dataset):
    """The rows of a data set with some modalities left out, as if their cells were empty."""

    def __init__(self, dataset: Any, left_out: tuple[str, ...], markers: dict[str, str]):
        self.dataset, self.left_out, self.markers = dataset, left_out, markers
        self.labels = dataset.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Row:
        return without(self.dataset[index], self.left_out, self.markers)


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
        table.append(
            {"modalities": name, **score(WithoutModality(dataset, left_out, markers) if left_out else dataset)}
        )
    return table


@contextmanager
def weights_of_rows(trainer: Trainer) -> Iterator[list[torch.Tensor]]:
    """A list that gets, from each batch predicted meanwhile, late fusion's weights (R, M), NaN where a row lacks one.

    It stays empty for a model that does not weigh its modalities.
    """
    collected: list[torch.Tensor] = []
    model = trainer.accelerator.unwrap_model(trainer.model)
    fusion = None if TASKS[task_of(model)].generates else model.late_fusion
    if fusion is None or fusion.kind not in ("weighted", "gated"):
        yield collected
        return

    def collect(own, given, output):
        weights = own.row_weights(*given).float().masked_fill(~given[1], torch.nan)
        collected.append(trainer.accelerator.gather_for_metrics(weights).cpu())

    hook = fusion.register_forward_hook(collect)
    try:
        yield collected
    finally:
        hook.remove()


def weight_table(model: PreTrainedModel, collected: list[torch.Tensor]) -> list[dict[str, Any]]:
    """One row per modality: the learned weight where all are there (`weighted` only), and over the rows that have the
    modality its mean weight, the standard deviation, and how many they are."""
    if not collected:
        return []
    learned = model.late_fusion.modality_weights() or {}
    weights, table = torch.cat(collected), []
    for name, column in zip(model.late_fusion.modalities, weights.unbind(dim=1), strict=True):
        own = column[~column.isnan()]
        row: dict[str, Any] = {"modality": name}
        if learned:
            row["learned_weight"] = round(learned[name], 6)
        mean, deviation = (own.mean().item(), own.std(correction=0).item()) if len(own) else (None, None)
        row |= {"mean": mean and round(mean, 6), "standard_deviation": deviation and round(deviation, 6)}
        table.append({**row, "rows": len(own)})
    return table


def modality_weights_results(model: PreTrainedModel, table: list[dict[str, Any]]) -> dict[str, Any]:
    """For the JSON: the table, one weight per modality, and the gates of cross-attention."""
    results: dict[str, Any] = {}
    if table:
        results["modality_weights"] = {row["modality"]: row.get("learned_weight", row["mean"]) for row in table}
        results["modality_weights_of_rows"] = table
    if model.config.cross_attention:
        rounded = [{name: round(value, 6) for name, value in gate.items()} for gate in model.fusion_gates()]
        results["fusion_gates"] = rounded
    return results
