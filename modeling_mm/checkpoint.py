# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Open a trained folder, whole or a LoRA adapter, with the head it was trained with; find where to resume."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .classification_mm import MMForSequenceClassification
from .configuration_mm import MMConfig
from .generation_mm import MMForConditionalGeneration
from .processing_mm import MMProcessor

TASKS = {
    "generation": MMForConditionalGeneration,
    **dict.fromkeys(("classification", "multilabel", "regression", "matching"), MMForSequenceClassification),
}
BASE = "base"  # sub-folder of an adapter's folder that holds the composed model


def task_of(model: PreTrainedModel) -> str:
    """The task of a model's head."""
    if isinstance(model, MMForConditionalGeneration):
        return "generation"
    if model.config.matching:
        return "matching"
    kinds = {"multi_label_classification": "multilabel", "regression": "regression"}
    return kinds.get(model.config.problem_type, "classification")


def load_checkpoint(source: str, **kwargs: Any) -> tuple[PreTrainedModel, MMProcessor]:
    """The model, in evaluation mode, and the processor of a folder or Hub id; an adapter is loaded over its base.

    Raises:
        ValueError: there is no model, or one of another kind.
    """
    if (Path(source) / "adapter_config.json").is_file():
        from peft import PeftModel

        base, processor = load_checkpoint(str(Path(source) / BASE), **kwargs)
        return PeftModel.from_pretrained(base, source).merge_and_unload().eval(), processor
    config = read_config(source)
    head = next((head for head in TASKS.values() if head.__name__ in (config.architectures or [])), None)
    if head is None:
        expected = " or ".join(dict.fromkeys(head.__name__ for head in TASKS.values()))
        raise ValueError(f"'{source}' holds {config.architectures}; expected {expected}")
    return head.from_pretrained(source, **kwargs).eval(), MMProcessor.from_pretrained(source)


def read_config(source: str) -> MMConfig:
    """The config of a folder or Hub id, refused when it is another kind of model's.

    Raises:
        ValueError: there is none, or it is of another model type.
    """
    try:
        values, _ = MMConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
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
