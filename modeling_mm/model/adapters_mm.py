# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Adapters and quantisation: which layers of which part LoRA adapts, and what quantisation leaves as it is.

- A LoRA target is the place of a layer, not its last name: `q_proj` alone means a layer of the text backbone, of the
  vision tower and of the fusion.
- Of a tower, the linear layers inside its list of layers are meant. Embeddings, poolers and heads are not: what they
  compute does not reach the fusion, or reaches it through weights that LoRA layers do not enter.
- Only the text backbone is quantised. It holds most weights; the fusion trains in full, which integers cannot.
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
LEFT_OUT_FIELDS = ("modules_to_not_convert", "llm_int8_skip_modules", "skip_modules")  # of torchao, bnb, HQQ, ...
# Dotted names, matched from their start: all but the text backbone; lm_head apart, as quantisers can be asked for it
NOT_QUANTIZED = [r"(?!(model\.)?text_model\.|lm_head).*", "lm_head"]


def part_patterns(part: nn.Module, in_lists_only: bool) -> tuple[list[str], int]:
    """Patterns of the names of a part's linear layers, and how many layers they are.

    Args:
        in_lists_only: leave out layers that belong to no list of layers.
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
    """See `MMAdapterMixin.lora_targets`."""
    own = {part: attribute for part, attribute in PARTS.items() if attribute in model.base_model._modules}
    for part in parts or ("",):
        if part not in (*PARTS, "all"):
            raise ValueError(f"'{part}' is no part to adapt; expected one or more of {', '.join(own)}, or all")
        if part != "all" and part not in own:
            raise ValueError(f"this model has no {part} tower to adapt; it has {', '.join(own)}")
    wanted = [part for part in own if part in parts or "all" in parts]
    patterns, counts = [], {}
    for part in wanted:
        names, counts[part] = part_patterns(getattr(model.base_model, own[part]), in_lists_only=part != "fusion")
        if names:
            patterns.append(rf"{own[part]}\.({'|'.join(names)})")
        elif part in parts:
            kind = type(getattr(model.base_model, own[part])).__name__
            raise ValueError(
                f"the {part} part, a {kind}, has no linear layers for LoRA to adapt; leave it frozen, or train it in "
                f"full by `modules_to_save=['{own[part]}']`"
            )
    print("lora_targets:", ", ".join(f"{part} {count}" for part, count in counts.items()), "linear layers")
    if "fusion" in wanted and gates_are_closed(model):
        logger.warning(
            "the gates of the fusion are zero, as they start, and LoRA does not train them: adapters in the fusion "
            "would never learn; train it in full first, by `modules_to_save=['fusion']`"
        )
    return rf"(model\.)?({'|'.join(patterns)})"


def gates_are_closed(model: PreTrainedModel) -> bool:
    """Whether every gate of the fusion is zero, so that nothing of the media passes and nothing behind it learns."""
    gates = [p for name, p in model.base_model.fusion.named_parameters() if name.endswith("_gate")]
    return not any(gate.is_meta or gate.any() for gate in gates)


def for_the_text_backbone(quantization_config: Any) -> Any:
    """The library's config of a quantisation, or its dict, with all other parts left out unless it says which."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    config = copy.deepcopy(quantization_config)
    for name in LEFT_OUT_FIELDS:
        if name in vars(config) and vars(config)[name] in (None, ["lm_head"]):
            setattr(config, name, list(NOT_QUANTIZED))
    return config


class MMAdapterMixin:
    """What peft and the quantisers of the library ask of a model made of parts."""

    @classmethod
    def from_pretrained(cls, *args, quantization_config: Any = None, **kwargs):
        """As the library's; a `quantization_config` that does not say what to leave out means the text backbone."""
        if quantization_config is not None:
            kwargs["quantization_config"] = for_the_text_backbone(quantization_config)
        return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]

    def lora_targets(self, *parts: str) -> str:
        """`target_modules` of a `LoraConfig` for the linear layers of these parts and no others; prints how many.

        Args:
            parts: any of "text", "fusion", "vision", "audio" that the model has, or "all" of them.

        Returns:
            an anchored pattern.

        Raises:
            ValueError: there is no such part, or it has no linear layers.
        """
        return lora_targets(self, parts)


__all__ = ["MMAdapterMixin", "lora_targets"]
