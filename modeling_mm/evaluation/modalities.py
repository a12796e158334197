# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The contribution of each modality, and of each column of a table: a model's score without it, or with it alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from ..data.rows import Row, without
from ..model.media_mm import TABLE
from ..tasks import TASKS, task_of


class WithoutModality(torch.utils.data.Dataset):
    """The rows of a dataset without some modalities, as if their cells were empty."""

    def __init__(self, dataset: Any, left_out: tuple[str, ...], markers: dict[str, str]):
        self.dataset, self.left_out, self.markers = dataset, left_out, markers
        self.labels = dataset.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Row:
        return without(self.dataset[index], self.left_out, self.markers)


class WithoutColumn(WithoutModality):
    """The rows of a dataset without one column of their table, as if its cells were empty."""

    def __init__(self, dataset: Any, column: str):
        super().__init__(dataset, (), {})
        self.column = column

    def __getitem__(self, index: int) -> Row:
        row = self.dataset[index]
        return replace(row, table={name: cell for name, cell in row.table.items() if name != self.column})


def column_report(
    score: Callable[[Any], dict[str, Any]], dataset: Any, columns: Sequence[str]
) -> list[dict[str, Any]]:
    """The metrics of `score` without each column of the table, named by the field `without`."""
    return [{"without": name, **score(WithoutColumn(dataset, name))} for name in columns]


def modality_report(
    score: Callable[[Any], dict[str, Any]], dataset: Any, markers: dict[str, str], with_table: bool = False
) -> list[dict[str, Any]]:
    """The metrics of `score` on all modalities, without each, and with each alone; each subset is scored once.

    Args:
        markers: the marker of each modality beside the text, by its name. with_table: the rows have a table too.

    Returns:
        One row per subset of modalities, named by its field `modalities`.
    """
    modalities = (*markers, *([TABLE] if with_table else []), "text")
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
    """A context that collects the late fusion weights (R, M) of each batch predicted within it, NaN where a row lacks
    a modality.

    The list stays empty for a model that does not weight its modalities.
    """
    collected: list[torch.Tensor] = []
    model = trainer.accelerator.unwrap_model(trainer.model)
    fusion = None if TASKS[task_of(model)].generates else model.late_fusion
    if fusion is None or fusion.kind not in ("weighted", "gated"):
        yield collected
        return

    def collect(module, args, output):
        weights = module.row_weights(*args).float().masked_fill(~args[1], torch.nan)
        collected.append(trainer.accelerator.gather_for_metrics(weights).cpu())

    hook = fusion.register_forward_hook(collect)
    try:
        yield collected
    finally:
        hook.remove()


def weight_table(model: PreTrainedModel, collected: list[torch.Tensor]) -> list[dict[str, Any]]:
    """One row per modality: the learned weight if all are present (`weighted` only), and the mean weight, its standard
    deviation and the number of the rows that have the modality."""
    if not collected:
        return []
    learned = model.late_fusion.modality_weights() or {}
    weights, table = torch.cat(collected), []
    for name, column in zip(model.late_fusion.modalities, weights.unbind(dim=1), strict=True):
        present = column[~column.isnan()]
        row: dict[str, Any] = {"modality": name}
        if learned:
            row["learned_weight"] = round(learned[name], 6)
        mean = deviation = None
        if len(present):
            mean, deviation = present.mean().item(), present.std(correction=0).item()
        row |= {"mean": mean and round(mean, 6), "standard_deviation": deviation and round(deviation, 6)}
        table.append({**row, "rows": len(present)})
    return table


def modality_weights_results(model: PreTrainedModel, table: list[dict[str, Any]]) -> dict[str, Any]:
    """Results for the JSON: the table, one weight per modality, and the gates of cross-attention."""
    results: dict[str, Any] = {}
    if table:
        results["modality_weights"] = {row["modality"]: row.get("learned_weight", row["mean"]) for row in table}
        results["modality_weights_of_rows"] = table
    if model.config.cross_attention:
        rounded = [{name: round(value, 6) for name, value in gate.items()} for gate in model.fusion_gates()]
        results["fusion_gates"] = rounded
    return results
