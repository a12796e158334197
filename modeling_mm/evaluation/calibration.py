# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""How far probabilities can be believed, and one temperature that mends them (Guo et al. 2017).

Shapes: R rows, C classes, Q queries, k candidates of each.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logsumexp, softmax

from ..tasks import TASKS

BINS = 15
PRIOR = 1e-4  # nats, for a weight that is e times or 1/e times 1


def probabilities(task: str, logits: np.ndarray) -> np.ndarray:
    """(R, C): shares of one for classes, independent ones for several labels."""
    return expit(logits) if TASKS[task].several_labels else softmax(logits, axis=-1)


def fit_temperature(task: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature between 0.05 and 20 that makes labels likeliest; `labels` are (R,) ids or (R, C) of 0 and 1."""
    logits = logits.astype(np.float64)

    def nll(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if TASKS[task].several_labels:
            return float(np.logaddexp(0, np.where(labels > 0, -scaled, scaled)).mean())
        return float(-log_softmax(scaled, axis=-1)[np.arange(len(labels)), labels].mean())

    return minimise_nll(nll, 20)


def fit_rerank_weight(similar: np.ndarray, odds: np.ndarray, true: np.ndarray) -> float:
    """The weight between 0.01 and 20 of the log-odds (Q, k) by which the right ones of each query's k candidates are
    likeliest when candidates are ranked by similarity (Q, k) and weighted log-odds together.

    How sure the sum of both is has a temperature of its own, which changes no ranking and is not kept: embeddings too
    sure of themselves would otherwise count against the log-odds. Queries whose candidates are all wrong tell nothing;
    where the others do not tell either, it is 1.
    """
    some = true.any(axis=1)
    similar, odds, wrong = similar[some].astype(np.float64), odds[some].astype(np.float64), ~true[some]

    def nll(log_divisor: float) -> float:
        summed = similar + odds / np.exp(log_divisor)

        def of_sum(log_temperature: float) -> float:
            scores = log_softmax(summed / np.exp(log_temperature), axis=1)
            return float(-logsumexp(np.where(wrong, -np.inf, scores), axis=1).mean())

        return of_sum(np.log(minimise_nll(of_sum, 100))) + PRIOR * log_divisor**2

    return 1 / minimise_nll(nll, 100) if some.any() else 1.0


def minimise_nll(nll: Callable[[float], float], most: float) -> float:
    """The temperature between 0.05 and `most` at whose logarithm the surprise is least."""
    return float(np.exp(minimize_scalar(nll, bounds=(np.log(0.05), np.log(most)), method="bounded").x))


def confidence(task: str, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How sure each prediction is and whether it is true: of the likeliest class, or of each of several labels."""
    shares = probabilities(task, logits.astype(np.float64))
    if TASKS[task].several_labels:
        return shares.ravel(), labels.ravel() > 0
    return shares.max(axis=-1), shares.argmax(axis=-1) == labels


def reliability(sure: np.ndarray, true: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean confidence, share of true ones, and count of each of 15 equal bins that holds any."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    return [
        (float(sure[bins == b].mean()), float(true[bins == b].mean()), int((bins == b).sum())) for b in np.unique(bins)
    ]


def expected_calibration_error(task: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance between confidence and truth over the bins, weighted by their counts."""
    curve = reliability(*confidence(task, logits, labels))
    return sum(count * abs(sure - true) for sure, true, count in curve) / sum(count for *_, count in curve)
