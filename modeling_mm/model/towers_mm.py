# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Towers: loaded from any kind of source, and fetched for a checkpoint that does not hold them.

A checkpoint can leave out towers that were frozen in training. `config.fetched_towers` names them, and
`config.tower_sources` holds their ids and revisions. The few tensors that differ from the source (embedding rows of
new markers, a pooler that the source lacks) are in `tower_changes.safetensors`.
"""

import copy
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file, logging

from .audio_towers_mm import audio_half, audio_tower_from_config
from .configuration_mm import MMConfig

CHANGES = "tower_changes.safetensors"
HALVES = {"vision_tower": "vision_config", "text_model": "text_config"}  # sub-configs of a CLIP-like source
CLASS_TOKENS = ("cls_token", "class_embedding")  # the parameters of vision towers whose first state is a class token
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")


def has_class_token(vision_tower: nn.Module) -> bool:
    """True if the first of the tower's states (I, P, V) is that of a class token."""
    return any(name.endswith(CLASS_TOKENS) for name, _ in vision_tower.named_parameters())


def tower_weights(part: str, source: dict[str, str], with_head: bool, **hub_arguments: Any) -> dict[str, torch.Tensor]:
    """The weights of a tower at its source, by their names in the base model; those of its head as `lm_head`.

    Args:
        part: `vision_tower`, `audio_tower` or `text_model`. source: its `id` and `revision`.
        with_head: include the text backbone's language modelling head. hub_arguments: `token` and the like.

    Raises:
        ValueError: the source does not exist any more, or cannot be fetched.
    """
    place, verbosity = {"revision": source["revision"], **hub_arguments}, logging.get_verbosity()
    logging.set_verbosity_error()  # the other half of a CLIP-like checkpoint is left out on purpose
    try:
        config = AutoConfig.from_pretrained(source["id"], **place)
        if part in HALVES and HALVES[part] in config.to_dict():
            config = getattr(config, HALVES[part])
        auto_class = AutoModelForCausalLM if with_head and part == "text_model" else AutoModel
        tower = auto_class.from_pretrained(source["id"], config=config, dtype="auto", **place)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the {part} of this model comes from '{source['id']}' at revision {source['revision']}, which could not "
            f"be fetched: {str(error).strip().splitlines()[0]}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    base = audio_half(tower) if part == "audio_tower" else tower.base_model
    weights = {f"{part}.{name}": value for name, value in base.state_dict().items()}
    if base is not tower and auto_class is AutoModelForCausalLM:
        weights |= {f"lm_head.{name}": value for name, value in tower.get_output_embeddings().state_dict().items()}
    return weights


def tower_tensors(model: PreTrainedModel, part: str) -> dict[str, torch.Tensor]:
    """A tower's tensors in a model, by the names of `tower_weights`; the text backbone includes its head."""
    tensors = {f"{part}.{name}": value for name, value in getattr(model.base_model, part).state_dict().items()}
    head: nn.Module | None = model.get_output_embeddings()
    if part == "text_model" and head is not None:
        tensors |= {f"lm_head.{name}": value for name, value in head.state_dict().items()}
    return tensors


def patterns_of(parts: list[str]) -> set[str]:
    """Patterns of the weight names that loading a checkpoint without these parts should not report as missing."""
    patterns = {rf"^(model\.)?{part}\." for part in parts}
    return patterns | ({r"^lm_head\."} if "text_model" in parts else set())


@torch.no_grad()
def fetch_towers(model: PreTrainedModel, checkpoint: Any, **hub_arguments: Any) -> None:
    """Fill in the towers that the checkpoint of a newly loaded model does not hold.

    Raises:
        ValueError: a tower cannot be fetched or does not fit the model, or the model was quantised during loading.
    """
    from safetensors.torch import load_file

    config = model.config
    if hasattr(model, "hf_quantizer"):
        raise ValueError(
            "a checkpoint without its towers cannot be quantised during loading; load it unquantised and save it first"
        )
    here = {name: hub_arguments[name] for name in HUB_ARGUMENTS if name in hub_arguments}
    changes = load_file(cached_file(checkpoint, CHANGES, **here))
    elsewhere = {name: here[name] for name in ("token", "cache_dir", "local_files_only") if name in here}
    for part in config.fetched_towers:
        source = config.tower_sources[part]
        weights = tower_weights(part, source, model.get_output_embeddings() is not None, **elsewhere)
        for name, tensor in tower_tensors(model, part).items():
            tensor.copy_(with_changes(name, tensor.shape, weights.get(name), changes.get(name), source["id"]))
    config.fetched_towers = None  # when it is saved again, the checkpoint is complete


def with_changes(
    name: str, shape: torch.Size, fetched: torch.Tensor | None, change: torch.Tensor | None, tower: str
) -> torch.Tensor:
    """A fetched tensor with the changes of a checkpoint: unchanged, with rows added to it, or replaced.

    Raises:
        ValueError: the result has another shape than the tensor of the model.
    """
    tensor = fetched if change is None else change
    if fetched is not None and change is not None and change.shape != shape:
        tensor = torch.cat([fetched.to(change.dtype), change])
    if tensor is None or tensor.shape != shape:
        found = None if tensor is None else tuple(tensor.shape)
        raise ValueError(f"'{tower}' has '{name}' of shape {found}; this checkpoint expects {tuple(shape)}")
    return tensor


Tower: TypeAlias = str | PreTrainedConfig | PreTrainedModel


def half_config(source: str, half: str | None) -> PreTrainedConfig:
    """The sub-config `half` ("vision_config" or "text_config") of a CLIP-like source, or the whole config.

    Raises:
        ValueError: the source holds no model.
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
    """`auto_class.from_pretrained`, but refuse a checkpoint that lacks most of the tower's weights.

    Raises:
        ValueError: more than half of the weights are missing.
    """
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
    """The text backbone, its language modelling head if `generates`, and the model that they are parts of.

    Raises:
        ValueError: `generates`, and the logits are not one linear layer over the backbone's states.
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
        ValueError: there is no head, or it has weights besides that layer's.
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
    """True if a text backbone with this config can have a language modelling head."""
    # a copy, because MMConfig resets the attention implementation of its sub-configs
    return MMConfig(text_config=copy.deepcopy(config)).is_text_decoder


def load_audio_tower(source: Tower, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The audio tower of any kind of source: the encoder of Whisper, the audio half of CLAP."""
    if isinstance(source, PreTrainedConfig):
        return audio_tower_from_config(source)
    if isinstance(source, str):
        source = load_pretrained(AutoModel, source, half_config(source, None), dtype)
    return audio_half(source)


def hub_sources(**towers: Any) -> dict[str, dict[str, str]] | None:
    """Id and revision of the towers that were loaded from the Hub; None if there are none."""
    sources = {}
    for part, tower in towers.items():
        if isinstance(tower, str) and not Path(tower).exists():
            # transformers keeps the revision of a loaded file only in its path in the cache
            file = try_to_load_from_cache(tower, "config.json")
            if isinstance(file, str):
                sources[part] = {"id": tower, "revision": Path(file).parent.name}
    return sources or None
