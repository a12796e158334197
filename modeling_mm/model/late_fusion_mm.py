# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Late fusion: one embedding per modality, joined after the towers; for small datasets, and as a baseline.

- `concat`, `sum` and `weighted` are additive: under a linear head, a row's score is a sum of one score per modality.
- `gated` weighs modalities by feature and row; for two it is a = sigmoid(W[h1, h2]), h = a * h1 + (1 - a) * h2, the
  gated multimodal unit (Arevalo et al. 2017). `product` adds pairwise and triple products to `concat`.
- `product_mlp` is `product` beside what untrained towers, whose states are nearly the same for all inputs, learn more
  from: an MLP of products of embeddings that are standardised by batch and passed through residual MLPs.
- `linear` joins the standardised states of the towers themselves, without projection: with the head, it is a linear
  model of the towers' features, which can start as a fitted regression.
- A row without a modality has exactly the output of a call without that modality.

Shapes: B rows, M modalities, D width, W width of a modality's embedding.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import nn
from transformers import initialization as init

MIXED = 2  # width of an MLP's hidden and the mixer's output, as a multiple of D
MIXER_DROPOUT = 0.2  # it fits labels that are partly wrong sooner than the other parts do


class MMStandardisedMLP(nn.Module):
    """Batch norm and a residual MLP of one modality's embeddings.

    Batch norm has no weights. It is by the rows that have the modality, and by the running statistics if there is but
    one.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, MIXED * width), nn.GELU(), nn.Linear(MIXED * width, width))

    def forward(self, states: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """(B, W) from states (B, W) of rows of which some are `present` (B); those of others mean nothing."""
        if self.training and present.sum() > 1:
            states = torch.zeros_like(states).masked_scatter(present[:, None], self.norm(states[present]))
        else:
            norm = self.norm
            states = nn.functional.batch_norm(states, norm.running_mean, norm.running_var, eps=norm.eps)
        return states + self.mlp(states)


class MMLateFusion(nn.Module):
    """Join the embeddings of M modalities to one vector per row.

    Each is projected and normalised without learned scales, so that all modalities have the same norm and their
    weights can be compared.

    Args:
        kind: "linear", "concat", "sum", "weighted", "gated", "product" or "product_mlp".
        width: width D of projected embeddings.
        modalities: the width W of each modality's embedding, in their order; D for all kinds but "linear".
    """

    def __init__(self, kind: str, width: int, modalities: Mapping[str, int]):
        super().__init__()
        self.kind, self.width, self.modalities = kind, width, tuple(modalities)
        count = len(self.modalities)
        if kind == "linear":
            self.widths = tuple(modalities.values())
            self.register_buffer("mean", torch.zeros(sum(self.widths)))
            self.register_buffer("scale", torch.ones(sum(self.widths)))
            return
        self.projectors = nn.ModuleList([nn.Linear(width, width) for _ in self.modalities])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.products: list[tuple[int, ...]] = []
        if kind in ("product", "product_mlp"):
            self.products = [factors for size in (2, 3) for factors in combinations(range(count), size)]
        if kind == "product_mlp":
            self.mlps = nn.ModuleList([MMStandardisedMLP(width) for _ in modalities])
            mixed = nn.Linear(width * len(self.products), MIXED * width)
            self.mixer = nn.Sequential(mixed, nn.GELU(), nn.Dropout(MIXER_DROPOUT))
        if kind == "weighted":
            self.modality_logits = nn.Parameter(torch.zeros(count))
        if kind == "gated":  # the last modality's logit is 0; for two modalities, the softmax is then a sigmoid
            self.gate = nn.Linear(count * width, (count - 1) * width)

    @torch.no_grad()
    def reset(self) -> None:
        """Initialise what is not a plain layer of the model; MLPs by the width of their inputs."""
        if self.kind == "linear":
            init.zeros_(self.mean)
            init.ones_(self.scale)
        if self.kind == "weighted":
            init.zeros_(self.modality_logits)
        for module in (*self.mlps.modules(), *self.mixer.modules()) if self.kind == "product_mlp" else ():
            if isinstance(module, nn.Linear):
                init.normal_(module.weight, std=module.in_features**-0.5)

    def is_fitted(self) -> bool:
        """True if mean and scale of "linear" were set."""
        return bool((self.scale != 1).any())

    @property
    def output_width(self) -> int:
        """Width of the output of `forward`."""
        if self.kind == "linear":
            return sum(self.widths) + len(self.widths)
        if self.kind in ("sum", "weighted", "gated"):
            return self.width
        mixed = MIXED if self.kind == "product_mlp" else 0
        return self.width * (len(self.modalities) + len(self.products) + mixed)

    def forward(self, embeddings: Sequence[torch.Tensor | None], present: torch.Tensor) -> torch.Tensor:
        """The joined embeddings (B, output_width); zeros for a row without any modality.

        Args:
            embeddings: (B, W) per modality, None for a modality that no row has.
            present: (B, M) bool, the modalities of each row; the embedding of a missing one is ignored.
        """
        if self.kind == "linear":
            return self.standardised(embeddings, present)
        inputs = self.inputs(embeddings, present)
        states = self.projected(inputs, present)
        if self.kind == "sum":
            return states.sum(dim=1)
        if self.kind in ("weighted", "gated"):
            return (self.weights(states, present) * states).sum(dim=1)
        if not self.products:
            return states.flatten(1)
        joined = torch.cat([states.flatten(1), self.multiplied(states)], dim=1)
        if self.kind == "product_mlp":
            parts = zip(self.mlps, inputs, present.unbind(1), strict=True)
            mapped = self.normalised([mlp(embedding, has) for mlp, embedding, has in parts], present)
            mixed = self.mixer(self.multiplied(mapped))
            joined = torch.cat([joined, torch.where(present.any(dim=1, keepdim=True), mixed, 0)], dim=1)
        return joined

    def multiplied(self, states: torch.Tensor) -> torch.Tensor:
        """The products of states (B, M, D), joined: (B, number of products * D)."""
        return torch.cat([states[:, list(factors)].prod(dim=1) for factors in self.products], dim=1)

    def standardised(self, embeddings: Sequence[torch.Tensor | None], present: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, sum of W) less their mean and times their scale, zero for missing modalities, and a 1 in the
        column of each missing one: (B, sum of W + M)."""
        self.check_embeddings(embeddings, present)
        means, scales = self.mean.split(self.widths), self.scale.split(self.widths)
        states = [
            mean.new_zeros(present.shape[0], len(mean))
            if embedding is None
            else torch.where(present[:, m, None], (embedding.to(mean.dtype) - mean) * scale, 0)
            for m, (embedding, mean, scale) in enumerate(zip(embeddings, means, scales, strict=True))
        ]
        return torch.cat([*states, (~present).to(self.mean.dtype)], dim=1)

    def check_embeddings(self, embeddings: Sequence[torch.Tensor | None], present: torch.Tensor) -> None:
        """Refuse embeddings of another number of modalities.

        Raises:
            ValueError: there is not one embedding per modality.
        """
        if len(embeddings) != len(self.modalities) or present.shape[1] != len(self.modalities):
            raise ValueError(
                f"late fusion got {len(embeddings)} embeddings and a mask for {present.shape[1]}; expected one for "
                f"each of {', '.join(self.modalities)}"
            )

    def inputs(self, embeddings: Sequence[torch.Tensor | None], present: torch.Tensor) -> list[torch.Tensor]:
        """Embeddings (B, W) of all modalities, zero for missing ones.

        Those go through all layers too, so that all parameters get a gradient in every process of distributed
        training.
        """
        self.check_embeddings(embeddings, present)
        weight = self.projectors[0].weight
        zeros = weight.new_zeros(present.shape[0], self.width)
        inputs = [zeros if embedding is None else embedding.to(weight.dtype) for embedding in embeddings]
        return [torch.where(present[:, m, None], embedding, 0) for m, embedding in enumerate(inputs)]

    def projected(self, inputs: Sequence[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """Projected and normalised inputs (B, M, D), zero for missing modalities."""
        projected = [project(embedding) for project, embedding in zip(self.projectors, inputs, strict=True)]
        return self.normalised(projected, present)

    def normalised(self, states: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """States (B, D) of M modalities as (B, M, D), normalised, zero for missing modalities."""
        return torch.where(present[..., None], self.norm(torch.stack(states, dim=1)), 0)

    def weights(self, states: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Weight of each modality in each row, per feature for `gated`: (B, M, 1 or D); sums over M are 1 or 0."""
        if self.kind == "weighted":
            logits = self.modality_logits[:, None].expand(present.shape[0], -1, -1)  # (B, M, 1)
        else:
            logits = self.gate(states.flatten(1)).view(states.shape[0], -1, self.width)
            logits = nn.functional.pad(logits, (0, 0, 0, 1))  # (B, M, D)
        logits = logits.float().masked_fill(~present[..., None], torch.finfo(torch.float32).min)
        return (logits.softmax(dim=1) * present[..., None]).to(states.dtype)

    def row_weights(self, embeddings: Sequence[torch.Tensor | None], present: torch.Tensor) -> torch.Tensor | None:
        """Weight of each modality in each row (B, M), for `gated` the mean over features; arguments as for `forward`.

        A row's weights add up to one; the weight of a missing modality is zero. None for kinds without weights.
        """
        if self.kind not in ("weighted", "gated"):
            return None
        states = self.projected(self.inputs(embeddings, present), present)
        return self.weights(states, present).mean(dim=-1)

    def modality_weights(self) -> dict[str, float] | None:
        """The learned weight of each modality in a row that has all of them; None for kinds without such weights.

        The weights of `gated` depend on the row: see `row_weights`, and `modality_weights` of the model.
        """
        if self.kind != "weighted":
            return None
        return dict(zip(self.modalities, self.modality_logits.float().softmax(dim=0).tolist(), strict=True))


__all__ = ["MMLateFusion"]
