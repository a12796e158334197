# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Save a model without the towers that are as they came from the Hub; `towers_mm` fetches them when it is loaded."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from .towers_mm import CHANGES, tower_tensors, tower_weights


def change(own: torch.Tensor, fetched: torch.Tensor | None) -> torch.Tensor | None:
    """What of a tensor is not as it came: nothing, the rows that were added, or all of it."""
    if fetched is None or own.dim() != fetched.dim() or own.shape[1:] != fetched.shape[1:]:
        return own
    rows = len(fetched) if fetched.dim() else 0
    same = fetched.to(own.dtype)
    if own.shape == fetched.shape:
        return None if torch.equal(own, same) else own
    return own[rows:] if len(own) > rows and torch.equal(own[:rows], same) else own


def save_fusion_only(model: PreTrainedModel, folder: Path) -> None:
    """Write config, code and all weights but those of unchanged towers.

    Raises:
        ValueError: no tower came from the Hub, or training changed all that did.
    """
    sources, fetched = model.config.tower_sources or {}, []
    changes: dict[str, torch.Tensor] = {}
    if not sources:
        raise ValueError("--fusion_only needs towers from the Hub, and the config of this model names none that are")
    for part, source in sources.items():
        weights = tower_weights(part, source, model.get_output_embeddings() is not None)
        own = tower_tensors(model, part)
        changed = {name: change(value, weights.get(name)) for name, value in own.items()}
        kept = {name: value for name, value in changed.items() if value is not None}
        if sum(value.numel() for value in kept.values()) < sum(value.numel() for value in own.values()) / 2:
            fetched.append(part)
            changes |= {name: value.clone() for name, value in kept.items()}
    if not fetched:
        raise ValueError(f"--fusion_only leaves out frozen towers, but training changed {' and '.join(sources)}")
    names = {name for part in fetched for name in tower_tensors(model, part)}
    weights = {name: value for name, value in model.state_dict().items() if name.removeprefix("model.") not in names}
    model.config.fetched_towers = fetched
    model.save_pretrained(folder, state_dict=weights)
    model.config.fetched_towers = None
    save_file(changes, folder / CHANGES, {"format": "pt"})
