# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""What a model learnt to count each modality, and how far its gates opened: collected, as tables and as pictures.

The weights and gates are the model's own `modality_weights` and `fusion_gates`; here they are summed up over rows.

Shapes: R rows, M modalities.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from . import figures
from .checkpoint import task_of
from .report import Section
from .trainer import MMTrainer


@contextmanager
def weights_of_rows(trainer: MMTrainer) -> Iterator[list[torch.Tensor]]:
    """A list that gets, from each batch predicted meanwhile, late fusion's weights (R, M), NaN where a row lacks one.

    It stays empty for a model that does not weigh its modalities.
    """
    collected: list[torch.Tensor] = []
    model = trainer.accelerator.unwrap_model(trainer.model)
    fusion = None if task_of(model) == "generation" else model.late_fusion
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


def learned_results(model: PreTrainedModel, table: list[dict[str, Any]]) -> dict[str, Any]:
    """For the JSON: the table, one weight per modality, and the gates of cross-attention."""
    results: dict[str, Any] = {}
    if table:
        results["modality_weights"] = {row["modality"]: row.get("learned_weight", row["mean"]) for row in table}
        results["modality_weights_of_rows"] = table
    if model.config.cross_attention:
        rounded = [{name: round(value, 6) for name, value in gate.items()} for gate in model.fusion_gates()]
        results["fusion_gates"] = rounded
    return results


def learned_sections(model: PreTrainedModel, table: list[dict[str, Any]], output: Path) -> list[Section]:
    """For report.html, with pictures drawn into `output`."""
    sections = []
    if table:
        said = "Of late fusion, over the rows that have the modality; the weights of a row add up to one."
        if model.late_fusion.kind == "gated":
            said += " Each is the mean of a gate over features, and depends on the row."
        else:
            said += " The learned weight is that of a row which has all; others share out what they have."
        known = [row for row in table if row["rows"]]
        bars = [(f"{row['modality']} ({row['rows']} rows)", row["mean"]) for row in known]
        ends = [(row["mean"] - row["standard_deviation"], row["mean"] + row["standard_deviation"]) for row in known]
        path = output / "weights.png"
        figures.draw_bars(bars, "mean weight, and its standard deviation over rows", path, ends=ends)
        sections.append(Section("Learned weights of the modalities", said, table, path))
    if model.config.cross_attention:
        gates = model.fusion_gates()
        bars = [
            (f"{name.replace('_', '-')} before text layer {gate['before_text_layer']}", value)
            for gate in gates
            for name, value in gate.items()
            if name != "before_text_layer"
        ]
        said = (
            "Tanh of each gate, 0 before training. It scales what a fusion layer adds to the text's states; of which "
            "sign, and how large beside the states, the gate alone does not tell."
        )
        figures.draw_bars(bars, "tanh of the gate", output / "gates.png", signed=True)
        sections.append(Section("Gates of cross-attention", said, gates, output / "gates.png"))
    return sections
