# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Towers that a checkpoint does not hold: they are fetched from where they came from, at the revision they had then.

A model whose towers were frozen differs from them by its fusion alone, and its checkpoint can leave them out:
`config.fetched_towers` names them, `config.tower_sources` says where they are, and what little of them is not as it is
there (rows of new markers in the embeddings, a pooler that a tower came without) lies in `tower_changes.safetensors`.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file, logging

from .audio_towers_mm import audio_half

CHANGES = "tower_changes.safetensors"
HALVES = {"vision_tower": "vision_config", "text_model": "text_config"}  # of a CLIP-like source
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")


def tower_weights(part: str, source: dict[str, str], with_head: bool, **where: Any) -> dict[str, torch.Tensor]:
    """The weights of a tower where it came from, by their names in the base model; those of its head as `lm_head`.

    Args:
        part: `vision_tower`, `audio_tower` or `text_model`. source: its `id` and `revision`.
        with_head: whether the text backbone's language modelling head is wanted. where: `token` and the like.

    Raises:
        ValueError: it is not there any more, or not to be had.
    """
    place, verbosity = {"revision": source["revision"], **where}, logging.get_verbosity()
    logging.set_verbosity_error()  # the other half of a CLIP-like checkpoint is left out on purpose
    try:
        config = AutoConfig.from_pretrained(source["id"], **place)
        if part in HALVES and HALVES[part] in config.to_dict():
            config = getattr(config, HALVES[part])
        auto_class = AutoModelForCausalLM if with_head and part == "text_model" else AutoModel
        tower = auto_class.from_pretrained(source["id"], config=config, dtype="auto", **place)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the {part} of this model is that of '{source['id']}' at revision {source['revision']}, which could not "
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
    """A tower's tensors in a model, with the text backbone's those of its head, by the names of `tower_weights`."""
    tensors = {f"{part}.{name}": value for name, value in getattr(model.base_model, part).state_dict().items()}
    head: nn.Module | None = model.get_output_embeddings()
    if part == "text_model" and head is not None:
        tensors |= {f"lm_head.{name}": value for name, value in head.state_dict().items()}
    return tensors


def patterns_of(parts: list[str]) -> set[str]:
    """Which names loading should not miss."""
    patterns = {rf"^(model\.)?{part}\." for part in parts}
    return patterns | ({r"^lm_head\."} if "text_model" in parts else set())


@torch.no_grad()
def fetch_towers(model: PreTrainedModel, checkpoint: Any, **where: Any) -> None:
    """Fill in the towers that the checkpoint of a model just loaded does not hold.

    Raises:
        ValueError: a tower is not to be had, or does not fit; or the model was to be quantised while it was loaded.
    """
    from safetensors.torch import load_file

    config = model.config
    if hasattr(model, "hf_quantizer"):
        raise ValueError("a checkpoint without its towers cannot be quantised while it loads; save it whole before")
    file = cached_file(checkpoint, CHANGES, **{name: where[name] for name in HUB_ARGUMENTS if name in where})
    changes = load_file(file)
    elsewhere = {name: where[name] for name in ("token", "cache_dir", "local_files_only") if name in where}
    for part in config.fetched_towers:
        source = config.tower_sources[part]
        weights = tower_weights(part, source, model.get_output_embeddings() is not None, **elsewhere)
        for name, own in tower_tensors(model, part).items():
            own.copy_(joined(name, own, weights.get(name), changes.get(name), source["id"]))
    config.fetched_towers = None  # saved again, it is whole


def joined(
    name: str, own: torch.Tensor, fetched: torch.Tensor | None, change: torch.Tensor | None, tower: str
) -> torch.Tensor:
    """A tensor of a tower: as it was fetched, with the rows that were added to it, or all of it changed.

    Raises:
        ValueError: what came has another shape than the model.
    """
    whole = fetched if change is None else change
    if fetched is not None and change is not None and change.shape != own.shape:
        whole = torch.cat([fetched.to(change.dtype), change])
    if whole is None or whole.shape != own.shape:
        came = None if whole is None else tuple(whole.shape)
        raise ValueError(f"'{tower}' has '{name}' of shape {came}; this checkpoint expects {tuple(own.shape)}")
    return whole
