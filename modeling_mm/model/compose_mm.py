# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Compose a model and its processor from towers.

A tower is a Hub id, a folder, a config (random weights) or a loaded model; of a CLIP-like checkpoint, only the vision
or the text half is used. Model and processor add the image marker to the tokenizer in the same way, so that their
token ids agree.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.generation import GenerationMixin

from .configuration_mm import MMConfig
from .media_mm import NEVER
from .towers_mm import Tower, half_config, hub_sources, load_audio_tower, load_text_model, load_vision_tower

IMAGE_TOKEN, AUDIO_TOKEN, VIDEO_TOKEN = "<image>", "<audio>", "<video>"


def load_tokenizer(source: str, audio: bool = False, video: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a text source; the image marker, and those of `audio` and `video`, are added if missing."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    markers = {IMAGE_TOKEN: True, AUDIO_TOKEN: audio, VIDEO_TOKEN: video}
    add_markers(tokenizer, [marker for marker, needed in markers.items() if needed])
    return tokenizer


def add_markers(tokenizer: PreTrainedTokenizerBase, markers: list[str]) -> None:
    """Add the markers that a tokenizer does not know to its vocabulary."""
    missing = [marker for marker in markers if marker not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)


def add_video(model: PreTrainedModel, processor: ProcessorMixin, num_frames: int) -> None:
    """Extend a model without video, and its processor, to videos of up to `num_frames` frames.

    The new frame embedding is zero; the outputs for all other inputs do not change.

    Raises:
        ValueError: the model takes another number of frames, or has late fusion, which cannot take a new modality.
    """
    config, fusion = model.config, model.base_model.fusion
    if config.num_frames == num_frames:
        return
    if config.num_frames is not None:
        raise ValueError(f"the model takes {config.num_frames} frames per video, not {num_frames}")
    if config.late_fusion is not None:
        raise ValueError(
            f"a model with `late_fusion` ({config.late_fusion}) cannot be extended to video; compose a new one"
        )
    add_markers(processor.tokenizer, [processor.video_token])
    if len(processor.tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(processor.tokenizer))
    config.num_frames = processor.max_frames = num_frames
    config.video_token_id = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
    projected = fusion.image_projector[1].weight
    fusion.frame_embedding = nn.Parameter(projected.new_zeros(num_frames, projected.shape[0]))


def model_from_towers(
    cls: type[PreTrainedModel],
    vision: Tower,
    text: Tower,
    audio: Tower | None = None,
    processor: ProcessorMixin | None = None,
    dtype: torch.dtype | None = None,
    **config: Any,
) -> PreTrainedModel:
    """A model of class `cls` over the towers; with its gates at zero, its output is exactly the text backbone's.

    The gates start at zero over a pretrained backbone, and at 0.5 over one with random weights (a config).

    Args:
        cls: MMModel or one of the heads.
        vision, text, audio: the towers.
        processor: the processor to use with the model, whose tokenizer gives the marker ids and the vocabulary size;
            needed if the text tower is no source from which a tokenizer can be loaded.
        dtype: dtype of the whole model; default: the text backbone's.
        config: fields of `MMConfig`, and `attn_implementation`, by default the towers' own.

    Raises:
        ValueError: an unknown tower, an audio tower that takes no audio, a generating head on an encoder, or an
            attention implementation that a part does not support.
    """
    generates = issubclass(cls, GenerationMixin)
    with_head = "lm_head" in inspect.signature(cls).parameters and (generates or bool(config.get("language_weight")))
    text_model, lm_head, whole = load_text_model(text, with_head, dtype)
    vision_tower = load_vision_tower(vision, dtype or text_model.dtype)
    tokenizer = processor.tokenizer if processor is not None else None
    if tokenizer is None and isinstance(text, str):
        tokenizer = load_tokenizer(text, audio is not None, config.get("num_frames") is not None)
    if tokenizer is not None:
        config.setdefault("image_token_id", tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        if audio is not None:
            config.setdefault("audio_token_id", tokenizer.convert_tokens_to_ids(AUDIO_TOKEN))
        if config.get("num_frames") is not None:
            config.setdefault("video_token_id", tokenizer.convert_tokens_to_ids(VIDEO_TOKEN))
    if isinstance(text, PreTrainedConfig):
        config.setdefault("fusion_gate_init", 0.5)
    if lm_head is not None:
        config["lm_head_bias"] = lm_head.bias is not None
    # MMConfig resets the attention and experts implementations of its sub-configs; the built towers keep theirs
    attn_implementation = config.pop("attn_implementation", None)
    config["attn_implementation"] = {
        "vision_config": vision_tower.config._attn_implementation,
        "text_config": text_model.config._attn_implementation,
    }
    towers = {"vision_tower": vision_tower, "text_model": text_model}
    if audio is not None:
        towers["audio_tower"] = tower = load_audio_tower(audio, dtype or text_model.dtype)
        config |= {"audio_config": tower.config}
        config["attn_implementation"]["audio_config"] = tower.config._attn_implementation
    config.setdefault("tower_sources", hub_sources(vision_tower=vision, text_model=text, audio_tower=audio))
    experts = text_model.config._experts_implementation
    mm_config = MMConfig(vision_config=vision_tower.config, text_config=text_model.config, **config)
    text_model.config._experts_implementation = experts
    model = cls(mm_config, **towers, **({"lm_head": lm_head} if with_head else {}))
    check_composition(cast(model, dtype or text_model.dtype), whole if generates else text_model)
    if generates:
        model.generation_config = whole.generation_config
        model.generation_config._from_model_config = False
        if model.generation_config.pad_token_id is None and tokenizer is not None:
            model.generation_config.pad_token_id = tokenizer.pad_token_id
    if tokenizer is not None and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)
    return model


@torch.no_grad()
def check_composition(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Run a few tokens through both models, to refuse a backbone that fusion cannot enter or a head unlike ours.

    Raises:
        ValueError: no fusion layer ran, or the logits differ from those of `source`, the backbone's original model.
    """
    if not model.config.cross_attention:
        return
    training = [part for part in {model, source} if part.training]
    model.eval(), source.eval()
    config, ids = model.config, torch.arange(4, device=model.device)[None] % model.config.text_config.vocab_size
    shape = (1, len(config.fusion_layers), 2, config.fusion_num_key_value_heads, 1, config.fusion_head_dim)
    unseen = torch.full_like(ids[:, :1], NEVER)  # fusion runs, and whatever its gates are, it changes nothing
    media = {"media_key_values": torch.zeros(shape, device=ids.device), "media_start": unseen}
    composed, original = model.base_model(input_ids=ids, **media), None
    if isinstance(model, GenerationMixin):
        composed, original = model(input_ids=ids, **media).logits, source(input_ids=ids).logits
    for part in training:
        part.train()
    # in float32 this tolerance reveals a soft cap of small logits, in half precision one of large logits
    close = 64 * torch.finfo(model.dtype).eps
    rtol, atol = min(1e-2, close), min(1e-3, close)
    if original is not None and not torch.allclose(composed.float(), original.float(), rtol=rtol, atol=atol):
        raise ValueError(
            f"the head of the text backbone '{config.text_config.model_type}' transforms its logits in a way that is "
            "not supported; use a decoder like llama, qwen3 or gpt2"
        )


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast weights and persistent buffers to `dtype`, as `from_pretrained` does; rotary frequencies are neither."""
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                module._buffers[name] = buffer.to(dtype)
    return model


def processor_from_towers(cls: type[ProcessorMixin], vision: Any, text: Any, audio: Any = None, **kwargs: Any):
    """The processor for the model that `model_from_towers` composes from the same sources.

    Args:
        vision: Hub id or folder with an image processor, or the image processor itself.
        text: Hub id or folder with a tokenizer, or a tokenizer that knows the image marker.
        audio: Hub id or folder with a feature extractor, or the feature extractor itself.
        kwargs: for `cls`, for instance `max_frames` where the model takes video.

    Raises:
        ValueError: an unknown source.
    """
    image_processor, tokenizer = vision, text
    if isinstance(vision, str):
        half_config(vision, "vision_config")  # raises for an unknown source
        image_processor = AutoImageProcessor.from_pretrained(vision, backend="pil")
    if isinstance(text, str):
        half_config(text, "text_config")
        tokenizer = load_tokenizer(text, audio is not None, kwargs.get("max_frames") is not None)
    if isinstance(audio, str):
        half_config(audio, None)
        audio = AutoFeatureExtractor.from_pretrained(audio)
    return cls(image_processor=image_processor, tokenizer=tokenizer, audio=audio, **kwargs)
