# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Embeddings: text, images and audio clips as unit vectors in a common space, each computed independently.

Shapes: B texts, I distinct images or clips, N of them per row, P states each, T text tokens, V tower width,
E embedding width.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration_mm import MMConfig
from .losses_mm import NO_MEDIUM, Pairs, local_keys
from .media_mm import Memory
from .modeling_mm import MMModel
from .outputs_mm import MMAudioOutput, MMImageOutput
from .pooling_mm import masked_mean, pool_tokens


@dataclass
class EmbeddedMedia:
    """The distinct images or audio clips of a batch, embedded, with the states of their tower.

    embeds: (I, E). states: (I, P, V). present: (I, P) bool, False for padding; None without padding. index: (B, N) the
    items of each text, None for one per text. keys: (I,) content keys, None if all items differ.
    """

    modality: str
    embeds: torch.Tensor
    states: torch.Tensor
    present: torch.Tensor | None = None
    index: torch.Tensor | None = None
    keys: torch.Tensor | None = None

    def row_index(self) -> torch.Tensor:
        """(B, N), -1 where a row has fewer than N."""
        return torch.arange(len(self.embeds), device=self.embeds.device)[:, None] if self.index is None else self.index

    def select(self, places: torch.Tensor, index: torch.Tensor) -> "EmbeddedMedia":
        """The media at `places` (M,), with a new `index` (R, N) into them."""
        present = None if self.present is None else self.present[places]
        return EmbeddedMedia(self.modality, self.embeds[places], self.states[places], present, index)

    def pairs(self, texts: torch.Tensor) -> Pairs:
        """The pairs of texts, by their keys (B,), and media: each text belongs to the first medium of its row.

        Raises:
            ValueError: the media come without an index, and are not one per text.
        """
        first, keys = self.row_index()[:, 0], local_keys(self.embeds) if self.keys is None else self.keys
        if len(first) != len(texts):
            raise ValueError(
                f"{len(first)} media came with {len(texts)} texts; a loss needs one for each text, or the "
                f"`{self.modality}_index` (B, N) of the media of each text"
            )
        return Pairs(texts, keys, torch.where(first < 0, NO_MEDIUM, keys[first.clamp(min=0)]))


def per_row(embeds: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """Embeddings (B, E) of rows with one item each, from those of the distinct items (I, E) and an index (B, 1).

    Raises:
        ValueError: a row has no item, or several.
    """
    if index is None:
        return embeds
    if index.shape[1:] != (1,) or (index < 0).any():
        counts = (index >= 0).sum(1).tolist()
        raise ValueError(f"an embedding needs one image or audio clip per row, but the rows have {counts}")
    return embeds[index[:, 0]]


class MMEmbeddingMixin:
    """`get_text_features`, `get_image_features` and `get_audio_features` of a model over `MMModel`."""

    config: MMConfig
    model: MMModel
    training: bool
    text_projection: nn.Linear
    image_projection: nn.Linear
    audio_projection: nn.Linear

    def embed(self, pooled: torch.Tensor, projection: nn.Linear) -> torch.Tensor:
        """Pooled states (rows, width) to embeddings (rows, E) of length one."""
        return functional.normalize(projection(pooled.to(projection.weight.dtype)), dim=-1)

    def decoder_options(self, attention_mask: torch.Tensor | None) -> dict[str, Any]:
        """Options for a decoder: no cache, and positions counted from the first real token, on either padding side."""
        if not self.config.is_text_decoder:
            return {}
        parameters = inspect.signature(self.model.text_model.forward).parameters
        if attention_mask is None or "position_ids" not in parameters:
            return {"use_cache": False}
        return {"use_cache": False, "position_ids": (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)}

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **text_inputs
    ) -> BaseModelOutputWithPooling:
        """Text features of texts (B, T) without media; `pooler_output` holds the normalised embeddings (B, E)."""
        inputs = {**self.decoder_options(attention_mask), **text_inputs}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        pooled = pool_tokens(output.last_hidden_state, attention_mask, self.config.pooling)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=self.embed(pooled, self.text_projection),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        **vision_inputs,
    ) -> BaseModelOutputWithPooling:
        """Image features of distinct images (I, C, H, W); `pooler_output` holds the normalised embeddings (I, E).

        With the processor's `image_index` (B, 1) they are (B, E), one for each image passed to the processor.
        """
        vision_inputs |= {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        output = self.model.get_image_features(pixel_values, return_dict=True, **vision_inputs)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=per_row(self.image_embeds(output, pixel_attention_mask), image_index),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        audio_index: torch.Tensor | None = None,
        **flags,
    ) -> BaseModelOutputWithPooling:
        """Audio features of distinct clips (A, ...); `pooler_output` holds the normalised embeddings (A, E).

        With the processor's `audio_index` (B, 1) they are (B, E), one for each clip passed to the processor.
        """
        output = self.model.get_audio_features(input_features, input_features_mask, return_dict=True, **flags)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=per_row(self.audio_embeds(output), audio_index),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def embed_images(
        self,
        pixel_values: torch.Tensor | None,
        patches: dict[str, torch.Tensor | None],
        index: torch.Tensor | None,
        keys: torch.Tensor | None,
    ) -> EmbeddedMedia:
        """Run images through the vision tower, once for both embeddings and fusion."""
        features = self.model.get_image_features(pixel_values, return_dict=True, **patches)
        mask = patches["pixel_attention_mask"]
        present = None if mask is None else mask.bool()
        return EmbeddedMedia("image", self.image_embeds(features, mask), features.pooler_output, present, index, keys)

    def embed_audio(
        self,
        input_features: torch.Tensor | None,
        audio: dict[str, torch.Tensor | None],
        index: torch.Tensor | None,
        keys: torch.Tensor | None,
    ) -> EmbeddedMedia:
        """Run audio clips through the audio tower, once for both embeddings and fusion."""
        features = self.model.get_audio_features(input_features, return_dict=True, **audio)
        present = features.attention_mask
        return EmbeddedMedia("audio", self.audio_embeds(features), features.pooler_output, present, index, keys)

    def memory(self, medium: EmbeddedMedia) -> Memory:
        """The projected states of a medium, for fusion."""
        return self.model.project_states(medium.modality, medium.states, medium.present, medium.index)

    def image_embeds(self, features: MMImageOutput, pixel_attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Normalised embeddings (I, E) of image features.

        Raises:
            ValueError: `image_pooling` is "tower", and the tower has no pooled output.
        """
        states = features.pooler_output  # (I, P, V)
        if self.config.image_pooling == "tower":
            if features.pooled is None:
                kind = self.config.vision_config.model_type
                raise ValueError(f"the vision tower '{kind}' does not pool; set `image_pooling` to mean or first")
            return self.embed(features.pooled.flatten(1), self.image_projection)
        pooled = states[:, 0] if self.config.image_pooling == "first" else masked_mean(states, pixel_attention_mask)
        return self.embed(pooled, self.image_projection)

    def audio_embeds(self, features: MMAudioOutput) -> torch.Tensor:
        """Normalised embeddings (A, E) of audio features."""
        return self.embed(masked_mean(features.pooler_output, features.attention_mask), self.audio_projection)


__all__ = ["MMEmbeddingMixin", "EmbeddedMedia"]
