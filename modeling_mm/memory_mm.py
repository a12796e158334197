# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""One modality of a batch on its way from the towers to the text.

Shapes: B rows, I distinct images or clips, N of them per row, P states each, T text tokens, M memory width.
"""

from dataclasses import dataclass

import torch

from .media_mm import NEVER, media_start_from_markers


@dataclass
class Memory:
    """One modality of a batch.

    states: (I, P, M). index: (B, N) into them, -1 where a row has fewer than N. present: (I, P) bool, which states are
    real; None where all are. in_order: the index counts from 0 to I - 1, so that there is nothing to look up.
    """

    states: torch.Tensor
    index: torch.Tensor
    present: torch.Tensor | None = None
    in_order: bool = False

    def pooled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean (B, M) over all items of a row of each one's mean state, and (B,) bool, whether it has any."""
        pooled = self.states.mean(dim=1)  # (I, M)
        if self.present is not None:
            weight = self.present[..., None].to(self.states.dtype)
            pooled = (self.states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        real = self.index >= 0  # (B, N)
        own = pooled[self.index.clamp(min=0)] * real[..., None]  # (B, N, M)
        return own.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1), real.any(dim=1)

    def starts(self, markers: torch.Tensor | None, before: int | torch.Tensor) -> torch.Tensor:
        """(B, N * P), the text column from which each slot may be seen."""
        start = media_start_from_markers(markers, self.index, before)[..., None].expand(-1, -1, self.states.shape[1])
        if self.present is not None:
            start = torch.where(self.present[self.index.clamp(min=0)], start, NEVER)
        return start.flatten(1)


__all__ = ["Memory"]
