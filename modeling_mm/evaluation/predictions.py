# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Predictions and metrics of rows, with confidence intervals of the scores.

Shapes: R rows, C classes or labels.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, Trainer

from ..data.answer_turns import AnswerTurns
from ..data.targets import normalize
from ..tasks import TASKS
from .calibration import expected_calibration_error
from .metrics import bootstrap_interval, format_predictions, micro_f1, r2, wilson
from .text_metrics import text_metrics


@dataclass
class Evaluation:
    """Metrics of a dataset, with each row's decoded prediction and label, and for a head its logits and label ids.

    logits: (R, C). label_ids: (R,) class ids or (R, C). Both are empty for a generation.
    """

    metrics: dict[str, float | None]
    predictions: list[Any]
    truths: list[Any]
    logits: np.ndarray = field(default_factory=lambda: np.zeros(0))
    label_ids: np.ndarray = field(default_factory=lambda: np.zeros(0))


def rounded(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics rounded for JSON, which has no NaN: an undefined metric is None."""
    return {name: round(float(value), 6) if np.isfinite(value) else None for name, value in metrics.items()}


def label_names(model: PreTrainedModel, task: str) -> list[str] | None:
    """The names of the head's outputs, in order; None for a head without labels."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)] if TASKS[task].has_labels else None


def evaluate_rows(trainer: Trainer, task: str, dataset: Any, answer_metrics: Sequence[str] = ()) -> Evaluation:
    """Predict and score all rows of a dataset (or of matching pairs); generated answers by these metrics too."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    output = trainer.predict(dataset, metric_key_prefix="test")
    timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    metrics = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
    metrics = {name: value for name, value in metrics.items() if name not in timing}
    loss = metrics.pop("loss")
    tokenizer, labels = trainer.processing_class.tokenizer, label_names(model, task)
    predictions = format_predictions(task, output.predictions, tokenizer, labels)
    if TASKS[task].generates:
        rows = [dataset[i] for i in range(len(dataset))]
        truths = [row.target for row in rows]
        metrics |= text_metrics(answer_metrics, predictions, [row.references for row in rows])
        return Evaluation(rounded({**metrics, "loss": loss}), predictions, truths)
    logits, label_ids = np.asarray(output.predictions, dtype=np.float64), output.label_ids
    if TASKS[task].gives_probabilities:
        metrics["ece"] = expected_calibration_error(task, logits, label_ids)
        if temperature := model.config.calibration_temperature:
            metrics["ece_uncalibrated"] = expected_calibration_error(task, logits * temperature, label_ids)
    as_logits = (
        label_ids if TASKS[task].numbers or TASKS[task].several_labels else np.eye(len(labels or []))[label_ids]
    )
    truths = format_predictions(task, as_logits, tokenizer, labels)
    return Evaluation(rounded({**metrics, "loss": loss}), predictions, truths, logits, label_ids)


def is_right(prediction: Any, truth: Any) -> bool | None:
    """True if a prediction equals the truth; None for numbers."""
    if isinstance(truth, list):
        return None if any(isinstance(part, float) for part in truth) else prediction == truth
    return normalize(prediction) == normalize(truth)


def main_score(task: str, evaluation: Evaluation) -> Callable[[np.ndarray], float]:
    """A function of row indices, which may repeat, that returns the task's main metric of these rows."""
    score = {"r2": r2, "micro_f1": micro_f1}.get(TASKS[task].main_metric)
    if score is None:
        right = right_rows(evaluation)
        return lambda rows: float(right[rows].mean())
    logits, truths = (np.reshape(a, (len(a), -1)) for a in (evaluation.logits, evaluation.label_ids))
    return lambda rows: score(logits[rows], truths[rows])


def right_rows(evaluation: Evaluation) -> np.ndarray:
    """1 for each row whose label or answer is right, 0 for others (R,)."""
    if len(evaluation.logits):
        return (evaluation.logits.argmax(axis=-1) == evaluation.label_ids).astype(float)
    pairs = zip(evaluation.predictions, evaluation.truths, strict=True)
    return np.array([float(bool(is_right(prediction, truth))) for prediction, truth in pairs])


def interval(task: str, evaluation: Evaluation) -> tuple[float, float] | None:
    """The confidence interval of the main score; None where it is undefined."""
    if TASKS[task].main_metric == "accuracy":
        return wilson(int(right_rows(evaluation).sum()), len(evaluation.predictions))
    return bootstrap_interval(main_score(task, evaluation), len(evaluation.predictions))


def shortened(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    """The ends of an interval, rounded for JSON."""
    return None if ends is None else (round(ends[0], 6), round(ends[1], 6))


def with_intervals(task: str, evaluation: Evaluation, whole: Evaluation) -> dict[str, Any]:
    """A row of the modality table: the main score and its change from `whole`, with their confidence intervals."""
    metric = TASKS[task].main_metric
    main = evaluation.metrics[metric]
    row: dict[str, Any] = {
        metric: main,
        "interval": interval(task, evaluation),
        "change": None,
        "its interval": None,
    }
    if evaluation is not whole and main is not None:
        row["change"] = round(main - (whole.metrics[metric] or 0.0), 6)
        changed, before = main_score(task, evaluation), main_score(task, whole)
        row["its interval"] = bootstrap_interval(lambda rows: changed(rows) - before(rows), len(whole.predictions))
    return row | {name: value for name, value in evaluation.metrics.items() if name != metric}


def scores_by_turn(dataset: Any, evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy and number of the first, the second, ... answers of conversations, as `turns`, and of the kinds that
    they say, as `kinds`; empty for other rows."""
    if not isinstance(dataset, AnswerTurns):
        return {}
    right, scores = right_rows(evaluation), dict[str, Any]()
    numbers, kinds = zip(*(dataset.group(i) for i in range(len(dataset))), strict=True)
    for name, groups in (("turns", numbers), ("kinds", kinds)):
        for group in sorted(set(groups) - {""}):
            chosen = right[np.array([each == group for each in groups])]
            found = {"accuracy": round(float(chosen.mean()), 6), "rows": len(chosen)}
            scores.setdefault(name, {})[str(group)] = found
    return scores


def write_predictions(dataset: Any, evaluation: Evaluation, path: Path) -> None:
    """Write one JSON line per row: number, text, table, truth, prediction, and its correctness."""
    with path.open("w", encoding="utf-8") as file:
        for i, (prediction, truth) in enumerate(zip(evaluation.predictions, evaluation.truths, strict=True)):
            row, right = dataset[i], is_right(prediction, truth)
            cells = {"table": row.table} if row.table else {}
            result = {"row": row.number, "text": row.text, **cells, "truth": truth, "prediction": prediction}
            file.write(json.dumps(result if right is None else {**result, "correct": right}) + "\n")
