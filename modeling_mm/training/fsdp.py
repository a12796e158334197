# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""FSDP2: one model sharded over all processes; each gathers a block's weights while the block runs.

- The model defines its blocks: `_no_split_modules`, by which accelerate and `shard` wrap, and `_fsdp_plan`, by which
  `from_pretrained(distributed_config=...)` does.
- Weights are gathered for `forward` only. `register_forward_methods` adds the other methods that one calls on a model,
  from `encode_media` to `generate`.
- If one process skips a block, the others wait for its shard. Therefore a batch that lacks a modality gets one
  placeholder item that no row refers to: towers and fusion layers run, and no row changes.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from ..model.media_mm import MODALITIES
from ..model.processing_mm import MMProcessor

OUTSIDE_OF_FORWARD = (
    "get_image_features",
    "get_video_features",
    "get_audio_features",
    "get_text_features",
    "encode_media",
    "project_media",
    "attended",
    "match",
    "generate",
)


def is_sharded(model: torch.nn.Module) -> bool:
    """True if the model is sharded by FSDP2."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def shard(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """Shard a model in place, block by block and then the rest, and register its methods.

    Args:
        options: those of `torch.distributed.fsdp.fully_shard`: `mesh`, `mp_policy`, `reshard_after_forward`, ...
    """
    from torch.distributed.fsdp import fully_shard

    blocks = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    for block in reversed(blocks):  # inner ones first
        fully_shard(block, **options)
    fully_shard(model, **options)
    register_forward_methods(model)
    return model


def register_forward_methods(model: PreTrainedModel) -> None:
    """Let the methods of a sharded model gather its weights as `forward` does.

    The library's modules that are marked as managed by FSDP stay synchronised by themselves: they generate until the
    last process is done, and compute the layers that LayerDrop skips.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    for module in model.modules():
        module._is_fsdp_managed_module = True  # the library's mark
    for name in OUTSIDE_OF_FORWARD:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def with_gradient(parameters: dict[str, torch.nn.Parameter]) -> set[str]:
    """Names of parameters whose gradient is not all zero in any shard; every process must call this."""
    from torch.distributed.tensor import DTensor

    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    nonzero = [(grad.to_local() if isinstance(grad, DTensor) else grad).any() for grad in gradients.values()]
    if not nonzero:
        return set()
    found = torch.stack(nonzero).int()
    if any(isinstance(grad, DTensor) for grad in gradients.values()):
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return {name for name, is_nonzero in zip(gradients, found.tolist(), strict=True) if is_nonzero}


def placeholder_media(processor: MMProcessor) -> dict[str, dict[str, torch.Tensor]]:
    """Placeholder tensors by modality that the processor knows: one black image, silence, a black video."""
    black = Image.new("RGB", (32, 32))
    media: dict[str, Any] = {"image": {"images": black}}
    if hasattr(processor, "feature_extractor"):
        rate = processor.feature_extractor.sampling_rate
        media["audio"] = {"audio": (np.zeros(int(rate * min(0.5, processor.max_seconds)), dtype=np.float32), rate)}
    if processor.max_frames is not None:
        media["video"] = {"videos": [black] * processor.max_frames}
    batches = {name: processor(**inputs, return_tensors="pt") for name, inputs in media.items()}
    return {name: {k: v for k, v in batch.items() if not k.endswith("_index")} for name, batch in batches.items()}


def with_placeholder_media(inputs: dict[str, Any], placeholders: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    """A batch with one placeholder item, which no row refers to, for each modality that it lacks.

    A batch with encoded media is returned unchanged.
    """
    if "input_ids" not in inputs or "media_key_values" in inputs:
        return inputs
    ids = inputs["input_ids"]
    for modality in [name for name in placeholders if MODALITIES[name].tensor not in inputs]:
        no_item = torch.full((len(ids), 1), -1, device=ids.device)
        tensors = {name: value.to(ids.device) for name, value in placeholders[modality].items()}
        inputs = {**inputs, **tensors, f"{modality}_index": no_item}
    return inputs
