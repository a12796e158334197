# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Late fusion: one embedding per modality, joined after the towers; for small data, and to measure others against.

- `concat`, `sum` and `weighted` are additive: under a linear head, a row's score is a sum of one score per modality.
- `gated` weighs modalities by feature and row; of two it is a = sigmoid(W[h1, h2]), h = a * h1 + (1 - a) * h2, the
  gated multimodal unit (Arevalo et al. 2017). `product` adds their pairwise and triple products to `concat`.
- A modality that a row lacks leaves the row exactly as if the model had been called without that modality.

Shapes: B rows, M modalities, D width.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import nn


class MMLateFusion(nn.Module):
    """Embeddings of M modalities to one vector per row.

    Each is projected and normalised without learned scales, so that no modality is loud and weights compare.

    Args:
        kind: "concat", "sum", "weighted", "gated" or "product".
        width: D, of every embedding.
        modalities: their names, in the order in which embeddings come.
    """

    def __init__(self, kind: str, width: int, modalities: Sequence[str]):
        super().__init__()
        self.kind, self.width, self.modalities = kind, width, tuple(modalities)
        count = len(self.modalities)
        self.projectors = nn.ModuleList([nn.Linear(width, width) for _ in self.modalities])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.products: list[tuple[int, ...]] = []
        if kind == "product":
            self.products = [chosen for size in (2, 3) for chosen in combinations(range(count), size)]
        if kind == "weighted":
            self.modality_logits = nn.Parameter(torch.zeros(count))
        if kind == "gated":  # the last modality's logit is 0, which for two of them is the sigmoid of the first's
            self.gate = nn.Linear(count * width, (count - 1) * width)

    @property
    def output_width(self) -> int:
        """Width of what `forward` returns."""
        if self.kind in ("concat", "product"):
            return self.width * (len(self.modalities) + len(self.products))
        return self.width

    def forward(self, embeddings: Sequence[torch.Tensor | None], present: torch.Tensor) -> torch.Tensor:
        """(B, output_width); zeros for a row that has no modality at all.

        Args:
            embeddings: (B, D) per modality, None for one that no row has.
            present: (B, M) bool, which modalities a row has; what stands in the embedding of a missing one is ignored.
        """
        states = self.normalised(embeddings, present)  # (B, M, D)
        if self.kind == "sum":
            return states.sum(dim=1)
        if self.kind in ("weighted", "gated"):
            return (self.weights(states, present) * states).sum(dim=1)
        products = [states[:, list(chosen)].prod(dim=1, keepdim=True) for chosen in self.products]
        return torch.cat([states, *products], dim=1).flatten(1)

    def normalised(self, embeddings: Sequence[torch.Tensor | None], present: torch.Tensor) -> torch.Tensor:
        """(B, M, D), zeros where a modality is missing.

        Raises:
            ValueError: the embeddings are not one per modality.
        """
        if len(embeddings) != len(self.modalities) or present.shape[1] != len(self.modalities):
            raise ValueError(
                f"late fusion got {len(embeddings)} embeddings and a mask for {present.shape[1]}; expected one for "
                f"each of {', '.join(self.modalities)}"
            )
        weight = self.projectors[0].weight
        nothing = weight.new_zeros(present.shape[0], self.width)
        # a modality that is not there still goes through its projector, so that all parameters get a gradient in
        # every process of a distributed training
        given = [nothing if own is None else own.to(weight.dtype) for own in embeddings]
        given = [torch.where(present[:, m, None], own, 0) for m, own in enumerate(given)]
        states = [self.norm(project(own)) for project, own in zip(self.projectors, given, strict=True)]
        return torch.where(present[..., None], torch.stack(states, dim=1), 0)

    def weights(self, states: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """What each modality of a row counts, per feature for `gated`: (B, M, 1 or D), each sum over M one or zero."""
        if self.kind == "weighted":
            logits = self.modality_logits[:, None].expand(present.shape[0], -1, -1)  # (B, M, 1)
        else:
            logits = self.gate(states.flatten(1)).view(states.shape[0], -1, self.width)
            logits = nn.functional.pad(logits, (0, 0, 0, 1))  # (B, M, D)
        logits = logits.float().masked_fill(~present[..., None], torch.finfo(torch.float32).min)
        return (logits.softmax(dim=1) * present[..., None]).to(states.dtype)

    def row_weights(self, embeddings: Sequence[torch.Tensor | None], present: torch.Tensor) -> torch.Tensor | None:
        """What each modality counts in each row, (B, M), of `gated` the mean over features; arguments as of `forward`.

        A row's weights add up to one, a missing modality's is zero. None for kinds that have no weights.
        """
        if self.kind not in ("weighted", "gated"):
            return None
        return self.weights(self.normalised(embeddings, present), present).mean(dim=-1)

    def modality_weights(self) -> dict[str, float] | None:
        """The learned weight of each modality where all are present; None for kinds that have none of their own.

        The weights of `gated` depend on the row: see `row_weights`, and `modality_weights` of the model.
        """
        if self.kind != "weighted":
            return None
        return dict(zip(self.modalities, self.modality_logits.float().softmax(dim=0).tolist(), strict=True))


__all__ = ["MMLateFusion"]
