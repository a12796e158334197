# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Loading of trained folders, whole models or LoRA adapters, with the head they were trained with; resuming."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .model.configuration_mm import MMConfig
from .model.processing_mm import MMProcessor
from .tasks import head_of, heads

logger = logging.getLogger(__name__)

BASE = "base"  # sub-folder of an adapter's folder that holds the composed model


def is_adapter(source: str) -> bool:
    """True if a folder holds a LoRA adapter, with the base model that it was trained on in its sub-folder."""
    return (Path(source) / "adapter_config.json").is_file() and (Path(source) / BASE).is_dir()


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status code behind an error of the Hub; None without a response."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return response.status_code
        error = error.__cause__ or error.__context__
    return None


def load_checkpoint(source: str, **kwargs: Any) -> tuple[PreTrainedModel, MMProcessor]:
    """Load the model, in evaluation mode, and the processor of a folder or Hub id; an adapter is merged into its base.

    A pushed adapter lies beside its base, where the library finds it by itself.

    Raises:
        ValueError: there is no model, it is of another type, or an adapter does not fit its base.
    """
    if is_adapter(source):
        base, processor = load_checkpoint(str(Path(source) / BASE), **kwargs)
        return merge_adapter(base, source).eval(), processor
    config = read_config(source)
    head = head_of(config.architectures or [])
    if head is None:
        raise ValueError(f"'{source}' holds {config.architectures}; expected {' or '.join(heads())}")
    return head.from_pretrained(source, **kwargs).eval(), MMProcessor.from_pretrained(source)


@torch.no_grad()
def merge_adapter(base: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Merge an adapter into the weights of its base; logs the largest difference between merged and adapted layers.

    Raises:
        ValueError: names a weight of the adapter that the base lacks, or one that the adapter lacks.
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.utils import load_peft_weights

    try:
        adapted = PeftModel(base, PeftConfig.from_pretrained(folder))
    except ValueError as error:
        raise ValueError(f"the adapter in '{folder}' does not fit its base: {error}") from error
    weights = load_peft_weights(folder, device="cpu")
    check_adapter(adapted, weights, folder)
    set_peft_model_state_dict(adapted, weights)
    before = {}
    for name, layer in base.named_modules():
        if isinstance(layer, LoraLayer) and isinstance(linear := layer.get_base_layer(), (torch.nn.Linear, Conv1D)):
            probe = torch.linspace(-1, 1, layer.in_features, dtype=base.dtype, device=linear.weight.device)[None]
            before[name] = (probe, layer.eval()(probe))
    merged = adapted.merge_and_unload(safe_merge=True)
    gaps = [(merged.get_submodule(n)(probe) - output).abs().max().item() for n, (probe, output) in before.items()]
    largest = max(gaps, default=0.0)
    logger.info(f"merged {len(gaps)} layers of '{folder}'; outputs differ by at most {largest:.1e}")
    return merged


def check_adapter(adapted: torch.nn.Module, weights: dict[str, torch.Tensor], folder: str) -> None:
    """Refuse weights that do not match the model's adapter exactly; `merge_and_unload` would skip layers silently.

    Raises:
        ValueError: names the first weight that is missing, unexpected, or of another shape.
    """
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if missing := sorted(set(expected) - set(weights)):
        raise ValueError(
            f"the adapter in '{folder}' has no weight '{missing[0]}' ({len(missing)} of {len(expected)} missing)"
        )
    # embeddings of a resized vocabulary are saved beside the adapter, under their own names
    parameters = expected | adapted.state_dict()
    for name, weight in weights.items():
        if name not in parameters:
            raise ValueError(f"the adapter in '{folder}' has a weight '{name}' that its base lacks")
        if weight.shape != parameters[name].shape:
            shape, base_shape = tuple(weight.shape), tuple(parameters[name].shape)
            raise ValueError(f"the adapter in '{folder}' has '{name}' of shape {shape}; its base expects {base_shape}")


def read_config(source: str) -> MMConfig:
    """Read the config of a folder or Hub id.

    Raises:
        ValueError: there is no config, or it is of another model type.
    """
    try:
        values, _ = MMConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if (status := status_of(error)) in (401, 403):
            reason = "the Hub rejects the token" if status == 401 else "the token has no read access"
        raise ValueError(f"'{source}' is neither a folder with a model nor a known Hub id ({reason})") from error
    if values.get("model_type") != MMConfig.model_type:
        kind = values.get("model_type", "unknown")
        raise ValueError(f"'{source}' is a checkpoint of type '{kind}'; expected '{MMConfig.model_type}'")
    return MMConfig.from_pretrained(source)


def last_checkpoint(folder: str) -> str | None:
    """The newest complete checkpoint in a training folder; None without one. Partly written ones are skipped."""
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        state = path / "trainer_state.json"
        try:
            json.loads(state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        step = path.name.rpartition("-")[2]
        if step.isdigit() and not (path / "checkpoint-is-incomplete.txt").exists():
            found.append((int(step), str(path)))
    return max(found)[1] if found else None


def quantized(kind: str | None) -> dict[str, Any]:
    """Arguments of `load_checkpoint` or `from_pretrained` that quantise to `kind`, which is int8 or None.

    Raises:
        ValueError: torchao is not installed.
    """
    if kind is None:
        return {}
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(f'--quantization {kind} needs torchao; pip install "modeling-mm[quantization]"')
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
