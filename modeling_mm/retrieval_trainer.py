# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""RetrievalTrainer: contrastive batches larger than memory, and evaluation that keeps embeddings only.

GradCache (Gao et al. 2021): the batches of one optimiser step are first embedded without a graph; the contrastive loss
of all of them gives a gradient for each embedding; then each batch is run again, with a graph, and those gradients go
through it. Random states are kept, so that dropout is the same both times. Matching and language losses are those of
the small batches.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers import PreTrainedModel, TrainingArguments

from .losses_mm import Pairs, text_keys
from .trainer import MMTrainer


@dataclass
class Cached:
    """One small batch between the two passes: random states before the first, gradients by its embeddings, and the
    contrastive loss of the whole batch."""

    random_states: tuple[torch.Tensor, tuple[list[int], list[torch.Tensor]]]
    gradients: dict[str, torch.Tensor]
    loss: torch.Tensor


class RetrievalTrainer(MMTrainer):
    """`MMTrainer` for `MMForImageTextRetrieval`.

    Args:
        contrastive_batch_size: rows over all processes whose texts and pictures are compared with each other, a
            multiple of `per_device_train_batch_size` times processes; by default just that.

    Raises:
        ValueError: it is no such multiple, or gradient accumulation was asked for beside it.
    """

    def __init__(self, *args, contrastive_batch_size: int | None = None, **kwargs):
        self.waiting: deque[Cached] = deque()
        self.in_cache = contrastive_batch_size is not None
        if contrastive_batch_size is not None:
            use_contrastive_batch(kwargs["args"], contrastive_batch_size)
        super().__init__(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.waiting.clear()
        if self.in_cache and len(batches) > 1:
            self.waiting.extend(self.first_pass(batches))
        return batches, count

    def head(self) -> PreTrainedModel:
        """The retrieval model itself, without what distributed training and peft put around it."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def first_pass(self, batches: list[dict[str, Any]]) -> list[Cached]:
        """Embed all batches, and find the gradient of their contrastive loss by each embedding."""
        model, states = self.model_wrapped.train(), []
        outputs: list[dict[str, torch.Tensor]] = []
        for batch in batches:
            inputs = self._prepare_inputs(batch)
            states.append((torch.get_rng_state(), get_device_states(*inputs.values())))
            with torch.no_grad(), self.compute_loss_context_manager():
                output = model(**{**inputs, "return_loss": False})
            keys = text_keys(inputs["input_ids"], inputs["attention_mask"])
            own = inputs["image_keys"][inputs["image_index"][:, 0]]
            outputs.append({"text": output.text_embeds, "image": output.image_embeds})
            outputs[-1] |= {"texts": keys, "media": inputs["image_keys"], "own": own}
        loss, gradients = self.whole_batch(outputs)
        steps = len(batches)  # the Trainer will divide each loss by their number
        cached = []
        for output in outputs:
            parts = {name: gradients[name][: len(output[name])] * steps for name in ("text", "image")}
            for name in parts:
                gradients[name] = gradients[name][len(output[name]) :]
            cached.append(parts)
        cached[0] |= {name: gradients[name] * steps for name in ("scale", "bias") if name in gradients}
        return [Cached(state, parts, loss) for state, parts in zip(states, cached, strict=True)]

    def whole_batch(self, outputs: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The contrastive loss of all outputs together, and its gradients by embeddings, scale and bias.

        A picture that several batches show counts once, as it would in one large batch.
        """
        head = self.head()
        joined = {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
        leaves = {name: joined[name].detach().requires_grad_() for name in ("text", "image")}
        learned = dict(zip(("scale", "bias"), head.temperature(), strict=True))
        leaves |= {name: value.detach().requires_grad_() for name, value in learned.items() if value is not None}
        earlier = repeated(joined["media"])
        pairs = Pairs(joined["texts"], joined["media"][~earlier], joined["own"])
        loss = head.contrastive({**leaves, "image": leaves["image"][~earlier]}, {"image": pairs})
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return loss.detach(), {n: g for n, g in zip(leaves, gradients, strict=True) if g is not None}

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """As usual; in the second pass, with the gradients of the first and the whole batch's loss as its value."""
        if not self.waiting or not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        cached = self.waiting.popleft()
        cpu, devices = cached.random_states
        torch.set_rng_state(cpu)
        set_device_states(*devices)
        output = model(**inputs, embed_gradients=cached.gradients)
        weight = self.head().config.contrastive_weight
        loss = output.loss + weight * (cached.loss - output.contrastive_loss).detach()
        return (loss, output) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, for each row the embeddings of its text and picture (B, E), and the keys (B, 2) of both."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs)
        if prediction_loss_only:
            return output.loss, None, None
        own = inputs["image_index"][:, 0]
        keys = [text_keys(inputs["input_ids"], inputs["attention_mask"]), inputs["image_keys"][own]]
        return output.loss, (output.text_embeds, output.image_embeds[own]), torch.stack(keys, dim=1)


def repeated(keys: torch.Tensor) -> torch.Tensor:
    """(n,) bool, which of the keys (n,) came before."""
    order = keys.argsort(stable=True)
    again = torch.zeros_like(keys, dtype=torch.bool)
    again[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return again


def use_contrastive_batch(args: TrainingArguments, size: int) -> None:
    """Collect as many small batches for each step as make up `size` rows.

    Raises:
        ValueError: `size` is no multiple of them, or gradient accumulation was asked for as well.
    """
    small = args.per_device_train_batch_size * args.world_size
    if args.gradient_accumulation_steps != 1:
        raise ValueError("give either --contrastive_batch_size or --gradient_accumulation_steps")
    if size % small:
        raise ValueError(
            f"--contrastive_batch_size is {size}; expected a multiple of {small}, which is "
            f"--per_device_train_batch_size {args.per_device_train_batch_size} in {args.world_size} processes"
        )
    args.gradient_accumulation_steps = size // small
