# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Towers with random weights, `scratch-tiny` and `scratch-small`, for data that needs no pretraining.

The vision tower is a small ResNet (He et al. 2016), which learns shapes and colours from a few thousand images; a
plain vision transformer of the same size does not. The audio tower is a ResNet too: it takes log-mel features as an
image and learns words from a few thousand clips. The text backbone is a Llama decoder or a ModernBERT encoder over a
byte-level BPE tokenizer trained on the user's own text. ModernBERT's layers normalise their input; over a BERT, whose
layers normalise their output, fusion learns far less from a few thousand rows (docs/defaults.md).
"""

import math
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ResNetConfig,
    WhisperFeatureExtractor,
)

from ..model.audio_mm import SHORTEST

PAD, START, END, IMAGE, AUDIO, VIDEO = "<pad>", "<s>", "</s>", "<image>", "<audio>", "<video>"

SIZES: dict[str, dict[str, Any]] = {
    "scratch-tiny": {
        "text": {
            "hidden_size": 96,
            "num_attention_heads": 4,
            "initializer_range": 0.1,  # about 1 / sqrt(width); with the usual 0.02 so narrow a model hardly learns
        },
        "decoder": {"num_hidden_layers": 2, "intermediate_size": 256},
        "encoder": {"num_hidden_layers": 3, "intermediate_size": 192},
        "vision": {"embedding_size": 16, "hidden_sizes": [32, 64, 96], "depths": [1, 1, 1], "layer_type": "basic"},
        "audio": {"embedding_size": 16, "hidden_sizes": [32, 64, 96], "depths": [1, 1, 1], "layer_type": "basic"},
        "vocab_size": 2000,
        "image_size": 64,
    },
    "scratch-small": {
        "text": {
            "hidden_size": 256,
            "num_attention_heads": 8,
            "initializer_range": 0.06,
        },
        "decoder": {"num_hidden_layers": 6, "intermediate_size": 768},
        "encoder": {"num_hidden_layers": 6, "intermediate_size": 512},
        "vision": {"embedding_size": 32, "hidden_sizes": [64, 128, 256], "depths": [2, 2, 2], "layer_type": "basic"},
        "audio": {"embedding_size": 32, "hidden_sizes": [64, 128, 256], "depths": [2, 2, 2], "layer_type": "basic"},
        "vocab_size": 8000,
        "image_size": 128,
    },
}


def train_tokenizer(
    texts: Iterable[str], size: str, audio: bool = False, video: bool = False
) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer on `texts`; it puts <s> before encoded text.

    It has the image marker, and the markers of audio and video if `audio` and `video` are true.
    """
    markers = {"image_token": IMAGE}
    markers |= {"audio_token": AUDIO} if audio else {}
    markers |= {"video_token": VIDEO} if video else {}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES[size]["vocab_size"],
        special_tokens=[PAD, START, END, *markers.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        extra_special_tokens=markers,
        model_max_length=512,
    )


def text_config(
    size: str, tokenizer: PreTrainedTokenizerBase, decoder: bool, layers: int | None = None
) -> PreTrainedConfig:
    """Config of a Llama decoder or a ModernBERT encoder for the tokenizer, with `layers` in place of the default."""
    sizes = SIZES[size]["text"] | SIZES[size]["decoder" if decoder else "encoder"]
    config_class = LlamaConfig if decoder else ModernBertConfig
    ends = {"cls_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.eos_token_id}
    extra = {"tie_word_embeddings": True} if decoder else {"global_attn_every_n_layers": 1, **ends}
    return config_class(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sizes | ({} if layers is None else {"num_hidden_layers": layers}),
        **extra,
    )


def vision_config(size: str) -> ResNetConfig:
    """Config of a small ResNet whose last stage is a 4 x 4 grid (tiny) or 8 x 8 (small)."""
    return ResNetConfig(**SIZES[size]["vision"])


def audio_config(size: str) -> ResNetConfig:
    """Config of a small ResNet over log-mel features; its last stage has 4 rows and about 3 columns per second."""
    return ResNetConfig(num_channels=1, **SIZES[size]["audio"])


def feature_extractor(max_seconds: float) -> WhisperFeatureExtractor:
    """Log-mel features for the scratch audio towers, 64 bins and 50 frames per second.

    Args:
        max_seconds: length that every clip is padded to, rounded up to whole frames; the tower's run time is
            proportional to it.
    """
    hop, rate = 320, 16_000
    samples = hop * math.ceil(max(SHORTEST, max_seconds) * rate / hop)
    window = math.ceil(samples / rate)  # whole seconds, all that Whisper's own argument takes
    options = {"feature_size": 64, "sampling_rate": rate, "hop_length": hop, "n_fft": 512, "chunk_length": window}
    return WhisperFeatureExtractor(**options, window_samples=samples)
