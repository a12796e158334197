# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Simple baselines: the scores that the same rows yield in seconds, to judge whether a model earns its cost.

- majority: the most frequent label or answer, or the mean of the numbers
- each modality alone: logistic regression (ridge regression for numbers) on one vector per row; for a table of numbers
  and categories also gradient boosting
- late fusion: logistic regression on all vectors side by side, or the mean of the single models' log-probabilities

All are fitted on training rows. Validation rows choose the penalty, the features and the kind of late fusion; the
evaluated rows are only scored. A baseline that cannot be fitted has a reason in place of a score.

Shapes: R rows, F features, C classes, labels or numbers.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import logit

from ..tasks import TASKS
from .metrics import head_metrics

STRENGTHS = tuple(float(10**power) for power in np.arange(-1, 3.1, 0.5))  # inverse of the penalty, strongest first
PATIENCE = 2  # weaker penalties that are tried beyond the best
STEPS = 100  # of the solver
FEW_OUTPUTS = 10
LEAST = 1e-6  # least probability, that of a class in no training row
# gradient boosting with scikit-learn's defaults, and more cautious unless there are many outputs, each with its trees
BOOSTINGS: tuple[dict[str, Any], ...] = ({}, {"max_leaf_nodes": 8, "learning_rate": 0.05, "max_iter": 150})


class Parts(NamedTuple):
    """The same thing for training rows, validation rows and evaluated rows."""

    train: Any
    validation: Any
    test: Any


@dataclass
class Inputs:
    """One modality of all rows.

    Args:
        present: (R,) bool, False for rows without the modality; rows of the arrays below are ignored there.
        features: (R, F) dense or sparse by description; the best in validation is used.
        table: numbers and codes of categories (R, F) for gradient boosting, NaN where missing; None if no table.
        categories: (F,) bool, True for the columns of `table` with codes.
    """

    name: str
    present: Parts
    features: Mapping[str, Parts]
    table: Parts | None = None
    categories: np.ndarray | None = None


@dataclass
class Targets:
    """The targets of all rows: class ids (R,), labels of 0 and 1 (R, C) or numbers (R, C), and the outputs' names."""

    task: str
    values: Parts
    names: Sequence[str]

    def problems(self) -> list[np.ndarray]:
        """The training targets (R,) that one estimator each learns.

        Raises:
            ValueError: all training rows are of one class.
        """
        truths = np.asarray(self.values.train)
        if TASKS[self.task].numbers or TASKS[self.task].several_labels:
            return list(truths.reshape(len(truths), -1).T)
        if len(np.unique(truths)) < 2:
            raise ValueError(f"the training rows have only '{self.names[int(truths[0])]}'; expected two or more")
        return [truths]

    def score(self, outputs: np.ndarray) -> float:
        """The task's main metric of outputs (R, C) for the validation rows; -inf where it is undefined."""
        value = head_metrics(self.task, outputs, self.values.validation)[TASKS[self.task].main_metric]
        return value if np.isfinite(value) else -np.inf


@dataclass
class Baseline:
    """A baseline; `outputs` (R, C) are as a head returns them: logits, or numbers.

    score: the main metric in validation. reason: why there are no outputs.
    """

    name: str
    method: str
    outputs: Parts | None = None
    score: float = -np.inf
    reason: str = ""


def joined(blocks: Sequence[Any]) -> Any:
    """Blocks of features side by side; sparse if any is."""
    if any(sparse.issparse(block) for block in blocks):
        return sparse.hstack([sparse.csr_matrix(block) for block in blocks], format="csr")
    return np.concatenate(blocks, axis=1)


def scaled(parts: Parts, present: Parts) -> Parts:
    """Features standardised by the training rows that have the modality, then scaled to a mean squared norm of one.

    The norm lets the same penalties suit any number of features, and weighs modalities alike side by side. Sparse
    features are not standardised. A row without the modality is zero, but for a column that marks such rows.
    """
    known = parts.train[present.train]
    if sparse.issparse(known):
        norm = np.sqrt(known.multiply(known).sum() / max(1, known.shape[0])) or 1.0
        blocks = [sparse.diags(has.astype(float)) @ part / norm for part, has in zip(parts, present, strict=True)]
    else:
        mean, deviation = known.mean(axis=0), known.std(axis=0)
        deviation = np.where(deviation > 1e-8, deviation, np.inf)  # constant features become zero
        norm = np.sqrt(max(1, np.isfinite(deviation).sum()))
        blocks = [
            np.where(has[:, None], (part - mean) / (deviation * norm), 0)
            for part, has in zip(parts, present, strict=True)
        ]
    if present.train.all():
        return Parts(*blocks)
    return Parts(*(joined([block, 1.0 - has[:, None]]) for block, has in zip(blocks, present, strict=True)))


