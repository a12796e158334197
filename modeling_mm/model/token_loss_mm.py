# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The language modelling loss where tokens are learned: logits (N, V) of their N places only, in chunks.

Loss and gradients are those of all logits (B, T, V), of which prompts, padding and media leave most unused. A chunk's
logits are computed again in the backward pass, so that at most one chunk's are in memory (as in Liger's linear cross
entropy, Hsu et al. 2024, and "Cut your losses", Wijmans et al. 2024, whose kernels need a GPU).
"""

from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 64 * 2**20  # of logits in single precision


def shifted_labels(labels: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
    """The label (B, T) that each token is to predict; -100 at a row's end and before another packed conversation.

    `labels` and `position_ids` are (B, T); a token at position 0 continues no other.
    """
    if position_ids is not None and position_ids.shape[-1] == labels.shape[-1]:
        labels = labels.masked_fill(position_ids == 0, -100)
    return pad(labels, (0, 1), value=-100)[..., 1:].contiguous()


def token_loss(
    states: torch.Tensor,
    targets: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy of the next tokens: the sum over `num_items`, or the mean.

    Args:
        states: (B, T, D). targets: (B, T), the token that each state is to predict; -100 where there is none.
        head: logits (N, V) from states (N, D). weight: (V, D), the head's weight.
    """
    learned = targets != -100
    states, targets = states[learned], targets[learned]  # (N, D), (N,)
    size = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    if isinstance(weight, DTensor):  # FSDP gathers the head for each call, as often in every process
        size = max(1, len(targets))

    def chunk_loss(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(states).float(), targets, reduction="sum")

    parts = list(zip(states.split(size), targets.split(size), strict=True))
    if len(parts) > 1 and torch.is_grad_enabled():
        losses = [checkpoint(chunk_loss, *part, use_reentrant=False) for part in parts]
    else:
        losses = [chunk_loss(*part) for part in parts]
    count = max(1, len(targets)) if num_items is None else num_items
    count = count.to(states.device) if torch.is_tensor(count) else count
    return torch.stack(losses).sum() / count


__all__ = ["shifted_labels", "token_loss"]
