# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Muon (Jordan et al. 2024) for weights of layers in untrained models, and AdamW for all else, in one optimiser.

Muon makes the singular values of an update equal, so that a weight learns weak directions as fast as strong ones.
In towers with random weights, what tells a digit from another is a weak direction of their states (docs/defaults.md).
`torch.optim.Muon` takes matrices only, and needs an AdamW, and a schedule, beside it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration
STEPS = 5
MOMENTUM = 0.95
SCALE = 0.2  # root mean square of an update, about that of AdamW's


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `muon: True` are updated by Muon, at their own learning rate."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups."""
        groups = self.param_groups
        for group in groups:
            for parameter in group["params"] if group.get("muon") else ():
                if parameter.grad is not None:
                    self.muon_step(parameter, parameter.grad, group)
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def muon_step(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """Update one parameter (rows, ...) along its momentum, whose singular values are made equal."""
        state = self.state[parameter]
        if not state:  # AdamW looks for a step when a state is loaded
            state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(parameter)}
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalised(gradient.lerp(state["momentum"], MOMENTUM).flatten(1))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        scale = SCALE * max(update.shape) ** 0.5
        parameter.add_(update.view_as(parameter).to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix (m, n) with the same singular vectors, its singular values all near one."""
    result = matrix.float() / (matrix.float().norm() + 1e-7)
    is_tall = matrix.shape[0] > matrix.shape[1]
    result = result.T if is_tall else result
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = result @ result.T
        result = a * result + (b * square + c * square @ square) @ result
    return result.T if is_tall else result


def muon_groups(
    model: nn.Module, learning_rate: float, muon_learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups for `MuonAdamW`: Muon for weights of layers, AdamW for embeddings, heads, biases and norms."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    base, fusion = f"{model.base_model_prefix}.", getattr(model, "late_fusion", None)
    learned = set[int]()
    if fusion is not None and fusion.kind == "product_mlp":
        learned = {id(p) for part in (fusion.mlps, fusion.mixer) for p in part.parameters()}
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decayed": [], "rest": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_hidden = parameter.dim() > 1 and (name.startswith(base) or id(parameter) in learned)
        is_hidden = is_hidden and id(parameter) not in embeddings
        groups["muon" if is_hidden else "decayed" if parameter.dim() > 1 else "rest"].append(parameter)
    return [
        {"params": groups["muon"], "lr": muon_learning_rate, "weight_decay": weight_decay, "muon": True},
        {"params": groups["decayed"], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": groups["rest"], "lr": learning_rate, "weight_decay": 0.0},
    ]