def outputs_from(
    targets: Targets, estimators: Sequence[Any], features: Parts, weights: np.ndarray | None = None
) -> tuple[Parts, list[Any]]:
    """Fit one estimator for each problem; their outputs (R, C) for all rows, and themselves, or a constant target."""
    fitted = []
    for estimator, truths in zip(estimators, targets.problems(), strict=True):
        constant = bool((truths == truths[0]).all())
        fitted.append(float(truths[0]) if constant else estimator.fit(features.train, truths, weights))
    return Parts(*(predicted(targets, fitted, part) for part in features)), fitted


def predicted(targets: Targets, fitted: Sequence[Any], features: Any) -> np.ndarray:
    """Outputs (R, C) of fitted estimators: numbers, log-odds of labels or log-probabilities of classes."""
    rows, task = features.shape[0], TASKS[targets.task]
    if not (task.numbers or task.several_labels):
        shares = np.zeros((rows, len(targets.names)))  # a class may be in no training row
        shares[:, fitted[0].classes_] = fitted[0].predict_proba(features)
        return np.log(shares.clip(LEAST))
    columns = []
    for estimator in fitted:
        if isinstance(estimator, float):
            columns.append(np.full(rows, estimator))
        else:
            numbers = estimator.predict(features) if task.numbers else estimator.predict_proba(features)[:, 1]
            columns.append(numbers)
    outputs = np.stack(columns, axis=1)
    return outputs if task.numbers else logit(outputs.clip(LEAST, 1 - LEAST))


class LinearFit(NamedTuple):
    """A regression: its outputs (R, C), their score in validation, its estimators by `problems`, a constant in place
    of one whose targets are constant, and the inverse of its penalty."""

    outputs: Parts
    score: float
    fitted: list[Any]
    strength: float


def linear(targets: Targets, features: Parts, weights: np.ndarray | None = None) -> LinearFit:
    """Logistic regression, for numbers ridge regression; the validation rows set its penalty.

    Args:
        weights: (R,) weights of the training rows; all equal by default.

    Raises:
        ValueError: all training rows are of one class.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    problems, numbers = targets.problems(), TASKS[targets.task].numbers
    estimators = [Ridge() if numbers else LogisticRegression(warm_start=True, max_iter=STEPS) for _ in problems]
    best: LinearFit | None = None
    tried_since = 0
    for strength in STRENGTHS:
        for estimator in estimators:
            estimator.set_params(**({"alpha": 1 / strength} if numbers else {"C": strength}))
        outputs, fitted = outputs_from(targets, estimators, features, weights)
        score, tried_since = targets.score(outputs.validation), tried_since + 1
        if best is None or score > best.score:
            best, tried_since = LinearFit(outputs, score, copy.deepcopy(fitted), strength), 0
        if tried_since == PATIENCE:
            break
    assert best is not None
    return best


def boosting(targets: Targets, table: Parts, categories: np.ndarray | None, seed: int) -> tuple[Parts, float]:
    """Outputs of gradient boosting on numbers and categories, and their score; validation chooses its settings.

    Raises:
        ValueError: all training rows are of one class.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if TASKS[targets.task].numbers else HistGradientBoostingClassifier
    found = []
    for settings in BOOSTINGS if len(targets.names) <= FEW_OUTPUTS else BOOSTINGS[:1]:
        options = {"categorical_features": categories, "random_state": seed, **settings}
        outputs, _ = outputs_from(targets, [kind(**options) for _ in targets.problems()], table)
        found.append((outputs, targets.score(outputs.validation)))
    return max(found, key=lambda pair: pair[1])


