# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Callbacks of the trainer: gradient audit, the epoch of augmentation, batch norms, streams, shards."""

import logging

import torch
from transformers import TrainerCallback

from ..data.augmentation import Augmentation
from ..model.processing_mm import MMProcessor
from .fsdp import is_sharded, placeholder_media, register_forward_methods, with_gradient

logger = logging.getLogger(__name__)

AUDIT_STEPS = 4


class GradientAuditCallback(TrainerCallback):
    """Warns after the first optimiser steps of trainable parameters that never got a non-zero gradient.

    Gates start at zero, so the weights behind them get their first gradient in the second step.
    """

    def __init__(self):
        self.known, self.silent, self.left = set[str](), set[str](), 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if model is None:
            return
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if woken := set(trainable) - self.known:  # at first all, and later the parts that a schedule wakes
            self.known |= woken
            self.silent, self.left = woken, AUDIT_STEPS
        if self.left == 0:
            return
        self.silent -= with_gradient({name: p for name, p in trainable.items() if name in self.silent})
        self.left -= 1
        if self.left == 0 and self.silent:
            names = ", ".join(sorted(self.silent)[:20])
            logger.warning(f"{len(self.silent)} trainable parameters got no gradient so far: {names}")


class AugmentationEpochCallback(TrainerCallback):
    """Sets the epoch of the collator's augmentation, in this process and in its workers."""

    def __init__(self, augmentation: Augmentation):
        self.augmentation = augmentation

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.augmentation.epoch.fill_(int(state.epoch or 0))  # a fraction when resumed within an epoch


class BatchNormSyncCallback(TrainerCallback):
    """Averages running statistics of batch norms after each step, over the processes that updated them.

    `DistributedDataParallel` would broadcast those of the first process, whose batches may never have had audio.
    """

    def __init__(self):
        self.norms: list[torch.nn.modules.batchnorm._BatchNorm] = []
        self.counted: list[int] = []  # batches of all processes together, by norm

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        kind = torch.nn.modules.batchnorm._BatchNorm
        self.norms = [m for m in model.modules() if isinstance(m, kind) and m.num_batches_tracked is not None]
        self.counted = [int(norm.num_batches_tracked) for norm in self.norms]

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size == 1 or not self.norms:
            return
        added = [int(norm.num_batches_tracked) - count for norm, count in zip(self.norms, self.counted, strict=True)]
        statistics = []
        for norm, new in zip(self.norms, added, strict=True):
            mean, variance = norm.running_mean.float(), norm.running_var.float()
            statistics.append(torch.cat([mean.new_tensor([new]), new * mean, new * variance]))
        sums = torch.cat(statistics)
        torch.distributed.all_reduce(sums)
        for i, (norm, part) in enumerate(zip(self.norms, sums.split([len(s) for s in statistics]), strict=True)):
            self.counted[i] += int(part[0])
            norm.num_batches_tracked.fill_(self.counted[i])
            if part[0] > 0:
                mean, variance = (part[1:] / part[0]).chunk(2)
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)


class BatchNormWarningCallback(TrainerCallback):
    """Warns once, after the first accumulated batch, if batch norms that train make accumulation inexact.

    Only then is it known which of them train: the model puts those of frozen towers into evaluation mode by itself.
    """

    def __init__(self):
        self.is_done = False

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        if self.is_done:
            return
        self.is_done = True
        kind = torch.nn.modules.batchnorm._BatchNorm
        names = [name for name, module in model.named_modules() if isinstance(module, kind) and module.training]
        if names and state.is_world_process_zero:
            batches, size = args.gradient_accumulation_steps, state.train_batch_size
            logger.warning(
                f"accumulating {batches} batches of {size} rows will not equal a batch of {batches * size} rows: "
                f"{len(names)} batch norms that train, such as {names[0]}, normalise each batch of {size} by itself"
            )


class StreamEpochCallback(TrainerCallback):
    """Sets the epoch of a stream: passes over its rows if their number is known, else the share of all steps done."""

    def __init__(self, rows: int | None):
        self.rows = rows

    def on_step_end(self, args, state, control, **kwargs):
        size = state.train_batch_size * args.gradient_accumulation_steps * args.world_size
        state.epoch = state.global_step / state.max_steps if not self.rows else state.global_step * size / self.rows


class FSDPCallback(TrainerCallback):
    """Prepares FSDP2 training: registers forward methods, makes placeholders for modalities that batches may lack."""

    def __init__(self, processor: MMProcessor | None):
        self.processor = processor
        self.placeholders: dict[str, dict[str, torch.Tensor]] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if is_sharded(model):
            register_forward_methods(model)
            self.placeholders = {} if self.processor is None else placeholder_media(self.processor)
