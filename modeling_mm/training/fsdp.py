# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""FSDP2: one model in shards over all processes; each brings a block's weights together while the block runs.

- What a block is, the model says: `_no_split_modules`, by which accelerate and `shard` wrap, and `_fsdp_plan`, by
  which `from_pretrained(distributed_config=...)` does.
- The weights come together for `forward` only. `register_forward_methods` opens what else one calls on a model, from
  `encode_media` to `generate`.
- A block that one process leaves out leaves the others waiting for its shard. So a batch that lacks a modality gets
  one item of it that no row shows: towers and fusion layers run, and every row stays as it was.
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
    """Whether FSDP2 holds this model."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def shard(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """Shard a model in place, block by block and then the rest, and open its methods.

    Args:
        options: of `torch.distributed.fsdp.fully_shard`: `mesh`, `mp_policy`, `reshard_after_forward`, ...
    """
    from torch.distributed.fsdp import fully_shard

    blocks = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    for block in reversed(blocks):  # inner ones first
        fully_shard(block, **options)
    fully_shard(model, **options)
    register_forward_methods(model)
    return model


def register_forward_methods(model: PreTrainedModel) -> None:
    """Let the methods of a sharded model bring its weights together as `forward` does.

    Parts of towers that are told so keep step by themselves: they generate until the last process is done, and compute
    the layers that LayerDrop leaves out.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    for module in model.modules():
        module._is_fsdp_managed_module = True  # where the library looks
    for name in OUTSIDE_OF_FORWARD:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def with_gradient(parameters: dict[str, torch.nn.Parameter]) -> set[str]:
    """Names of those whose gradient is not all zero, in any shard; every process must ask."""
    from torch.distributed.tensor import DTensor

    given = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    own = [(grad.to_local() if isinstance(grad, DTensor) else grad).any() for grad in given.values()]
    if not own:
        return set()
    found = torch.stack(own).int()
    if any(isinstance(grad, DTensor) for grad in given.values()):
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return {name for name, some in zip(given, found.tolist(), strict=True) if some}


def placeholder_media(processor: MMProcessor) -> dict[str, dict[str, torch.Tensor]]:
    """By modality that the processor knows, the tensors of one black image, silence, or a black video."""
    black = Image.new("RGB", (32, 32))
    media: dict[str, Any] = {"image": {"images": black}}
    if hasattr(processor, "feature_extractor"):
        rate = processor.feature_extractor.sampling_rate
        media["audio"] = {"audio": (np.zeros(rate // 2, dtype=np.float32), rate)}
    if processor.max_frames is not None:
        media["video"] = {"videos": [black] * processor.max_frames}
    tensors = {name: processor(**own, return_tensors="pt") for name, own in media.items()}
    return {name: {k: v for k, v in own.items() if not k.endswith("_index")} for name, own in tensors.items()}


def with_placeholder_media(inputs: dict[str, Any], unseen: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    """A batch with, of each modality that it lacks, one item that no row shows; encoded media stay alone."""
    if "input_ids" not in inputs or "media_key_values" in inputs:
        return inputs
    ids = inputs["input_ids"]
    for modality in [name for name in unseen if MODALITIES[name].tensor not in inputs]:
        nowhere = torch.full((len(ids), 1), -1, device=ids.device)
        own = {name: value.to(ids.device) for name, value in unseen[modality].items()}
        inputs = {**inputs, **own, f"{modality}_index": nowhere}
    return inputs
