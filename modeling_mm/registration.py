# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Registration of the package's classes with the Auto classes and pipelines of transformers, on import."""

import sys

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_RETRIEVAL_MAPPING,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .model.classification_mm import MMForSequenceClassification
from .model.configuration_mm import MMConfig
from .model.generation_mm import MMForConditionalGeneration
from .model.modeling_mm import MMModel
from .model.pipeline_mm import MultimodalClassificationPipeline
from .model.processing_mm import MMProcessor
from .model.retrieval_mm import MMForImageTextRetrieval

AutoConfig.register(MMConfig.model_type, MMConfig, exist_ok=True)
AutoModel.register(MMConfig, MMModel, exist_ok=True)
AutoModelForImageTextToText.register(MMConfig, MMForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(MMConfig, MMForConditionalGeneration, exist_ok=True)
AutoModelForSequenceClassification.register(MMConfig, MMForSequenceClassification, exist_ok=True)
AutoModelForZeroShotImageClassification.register(MMConfig, MMForImageTextRetrieval, exist_ok=True)
AutoProcessor.register(MMConfig, MMProcessor, exist_ok=True)
# `register` does not write this mapping, by which the pipeline decides whether a model is supported
MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.setdefault(MMConfig.model_type, "MMForImageTextRetrieval")
# no Auto class uses this mapping; sentence-transformers does
MODEL_FOR_RETRIEVAL_MAPPING.register(MMConfig, MMForImageTextRetrieval, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "multimodal-classification", MultimodalClassificationPipeline, AutoModelForSequenceClassification
)

# the names that adapters trained before the heads moved into `model` have in their adapter_config.json
for name in ("modeling_mm", "generation_mm", "classification_mm", "retrieval_mm"):
    sys.modules[f"{__package__}.{name}"] = sys.modules[f"{__package__}.model.{name}"]

# So that saving again copies the code beside the weights, and others can load the folder without this package.
MMConfig.register_for_auto_class()
MMModel.register_for_auto_class("AutoModel")
MMForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
MMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
MMForImageTextRetrieval.register_for_auto_class("AutoModelForZeroShotImageClassification")
MMProcessor.register_for_auto_class()
