# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Metrics of each task over whole datasets, and predictions as text.

Shapes: R rows, C outputs of the head.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import (
    ConstantInputWarning,
    DegenerateDataWarning,
    NearConstantInputWarning,
    binomtest,
    bootstrap,
    pearsonr,
)
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ..data.targets import normalize
from ..tasks import TASKS


def accuracy(predictions: Sequence[str], truths: Sequence[str]) -> float:
    """Share of predictions that equal the truth after `normalize`."""
    return float(np.mean([normalize(p) == normalize(t) for p, t in zip(predictions, truths, strict=True)]))


def macro_f1(predictions: Any, truths: Any) -> float:
    """Unweighted mean of the F1 of each class that occurs; classes are names or ids."""
    return float(sklearn_metrics.f1_score(truths, predictions, average="macro", zero_division=0))


def decode(token_ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts from (R, T) token ids, where -100 is padding."""
    kept = np.where(token_ids < 0, tokenizer.pad_token_id, token_ids)
    return [text.strip() for text in tokenizer.batch_decode(kept, skip_special_tokens=True)]


def format_predictions(
    task: str, predictions: np.ndarray, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None
) -> list[Any]:
    """The prediction of each row: an answer, a label, a list of labels, or a number for each label column."""
    if labels is None or TASKS[task].generates:
        return decode(predictions, tokenizer)
    if TASKS[task].numbers:
        return np.asarray(predictions, dtype=np.float64).reshape(-1, len(labels)).tolist()
    if TASKS[task].several_labels:
        return [[label for label, logit in zip(labels, row, strict=True) if logit > 0] for row in predictions]
    return [labels[i] for i in predictions.argmax(axis=-1)]


def format_answer(value: Any) -> str:
    """A prediction or a truth as text."""
    if isinstance(value, list):
        return ", ".join(f"{part:.4g}" if isinstance(part, float) else str(part) for part in value)
    return str(value)


def r2(predictions: np.ndarray, truths: np.ndarray) -> float:
    """R2 of (R, C) numbers, the mean over columns; NaN where it is undefined, for one row or equal truths.

    This function and `micro_f1` equal scikit-learn's, whose checks in each call would dominate the time of resampling.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        variation = ((truths - truths.mean(axis=0)) ** 2).sum(axis=0)
        score = float((1 - ((predictions - truths) ** 2).sum(axis=0) / variation).mean())
    return score if np.isfinite(score) else float("nan")


def pearson(predictions: np.ndarray, truths: np.ndarray) -> float:
    """Pearson's r of (R, C) numbers, the mean over columns; NaN where it is undefined, like `r2`."""
    if len(truths) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (ConstantInputWarning, NearConstantInputWarning))
        return float(pearsonr(predictions, truths, axis=0).statistic.mean())


def micro_f1(logits: np.ndarray, truths: np.ndarray) -> float:
    """F1 over all labels of all rows (R, C) together, at a probability of one half; 0 if there is no label."""
    predicted, true = logits > 0, truths > 0
    return float(2 * (predicted & true).sum() / max(1, predicted.sum() + true.sum()))


def regression_metrics(predictions: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Mean absolute error, root of the mean squared error, R2 and Pearson's r; means over label columns."""
    predictions, truths = (np.asarray(n, dtype=np.float64).reshape(len(truths), -1) for n in (predictions, truths))
    return {
        "mae": float(sklearn_metrics.mean_absolute_error(truths, predictions)),
        "rmse": float(sklearn_metrics.root_mean_squared_error(truths, predictions)),
        "r2": r2(predictions, truths),
        "pearson": pearson(predictions, truths),
    }


def multilabel_metrics(logits: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Micro and macro F1 at a probability of one half, and mean average precision over the labels that occur."""
    true = truths > 0
    occurs = true.any(axis=0)
    scores = [sklearn_metrics.average_precision_score(true[:, i], logits[:, i]) for i in np.flatnonzero(occurs)]
    return {
        "micro_f1": micro_f1(logits, truths),
        "macro_f1": float(np.mean([micro_f1(logits[:, [i]], true[:, [i]]) for i in range(true.shape[1])])),
        "map": float(np.mean(scores)) if scores else float("nan"),
    }


def classification_metrics(logits: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Accuracy and macro F1."""
    chosen = logits.argmax(axis=-1)
    return {"accuracy": float(np.mean(chosen == truths)), "macro_f1": macro_f1(chosen, truths)}


def matching_metrics(logits: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Accuracy and area under the ROC curve, which is NaN if all pairs match or none does."""
    both = 0 < truths.sum() < len(truths)
    auc = float(sklearn_metrics.roc_auc_score(truths, logits[:, 1] - logits[:, 0])) if both else float("nan")
    return {"accuracy": float(np.mean(logits.argmax(axis=-1) == truths)), "auc": auc}


HEAD_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "classification": classification_metrics,
    "multilabel": multilabel_metrics,
    "regression": regression_metrics,
    "matching": matching_metrics,
}


def head_metrics(task: str, logits: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Metrics of a head from its logits (R, C) and the true labels."""
    return HEAD_METRICS[task](logits, truths)


def compute_metrics_for(
    tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None, task: str | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` for the Trainer; the default task is classification if there are labels, else generation."""
    kind = task or ("generation" if labels is None else "classification")

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        if TASKS[kind].generates:
            texts = decode(prediction.predictions, tokenizer)
            return {"accuracy": accuracy(texts, decode(prediction.label_ids, tokenizer))}
        return head_metrics(kind, prediction.predictions, prediction.label_ids)

    return compute


def per_class(task: str, logits: np.ndarray, truths: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and rows of each class; for several labels also the average precision."""
    predicted = logits > 0 if TASKS[task].several_labels else logits.argmax(axis=-1)
    truths = truths > 0 if TASKS[task].several_labels else truths
    columns = sklearn_metrics.precision_recall_fscore_support(
        truths, predicted, labels=range(len(labels)), zero_division=0
    )
    names = ("precision", "recall", "f1", "rows")
    table = []
    for i, (name, *values) in enumerate(zip(labels, *columns, strict=True)):
        row = {"label": name, **{key: float(v) for key, v in zip(names, values, strict=True)}, "rows": int(values[-1])}
        if TASKS[task].several_labels and row["rows"]:
            row["average_precision"] = float(sklearn_metrics.average_precision_score(truths[:, i], logits[:, i]))
        table.append(row)
    return table


LEVEL = 0.95
RESAMPLES = 500


def wilson(right: int, rows: int) -> tuple[float, float]:
    """Wilson's confidence interval of the share of `right` among `rows`."""
    found = binomtest(right, rows).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_interval(score: Callable[[np.ndarray], float], rows: int) -> tuple[float, float] | None:
    """The bootstrap interval of the middle 95 % of scores of resampled rows; None if too many are undefined.

    Args:
        score: the score of the rows with these indices, which may repeat. To compare two models, it scores both on the
            same rows.
        rows: the number of rows; every call with the same number draws the same.
    """
    if rows < 2:
        return None
    batch = max(1, 2**20 // rows)  # resamples drawn at a time; their indices take 8 MB
    options: dict[str, Any] = {"n_resamples": RESAMPLES, "batch": batch, "vectorized": False, "rng": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # about undefined scores, which are left out
        resampled = bootstrap((np.arange(rows),), score, method="percentile", **options)
    scores = resampled.bootstrap_distribution
    scores = scores[np.isfinite(scores)]
    if len(scores) < RESAMPLES / 2:
        return None
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
