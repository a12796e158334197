# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Cross-attention of few queries over many keys and values.

Shapes: B rows, T query tokens, S keys and values, D query width, H query heads, K key/value heads, G query heads for
each of them, E head width. With packed queries, keys, values, mask and weights have R rows, one per conversation, of
W query tokens.
"""

import torch
from torch import nn

from .configuration_mm import MMConfig
from .packing_mm import Packing


def for_each_head(visible: torch.Tensor, groups: int) -> torch.Tensor:
    """The mask (B, 1, T, S) repeated for query heads laid out one after the other: (B, 1, groups * T, S)."""
    return visible if visible.shape[2] == 1 else visible.repeat(1, 1, groups, 1)


def eager_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention of queries (B, K, G * T, E) that also returns its weights (B, K, G * T, S).

    `mask` is True for what is visible, or is added to the weights.
    """
    weights = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    if mask is not None and mask.dtype == torch.bool:
        weights = weights.masked_fill(~mask, torch.finfo(weights.dtype).min)
    elif mask is not None:
        weights = weights + mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout)
    return weights @ value, weights


class MMCrossAttention(nn.Module):
    """Cross-attention to given keys and values; grouped-query heads; eager or sdpa by the config.

    Query heads that share keys and values are laid out one after the other, like additional tokens, so that keys and
    values, of which there are many more than queries, are never repeated.

    Flash kernels take no mask of the slots that each token sees, and flex kernels recompile for every number of
    tokens and slots: if either is chosen for fusion, it uses sdpa.
    """

    def __init__(self, config: MMConfig, query_width: int):
        super().__init__()
        self.config = config
        heads, self.head_dim = config.fusion_num_attention_heads, config.fusion_head_dim
        self.num_key_value_heads = config.fusion_num_key_value_heads
        self.dropout = config.fusion_dropout
        self.q_proj = nn.Linear(query_width, heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, query_width, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        key: torch.Tensor,  # (B, K, S, E)
        value: torch.Tensor,  # (B, K, S, E)
        mask: torch.Tensor | None,  # (B, 1, G * T or 1, S) bool, or (B, K, G * T, S) numbers to add
        need_weights: bool = False,
        packing: Packing | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.q_proj(hidden_states)
        query = query if packing is None else packing.cut(query)
        rows, tokens, _ = query.shape
        query = query.view(rows, tokens, self.num_key_value_heads, -1, self.head_dim)
        query = query.permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, K, G * T, E)
        key, value = key.to(query.dtype), value.to(query.dtype)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if self.config._attn_implementation == "eager" or need_weights:
            output, weights = eager_attention(query, key, value, mask, dropout)
            weights = weights.unflatten(2, (-1, tokens)).flatten(1, 2)  # (B, H, T, S)
        else:
            output = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout)
        output = output.unflatten(2, (-1, tokens)).permute(0, 3, 1, 2, 4)  # (B, T, K, G, E)
        output = output.reshape(rows, tokens, -1)
        return self.o_proj(output if packing is None else packing.pack(output)), weights


__all__ = ["MMCrossAttention"]
