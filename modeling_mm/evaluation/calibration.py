# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Calibration of probabilities: its error, and one temperature that corrects it (Guo et al. 2017).

Shapes: R rows, C classes, Q queries, k candidates of each.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logsumexp, softmax

from ..tasks import TASKS

BINS = 15
PRIOR = 1e-4  # penalty in nats of a weight of e or 1/e


def probabilities(task: str, logits: np.ndarray) -> np.ndarray:
    """Probabilities (R, C), which sum to one over classes; those of several labels are independent."""
    return expit(logits) if TASKS[task].several_labels else softmax(logits, axis=-1)


def fit_temperature(task: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """The maximum likelihood temperature between 0.05 and 20; `labels` are (R,) ids or (R, C) of 0 and 1."""
    logits = logits.astype(np.float64)

    def nll(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if TASKS[task].several_labels:
            return float(np.logaddexp(0, np.where(labels > 0, -scaled, scaled)).mean())
        return float(-log_softmax(scaled, axis=-1)[np.arange(len(labels)), labels].mean())

    return minimise_nll(nll, 20)


def fit_rerank_weight(similar: np.ndarray, odds: np.ndarray, true: np.ndarray) -> float:
    """The maximum likelihood weight, between 0.01 and 20, of the log-odds (Q, k) in a ranking of each query's k
    candidates by similarity (Q, k) plus weighted log-odds.

    The sum is divided by a temperature, which changes no ranking and is not kept: without it, overconfident embeddings
    would count against the log-odds. Queries without a true candidate say nothing; the weight is 1 if no other is left
    or if the others leave it open.
    """
    answerable = true.any(axis=1)
    similar, odds = similar[answerable].astype(np.float64), odds[answerable].astype(np.float64)
    wrong = ~true[answerable]

    def nll(log_divisor: float) -> float:
        summed = similar + odds / np.exp(log_divisor)

        def nll_of_sum(log_temperature: float) -> float:
            scores = log_softmax(summed / np.exp(log_temperature), axis=1)
            return float(-logsumexp(np.where(wrong, -np.inf, scores), axis=1).mean())

        return nll_of_sum(np.log(minimise_nll(nll_of_sum, 100))) + PRIOR * log_divisor**2

    return 1 / minimise_nll(nll, 100) if answerable.any() else 1.0


def minimise_nll(nll: Callable[[float], float], most: float) -> float:
    """The temperature between 0.05 and `most` at whose logarithm `nll` is least."""
    return float(np.exp(minimize_scalar(nll, bounds=(np.log(0.05), np.log(most)), method="bounded").x))


def confidence(task: str, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and correctness of each prediction: of the likeliest class, or of each of several labels."""
    shares = probabilities(task, logits.astype(np.float64))
    if TASKS[task].several_labels:
        return shares.ravel(), labels.ravel() > 0
    return shares.max(axis=-1), shares.argmax(axis=-1) == labels


def reliability(sure: np.ndarray, true: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and count of each of 15 equal bins that is not empty."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    return [
        (float(sure[bins == b].mean()), float(true[bins == b].mean()), int((bins == b).sum())) for b in np.unique(bins)
    ]


def expected_calibration_error(task: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by their counts."""
    curve = reliability(*confidence(task, logits, labels))
    return sum(count * abs(sure - true) for sure, true, count in curve) / sum(count for *_, count in curve)
