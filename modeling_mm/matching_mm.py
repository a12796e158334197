# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Image-text matching: a head on the fused path looks at text and picture together, to rank the best candidates again.

It learns from hard negatives: pairs that the embeddings confuse (Li et al. 2021, "ALBEF").

Shapes: B texts, I distinct images or clips, R pairs of them, T text tokens.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .embedding_mm import Medium, MMEmbeddingMixin
from .losses_mm import hard_negatives
from .pooling_mm import pool_tokens

PARTS = 3  # of the pairs, by length, that the fused path reads one after the other


def parts_by_length(attention_mask: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
    """Texts (R, T) in parts of about the same length, so that little of a part is padding.

    Every process of a distributed training has as many parts: texts fewer than these are taken several times, evenly.

    Returns:
        for each part the places (n,) of its texts, and behind which column all of these have ended.
    """
    columns = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    ends = ((attention_mask > 0) * columns).amax(dim=1).clamp(min=1)
    order = ends.argsort().repeat(math.ceil(PARTS / len(ends)))
    parts = order.tensor_split(PARTS)
    widths = torch.stack([ends[part].amax() for part in parts])
    return list(zip(parts, widths.tolist(), strict=True))


class MMMatchingMixin(MMEmbeddingMixin):
    """`match`, and the loss by which a model with embeddings learns it."""

    matching_head: nn.Linear | None

    def match(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **media: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B, 2) that text and picture of each row do not, and do, belong together, calibrated if it was.

        `media` as for `MMModel`. To rank many texts for one picture, or the reverse, encode pictures once by
        `encode_media` and pass their rows as `media_key_values`.

        Raises:
            ValueError: the model has no matching head.
        """
        if self.matching_head is None:
            raise ValueError("this model has no matching head; train it with a `matching_weight` above 0")
        media = {**self.decoder_options(attention_mask), **media}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **media)
        logits = self.matching_head(pool_tokens(output.last_hidden_state, attention_mask, self.config.pooling))
        temperature = self.config.calibration_temperature
        return logits if temperature is None else logits / temperature

    def matching_of(
        self,
        text: dict[str, Any],
        medium: Medium,
        similar: torch.Tensor,
        true: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of one modality: true pairs, each text with a wrong medium, each medium with a wrong text.

        In training these are `matching_rows` texts and as many media; the wrong ones come from the whole batch.

        Args:
            text: the arguments of B rows. medium: I of them. similar: (B, I) logits. true: (B, I) bool.
        """
        rows, items = self.drawn(len(similar)), self.drawn(len(medium.embeds))  # of texts and of media
        own = medium.row_index()[rows, 0]
        wrong_media = hard_negatives(similar[rows], true[rows], self.training)
        wrong_texts = hard_negatives(similar.T[items], true.T[items], self.training)
        labels = torch.arange(2 * len(rows) + len(items), device=rows.device) < len(rows)
        rows = torch.cat([rows, rows, wrong_texts])
        items = torch.cat([own, torch.where(own < 0, own, wrong_media), items])
        kept = (rows >= 0) & (items >= 0)
        labels = labels.long()[kept]
        rows, items = rows[kept], items[kept]
        used, places = items.unique(return_inverse=True)  # fusion looks at no more of them than it must
        order, logits = self.match_pairs(text, rows, medium.chosen(used, places[:, None]))
        return functional.cross_entropy(logits.float(), labels[order])

    def match_pairs(
        self, text: dict[str, Any], rows: torch.Tensor, medium: Medium
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The texts `rows` (R,), each with its own of the media: an order of them (R,), and in it their logits (R, 2)."""
        memories = {medium.modality: self.memory(medium)}
        batch = {name: value[rows] if torch.is_tensor(value) else value for name, value in text.items()}
        key_values, start = self.model.attended(memories, batch["input_ids"], batch["inputs_embeds"])
        mask = batch["attention_mask"]
        parts, logits = [(torch.arange(len(rows)), None)] if mask is None else parts_by_length(mask), []
        for part, width in parts:
            own = {name: one[part, :width] if torch.is_tensor(one) else one for name, one in batch.items()}
            logits.append(self.match(**own, media_key_values=key_values[part], media_start=start[part]))
        return torch.cat([part for part, _ in parts]), torch.cat(logits)

    def drawn(self, count: int) -> torch.Tensor:
        """Which of so many candidates the matching loss takes: in training `matching_rows` at random, else all."""
        device = self.matching_head.weight.device
        if self.config.matching_rows is None or not self.training:
            return torch.arange(count, device=device)
        return torch.randperm(count, device=device)[: self.config.matching_rows]


__all__ = ["MMMatchingMixin"]
