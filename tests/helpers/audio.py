# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tiny models with an audio tower, their processors, and clips for them."""

import numpy as np
import torch
from helpers.builders import mm_model, pictures, token_row
from transformers import AutoConfig, CLIPImageProcessorPil

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.training.scratch import feature_extractor, train_tokenizer

AUDIO_ID = 97
EARS = {
    "resnet": {
        "num_channels": 1,
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "wav2vec2": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": [8, 8],
        "conv_kernel": [8, 4],
        "conv_stride": [4, 4],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": "layer",
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
        "initializer_range": 0.2,
    },
    "whisper": {
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "num_mel_bins": 8,
        "max_source_positions": 8,
        "init_std": 0.2,
    },
}


def ears(kind):
    """A tiny config of an audio tower."""
    return AutoConfig.for_model(kind, **EARS[kind])


def hearing(kind="resnet", head=MMForConditionalGeneration, text="llama", **fields):
    """A model of images and audio with open gates."""
    return mm_model(text, head=head, audio_config=ears(kind), audio_token_id=AUDIO_ID, **fields)


def clips(count, kind="resnet"):
    """The tensors of `count` different clips; for wav2vec2 the second clip is half as long."""
    if kind != "wav2vec2":
        return {"input_features": torch.randn(count, 8, 16)}
    mask = torch.ones(count, 160).long()
    mask[1:2, 80:] = 0
    return {"input_features": torch.randn(count, 160) * mask, "input_features_mask": mask}


def heard_row(length, images=(), audio=()):
    """A row of words with markers at the given columns."""
    row = token_row(length, images)
    row[list(audio)] = AUDIO_ID
    return row


def mixed(kind="resnet"):
    """Rows of ids and the media of a batch: text only, image only, audio only, both, two clips."""
    rows = [heard_row(9), heard_row(7, [2]), heard_row(8, (), [1]), heard_row(10, [1], [4]), heard_row(6, (), [0, 3])]
    index = {
        "image_index": torch.tensor([[-1], [0], [-1], [1], [-1]]),
        "audio_index": torch.tensor([[-1, -1], [-1, -1], [0, -1], [1, -1], [1, 0]]),
    }
    return rows, {**pictures(2), **clips(2, kind), **index}


def hearing_processor():
    """A processor for 16 x 16 images and clips of a second."""
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_convert_rgb=True)
    tokenizer = train_tokenizer(["what do you hear", "a tone"], "scratch-tiny", audio=True)
    return MMProcessor(image_processor=images, tokenizer=tokenizer, audio=feature_extractor(1.0), max_seconds=1.0)


def tone(hertz, seconds=0.5, rate=16000):
    """A clip and its sampling rate."""
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32), rate
