# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Fingerprints of what embeddings and cached features depend on: digests of weights, and settings of processors."""

import hashlib

import torch

NAMES = (
    "image_processor_type",
    "processor_class",
    "_processor_class",
    "auto_map",
    "name_or_path",
)  # settings without influence on pixels


def digest_of_weights(model: torch.nn.Module) -> str:
    """A digest of all parameters and buffers."""
    weights = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        weights.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        weights.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return weights.hexdigest()