def majority(targets: Targets) -> Baseline:
    """The most frequent class, the labels of most rows or the mean of the numbers, for every row."""
    truths, task = np.asarray(targets.values.train), TASKS[targets.task]
    if task.numbers:
        output, method = truths.reshape(len(truths), -1).mean(axis=0), "mean of the training rows"
    elif task.several_labels:
        output, method = logit(truths.mean(axis=0).clip(LEAST, 1 - LEAST)), "labels of most training rows"
    else:
        shares = np.bincount(truths, minlength=len(targets.names))[: len(targets.names)] / len(truths)
        output, method = np.log(shares.clip(LEAST)), "most frequent in the training rows"
    outputs = Parts(*(np.tile(output, (len(part), 1)) for part in targets.values))
    return Baseline("mean" if task.numbers else "majority", method, outputs, targets.score(outputs.validation))


def failure(name: str, method: str, error: Exception) -> Baseline:
    """A baseline that could not be fitted."""
    return Baseline(name, method, reason=str(error).strip().splitlines()[0] if str(error) else type(error).__name__)


def alone(targets: Targets, inputs: Inputs, seed: int) -> tuple[list[Baseline], Parts | None]:
    """The baselines of one modality, and its scaled features that are the best in validation; None without any."""
    kind = "ridge regression" if TASKS[targets.task].numbers else "logistic regression"
    name = f"{inputs.name} alone"
    if not inputs.present.train.any():
        return [failure(name, kind, ValueError(f"no training row has {inputs.name}"))], None
    best, chosen = Baseline(name, kind), None
    try:
        for description, parts in inputs.features.items():
            features = scaled(parts, inputs.present)
            fit = linear(targets, features)
            if chosen is None or fit.score > best.score:
                best, chosen = Baseline(name, f"{kind} on {description}", fit.outputs, fit.score), features
    except ValueError as error:
        best = failure(name, kind, error)
    found = [best]
    if inputs.table is not None:
        try:
            boosted = boosting(targets, inputs.table, inputs.categories, seed)
            found.append(Baseline(f"{name}, boosted", "gradient boosting", *boosted))
        except ValueError as error:
            found.append(failure(f"{name}, boosted", "gradient boosting", error))
    return found, chosen


def mean_outputs(singles: Sequence[Baseline], presents: Sequence[Parts]) -> Parts:
    """The mean of the outputs (R, C) over the modalities that a row has, or over all if it has none."""
    means = []
    for number in range(len(Parts._fields)):
        weights = np.stack([present[number] for present in presents]).astype(float)  # (M, R)
        weights[:, weights.sum(axis=0) == 0] = 1
        outputs = np.stack([single.outputs[number] for single in singles if single.outputs])  # (M, R, C)
        means.append((weights[..., None] * outputs).sum(axis=0) / weights.sum(axis=0)[:, None])
    return Parts(*means)


def late_fusion(
    targets: Targets, singles: Sequence[Baseline], presents: Sequence[Parts], features: Sequence[Parts]
) -> Baseline:
    """The better, in validation, of one regression on all features side by side and of the mean of single models."""
    numbers = TASKS[targets.task].numbers
    outputs = mean_outputs(singles, presents)
    method = f"mean of the single models' {'predictions' if numbers else 'log-probabilities'}"
    mean = Baseline("late fusion", method, outputs, targets.score(outputs.validation))
    together = Parts(*(joined(blocks) for blocks in zip(*features, strict=True)))
    kind = "ridge regression" if numbers else "logistic regression"
    fit = linear(targets, together)
    regression = Baseline("late fusion", f"{kind} on all features side by side", fit.outputs, fit.score)
    return max(regression, mean, key=lambda baseline: baseline.score)


def fit_baselines(targets: Targets, modalities: Sequence[Inputs], seed: int = 0) -> list[Baseline]:
    """All baselines of these rows; none of them raises, a failure is a baseline with its reason."""
    baselines, singles, presents, features = [majority(targets)], [], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the solver could go on, or that a metric is undefined
        for inputs in modalities:
            found, chosen = alone(targets, inputs, seed)
            baselines += found
            if chosen is not None:
                singles.append(max(found, key=lambda baseline: baseline.score))
                presents.append(inputs.present)
                features.append(chosen)
        if len(singles) > 1:
            try:
                baselines.append(late_fusion(targets, singles, presents, features))
            except ValueError as error:
                baselines.append(failure("late fusion", "", error))
    return baselines
