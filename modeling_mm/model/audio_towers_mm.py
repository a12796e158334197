# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Audio towers: any audio encoder, with its states in one layout.

- Audio encoders of transformers: Whisper and CLAP (their audio halves), AST, Wav2Vec2 and related models. An image
  tower can be one too: log-mel features are then an image of mel bins by time.
- States in the padding behind a clip are masked, so that fusion does not attend to them.
- A clip's states do not depend on the other clips of a batch, given features of `audio_mm.audio_features`.

Shapes: A clips, Q states per clip, V tower width, F and T mel bins and frames, f and t their grid in the tower.
"""

import torch
from transformers import AutoModel, ClapAudioModel, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration_mm import tower_width
from .outputs_mm import MMAudioOutput


def audio_tower_from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """An audio tower with random weights; `config` may be the one of a whole Whisper or CLAP model.

    Raises:
        ValueError: AutoModel knows no model of this type, or the model takes neither audio nor images.
    """
    if config.model_type == "whisper":
        return WhisperEncoder(config)  # AutoModel would build the decoder too
    config = config.audio_config if config.model_type == "clap" else config
    tower = ClapAudioModel(config) if config.model_type == "clap_audio_model" else AutoModel.from_config(config)
    return check_audio_tower(tower)


def audio_half(model: PreTrainedModel) -> PreTrainedModel:
    """The audio tower of a loaded model: the encoder of Whisper, the audio half of CLAP, any other model itself.

    Raises:
        ValueError: the model takes neither audio nor images.
    """
    if model.config.model_type == "whisper":
        return model if isinstance(model, WhisperEncoder) else model.get_encoder()
    return check_audio_tower(model.audio_model if model.config.model_type == "clap" else model)


def check_audio_tower(tower: PreTrainedModel) -> PreTrainedModel:
    """Refuse a tower that takes no audio; returns the tower.

    Raises:
        ValueError: its main input is neither audio nor an image.
    """
    if tower.main_input_name not in ("input_features", "input_values", "pixel_values"):
        raise ValueError(
            f"a tower of type '{tower.config.model_type}' takes `{tower.main_input_name}`, not audio; use a Whisper, "
            "AST, CLAP, Wav2Vec2, HuBERT or WavLM tower, or an image tower over log-mel features"
        )
    return tower


def audio_width(config: PreTrainedConfig) -> int:
    """Width V of the tower's states.

    Raises:
        ValueError: no field of the config holds the width.
    """
    config = config.audio_config if config.model_type == "clap" else config
    fields = config.to_dict()
    return config.output_hidden_size if fields.get("add_adapter") else tower_width(config)


def run_audio_tower(
    tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor | None = None, **flags
) -> MMAudioOutput:
    """Audio features of distinct clips.

    Args:
        features: as the tower's feature extractor makes them, (A, ...); an image tower takes (A, F, T).
        mask: (A, T) or (A, samples), 1 inside a clip and 0 in the padding behind it.
        flags: options of the tower, such as `output_hidden_states`.

    Returns:
        the tower's output; `pooler_output` holds the states (A, Q, V), an image tower's grid flattened row by row of
        mel bins; `attention_mask` (A, Q) is False in the padding, or None without a mask.
    """
    features = features.to(tower.dtype)
    inputs = dict(flags)
    if tower.main_input_name == "pixel_values":
        features = features[:, None].expand(-1, tower.config.num_channels, -1, -1)
    elif tower.config.model_type == "clap_audio_model":
        inputs["is_longer"] = torch.zeros(features.shape[0], 1, dtype=torch.bool, device=features.device)
    elif mask is not None and takes_mask(tower.config):
        inputs["attention_mask"] = mask
    output = tower(**{tower.main_input_name: features}, **inputs, return_dict=True)
    states = output.last_hidden_state
    return MMAudioOutput(
        last_hidden_state=states,
        pooler_output=states.flatten(2).transpose(1, 2) if states.dim() == 4 else states,
        hidden_states=output.get("hidden_states"),
        attentions=output.get("attentions"),
        attention_mask=None if mask is None else states_present(tower, mask, states.shape),
    )


def takes_mask(config: PreTrainedConfig) -> bool:
    """True if the tower takes a padding mask. Whisper and AST do not, nor do Wav2Vec2-like towers with group norms.

    Group norms normalise over the whole length of the input, and such towers were trained without a mask.
    """
    if config.model_type in ("whisper", "audio-spectrogram-transformer"):
        return False
    return config.to_dict().get("feat_extract_norm") != "group"


def states_present(tower: PreTrainedModel, mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(A, Q) bool, True for states that begin within their clip; `shape` is (A, Q, V), or (A, V, f, t) for a grid."""
    lengths = mask.sum(dim=1)
    if len(shape) == 4:
        num_states = (lengths * shape[3] / mask.shape[1]).ceil()
    else:
        num_states = tower._get_feat_extract_output_lengths(lengths)
    column = torch.arange(shape[3] if len(shape) == 4 else shape[1], device=mask.device)
    present = column < num_states.clamp(min=1)[:, None]
    return present.repeat(1, shape[2]) if len(shape) == 4 else present
