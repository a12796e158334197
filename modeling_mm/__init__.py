# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""modeling_mm: gated cross-attention from any text backbone of transformers to images, audio and video.

Importing this package registers its classes with the Auto classes and its pipeline, and does nothing else. Only the
command line registers later, once it has read its arguments, so that `modeling-mm --help` answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .startup import is_command_line, register
from .version import __version__

if TYPE_CHECKING:
    from .checkpoint import load_checkpoint as load_checkpoint
    from .data.collator import MMCollator as MMCollator
    from .data.dataset import MMDataset as MMDataset
    from .model.classification_mm import MMForSequenceClassification
    from .model.configuration_mm import MMConfig
    from .model.generation_mm import MMForConditionalGeneration
    from .model.modeling_mm import MMModel, MMPreTrainedModel
    from .model.pipeline_mm import MultimodalClassificationPipeline
    from .model.processing_mm import MMProcessor
    from .model.retrieval_mm import MMForImageTextRetrieval
    from .training.retrieval_trainer import RetrievalTrainer as RetrievalTrainer
    from .training.trainer import MMTrainer as MMTrainer

HOMES = {
    "MMConfig": "model.configuration_mm",
    "MMForConditionalGeneration": "model.generation_mm",
    "MMForImageTextRetrieval": "model.retrieval_mm",
    "MMForSequenceClassification": "model.classification_mm",
    "MMModel": "model.modeling_mm",
    "MMPreTrainedModel": "model.modeling_mm",
    "MMProcessor": "model.processing_mm",
    "MultimodalClassificationPipeline": "model.pipeline_mm",
    # not in `__all__`: what these import is installed by the extra `train`
    "MMCollator": "data.collator",
    "MMDataset": "data.dataset",
    "MMTrainer": "training.trainer",
    "RetrievalTrainer": "training.retrieval_trainer",
    "load_checkpoint": "checkpoint",
}

__all__ = [
    "MMConfig",
    "MMForConditionalGeneration",
    "MMForImageTextRetrieval",
    "MMForSequenceClassification",
    "MMModel",
    "MMPreTrainedModel",
    "MMProcessor",
    "MultimodalClassificationPipeline",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Raises:
        AttributeError: the package has no such name.
        ImportError: a package is not installed; the message names the extra that installs it.
    """
    if name not in HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    register()
    try:
        value = getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f'{name} needs the package {error.name}; pip install "modeling-mm[train]"') from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})


if not is_command_line():
    register()
