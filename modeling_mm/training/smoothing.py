# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Label smoothing for generation and single-label classification.

The smoother of transformers does not shift the labels of models that it does not know, and drops class weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from ..tasks import TASKS, task_of


def check_smoothing(task: str, factor: float) -> None:
    """Refuse label smoothing for tasks whose target is not one class among several.

    Raises:
        ValueError: the task has no such target, or the factor is out of range.
    """
    facts = TASKS[task]
    if not 0 <= factor < 1:
        raise ValueError(f"--label_smoothing_factor is {factor}; expected at least 0 and less than 1")
    if factor and (facts.embeds or facts.numbers or facts.several_labels):
        raise ValueError(
            f"--label_smoothing_factor needs one label per row among several, which --task {task} does not have; "
            "leave it out"
        )


def smoothed_loss(model: PreTrainedModel, factor: float) -> Callable[..., torch.Tensor]:
    """`compute_loss_func` of a Trainer: the model's own loss with smoothed labels.

    Args:
        factor: share of the target that is spread evenly over all classes.

    Raises:
        ValueError: the task has no single labels.
    """
    check_smoothing(task_of(model), factor)
    generates, weights = model.can_generate(), model.config.class_weights

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        # in evaluation, the loss of the model itself: unsmoothed, of logits before their calibration
        logits = outputs["logits"] * (model.config.calibration_temperature or 1)
        smoothing = factor if model.training else 0.0
        if generates:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        each = functional.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
        if weights is not None and not generates:
            each = each * each.new_tensor(weights)[labels]
        count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return each.sum() / count

    return loss
