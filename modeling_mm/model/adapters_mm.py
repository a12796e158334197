# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Adapters and quantisation: the layers of each part that LoRA adapts, and the parts that are not quantised.

- A LoRA target is the full path of a layer, not its last name: `q_proj` alone matches layers of the text backbone, of
  the vision tower and of the fusion.
- The targets in a tower are the linear layers inside its list of layers. Embeddings, poolers and heads are left out:
  their output does not reach the fusion, or reaches it through weights that LoRA layers do not enter.
- Only the text backbone is quantised. It holds most weights; the fusion trains in full, which integer weights cannot.
"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

PARTS = {"text": "text_model", "fusion": "fusion", "vision": "vision_tower", "audio": "audio_tower"}
SKIP_FIELDS = ("modules_to_not_convert", "llm_int8_skip_modules", "skip_modules")  # of torchao, bnb, HQQ, ...
# Dotted names, matched from their start: all but the text backbone; lm_head apart, because users may quantise it
NOT_QUANTIZED = [r"(?!(model\.)?text_model\.|lm_head).*", "lm_head"]


def part_patterns(part: nn.Module, in_lists_only: bool) -> tuple[list[str], int]:
    """Patterns that match the names of a part's linear layers, and the number of these layers.

    Args:
        in_lists_only: leave out layers that are in no `ModuleList`.
    """
    patterns: dict[str, None] = {}
    count = 0
    for name, module in part.named_modules():
        steps = name.removesuffix(".base_layer").split(".")  # a layer with an adapter already
        if not isinstance(module, (nn.Linear, Conv1D)) or any(step.startswith("lora_") for step in steps):
            continue
        if in_lists_only and not any(step.isdigit() for step in steps):
            continue
        count += 1
        parents = [part.get_submodule(".".join(steps[:depth])) for depth in range(len(steps))]
        places = [r"\d+" if isinstance(p, nn.ModuleList) else s for p, s in zip(parents, steps, strict=True)]
        patterns[r"\.".join(places)] = None
    return list(patterns), count


def lora_targets(model: PreTrainedModel, parts: Sequence[str]) -> str:
    """Implementation of `MMAdapterMixin.lora_targets`."""
    attributes = {part: attribute for part, attribute in PARTS.items() if attribute in model.base_model._modules}
    for part in parts or ("",):
        if part not in (*PARTS, "all"):
            raise ValueError(f"'{part}' is no part to adapt; expected one or more of {', '.join(attributes)}, or all")
        if part != "all" and part not in attributes:
            raise ValueError(f"this model has no {part} tower to adapt; it has {', '.join(attributes)}")
    adapted = {part: name for part, name in attributes.items() if part in parts or "all" in parts}
    patterns, counts = [], {}
    for part, attribute in adapted.items():
        module = getattr(model.base_model, attribute)
        names, counts[part] = part_patterns(module, in_lists_only=part != "fusion")
        if names:
            patterns.append(rf"{attribute}\.({'|'.join(names)})")
        elif part in parts:
            kind = type(module).__name__
            raise ValueError(
                f"the {part} part, a {kind}, has no linear layers for LoRA to adapt; leave it frozen, or train it in "
                f"full by `modules_to_save=['{attribute}']`"
            )
    print("lora_targets:", ", ".join(f"{part} {count}" for part, count in counts.items()), "linear layers")
    if "fusion" in adapted and gates_are_closed(model):
        logger.warning(
            "the gates of the fusion are zero, their initial value, and LoRA does not train them: adapters in the "
            "fusion would never learn; train the fusion in full first, by `modules_to_save=['fusion']`"
        )
    return rf"(model\.)?({'|'.join(patterns)})"


def without_adapters(model: Any) -> Any:
    """The model itself, if peft wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def gates_are_closed(model: PreTrainedModel) -> bool:
    """True if every gate of the fusion is zero: the media do not pass, and the layers behind them do not learn."""
    gates = [p for name, p in model.base_model.fusion.named_parameters() if name.endswith("_gate")]
    return not any(gate.is_meta or gate.any() for gate in gates)


def restricted_to_text_backbone(quantization_config: Any) -> Any:
    """The quantisation config (or its dict), skipping all parts but the text backbone unless it names modules."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    config = copy.deepcopy(quantization_config)
    for name in SKIP_FIELDS:
        if name in vars(config) and vars(config)[name] in (None, ["lm_head"]):
            setattr(config, name, list(NOT_QUANTIZED))
    return config


class MMAdapterMixin:
    """LoRA targets and quantisation of a model made of parts, for peft and transformers."""

    @classmethod
    def from_pretrained(cls, *args, quantization_config: Any = None, **kwargs):
        """Extends the base method: a `quantization_config` that skips no modules applies to the text backbone only."""
        if quantization_config is not None:
            kwargs["quantization_config"] = restricted_to_text_backbone(quantization_config)
        return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]

    def lora_targets(self, *parts: str) -> str:
        """`target_modules` of a `LoraConfig` for the linear layers of these parts and no others; prints their number.

        Args:
            parts: any of "text", "fusion", "vision", "audio" that the model has, or "all".

        Returns:
            a regular expression that matches whole module names.

        Raises:
            ValueError: the model has no such part, or the part has no linear layers.
        """
        return lora_targets(self, parts)


__all__ = ["MMAdapterMixin", "lora_targets", "without_adapters"]
