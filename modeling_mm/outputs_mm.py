# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""What the models return.

Shapes: B rows, T text tokens, S memory slots, D text width, L fusion layers, H query heads, K key/value heads,
E head width, A clips of sound, Q states per clip, V tower width.
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput


@dataclass
class MMModelOutput(ModelOutput):
    """Output of `MMModel`.

    last_hidden_state: (B, T, D). past_key_values: the self-attention cache. hidden_states, attentions: of the text
    backbone. cross_attentions: one (B, H, T, S) tensor per fusion layer, with `output_attentions=True`.
    media_key_values: (B, L, 2, K, S, E), to be given to a later call in place of the pixels.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    media_key_values: torch.Tensor | None = None


@dataclass
class MMOutput(ModelOutput):
    """Output of the heads: `loss` where labels were given, `logits`, and the fields of `MMModelOutput`."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    media_key_values: torch.Tensor | None = None


@dataclass
class MMAudioOutput(BaseModelOutputWithPooling):
    """Output of `get_audio_features`.

    last_hidden_state: as the audio tower has it. pooler_output: the states (A, Q, V) that fusion attends to.
    attention_mask: (A, Q) bool, which of these are not padding; None where none is. hidden_states, attentions: the
    tower's.
    """

    attention_mask: torch.Tensor | None = None


def head_output(output: MMModelOutput, loss: torch.Tensor | None, logits: torch.Tensor) -> MMOutput:
    """The base model's output without its last hidden state, with the head's loss and logits."""
    fields = {name: value for name, value in output.items() if name != "last_hidden_state"}
    return MMOutput(loss=loss, logits=logits, **fields)


__all__ = ["MMAudioOutput", "MMModelOutput", "MMOutput", "head_output"]
