# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""AdamW with a learning rate for each part, and with stochastic rounding for weights in bfloat16."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from .trainable import part_of


def rate_groups(
    model: nn.Module, rates: dict[str, float], weight_decay: float, decayed: Collection[str], learning_rate: float
) -> list[dict[str, Any]]:
    """Parameter groups with the learning rates of parts; `decayed` names the parameters with weight decay."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), name in decayed), []).append(parameter)
    return [
        {"params": parameters, "lr": rates.get(part, learning_rate), "weight_decay": weight_decay if decays else 0.0}
        for (part, decays), parameters in groups.items()
    ]


def rounding_adamw(kind: type, options: dict[str, Any]) -> tuple[type, dict[str, Any]]:
    """AdamW with stochastic rounding of bfloat16 weights, and its options from those of torch's AdamW.

    Raises:
        ValueError: torchao is not installed, or another optimiser was chosen.
    """
    try:
        from torchao.optim import _AdamW
    except ImportError:
        raise ValueError("--bf16_weights needs the package torchao: pip install 'modeling_mm[quantization]'") from None
    if kind is not torch.optim.AdamW:
        raise ValueError("--bf16_weights needs AdamW (--optim adamw_torch); leave out --optim")
    kept = {name: value for name, value in options.items() if name in ("lr", "betas", "eps")}
    return _AdamW, {**kept, "bf16_stochastic_round": True}
