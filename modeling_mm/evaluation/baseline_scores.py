# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A trained model beside simple baselines of the same rows, with intervals and a verdict in a sentence.

Retrieval has no baselines, matching only that of one answer for all pairs; a generation's answers are classes if the
training rows have few distinct ones.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import Trainer

from ..data.dataset import MMDataset
from ..data.negatives import MatchingPairs
from ..data.targets import normalize
from ..model.adapters_mm import without_adapters
from ..tasks import TASKS
from .baseline_inputs import baseline_inputs, sampled
from .baselines import Baseline, Inputs, Parts, Targets, fit_baselines
from .metrics import accuracy, bootstrap_interval, head_metrics
from .predictions import Evaluation, interval, main_score, rounded, shortened

logger = logging.getLogger(__name__)

MOST_ROWS = 20_000  # training rows that are fitted on
MOST_CELLS = 500_000  # rows times classes, which sets the time of the fit
MOST_ANSWERS = 100
ERRORS = (ValueError, RuntimeError, OSError, MemoryError)


def fitted_rows(datasets: Parts, names: Sequence[str] | None, seed: int) -> Parts:
    """The datasets with as many training and validation rows, drawn by seed, as are fitted in about a minute."""
    most = min(MOST_ROWS, MOST_CELLS // max(2, len(names or [])))
    return Parts(sampled(datasets.train, most, seed), sampled(datasets.validation, most, seed), datasets.test)


def answer_targets(answers: Parts) -> Targets:
    """Targets from the answers of a generation: a class each, or only the most frequent one if there are too many."""
    texts = Parts(*([normalize(str(answer)) for answer in part] for part in answers))
    counts = Counter(texts.train).most_common()
    names = [name for name, _ in counts[: len(counts) if len(counts) <= MOST_ANSWERS else 1]]
    place = {name: number for number, name in enumerate(names)}
    values = Parts(*(np.array([place.get(text, len(names)) for text in part]) for part in texts))
    return Targets("classification", values, names)


def num_fitted_rows(task: str, train: MMDataset, validation: MMDataset, seed: int) -> int:
    """The number of rows that baselines encode and are fitted to or chosen by; 0 if only the majority is counted."""
    facts = TASKS[task]
    if facts.embeds or facts.pairs:
        return 0
    if facts.generates and len(answer_targets(Parts(train.targets(), [], [])).names) == 1:
        return 0
    return sum(map(len, fitted_rows(Parts(train, validation, []), train.labels, seed)))


def fit(
    task: str,
    datasets: Parts,
    names: Sequence[str] | None,
    seed: int,
    encode: Callable[[], tuple[list[Inputs], Parts]],
) -> tuple[list[Baseline], Targets]:
    """The baselines of a task, and the targets that they were fitted to; `encode` returns the inputs and targets."""
    if TASKS[task].pairs:
        pairs = [part if isinstance(part, MatchingPairs) else MatchingPairs(part, seed) for part in datasets]
        values = Parts(*(np.array([part[i].target for i in range(len(part))]) for part in pairs))
        targets = Targets(task, values, names or [])
        return fit_baselines(targets, []), targets
    if not TASKS[task].generates:
        modalities, lists = encode()
        targets = Targets(task, Parts(*map(np.array, lists)), names or [])
        return fit_baselines(targets, modalities, seed), targets
    targets = answer_targets(Parts(*([part[i].target for i in range(len(part))] for part in datasets)))
    if len(targets.names) == 1:
        reason = f"the training rows do not have between 2 and {MOST_ANSWERS} distinct answers"
        return [*fit_baselines(targets, []), Baseline("late fusion", "logistic regression", reason=reason)], targets
    return fit_baselines(targets, encode()[0], seed), targets


def evaluated(task: str, baseline: Baseline, names: Sequence[str], whole: Evaluation) -> Evaluation:
    """The baseline's predictions and metrics on the rows of a model's evaluation."""
    assert baseline.outputs is not None
    outputs = baseline.outputs.test
    if TASKS[task].generates:
        answers = [names[place] for place in outputs.argmax(axis=1)]
        return Evaluation(rounded({"accuracy": accuracy(answers, whole.truths)}), answers, whole.truths)
    metrics = rounded(head_metrics(task, outputs, whole.label_ids))
    return Evaluation(metrics, list(outputs), whole.truths, outputs, whole.label_ids)


def verdict(metric: str, difference: float, ends: tuple[float, float] | None, best: Baseline) -> str:
    """A sentence that says if a model earns its cost, from its lead over the best baseline and the lead's interval."""
    name = f"the best simple baseline ({best.name}: {best.method})"
    score = f"The model's {metric.replace('_', ' ')} is"
    if ends is None:
        return f"{score} {abs(difference):.3f} {'below' if difference < 0 else 'above'} {name}; the rows are too few."
    by = f"paired bootstrap over rows, 95 %: {ends[0]:.3f} to {ends[1]:.3f}"
    if ends[0] > 0:
        return f"{score} {difference:.3f} above {name}, more than chance explains ({by})."
    if ends[1] < 0:
        return f"{score} {-difference:.3f} below {name} ({by}): the simple model, fitted in seconds, is better."
    return f"{score} not clearly better than that of {name} ({by}): the simple model is fitted in seconds."


def compare(task: str, baselines: Sequence[Baseline], names: Sequence[str], whole: Evaluation) -> dict[str, Any]:
    """The scores of the model and of each baseline on the same rows, and a verdict in a sentence.

    Returns:
        `table`, one dict per model with its score, its interval and the reason of a failure; `difference` of the
        model from the best baseline, and its interval by a paired bootstrap over rows; and `verdict`.
    """
    metric = TASKS[task].main_metric
    main = whole.metrics[metric]
    table = [{"model": "this model", metric: main, "interval": shortened(interval(task, whole))}]
    scored: list[tuple[float, Baseline, Evaluation]] = []
    for baseline in baselines:
        row: dict[str, Any] = {"model": baseline.name, metric: None, "interval": None, "method": baseline.method}
        if baseline.outputs is None:
            row["failed"] = baseline.reason
        else:
            evaluation = evaluated(task, baseline, names, whole)
            row |= {metric: evaluation.metrics[metric], "interval": shortened(interval(task, evaluation))}
            row["in validation"] = round(baseline.score, 6) if np.isfinite(baseline.score) else None
            if row[metric] is not None:
                scored.append((row[metric], baseline, evaluation))
        table.append(row)
    if not scored or main is None:
        return {"table": table, "verdict": f"The {metric} of these rows is undefined, so nothing can be compared."}
    score, best, evaluation = max(scored, key=lambda entry: entry[0])
    model_score, best_score = main_score(task, whole), main_score(task, evaluation)
    ends = bootstrap_interval(lambda rows: model_score(rows) - best_score(rows), len(whole.predictions))
    difference = {"best": best.name, "difference": round(main - score, 6), "difference_interval": shortened(ends)}
    return {"table": table, **difference, "verdict": verdict(metric, main - score, ends, best)}


def score_baselines(
    trainer: Trainer,
    task: str,
    datasets: Parts,
    whole: Evaluation,
    names: Sequence[str] | None,
    trained: Collection[str] = (),
) -> dict[str, Any]:
    """The result of `compare` for the model of a trainer, with the numbers of rows and the seconds that it took.

    Rows, media or features that cannot be read give a sentence in `verdict`, not an error.

    Args:
        datasets: rows to fit, rows to choose by, and the rows of `whole`, the model's evaluation.
        names: the names of the head's outputs; None for a generation.
        trained: attributes of the towers that training changed, for the descriptions.
    """
    started, seed = time.perf_counter(), trainer.args.seed
    head = trainer.accelerator.unwrap_model(trainer.model)
    head = without_adapters(head)
    collator = trainer.eval_collator or trainer.data_collator
    try:
        rows = fitted_rows(datasets, names, seed)
        size = trainer.args.per_device_eval_batch_size
        encode = partial(baseline_inputs, head.base_model, collator, rows, size, trained, trainer.args.disable_tqdm)
        baselines, targets = fit(task, rows, names, seed, encode)
        result = compare(task, baselines, targets.names, whole)
    except ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return {"table": [], "verdict": f"The simple baselines could not be fitted: {reason}"}
    counts = {"fitted_rows": len(rows.train), "train_rows": len(datasets.train)}
    result |= {**counts, "validation_rows": len(rows.validation), "seconds": round(time.perf_counter() - started, 1)}
    logger.warning(result["verdict"])
    return result
