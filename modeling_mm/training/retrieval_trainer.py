# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""RetrievalTrainer: contrastive batches larger than memory, and evaluation that keeps embeddings only.

GradCache (Gao et al. 2021): the batches of one optimiser step are first embedded without a graph; the contrastive loss
of all of them gives a gradient for each embedding; then each batch is run again, with a graph, and those gradients go
through it. Random states are kept, so that dropout is the same both times. Matching and language losses are those of
the small batches.

The gradients are those of one large batch where a row's embedding is its own. A batch norm that trains ties it to the
rows beside it: each small batch is normalised by its own statistics, as in accumulation and in processes, and the
gradients are exactly those of embeddings made so, which a large batch would have normalised otherwise. The running
statistics see each small batch once. A frozen tower, or one without batch norms, is not concerned.

Shapes: B texts, I distinct images or sounds, E embedding width.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers import PreTrainedModel, TrainingArguments

from ..model.embedding_mm import EmbeddedMedia
from ..model.losses_mm import NO_MEDIUM, Pairs, local_keys, text_keys
from ..model.media_mm import MODALITIES
from ..model.outputs_mm import MMRetrievalOutput
from .trainer import MMTrainer


@dataclass
class Embedded:
    """One small batch after the first pass: embeddings by "text" and modality, the texts' keys (B,), and by modality
    what belongs together."""

    embeds: dict[str, torch.Tensor]
    texts: torch.Tensor
    pairs: dict[str, Pairs]


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
        contrastive_batch_size: rows over all processes whose texts and images are compared with each other, a
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

    def in_step(self, inputs):
        """The batch as it is.

        Raises:
            ValueError: the model is in shards and the batch lacks a modality, whose tower the other processes run; an
                unseen item would be one more that all texts are compared with.
        """
        if lacking := [name for name in self.in_shards.unseen if MODALITIES[name].tensor not in inputs]:
            raise ValueError(f"in shards (FSDP) every batch needs each modality, and this one has no {lacking[0]}")
        return inputs

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
        model, head, states = self.model_wrapped.train(), self.head(), []
        parts: list[Embedded] = []
        with statistics_untouched(head):
            for batch in batches:
                inputs = self._prepare_inputs(batch)
                states.append((torch.get_rng_state(), get_device_states(*inputs.values())))
                with torch.no_grad(), self.compute_loss_context_manager():
                    output = model(**{**inputs, "return_loss": False})
                parts.append(embedded(inputs, output, parts))
        loss, gradients = whole_batch(head, parts)
        # the Trainer will divide each loss by the number of batches; what they share they share in the gradient too
        shared = {name: gradients.pop(name) for name in list(gradients) if name in ("scale", "bias")}
        own = {
            name: iter((gradient * len(parts)).split([len(part.embeds.get(name, ())) for part in parts]))
            for name, gradient in gradients.items()
        }
        cached = []
        for state, part in zip(states, parts, strict=True):
            pieces = {name: next(pieces) for name, pieces in own.items()}
            pieces = {name: piece for name, piece in pieces.items() if name in part.embeds}
            cached.append(Cached(state, {**pieces, **shared}, loss))
        return cached

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
        """The loss, for each row the embeddings of its text and image (B, E), and the keys (B, 2) of both.

        Raises:
            ValueError: embeddings are wanted, and there are no images.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs)
        if prediction_loss_only:
            return output.loss, None, None
        if output.image_embeds is None:
            raise ValueError("evaluation ranks images, and this batch has none; set `prediction_loss_only`")
        own = inputs["image_index"][:, 0]
        keys = [text_keys(inputs["input_ids"], inputs["attention_mask"]), inputs["image_keys"][own]]
        return output.loss, (output.text_embeds, output.image_embeds[own]), torch.stack(keys, dim=1)


def embedded(inputs: dict[str, Any], output: MMRetrievalOutput, before: list[Embedded]) -> Embedded:
    """What the loss of the whole batch needs of one small batch, behind those `before` it.

    Media without keys count as different from all others.
    """
    made = {"text": output.text_embeds, "image": output.image_embeds, "audio": output.audio_embeds}
    embeds = {name: one for name, one in made.items() if one is not None}
    texts, pairs = inputs.get("text_keys"), {}
    if texts is None:
        texts = text_keys(inputs["input_ids"], inputs.get("attention_mask"))
    for name in [name for name in MODALITIES if name in embeds]:
        keys = inputs.get(f"{name}_keys")
        if keys is None:
            keys = local_keys(embeds[name]) + sum(len(part.embeds.get(name, ())) for part in before)
        medium = EmbeddedMedia(name, embeds[name], embeds[name], index=inputs.get(f"{name}_index"), keys=keys)
        pairs[name] = medium.pairs(texts)
    return Embedded(embeds, texts, pairs)


def whole_batch(head: PreTrainedModel, parts: list[Embedded]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The contrastive loss of all parts together, and its gradients by embeddings, scale and bias.

    An image or sound that several parts hold counts once, as it would in one large batch.
    """
    names = [name for name in ("text", *MODALITIES) if any(name in part.embeds for part in parts)]
    joined = {name: torch.cat([part.embeds[name] for part in parts if name in part.embeds]) for name in names}
    learned = zip(("scale", "bias"), head.temperature(), strict=True)
    joined |= {name: value for name, value in learned if value is not None}
    leaves = {name: value.detach().requires_grad_() for name, value in joined.items()}
    compared, pairs = dict(leaves), {}
    for name in names[1:]:
        media = torch.cat([part.pairs[name].media for part in parts if name in part.pairs])
        own = [
            part.pairs[name].media_of_texts if name in part.pairs else torch.full_like(part.texts, NO_MEDIUM)
            for part in parts
        ]
        earlier = repeated(media)
        compared[name] = leaves[name][~earlier]
        pairs[name] = Pairs(torch.cat([part.texts for part in parts]), media[~earlier], torch.cat(own))
    loss = head.contrastive_loss(compared, pairs)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return loss.detach(), {name: own for name, own in zip(leaves, gradients, strict=True) if own is not None}


@contextmanager
def statistics_untouched(model: torch.nn.Module) -> Iterator[None]:
    """Batch norms in training normalise as ever, but their running statistics stay as they are."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    norms = [module for module in model.modules() if isinstance(module, kind) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


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
