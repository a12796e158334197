# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Pooling: one vector for a row of text, an image or an audio clip.

Shapes: B rows, T tokens, I distinct images or clips, P states each, D width.
"""

import torch


def pool_tokens(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """(B, T, D) to (B, D): the "first" or "last" token that is not padding, or the "mean" of these tokens."""
    rows, tokens, _ = hidden_states.shape
    if attention_mask is None:
        attention_mask = torch.ones(rows, tokens, device=hidden_states.device)
    if pooling == "mean":
        return masked_mean(hidden_states, attention_mask)
    column = torch.arange(tokens, device=hidden_states.device)
    real = attention_mask > 0
    if pooling == "first":
        pooled_column = torch.where(real, column, tokens - 1).amin(dim=1)
    else:
        pooled_column = torch.where(real, column, 0).amax(dim=1)
    return hidden_states[torch.arange(rows, device=hidden_states.device), pooled_column]


def masked_mean(states: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """The mean (I, D) of the states (I, P, D) that are `present` (I, P), or of all states if that is None."""
    if present is None:
        return states.mean(dim=1)
    real = present[..., None] > 0
    return torch.where(real, states, 0).sum(dim=1) / real.sum(dim=1).clamp(min=1).to(states.dtype)


__all__ = ["pool_tokens", "masked_mean"]
