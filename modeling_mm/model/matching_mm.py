# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Image-text matching: a head on the fused path looks at text and image together, to rank the best candidates again.

It learns from hard negatives: pairs that the embeddings confuse (Li et al. 2021, "ALBEF").

Shapes: B texts, I distinct images or clips, R pairs of them, T text tokens, D text width, L fusion layers, K key/value
heads, S slots, E head width.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .configuration_mm import MMConfig
from .embedding_mm import EmbeddedMedia, MMEmbeddingMixin
from .losses_mm import hard_negatives
from .media_mm import MEDIA, NEVER
from .pooling_mm import masked_mean, pool_tokens

BUCKETS = 3  # of pairs, by length, that the fused path reads one after the other


def length_buckets(attention_mask: torch.Tensor) -> list[tuple[torch.Tensor, int | None]]:
    """Texts (R, T) in buckets of about the same length, so that little of a bucket is padding.

    Every process of a distributed training has as many: texts fewer than buckets are taken several times, evenly.

    Returns:
        for each bucket the places (n,) of its texts, and behind which column all of these have ended.
    """
    columns = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    ends = ((attention_mask > 0) * columns).amax(dim=1).clamp(min=1)
    order = ends.argsort().repeat(math.ceil(BUCKETS / len(ends)))
    buckets = order.tensor_split(BUCKETS)
    widths = torch.stack([ends[bucket].amax() for bucket in buckets])
    return list(zip(buckets, widths.tolist(), strict=True))


class MMMatchingHead(nn.Module):
    """Whether text and media belong together: from the fused text, and from a bilinear product of it and the media.

    A softmax over slots says which of them fits a text best, not how well. The product compares the text with the mean
    of what the last fusion layer can attend to.
    """

    def __init__(self, config: MMConfig):
        super().__init__()
        width, media = config.text_config.hidden_size, config.fusion_num_key_value_heads * config.fusion_head_dim
        self.fused = nn.Linear(width, 2)
        self.query = nn.Linear(width, media)
        self.agreement = nn.Linear(media, 2, bias=False)

    def forward(
        self, pooled: torch.Tensor, key_values: torch.Tensor | None, start: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits (B, 2) of pooled text (B, D) and `media_key_values` (B, L, 2, K, S, E) with `media_start` (B, S)."""
        pooled = pooled.to(self.fused.weight.dtype)
        logits = self.fused(pooled)
        if key_values is None:
            return logits
        values = key_values[:, -1, 1].permute(0, 2, 1, 3).flatten(2)  # (B, S, K * E), of the last fusion layer
        pooled_values = masked_mean(values.to(pooled.dtype), start < NEVER)  # zero where a row has none
        return logits + self.agreement(self.query(pooled) * pooled_values)


class MMMatchingMixin(MMEmbeddingMixin):
    """`match`, and the loss by which a model with embeddings learns it."""

    matching_head: MMMatchingHead | None

    def match(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """Logits (B, 2) that text and image of each row do not, and do, belong together.

        `inputs` as for `MMModel`. To rank many texts for one image, or the reverse, encode images once by
        `encode_media` and pass their rows as `media_key_values`.

        Raises:
            ValueError: the model has no matching head.
        """
        if self.matching_head is None:
            raise ValueError("this model has no matching head; train it with a `matching_weight` above 0")
        return self.matching_logits(input_ids, attention_mask, **inputs)

    def ranking_scores(self, similar: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
        """What candidates are ranked again by (B,): logits of similarities (B,) and of matches (B, 2) together."""
        return similar + self.config.rerank_weight * (matches[:, 1] - matches[:, 0])

    def matching_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **inputs: Any
    ) -> torch.Tensor:
        """What `match` returns, for use within `forward`, where FSDP must not be entered again."""
        assert self.matching_head is not None
        given = {name: inputs.pop(name) for name in MEDIA if name in inputs}
        media = self.model.prepare_media(input_ids, inputs_embeds=inputs.get("inputs_embeds"), **given)
        encoded = dict(zip(("media_key_values", "media_start"), media, strict=True))
        text = {**self.decoder_options(attention_mask), **inputs, "attention_mask": attention_mask}
        states = self.model(input_ids, return_dict=True, **text, **encoded).last_hidden_state
        return self.matching_head(pool_tokens(states, attention_mask, self.config.pooling), *media)

    def medium_matching_loss(
        self,
        text: dict[str, Any],
        medium: EmbeddedMedia,
        similar: torch.Tensor,
        true: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of one modality: true pairs, each text with a wrong medium, each medium with a wrong text.

        In training these are `matching_rows` texts and as many media; the wrong ones come from the whole batch.

        Args:
            text: the arguments of B rows. medium: I of them. similar: (B, I) logits. true: (B, I) bool.
        """
        rows, items = self.sample_candidates(similar), self.sample_candidates(similar.T)  # of texts and of media
        own = medium.row_index()[rows, 0]
        wrong_media = hard_negatives(similar[rows], true[rows], self.training)
        wrong_texts = hard_negatives(similar.T[items], true.T[items], self.training)
        labels = torch.arange(2 * len(rows) + len(items), device=rows.device) < len(rows)
        rows = torch.cat([rows, rows, wrong_texts])
        items = torch.cat([own, torch.where(own < 0, own, wrong_media), items])
        kept = (rows >= 0) & (items >= 0)
        labels = labels.long()[kept]
        rows, items = rows[kept], items[kept]
        if not len(rows):  # with a gradient of zero, which other processes wait for
            return torch.stack([parameter.sum() for parameter in self.matching_head.parameters()]).sum() * 0
        used, places = items.unique(return_inverse=True)  # fusion looks at no more of them than it must
        order, logits = self.match_pairs(text, rows, medium.chosen(used, places[:, None]))
        return functional.cross_entropy(logits.float(), labels[order])

    def match_pairs(
        self, text: dict[str, Any], rows: torch.Tensor, medium: EmbeddedMedia
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The texts `rows` (R,), each with its own of the media: which pairs (n,), and their logits (n, 2)."""
        memory, each = self.memory(medium), torch.arange(len(medium.states), device=rows.device)
        encoded = self.model.key_values({medium.modality: replace(memory, index=each[:, None], in_order=True)})
        batch = {name: value[rows] if torch.is_tensor(value) else value for name, value in text.items()}
        start = self.model.media_starts({medium.modality: memory}, batch["input_ids"], batch["inputs_embeds"])
        buckets: list[tuple[torch.Tensor, int | None]] = [(torch.arange(len(rows), device=rows.device), None)]
        if batch["attention_mask"] is not None:
            buckets = length_buckets(batch["attention_mask"])
        logits = []
        for pairs, width in buckets:
            own = {name: one[pairs, :width] if torch.is_tensor(one) else one for name, one in batch.items()}
            media = {"media_key_values": encoded[memory.index[pairs, 0]], "media_start": start[pairs]}
            logits.append(self.matching_logits(**own, **media))
        return torch.cat([pairs for pairs, _ in buckets]), torch.cat(logits)

    def sample_candidates(self, candidates: torch.Tensor) -> torch.Tensor:
        """Which of the n candidates the matching loss takes: in training `matching_rows` at random, else all."""
        if self.config.matching_rows is None or not self.training:
            return torch.arange(len(candidates), device=candidates.device)
        return torch.randperm(len(candidates), device=candidates.device)[: self.config.matching_rows]


__all__ = ["MMMatchingHead", "MMMatchingMixin"]
