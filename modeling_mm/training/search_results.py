# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The results of a search: its trials, the best of them, and the importance of each argument for the score."""

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)


def finished_trials(study: "Study") -> list["FrozenTrial"]:
    """The trials that were completed or pruned."""
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def best_trial(study: "Study") -> "FrozenTrial | None":
    """The completed trial with the highest score, the earliest of several; None if no trial was completed."""
    completed = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return max(completed, key=lambda trial: (trial.value, -trial.number), default=None)


def score(trial: "FrozenTrial") -> float | None:
    """The score of a completed trial, if it is a number."""
    value = trial.value if trial.state.name == "COMPLETE" else None
    return value if value is not None and math.isfinite(value) else None


def importances(study: "Study", seed: int) -> dict[str, float]:
    """The share of each argument in the variance of the score, highest first.

    It is found by functional ANOVA (Hutter et al. 2014), and empty if too few trials were completed, or all with the
    same score.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    scores = [value for trial in study.trials if (value := score(trial)) is not None]
    if len(scores) < 3 or min(scores) == max(scores):
        return {}
    try:
        return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    except RuntimeError as error:  # no tree of the forest splits
        logger.warning(f"no importance of the arguments: {error}")
        return {}


def trial_rows(study: "Study", metric: str) -> list[dict[str, Any]]:
    """A row for each trial, as report.json holds it; the metric is None if it was not measured to the end."""
    rows = []
    for trial in study.trials:
        seconds = None if trial.duration is None else round(trial.duration.total_seconds(), 1)
        state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        facts = {"trial": trial.number, "state": state, metric: score(trial), "seconds": seconds}
        rows.append({**facts, "values": trial.params})
    return rows


def cell(value: Any) -> str:
    """A value as the table prints it."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def trials_table(rows: Sequence[dict[str, Any]], metric: str, best: int | None) -> str:
    """The trials as lines to print, the best score first; words of a heading are below each other."""
    ranked = sorted(rows, key=lambda row: (row[metric] is None, -(row[metric] or 0.0), row["trial"]))
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    heads = [["trial"], ["state"], metric.split("_"), ["seconds"], *(name.split("_") for name in names)]
    height = max(map(len, heads))
    lines = [[column[-height + i] if i >= height - len(column) else "" for column in heads] for i in range(height)]
    for row in ranked:
        facts = [row["trial"], row["state"], row[metric], row["seconds"]]
        lines.append([cell(value) for value in (*facts, *(row["values"].get(name) for name in names))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    title = f"\nTrials by {metric} of the validation rows; trial {best} is trained in full:"
    return "\n  ".join([title if best is not None else "\nTrials:", *text]) + "\n"
