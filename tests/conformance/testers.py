# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tiny models in the form in which transformers' suites ask for them.

Special tokens lie at 0 and 20 to 23: the overfitting test learns the tokens 1 to 19, and the resizing tests cut the
vocabulary down to 84.

Shapes: B rows, T text tokens.
"""

import torch

from modeling_mm import MMConfig, MMForConditionalGeneration

IMAGE_ID, AUDIO_ID, VIDEO_ID = 23, 20, 20
TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


class LlamaTester:
    """A Llama backbone that sees one image per row through a SigLIP tower, all of whose weights are used."""

    batch_size = 3
    seq_length = 7
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    is_training = True
    conditional_generation_class = MMForConditionalGeneration
    text_config = {**TEXT, "model_type": "llama", "num_key_value_heads": 2, "bos_token_id": 21, "eos_token_id": 22}
    vision_config = {
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 3,
    }

    audio_config: dict | None = None
    num_frames: int | None = None

    def __init__(self, parent=None):
        self.parent = parent

    def get_config(self):
        towers = {"text_config": dict(self.text_config), "vision_config": dict(self.vision_config)}
        return MMConfig(**towers, fusion_layers=[1], fusion_mlp=True, image_token_id=IMAGE_ID)

    def prepare_config_and_inputs_for_common(self):
        """A config, and ids, mask and pixels of B rows of T tokens that each begin with their image's marker."""
        input_ids = torch.randint(24, 99, (self.batch_size, self.seq_length))
        input_ids[:, 0] = IMAGE_ID
        pixel_values = torch.rand(self.batch_size, 3, 8, 8)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixel_values}
        return self.get_config(), inputs


class HearingTester(LlamaTester):
    """The same with one clip of sound per row through a Whisper encoder."""

    audio_config = {
        "model_type": "whisper",
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 37,
        "num_mel_bins": 8,
        "max_source_positions": 8,
    }

    def get_config(self):
        config = super().get_config().to_dict()
        return MMConfig(**{**config, "audio_config": dict(self.audio_config), "audio_token_id": AUDIO_ID})

    def prepare_config_and_inputs_for_common(self):
        """Each row begins with the markers of its image and of its sound."""
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"][:, 1] = AUDIO_ID
        return config, {**inputs, "input_features": torch.rand(self.batch_size, 8, 16)}


class WatchingTester(LlamaTester):
    """The same with one video of two frames per row beside its image."""

    num_frames = 2

    def get_config(self):
        config = super().get_config().to_dict()
        return MMConfig(**{**config, "num_frames": self.num_frames, "video_token_id": VIDEO_ID})

    def prepare_config_and_inputs_for_common(self):
        """Each row begins with the markers of its image and of its video."""
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"][:, 1] = VIDEO_ID
        return config, {**inputs, "pixel_values_videos": torch.rand(self.batch_size, self.num_frames, 3, 8, 8)}


class OverfittingTester(LlamaTester):
    """A mixin with the attributes that the overfitting test reads: the class to train, and the outer config's
    vocabulary size."""

    causal_lm_class = MMForConditionalGeneration

    def get_config(self):
        config = super().get_config()
        config.vocab_size = config.text_config.vocab_size
        return config


class BertTester(LlamaTester):
    """A BERT backbone."""

    conditional_generation_class = None
    text_config = {**TEXT, "model_type": "bert"}


class ModernBertTester(LlamaTester):
    """A ModernBERT backbone."""

    conditional_generation_class = None
    text_config = {**TEXT, "model_type": "modernbert", "cls_token_id": 21, "sep_token_id": 22, "local_attention": 8}
    text_config |= {"bos_token_id": 21, "eos_token_id": 22}
    text_config |= {"initializer_range": 0.2}  # with 0.02, scaled positions sometimes differ by less than 1e-5
