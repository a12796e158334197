# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMTrainer: the plain `Trainer`, with what multimodal training needs on top.

- Rows about one picture can stay together in a batch, so that it is encoded once (`group_by_image`).
- Evaluation of a generating model generates: prompts padded on the left, media encoded once for loss and answer.
- Parts are frozen and trained by name; what cannot reach the loss is found and frozen, what should train but got no
  gradient in the first steps is named.
"""

import logging
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback

from .adapters_mm import PARTS
from .data import ImageGroupSampler, MMDataset
from .media_mm import MEDIA

logger = logging.getLogger(__name__)

AUDIT_STEPS = 4


def set_trainable(
    model: PreTrainedModel, vision: bool, fusion: bool, text: bool, audio: bool = False
) -> dict[str, int]:
    """Freeze or train each part; a head goes with the fusion, a tied language modelling head with the text backbone.

    Returns:
        trainable parameters by part.
    """
    wanted = {"vision": vision, "audio": audio, "fusion": fusion, "text": text}
    for part, attribute in PARTS.items():
        module = getattr(model.base_model, attribute)
        if module is not None:
            module.requires_grad_(wanted[part])
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{model.base_model_prefix}."):
            parameter.requires_grad_(text if name.startswith("lm_head") else fusion)
    return trainable_parameters(model)


def trainable_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Number of trainable parameters by part; `head` is what belongs to no part."""
    counts = dict.fromkeys([*PARTS, "head"], 0)
    for name, parameter in model.named_parameters():
        part = next((p for p, attribute in PARTS.items() if f".{attribute}." in name), "head")
        counts[part] += parameter.numel() if parameter.requires_grad else 0
    return counts


def freeze_unused(model: torch.nn.Module, batch: dict[str, Any]) -> list[str]:
    """Freeze parameters that cannot reach the loss, such as a tower's pooler, found by one backward pass.

    Left trainable, they would keep distributed training waiting for their gradients.

    Returns:
        their names.
    """
    if not any(p.requires_grad for p in model.parameters()):
        return []
    training = model.training
    model.eval()
    with torch.enable_grad():
        model(**{name: value.to(model.device) for name, value in batch.items()}).loss.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name, parameter in model.named_parameters():
        parameter.grad = None
        if name in unused:
            parameter.requires_grad_(False)
    model.train(training)
    return unused


class GradientAudit(TrainerCallback):
    """After the first optimiser steps, names every trainable parameter that never got a gradient other than zero.

    Gates start at zero, so the weights behind them get their first gradient in the second step.
    """

    def __init__(self):
        self.silent: set[str] | None = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step >= AUDIT_STEPS or model is None:
            return
        if self.silent is None:
            self.silent = {name for name, p in model.named_parameters() if p.requires_grad}
        touched = {n for n, p in model.named_parameters() if n in self.silent and p.grad is not None and p.grad.any()}
        self.silent -= touched
        if state.global_step == AUDIT_STEPS - 1 and self.silent:
            names = ", ".join(sorted(self.silent)[:20])
            logger.warning(f"{len(self.silent)} parameters should train but got no gradient so far: {names}")


class MMTrainer(Trainer):
    """`Trainer` for the models of this package; takes the same arguments.

    Args:
        group_by_image: keep the rows about one picture together when shuffling.
        eval_collator: collator for evaluation; one with prompts makes evaluation generate.
        max_new_tokens: longest answer in evaluation.

    Raises:
        ValueError: several GPUs in one process, which `DataParallel` would split wrongly.
    """

    def __init__(self, *args, group_by_image=False, eval_collator=None, max_new_tokens=32, **kwargs):
        self.group_by_image = group_by_image
        self.eval_collator = eval_collator
        self.max_new_tokens = max_new_tokens
        super().__init__(*args, **kwargs)
        self.args.remove_unused_columns = False
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process would split pictures from their rows; "
                f"start with: torchrun --nproc_per_node {self.args.n_gpu} ..."
            )
        self.audit = GradientAudit()
        self.add_callback(self.audit)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.group_by_image and isinstance(dataset, MMDataset):
            return ImageGroupSampler(dataset.groups(), seed=self.args.seed)
        return super()._get_train_sampler(train_dataset)

    def _get_dataloader(self, *args, is_training=False, **kwargs):
        collator = self.data_collator
        if not is_training and self.eval_collator is not None:
            self.data_collator = self.eval_collator
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.data_collator = collator

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As usual; where the batch holds prompts, predictions are generated tokens (B, at most max_new_tokens)."""
        inputs = dict(inputs)
        prompts = {name: inputs.pop(f"prompt_{name}", None) for name in ("input_ids", "attention_mask")}
        if prompts["input_ids"] is None:
            ignore_keys = ["past_key_values", "hidden_states", "attentions", "cross_attentions", "media_key_values"]
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs, prompts = self._prepare_inputs(inputs), self._prepare_inputs(prompts)
        own = self.accelerator.unwrap_model(model)
        with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
            memories = own.project_media(**{name: inputs.pop(name) for name in MEDIA if name in inputs})
            media = {}
            if memories:
                media["media_key_values"], start = own.attended(memories, inputs["input_ids"])
                inputs |= {**media, "media_start": start}
                media["media_start"] = own.media_starts(memories, prompts["input_ids"])
            output = model(**inputs, use_cache=False)
            if prediction_loss_only:
                return output.loss, None, None
            generated = own.generate(**prompts, **media, max_new_tokens=self.max_new_tokens, do_sample=False)
        return output.loss, generated[:, prompts["input_ids"].shape[1] :], inputs["labels"]
