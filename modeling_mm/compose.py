# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Compose a model and its processor from towers.

A tower is a Hub id, a folder, a config (random weights) or a loaded model; of a CLIP-like checkpoint the wanted half
is taken. Model and processor add the image marker to the tokenizer in the same way, so that the two agree.
"""

import copy
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation import GenerationMixin
from transformers.utils import logging

from .audio_towers_mm import audio_half, audio_tower_from_config
from .configuration_mm import MMConfig
from .processing_mm import MMProcessor
from .retrieval_mm import MMForImageTextRetrieval

Tower: TypeAlias = str | PreTrainedConfig | PreTrainedModel
IMAGE_TOKEN, AUDIO_TOKEN, VIDEO_TOKEN = "<image>", "<audio>", "<video>"


def half_config(source: str, half: str | None) -> PreTrainedConfig:
    """The config of the wanted half ("vision_config" or "text_config") of a CLIP-like source, or its whole config.

    Raises:
        ValueError: no model can be found there.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        what = {"vision_config": "vision tower", "text_config": "text model", None: "audio tower"}[half]
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{what} '{source}' is neither a folder with a model nor a known Hub id ({reason})"
        ) from error
    return getattr(config, half) if half is not None and half in config.to_dict() else config


def load_pretrained(auto_class, source: str, config: PreTrainedConfig, dtype: torch.dtype | None) -> PreTrainedModel:
    """`auto_class.from_pretrained`, that refuses a checkpoint which lacks most of the tower's weights."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the other half of a CLIP-like checkpoint is left out on purpose
    try:
        model, info = auto_class.from_pretrained(
            source, config=config, dtype=dtype or "auto", output_loading_info=True
        )
    finally:
        logging.set_verbosity(verbosity)
    missing = [name for name in info["missing_keys"] if "pooler" not in name]
    if len(missing) > len(model.state_dict()) // 2:
        raise ValueError(
            f"'{source}' does not hold the weights of a {config.model_type} tower: {len(missing)} are missing, "
            f"for instance '{missing[0]}'"
        )
    return model


def load_vision_tower(source: Tower, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The vision tower of any kind of source."""
    if isinstance(source, str):
        return load_pretrained(AutoModel, source, half_config(source, "vision_config"), dtype)
    if isinstance(source, PreTrainedConfig):
        return AutoModel.from_config(getattr(source, "vision_config", source), dtype=dtype)
    return source.vision_model if "vision_config" in source.config.to_dict() else source


def load_text_model(
    source: Tower, generates: bool, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, nn.Module | None, PreTrainedModel]:
    """The text backbone, its language modelling head where one `generates`, and the model they came in.

    Raises:
        ValueError: a head is wanted of an encoder.
    """
    if isinstance(source, str):
        config = half_config(source, "text_config")
        auto_class = AutoModelForCausalLM if generates and is_decoder(config) else AutoModel
        whole = load_pretrained(auto_class, source, config, dtype)
    elif isinstance(source, PreTrainedConfig):
        config = getattr(source, "text_config", source)
        auto_class = AutoModelForCausalLM if generates and is_decoder(config) else AutoModel
        whole = auto_class.from_config(config, dtype=dtype)
    else:
        whole = source.text_model if "vision_config" in source.config.to_dict() else source
    head = whole.get_output_embeddings() if generates else None
    if generates and is_decoder(whole.config):
        check_head(whole, head)
    return whole.base_model, head, whole


def check_head(whole: PreTrainedModel, head: nn.Module | None) -> None:
    """Refuse a causal model whose logits are not one linear layer over its backbone's states.

    Raises:
        ValueError: there is no head, or it has weights beside that layer's.
    """
    if head is None:
        raise ValueError(
            f"the text model {type(whole).__name__} has no language modelling head; load it with AutoModelForCausalLM"
        )
    known = {id(parameter) for part in (whole.base_model, head) for parameter in part.parameters()}
    others = [name for name, parameter in whole.named_parameters() if id(parameter) not in known]
    if others:
        raise ValueError(
            f"the head of the text backbone '{whole.config.model_type}' is more than one linear layer "
            f"('{others[0]}'), which is not supported; use a decoder like llama, qwen3 or gpt2"
        )


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether a text backbone with this config can carry a language modelling head."""
    # a copy, because MMConfig resets what its sub-configs say of attention
    return MMConfig(text_config=copy.deepcopy(config)).is_text_decoder


def load_audio_tower(source: Tower, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The audio tower of any kind of source: of Whisper the encoder, of CLAP the audio half."""
    if isinstance(source, PreTrainedConfig):
        return audio_tower_from_config(source)
    if isinstance(source, str):
        source = load_pretrained(AutoModel, source, half_config(source, None), dtype)
    return audio_half(source)


