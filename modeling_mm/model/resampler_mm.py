# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The resampler, which turns the many states of an image into a few slots for text to attend to.

Shapes: I distinct images, P states per image, M memory width, K key/value heads, E head width.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_mm import MMConfig
from .cross_attention_mm import MMCrossAttention


class MMResampler(nn.Module):
    """Perceiver resampler from P states to `num_latents` slots (Jaegle et al. 2021; Alayrac et al. 2022)."""

    def __init__(self, config: MMConfig):
        super().__init__()
        width = config.fusion_memory_size
        self.latents = nn.Parameter(torch.empty(config.num_latents, width))
        self.layers = nn.ModuleList([MMResamplerLayer(config, width) for _ in range(config.resampler_layers)])

    def forward(self, states: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """States (I, P, M), and `present` (I, P) bool, False for padding, to slots (I, num_latents, M)."""
        latents = self.latents.expand(states.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, states, present)
        return latents


class MMResamplerLayer(nn.Module):
    """Attention of latents to states and to themselves, then an MLP; ungated, because the fusion layers are gated."""

    def __init__(self, config: MMConfig, width: int):
        super().__init__()
        self.num_key_value_heads, self.head_dim = config.fusion_num_key_value_heads, config.fusion_head_dim
        self.latents_norm = nn.LayerNorm(width)
        self.states_norm = nn.LayerNorm(width)
        self.cross_attn = MMCrossAttention(config, width)
        self.kv_proj = nn.Linear(width, 2 * self.num_key_value_heads * self.head_dim, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), ACT2FN["gelu"], nn.Linear(4 * width, width))

    def forward(self, latents: torch.Tensor, states: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
        query = self.latents_norm(latents)
        memory = self.kv_proj(torch.cat([self.states_norm(states), query], dim=1))  # (I, P + num_latents, 2KE)
        memory = memory.unflatten(2, (2, self.num_key_value_heads, self.head_dim))
        key, value = (projected.transpose(1, 2) for projected in memory.unbind(2))
        mask = None
        if present is not None:
            mask = nn.functional.pad(present, (0, latents.shape[1]), value=True)[:, None, None]
        latents = latents + self.cross_attn(query, key, value, mask)[0]
        return latents + self.mlp(self.mlp_norm(latents))


__all__ = ["MMResampler"]
