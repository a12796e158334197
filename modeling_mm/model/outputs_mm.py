# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Output classes of the models.

Shapes: B rows, I distinct images, P states per image, F frames, A audio clips, Q states per clip, T text tokens,
S memory slots, D text width, V tower width, L fusion layers, H query heads, K key/value heads, E head or embedding
width.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPooling,
    CausalLMOutputWithCrossAttentions,
    ModelOutput,
)


@dataclass
class MMModelOutput(BaseModelOutputWithPastAndCrossAttentions):
    """Output of `MMModel`.

    last_hidden_state: (B, T, D). past_key_values: the self-attention cache. hidden_states, attentions: those of the
    text backbone. cross_attentions: one (B, H, T, S) tensor per fusion layer, with `output_attentions=True`.
    media_key_values: (B, L, 2, K, S, E), which a later call takes in place of the pixels.
    """

    media_key_values: torch.Tensor | None = None


@dataclass
class MMOutput(CausalLMOutputWithCrossAttentions):
    """Output of the heads: `loss` if labels were given, `logits`, and the fields of `MMModelOutput` but its first."""

    media_key_values: torch.Tensor | None = None


@dataclass
class MMAudioOutput(BaseModelOutputWithPooling):
    """Output of `get_audio_features`.

    last_hidden_state: the audio tower's. pooler_output: the states (A, Q, V) that fusion attends to. attention_mask:
    (A, Q) bool, False for padding; None without padding. hidden_states, attentions: the audio tower's.
    """

    attention_mask: torch.Tensor | None = None


@dataclass
class MMImageOutput(BaseModelOutputWithPooling):
    """Output of `get_image_features` and `get_video_features`.

    pooler_output: the states (I, P, V), for videos (I, F * P, V), that fusion attends to. pooled: (I, V), the tower's
    own pooled output, if it has one.
    """

    pooled: torch.Tensor | None = None


@dataclass
class MMRetrievalOutput(ModelOutput):
    """Output of `MMForImageTextRetrieval`.

    loss: the weighted sum of the parts below, with `return_loss=True`. logits_per_image (I, B), logits_per_text
    (B, I), logits_per_audio (A, B): scaled similarities, without `return_loss`. text_embeds (B, E), image_embeds
    (I, E), audio_embeds (A, E): normalised. hidden_states, attentions: the text backbone's, without media.
    """

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    matching_loss: torch.Tensor | None = None
    language_loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    logits_per_audio: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def head_output(output: MMModelOutput, loss: torch.Tensor | None, logits: torch.Tensor | None) -> MMOutput:
    """The base model's output without its last hidden state, with the head's loss and logits."""
    fields = {name: value for name, value in output.items() if name != "last_hidden_state"}
    return MMOutput(loss=loss, logits=logits, **fields)


__all__ = ["MMAudioOutput", "MMImageOutput", "MMModelOutput", "MMOutput", "MMRetrievalOutput", "head_output"]