def load_tokenizer(source: str, audio: bool = False, video: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a text source, with the markers of images, and of `audio` and `video`, where it has none."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    wanted = {IMAGE_TOKEN: True, AUDIO_TOKEN: audio, VIDEO_TOKEN: video}
    add_markers(tokenizer, [marker for marker, needed in wanted.items() if needed])
    return tokenizer


def add_markers(tokenizer: PreTrainedTokenizerBase, markers: list[str]) -> None:
    """Teach a tokenizer the markers that it does not know."""
    missing = [marker for marker in markers if marker not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)


def add_video(model: PreTrainedModel, processor: MMProcessor, num_frames: int) -> None:
    """Let a model that takes no video, and its processor, take `num_frames` frames of one.

    The new embedding of frames is zero, and what the model says to anything else stays as it is.

    Raises:
        ValueError: the model takes another number of frames, or late fusion, which has no place for a new modality.
    """
    config, fusion = model.config, model.base_model.fusion
    if config.num_frames == num_frames:
        return
    if config.num_frames is not None:
        raise ValueError(f"the model takes {config.num_frames} frames of a video, not {num_frames}")
    if config.late_fusion is not None:
        raise ValueError(
            f"a model with `late_fusion` ({config.late_fusion}) has no place for video; compose a new one"
        )
    add_markers(processor.tokenizer, [processor.video_token])
    if len(processor.tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(processor.tokenizer))
    config.num_frames = processor.max_frames = num_frames
    config.video_token_id = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
    projected = fusion.image_projector[1].weight
    fusion.frame_embedding = nn.Parameter(projected.new_zeros(num_frames, projected.shape[0]))


def hub_sources(**towers: Any) -> dict[str, dict[str, str]] | None:
    """Id and revision of the towers that were loaded from the Hub; None where there are none."""
    sources = {}
    for part, tower in towers.items():
        if isinstance(tower, str) and not Path(tower).exists():
            # the library tells the revision of what it has loaded by the place of the file alone
            file = try_to_load_from_cache(tower, "config.json")
            if isinstance(file, str):
                sources[part] = {"id": tower, "revision": Path(file).parent.name}
    return sources or None


def model_from_towers(
    cls: type[PreTrainedModel],
    vision: Tower,
    text: Tower,
    audio: Tower | None = None,
    processor: MMProcessor | None = None,
    dtype: torch.dtype | None = None,
    **config: Any,
) -> PreTrainedModel:
    """A model of class `cls` over the towers; with its gates at zero it gives exactly the text backbone's output.

    Args:
        cls: MMModel or one of the heads.
        vision, text, audio: the towers.
        processor: the processor that will be used, when the text tower is not a source that a tokenizer can be
            loaded from; tells the image marker and the vocabulary.
        dtype: of the whole model; default: the text backbone's.
        config: fields of `MMConfig`, and `attn_implementation`, by default the towers' own.

    Raises:
        ValueError: an unknown tower, an audio tower that does not hear, a generating head on an encoder, an attention
            that a part lacks.
    """
    generates = issubclass(cls, GenerationMixin)
    with_head = generates or bool(issubclass(cls, MMForImageTextRetrieval) and config.get("language_weight"))
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
    if lm_head is not None:
        config["lm_head_bias"] = lm_head.bias is not None
    # MMConfig resets what its sub-configs say of attention and experts; the built towers keep their own
    wanted_attention = config.pop("attn_implementation", None)
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
    if wanted_attention is not None:
        model.set_attn_implementation(wanted_attention)
    return model


@torch.no_grad()
def check_composition(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Run a few tokens through both, to refuse a backbone that fusion cannot enter or whose head does more than ours.

    Raises:
        ValueError: no fusion layer ran, or the output is not that of the model the backbone came in.
    """
    if not model.config.cross_attention:
        return
    training = [part for part in {model, source} if part.training]
    model.eval(), source.eval()
    config, ids = model.config, torch.arange(4, device=model.device)[None] % model.config.text_config.vocab_size
    shape = (1, len(config.fusion_layers), 2, config.fusion_num_key_value_heads, 1, config.fusion_head_dim)
    media = {"media_key_values": torch.zeros(shape, device=ids.device), "media_start": torch.zeros_like(ids[:, :1])}
    ours, theirs = model.base_model(input_ids=ids, **media), None
    if isinstance(model, GenerationMixin):
        ours, theirs = model(input_ids=ids, **media).logits, source(input_ids=ids).logits
    for part in training:
        part.train()
    close = 64 * torch.finfo(model.dtype).eps  # float32 tells a soft cap of small logits, half precision large ones
    rtol, atol = min(1e-2, close), min(1e-3, close)
    if theirs is not None and not torch.allclose(ours.float(), theirs.float(), rtol=rtol, atol=atol):
        raise ValueError(
            f"the head of the text backbone '{config.text_config.model_type}' does more to its logits than is "
            "supported; use a decoder like llama, qwen3 or gpt2"
        )


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Weights and saved buffers to `dtype`, as `from_pretrained` does; unsaved rotary frequencies stay."""
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                module._buffers[name] = buffer.to(dtype)
    return model


def processor_from_towers(cls: type[MMProcessor], vision: Any, text: Any, audio: Any = None, **kwargs: Any):
    """The processor of the model that `model_from_towers` composes from the same sources.

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
        half_config(vision, "vision_config")  # refuses an unknown source by name
        image_processor = AutoImageProcessor.from_pretrained(vision, backend="pil")
    if isinstance(text, str):
        half_config(text, "text_config")
        tokenizer = load_tokenizer(text, audio is not None, kwargs.get("max_frames") is not None)
    if isinstance(audio, str):
        half_config(audio, None)
        audio = AutoFeatureExtractor.from_pretrained(audio)
    return cls(image_processor=image_processor, tokenizer=tokenizer, audio=audio, **kwargs)
