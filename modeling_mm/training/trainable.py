# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Choice of trainable parameters: parts by name, LoRA by flags; those that cannot reach the loss are frozen."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..checkpoint import BASE
from ..model.adapters_mm import PARTS, gates_are_closed
from .arguments import ModelArguments


def set_trainable(
    model: PreTrainedModel, vision: bool, fusion: bool, text: bool, audio: bool = False
) -> dict[str, int]:
    """Freeze or train each part; a head trains with the fusion, a language modelling head with the text backbone.

    Returns:
        the number of trainable parameters by part.
    """
    trainable = {"vision": vision, "audio": audio, "fusion": fusion, "text": text}
    for part, attribute in PARTS.items():
        module = getattr(model.base_model, attribute)
        if module is not None:
            module.requires_grad_(trainable[part])
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{model.base_model_prefix}."):
            parameter.requires_grad_(text if name.startswith("lm_head") else fusion)
    return trainable_parameters(model)


def trainable_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Number of trainable parameters by part; `head` counts those in no part."""
    counts = dict.fromkeys([*PARTS, "head"], 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel() if parameter.requires_grad else 0
    return counts


def part_of(name: str) -> str:
    """The part of a model that a parameter belongs to; `head` if it is in none of its towers or the fusion."""
    return next((part for part, attribute in PARTS.items() if f".{attribute}." in f".{name}"), "head")


def freeze_unused(model: torch.nn.Module, batch: dict[str, Any]) -> list[str]:
    """Freeze parameters that cannot reach the loss, such as a tower's pooler, found by one backward pass.

    If they were trainable, distributed training would wait for their gradients.

    Returns:
        the names of those parameters.
    """
    if not any(p.requires_grad for p in model.parameters()):
        return []
    training = model.training
    model.eval()
    with torch.enable_grad():
        device: Any = model.device
        inputs = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in batch.items()}
        model(**inputs).loss.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name, parameter in model.named_parameters():
        parameter.grad = None
        if name in unused:
            parameter.requires_grad_(False)
    model.train(training)
    return unused


RETRIEVAL_HEADS = ("text_projection", "image_projection", "audio_projection", "temperature", "matching_head")


def lora_pattern(model: PreTrainedModel, args: ModelArguments) -> str:
    """Pattern of the names of the layers in `--lora_parts`.

    Raises:
        ValueError: the model lacks a part, or LoRA could not learn in its fusion.
    """
    parts = [part for word in args.lora_parts for part in word.split(",")]
    if {"fusion", "all"} & set(parts) and gates_are_closed(model):
        raise ValueError(
            f"--lora_parts {' '.join(parts)} puts LoRA into a fusion whose gates are still zero, where it cannot "
            "learn; leave the fusion out, so that it trains in full, or continue from a trained --model"
        )
    return model.lora_targets(*parts)


def add_lora(model: PreTrainedModel, args: ModelArguments, targets: str, output: Path) -> PreTrainedModel:
    """Add LoRA to the target layers; other trainable parts train in full and are saved with the adapter.

    The adapter's base is the composed model in `output/base`.
    """
    from peft import LoraConfig, get_peft_model

    def has_part(names: Iterable[str], part: str) -> bool:
        return any(f".{part}." in f".{name}" for name in names)

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapted = [name for name, _ in model.named_modules() if re.fullmatch(targets, name)]
    full_parts = ("fusion", "vision_tower", "audio_tower", "late_fusion", "classifier", *RETRIEVAL_HEADS)
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        modules_to_save=[part for part in full_parts if has_part(trained, part) and not has_part(adapted, part)],
    )
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        # peft would train all of a part, also parameters that do not reach the loss
        if ".modules_to_save." in name:
            name_in_base = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            parameter.requires_grad_(name_in_base in trained)
    # get_peft_model sets the name of the model, and this one has none
    config.base_model_name_or_path = str((output / BASE).resolve())
    return wrapped
