# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""RetrievalTrainer: contrastive batches larger than memory, and evaluation that keeps embeddings only.

GradCache (Gao et al. 2021): the batches of one optimiser step are first embedded without a graph; the contrastive loss
of all of them gives a gradient for each embedding; then each batch is run again, with a graph, and those gradients are
backpropagated. Random states are kept, so that dropout is the same both times. Matching and captioning losses are
those of the small batches.

The gradients are those of one large batch if a row's embedding does not depend on other rows. A batch norm that trains
makes it depend on them: each small batch is normalised by its own statistics, as under accumulation and in several
processes, and the gradients are exactly those of embeddings normalised in this way, not of one large batch. Running
statistics are updated once by each small batch. Frozen towers and towers without batch norms are not affected.

Shapes: B texts, I distinct images or audio clips, E embedding width.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers import PreTrainedModel, TrainingArguments

from ..model.adapters_mm import without_adapters
from ..model.embedding_mm import EmbeddedMedia
from ..model.losses_mm import NO_MEDIUM, Pairs, local_keys, text_keys
from ..model.media_mm import MODALITIES
from ..model.outputs_mm import MMRetrievalOutput
from .trainer import MMTrainer


@dataclass
class Embedded:
    """One small batch after the first pass: embeddings by "text" and modality, the texts' keys (B,), and by modality
    the pairs that match."""

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
        contrastive_batch_size: number of rows, over all processes, that the contrastive loss compares; a multiple of
            `per_device_train_batch_size` times the number of processes, which is the default.

    Raises:
        ValueError: it is no such multiple, or gradient accumulation is set too.
    """

    def __init__(self, *args, contrastive_batch_size: int | None = None, **kwargs):
        self.waiting: deque[Cached] = deque()
        self.in_cache = contrastive_batch_size is not None
        if contrastive_batch_size is not None:
            use_contrastive_batch(kwargs["args"], contrastive_batch_size)
        super().__init__(*args, **kwargs)

    def add_placeholders(self, inputs):
        """The batch unchanged.

        Raises:
            ValueError: the model is sharded and the batch lacks a modality, whose tower the other processes run; a
                placeholder would be one more item that all texts are compared with.
        """
        if missing := [name for name in self.fsdp_callback.placeholders if MODALITIES[name].tensor not in inputs]:
            raise ValueError(f"under FSDP every batch needs each modality, and this one has no {missing[0]}")
        return inputs

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.waiting.clear()
        if self.in_cache and len(batches) > 1:
            self.waiting.extend(self.first_pass(batches))
        return batches, count

    def head(self) -> PreTrainedModel:
        """The retrieval model without the wrappers of distributed training and peft."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        return without_adapters(model)

    def first_pass(self, batches: list[dict[str, Any]]) -> list[Cached]:
        """Embed all batches and compute the gradient of their contrastive loss with respect to each embedding."""
        model, head, states = self.model_wrapped.train(), self.head(), []
        parts: list[Embedded] = []
        with statistics_frozen(head):
            for batch in batches:
                inputs = self._prepare_inputs(batch)
                states.append((torch.get_rng_state(), get_device_states(*inputs.values())))
                with torch.no_grad(), self.compute_loss_context_manager():
                    output = model(**{**inputs, "return_loss": False})
                parts.append(embedded(inputs, output, parts))
        loss, gradients = whole_batch(head, parts)
        # the Trainer divides each loss by the number of batches; scale and bias get a gradient in each of them
        shared = {name: gradients.pop(name) for name in list(gradients) if name in ("scale", "bias")}
        pieces_by_name = {
            name: iter((gradient * len(parts)).split([len(part.embeds.get(name, ())) for part in parts]))
            for name, gradient in gradients.items()
        }
        cached = []
        for state, part in zip(states, parts, strict=True):
            pieces = {name: next(iterator) for name, iterator in pieces_by_name.items()}
            pieces = {name: piece for name, piece in pieces.items() if name in part.embeds}
            cached.append(Cached(state, {**pieces, **shared}, loss))
        return cached

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """Extends the base method: the second pass uses the gradients of the first and has the whole batch's loss."""
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
        """The loss, the embeddings (B, E) of each row's text and of its image, and the keys (B, 2) of both.

        Raises:
            ValueError: embeddings are needed, and the batch has no images.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs)
        if prediction_loss_only:
            return output.loss, None, None
        if output.image_embeds is None:
            raise ValueError("evaluation ranks images, and this batch has none; set `prediction_loss_only`")
        images = inputs["image_index"][:, 0]
        keys = [text_keys(inputs["input_ids"], inputs["attention_mask"]), inputs["image_keys"][images]]
        return output.loss, (output.text_embeds, output.image_embeds[images]), torch.stack(keys, dim=1)


def embedded(inputs: dict[str, Any], output: MMRetrievalOutput, before: list[Embedded]) -> Embedded:
    """Embeddings and pairs of one small batch, which follows those in `before`.

    Media without keys count as different from all others.
    """
    outputs = {"text": output.text_embeds, "image": output.image_embeds, "audio": output.audio_embeds}
    embeds = {name: value for name, value in outputs.items() if value is not None}
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
    """The contrastive loss of all parts together, and its gradients by name: of embeddings, scale and bias.

    An image or audio clip that occurs in several parts counts once, as in one large batch.
    """
    names = [name for name in ("text", *MODALITIES) if any(name in part.embeds for part in parts)]
    joined = {name: torch.cat([part.embeds[name] for part in parts if name in part.embeds]) for name in names}
    learned = zip(("scale", "bias"), head.temperature(), strict=True)
    joined |= {name: value for name, value in learned if value is not None}
    leaves = {name: value.detach().requires_grad_() for name, value in joined.items()}
    inputs, pairs = dict(leaves), {}
    for name in names[1:]:
        media = torch.cat([part.pairs[name].media for part in parts if name in part.pairs])
        media_of_texts = [
            part.pairs[name].media_of_texts if name in part.pairs else torch.full_like(part.texts, NO_MEDIUM)
            for part in parts
        ]
        earlier = is_repeated(media)
        inputs[name] = leaves[name][~earlier]
        pairs[name] = Pairs(torch.cat([part.texts for part in parts]), media[~earlier], torch.cat(media_of_texts))
    loss = head.contrastive_loss(inputs, pairs)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return loss.detach(), {n: gradient for n, gradient in zip(leaves, gradients, strict=True) if gradient is not None}


@contextmanager
def statistics_frozen(model: torch.nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms unchanged; in training mode they still normalise by the batch."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    norms = [module for module in model.modules() if isinstance(module, kind) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def is_repeated(keys: torch.Tensor) -> torch.Tensor:
    """Mask (n,) of the keys (n,) that occurred before."""
    order = keys.argsort(stable=True)
    again = torch.zeros_like(keys, dtype=torch.bool)
    again[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return again


def use_contrastive_batch(args: TrainingArguments, size: int) -> None:
    """Set gradient accumulation so that the batches of a step hold `size` rows.

    Raises:
        ValueError: `size` is no multiple of a batch's rows, or gradient accumulation is set too.
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
