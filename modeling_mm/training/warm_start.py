# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Warm start of linear late fusion: training begins with a regression that is fitted to the towers' features.

The features are the embeddings that late fusion joins, standardised by the training rows; the penalty of the logistic
regression, or ridge regression for numbers, is chosen on the validation rows, as for the simple baselines. Training
goes on from there (Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform
out-of-distribution"), and the first evaluation scores the start itself, so that the best checkpoint is never below it.

Shapes: R rows, F features, M modalities, C outputs of the head.
"""

import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback

from ..data.dataset import MMDataset
from ..evaluation.baseline_scores import fitted_rows
from ..evaluation.baselines import LEAST, Parts, Targets, linear
from ..tasks import TASKS

logger = logging.getLogger(__name__)

SINGLE = 0.7  # share of a row's weight that its modalities have, each alone


class WarmStartCallback(TrainerCallback):
    """Fits the start when a training begins, unless the model was fitted before, as one that was trained already.

    With a warmup, the learning rate of the first step is 0, so that the evaluation after it scores the start itself.
    Raises a `ValueError` for a sharded model, whose weights are not at hand.

    Args:
        trainer: the trainer that calls back. `fit` holds what `warm_start` returned, None if it did not run.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.fit = trainer, None

    def report(self) -> dict[str, Any]:
        """The fit, for report.json."""
        return {} if self.fit is None else {"warm_start": self.fit}

    def on_train_begin(self, args, state, control, **kwargs):
        self.fit = None
        head, train = self.trainer.model, self.trainer.train_dataset
        fusion = getattr(head, "late_fusion", None)
        if not isinstance(train, MMDataset) or fusion is None or fusion.kind != "linear" or fusion.is_fitted():
            return
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled:
            raise ValueError(
                "linear late fusion starts as a fitted regression, which a sharded model cannot be; use concat"
            )
        validation = self.trainer.eval_dataset
        self.fit = warm_start(self.trainer, head, train, validation if isinstance(validation, MMDataset) else train)
        if self.trainer.time_limit is not None:
            self.trainer.time_limit.has_start = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.fit is not None and state.global_step == 1 and args.load_best_model_at_end:
            control.should_evaluate = control.should_save = True


@torch.no_grad()
def joined_embeddings(trainer: Trainer, head: PreTrainedModel, dataset: MMDataset) -> tuple[np.ndarray, np.ndarray]:
    """The output of late fusion (R, F + M) for each row, and the targets of the rows."""
    collator = trainer.eval_collator or trainer.data_collator
    loader = DataLoader(dataset, trainer.args.per_device_eval_batch_size, collate_fn=collator)
    joined: list[np.ndarray] = []
    hook = head.late_fusion.register_forward_hook(lambda *call: joined.append(call[2].float().cpu().numpy()))
    targets = []
    try:
        for batch in tqdm(loader, desc="Encoding rows for the start", disable=trainer.args.disable_tqdm):
            targets.append(batch["labels"].numpy())
            head(**trainer._prepare_inputs(batch))
    finally:
        hook.remove()
    return np.concatenate(joined), np.concatenate(targets)


def standardise(fusion: Any, joined: np.ndarray) -> None:
    """Set mean and scale of a late fusion by its output (R, F + M) for the training rows.

    The scaled features of a modality have a mean squared norm of one, so that one grid of penalties suits all.
    Features that are constant so far, as those of a text that all rows share, are scaled by the spread of all: fusion
    may make them vary.
    """
    missing, start = joined[:, sum(fusion.widths) :] > 0, 0
    for modality, width in enumerate(fusion.widths):
        known = joined[~missing[:, modality], start : start + width].astype(np.float64)
        place, start = slice(start, start + width), start + width
        if not len(known):
            continue
        mean, deviation = known.mean(axis=0), known.std(axis=0)
        varies = deviation > LEAST * np.abs(known).max(initial=LEAST)
        scale = 1 / (np.where(varies, deviation, known.std() or 1.0) * np.sqrt(width))
        fusion.mean[place] = torch.from_numpy(mean).to(fusion.mean)
        fusion.scale[place] = torch.from_numpy(scale).to(fusion.scale)


@torch.no_grad()
def with_single_modalities(fusion: Any, joined: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (R, F + M) of a standardised late fusion, followed by those of each modality alone; the row that each
    is from, and its weight.

    A regression on them learns what each modality tells by itself too, not only what several tell together.

    Args:
        joined: the output of late fusion before it was standardised.
    """
    parts = torch.from_numpy(joined).to(fusion.mean.device).split([*fusion.widths, len(fusion.widths)], dim=1)
    embeddings, present = parts[:-1], parts[-1] == 0
    used = present.any(dim=0).nonzero().flatten().tolist()
    blocks, rows, weights = [present], [torch.arange(len(present))], [1 - SINGLE if len(used) > 1 else 1.0]
    for modality in used if len(used) > 1 else ():
        rows.append(present[:, modality].nonzero().flatten().cpu())
        blocks.append(torch.arange(present.shape[1], device=present.device).eq(modality).expand(len(rows[-1]), -1))
        weights.append(SINGLE / len(used))
    features = [
        fusion([part[places] for part in embeddings], block) for places, block in zip(rows, blocks, strict=True)
    ]
    counted = np.repeat(weights, [len(places) for places in rows])
    return torch.cat(features).float().cpu().numpy(), torch.cat(rows).numpy(), counted


def head_weights(task: str, fitted: list[Any], features: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, features) and bias (C,) of a linear head with the outputs of fitted regressions."""
    weight, bias = np.zeros((outputs, features)), np.full(outputs, np.log(LEAST))
    if not (TASKS[task].numbers or TASKS[task].several_labels):
        coefficients, intercepts = fitted[0].coef_, fitted[0].intercept_
        if len(coefficients) == 1:  # of two classes: the softmax of -z / 2 and z / 2 is the sigmoid of z
            coefficients, intercepts = np.array([[-0.5], [0.5]]) * coefficients, np.array([-0.5, 0.5]) * intercepts
        weight[fitted[0].classes_], bias[fitted[0].classes_] = coefficients, intercepts
        return weight, bias
    for row, estimator in enumerate(fitted):
        if not isinstance(estimator, float):
            weight[row], bias[row] = np.ravel(estimator.coef_), np.ravel(estimator.intercept_)[0]
        elif TASKS[task].numbers:
            bias[row] = estimator
        else:
            bias[row] = np.log(max(estimator, LEAST) / max(1 - estimator, LEAST))
    return weight, bias


def warm_start(trainer: Trainer, head: PreTrainedModel, train: MMDataset, validation: MMDataset) -> dict[str, Any]:
    """Set the statistics of linear late fusion and the weights of its head by a fitted regression.

    Returns:
        what was fitted, for the report: `rows`, `penalty` and the main metric of the `validation` rows.

    Raises:
        ValueError: all training rows are of one class.
    """
    training, task = head.training, train.task
    head.eval()
    rows = fitted_rows(Parts(train, validation, validation), train.labels, trainer.args.seed)
    joined, targets = joined_embeddings(trainer, head, rows.train)
    standardise(head.late_fusion, joined)
    features, places, weights = with_single_modalities(head.late_fusion, joined)
    chosen, truths = joined_embeddings(trainer, head, rows.validation)
    if TASKS[task].numbers:
        moments = np.asarray(head.config.label_mean), np.asarray(head.config.label_scale)
        targets, truths = ((part.reshape(len(part), -1) - moments[0]) / moments[1] for part in (targets, truths))
    if TASKS[task].has_classes and head.config.class_weights and not TASKS[task].several_labels:
        weights = weights * np.asarray(head.config.class_weights)[targets[places]]
    fitted_to = Targets(task, Parts(targets[places], truths, truths), train.labels or [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the solver could go on
        best = linear(fitted_to, Parts(features, chosen, chosen), weights)
    weight, bias = head_weights(task, best.fitted, features.shape[1], head.classifier.out_features)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.from_numpy(weight))
        head.classifier.bias.copy_(torch.from_numpy(bias))
    head.train(training)
    result = {"rows": len(joined), "penalty": 1 / best.strength, "validation": round(best.score, 6)}
    logger.warning(f"training starts from a linear model of the towers' features, fitted to {len(joined)} rows")
    return result
