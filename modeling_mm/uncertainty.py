# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""How far a score of these rows may be from that of all the rows there could be, rows taken as independent.

- A share of right answers has the interval of Wilson (1927), which is honest near 0 and 1 and for few rows.
- Other scores, and differences between two runs over the same rows, are drawn again from the rows (bootstrap).

Shapes: R rows, C outputs of a head.
"""

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.95
DRAWS = 500


def wilson(right: int, rows: int) -> tuple[float, float]:
    """The interval of a share of `right` among `rows`."""
    found = binomtest(right, rows).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def main_score(task: str, predictions: np.ndarray, truths: np.ndarray) -> float:
    """What `metrics.MAIN` names, from the head's outputs and labels (R, C), or from (R,) right or not and ones."""
    if task == "regression":
        with np.errstate(invalid="ignore", divide="ignore"):  # of equal numbers R2 says nothing
            spread = ((truths - truths.mean(axis=0)) ** 2).sum(axis=0)
            return float((1 - ((predictions - truths) ** 2).sum(axis=0) / spread).mean())
    if task == "multilabel":
        said, true = predictions > 0, truths > 0
        return float(2 * (said & true).sum() / max(1, said.sum() + true.sum()))
    return float(predictions.mean())


def drawn(task: str, predictions: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """(DRAWS,) main scores of as many rows drawn with replacement; the same rows for every run over them."""
    generator, rows = np.random.default_rng(0), len(predictions)
    picks = (generator.integers(rows, size=rows) for _ in range(DRAWS))
    return np.array([main_score(task, predictions[pick], truths[pick]) for pick in picks])


def spread(scores: np.ndarray) -> tuple[float, float] | None:
    """The interval that holds the middle 95 % of drawn scores; None where too many of them say nothing."""
    scores = scores[np.isfinite(scores)]
    if len(scores) < DRAWS / 2:
        return None
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
