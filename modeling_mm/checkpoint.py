# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Open a trained folder, whole or a LoRA adapter, with the head it was trained with; find where to resume."""

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
    """Whether a folder is that of a LoRA training, with the model that it was trained over in its sub-folder."""
    return (Path(source) / "adapter_config.json").is_file() and (Path(source) / BASE).is_dir()


def status_of(error: BaseException | None) -> int | None:
    """The status code of the Hub's answer behind an error; None where none came."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return response.status_code
        error = error.__cause__ or error.__context__
    return None


def load_checkpoint(source: str, **kwargs: Any) -> tuple[PreTrainedModel, MMProcessor]:
    """The model, in evaluation mode, and the processor of a folder or Hub id; an adapter is loaded over its base.

    A pushed adapter lies beside its base, where the library finds it by itself.

    Raises:
        ValueError: there is no model, one of another kind, or an adapter that does not fit its base.
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
    """The base with an adapter merged into its weights; logs how far merged layers are from adapted ones.

    Raises:
        ValueError: names a weight of the adapter that has no place in the base, or a place that has no weight.
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
        if isinstance(layer, LoraLayer) and isinstance(own := layer.get_base_layer(), (torch.nn.Linear, Conv1D)):
            probe = torch.linspace(-1, 1, layer.in_features, dtype=base.dtype, device=own.weight.device)[None]
            before[name] = (probe, layer.eval()(probe))
    merged = adapted.merge_and_unload(safe_merge=True)
    gaps = [(merged.get_submodule(n)(probe) - output).abs().max().item() for n, (probe, output) in before.items()]
    furthest = max(gaps, default=0.0)
    logger.info(f"merged {len(gaps)} layers of '{folder}'; none is further than {furthest:.1e} from the adapted one")
    return merged


def check_adapter(adapted: torch.nn.Module, weights: dict[str, torch.Tensor], folder: str) -> None:
    """Refuse weights that do not cover the model's adapter exactly; `merge_and_unload` would leave layers as they are.

    Raises:
        ValueError: names the first weight that is missing, has no place, or is of another shape.
    """
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if missing := sorted(set(wanted) - set(weights)):
        raise ValueError(
            f"the adapter in '{folder}' has no weight '{missing[0]}' ({len(missing)} of {len(wanted)} missing)"
        )
    # embeddings of a resized vocabulary are saved beside the adapter, under their own names
    places = wanted | adapted.state_dict()
    for name, weight in weights.items():
        if name not in places:
            raise ValueError(f"the adapter in '{folder}' has a weight '{name}', for which its base has no place")
        if weight.shape != places[name].shape:
            came, expected = tuple(weight.shape), tuple(places[name].shape)
            raise ValueError(f"the adapter in '{folder}' has '{name}' of shape {came}; its base expects {expected}")


def read_config(source: str) -> MMConfig:
    """The config of a folder or Hub id, refused when it is another kind of model's.

    Raises:
        ValueError: there is none, or it is of another model type.
    """
    try:
        values, _ = MMConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if (status := status_of(error)) in (401, 403):
            reason = "the Hub does not know the token" if status == 401 else "the token may not read it"
        raise ValueError(f"'{source}' is neither a folder with a model nor a known Hub id ({reason})") from error
    if values.get("model_type") != MMConfig.model_type:
        kind = values.get("model_type", "unknown")
        raise ValueError(f"'{source}' is a checkpoint of type '{kind}'; expected '{MMConfig.model_type}'")
    return MMConfig.from_pretrained(source)


def last_checkpoint(folder: str) -> str | None:
    """The newest complete checkpoint in a training folder; one whose writing was cut off is passed over."""
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
    """Arguments of `load_checkpoint` or `from_pretrained` for a kind of quantization, int8; none at all for None.

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
