# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Image-text matching: a head over the text fused with an image, which reranks the best candidates.

The head is trained on hard negatives: pairs that the embeddings confuse (Li et al. 2021, "ALBEF").

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

BUCKETS = 3  # of pairs, by text length, that run through the model one after the other


def length_buckets(attention_mask: torch.Tensor) -> list[tuple[torch.Tensor, int | None]]:
    """Group texts (R, T) into buckets of similar length, so that little of a bucket is padding.

    Every process of distributed training has the same number of buckets: texts fewer than buckets are repeated evenly.

    Returns:
        for each bucket the indices (n,) of its texts, and the length of the longest one.
    """
    columns = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    ends = ((attention_mask > 0) * columns).amax(dim=1).clamp(min=1)
    order = ends.argsort().repeat(math.ceil(BUCKETS / len(ends)))
    buckets = order.tensor_split(BUCKETS)
    widths = torch.stack([ends[bucket].amax() for bucket in buckets])
    return list(zip(buckets, widths.tolist(), strict=True))


class MMMatchingHead(nn.Module):
    """Match logits of text and media, from the fused text and from a bilinear product of it with the media.

    Cross-attention's softmax over slots tells which slot fits a text best, not how well. The product compares the text
    with the mean of the values that the last fusion layer can attend to.
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
        pooled_values = masked_mean(values.to(pooled.dtype), start < NEVER)  # zero for a row without media
        return logits + self.agreement(self.query(pooled) * pooled_values)


class MMMatchingMixin(MMEmbeddingMixin):
    """`match`, and its training loss for a model with embeddings."""

    matching_head: MMMatchingHead | None

    def match(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """Logits (B, 2) that text and image of each row do not match, and that they do.

        `inputs` as for `MMModel`. To rank many texts for one image, or many images for one text, encode the images
        once with `encode_media` and pass their rows as `media_key_values`.

        Raises:
            ValueError: the model has no matching head.
        """
        if self.matching_head is None:
            raise ValueError("this model has no matching head; train it with a `matching_weight` above 0")
        return self.matching_logits(input_ids, attention_mask, **inputs)

    def ranking_scores(self, similar: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
        """Reranking scores (B,): similarity logits (B,) plus the weighted log-odds of match logits (B, 2)."""
        return similar + self.config.rerank_weight * (matches[:, 1] - matches[:, 0])

    def matching_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **inputs: Any
    ) -> torch.Tensor:
        """The result of `match`, for use inside `forward`, where FSDP must not be entered again."""
        assert self.matching_head is not None
        media = {name: inputs.pop(name) for name in MEDIA if name in inputs}
        key_values, start = self.model.cross_attention_inputs(
            input_ids, inputs_embeds=inputs.get("inputs_embeds"), **media
        )
        text = {
            **self.decoder_options(attention_mask),
            **inputs,
            "attention_mask": attention_mask,
            "return_dict": True,
        }
        states = self.model(input_ids, media_key_values=key_values, media_start=start, **text).last_hidden_state
        return self.matching_head(pool_tokens(states, attention_mask, self.config.pooling), key_values, start)

    def medium_matching_loss(
        self,
        text: dict[str, Any],
        medium: EmbeddedMedia,
        similar: torch.Tensor,
        true: torch.Tensor,
    ) -> torch.Tensor:
        """The matching loss of one modality: true pairs, texts with a negative medium, and media with a negative text.

        In training it uses `matching_rows` texts and as many media; the negatives come from the whole batch.

        Args:
            text: the text arguments of B rows. medium: I items. similar: (B, I) logits. true: (B, I) bool.
        """
        rows, items = self.sample_candidates(similar), self.sample_candidates(similar.T)  # texts and media
        paired = medium.row_index()[rows, 0]
        negative_media = hard_negatives(similar[rows], true[rows], self.training)
        negative_texts = hard_negatives(similar.T[items], true.T[items], self.training)
        labels = torch.arange(2 * len(rows) + len(items), device=rows.device) < len(rows)
        rows = torch.cat([rows, rows, negative_texts])
        items = torch.cat([paired, torch.where(paired < 0, paired, negative_media), items])
        complete = (rows >= 0) & (items >= 0)
        labels = labels.long()[complete]
        rows, items = rows[complete], items[complete]
        if not len(rows):  # a loss with zero gradients, because other processes wait for them
            return torch.stack([parameter.sum() for parameter in self.matching_head.parameters()]).sum() * 0
        used, places = items.unique(return_inverse=True)  # so that each of them is encoded once
        order, logits = self.match_pairs(text, rows, medium.select(used, places[:, None]))
        return functional.cross_entropy(logits.float(), labels[order])

    def match_pairs(
        self, text: dict[str, Any], rows: torch.Tensor, medium: EmbeddedMedia
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Match logits (n, 2) of the texts `rows` (R,), each with its item of the media; and the pair of each (n,)."""
        memory, items = self.memory(medium), torch.arange(len(medium.states), device=rows.device)
        encoded = self.model.fusion.key_values([replace(memory, index=items[:, None], in_order=True)])
        batch = {name: value[rows] if torch.is_tensor(value) else value for name, value in text.items()}
        start = self.model.media_starts({medium.modality: memory}, batch["input_ids"], batch["inputs_embeds"])
        buckets: list[tuple[torch.Tensor, int | None]] = [(torch.arange(len(rows), device=rows.device), None)]
        if batch["attention_mask"] is not None:
            buckets = length_buckets(batch["attention_mask"])
        logits = []
        for pairs, width in buckets:
            inputs = {name: value[pairs, :width] if torch.is_tensor(value) else value for name, value in batch.items()}
            media = {"media_key_values": encoded[memory.index[pairs, 0]], "media_start": start[pairs]}
            logits.append(self.matching_logits(**inputs, **media))
        return torch.cat([pairs for pairs, _ in buckets]), torch.cat(logits)

    def sample_candidates(self, candidates: torch.Tensor) -> torch.Tensor:
        """Indices of the candidates (n, ...) in the matching loss: `matching_rows` at random in training, else all."""
        if self.config.matching_rows is None or not self.training:
            return torch.arange(len(candidates), device=candidates.device)
        return torch.randperm(len(candidates), device=candidates.device)[: self.config.matching_rows]


__all__ = ["MMMatchingHead", "MMMatchingMixin"]
