# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""transformers' common suites on our classes: one test class for each suite and each group of ours.

Their names, `Llama__modeling` and the like, are the rows and columns of docs/conformance.md.
"""

import unittest

import pytest
from testers import BertTester, HearingTester, LlamaTester, ModernBertTester, OverfittingTester, WatchingTester
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast, WhisperFeatureExtractor
from transformers.models.auto import modeling_auto
from upstream import GenerationTesterMixin

from modeling_mm import (
    MMConfig,
    MMForConditionalGeneration,
    MMForImageTextRetrieval,
    MMForSequenceClassification,
    MMModel,
    MMProcessor,
)

# isort: split
from tests.test_configuration_common import ConfigTester
from tests.test_fsdp_mixin import FSDPTesterMixin
from tests.test_modeling_common import ModelTesterMixin
from tests.test_processing_common import ProcessorTesterMixin
from tests.test_tensor_parallel_mixin import TensorParallelTesterMixin
from tests.test_training_mixin import TrainingTesterMixin

pytestmark = pytest.mark.conformance

# The suites tell by class name, from tables that `register` does not fill, which classes have a loss and which labels.
modeling_auto.MODEL_MAPPING_NAMES["modeling_mm"] = "MMModel"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["modeling_mm"] = "MMForConditionalGeneration"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["modeling_mm"] = "MMForSequenceClassification"


def prepare_for_retrieval(self, inputs_dict, model_class, return_labels=False):
    """The inputs as the suite prepares them; where it wants a loss, retrieval needs no labels but to be asked."""
    inputs = ModelTesterMixin._prepare_for_class(self, inputs_dict, model_class, return_labels)
    asked = return_labels and model_class is MMForImageTextRetrieval
    return {**inputs, "return_loss": True} if asked else inputs


GROUPS = {
    "Llama": (LlamaTester, (MMModel, MMForConditionalGeneration), {}),
    "LlamaClassifier": (LlamaTester, (MMModel, MMForSequenceClassification), {}),
    "Hearing": (HearingTester, (MMModel, MMForConditionalGeneration, MMForSequenceClassification), {}),
    "Watching": (WatchingTester, (MMModel, MMForConditionalGeneration, MMForSequenceClassification), {}),
    "Retrieval": (HearingTester, (MMModel, MMForImageTextRetrieval), {"_prepare_for_class": prepare_for_retrieval}),
    # BERT's pooler reads the states behind those that we use, so it has no gradient; MMTrainer freezes it
    "Bert": (BertTester, (MMModel, MMForSequenceClassification), {"test_all_params_have_gradient": False}),
    "ModernBert": (ModernBertTester, (MMModel, MMForSequenceClassification), {}),
}


def names_of(*classes):
    """Names of the tests that these classes bring along."""
    return {name for suite in classes for name in dir(suite) if name.startswith("test_")}


def suite(name, mixins, kept, tester, **attributes):
    """A test class with the `kept` tests of the mixins, whose others it switches off."""

    def set_up(self):
        self.model_tester = tester(self)

    body = {"setUp": set_up, "model_tester": None, "_is_composite": True, **attributes}
    body |= dict.fromkeys(names_of(*mixins) - kept)
    return type(name, (*mixins, unittest.TestCase), body)


def suites(group, tester, classes, attributes):
    """The suites of one group of model classes."""
    generates = MMForConditionalGeneration in classes
    attributes = {"all_model_classes": classes, **attributes}
    common = (ModelTesterMixin, GenerationTesterMixin) if generates else (ModelTesterMixin,)
    kept = names_of(ModelTesterMixin)
    if tester.audio_config is None:
        kept = {name for name in kept if not name.startswith("test_get_audio_features")}
    if tester.num_frames is None:
        kept = {name for name in kept if not name.startswith("test_get_video_features")}
    yield suite(f"{group}__modeling", common, kept, tester, **attributes)
    plans = (FSDPTesterMixin, TensorParallelTesterMixin)
    yield suite(f"{group}__parallel_plans", (*plans, ModelTesterMixin), names_of(*plans), tester, **attributes)
    if generates:
        mixins, kept = (TrainingTesterMixin, ModelTesterMixin), names_of(TrainingTesterMixin)
        overfitting = type("Overfitting", (OverfittingTester, tester), {})
        yield suite(f"{group}__training", mixins, kept, overfitting, **attributes)


for group, specification in GROUPS.items():
    for made in suites(group, *specification):
        globals()[made.__name__] = made
del made


class Llama__config(unittest.TestCase):
    """The config suite is one method that stops at its first failure; here each of its parts is a test."""

    def setUp(self):
        properties = ["image_token_id"]
        self.model_tester = LlamaTester(self)
        self.tester = ConfigTester(self, MMConfig, has_text_modality=False, common_properties=properties)


def part(name):
    """A test that runs one part of the config suite."""
    return lambda self: getattr(self.tester, name)()


for name in dir(ConfigTester):
    if name.startswith(("create_and_test_", "check_config_")):
        setattr(Llama__config, f"test_{name}", part(name))


class Processor__processing(ProcessorTesterMixin, unittest.TestCase):
    """MMProcessor over a CLIP image processor and a tokenizer of single characters."""

    processor_class = MMProcessor
    markers: tuple[str, ...] = ("<image>",)

    def prepare_audio_inputs(self, batch_size=None):
        """None: this processor takes no sound."""

    def prepare_videos_inputs(self, batch_size=None):
        """None: this processor takes no video."""

    @classmethod
    def _setup_tokenizer(cls):
        named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        tokens = [*named.values(), *cls.markers, "\u2581", *map(chr, range(33, 127))]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        special = [("<s>", vocabulary["<s>"])]
        pair = {"single": "<s> $A", "pair": "<s> $A <s> $B"}
        raw.post_processor = processors.TemplateProcessing(**pair, special_tokens=special)
        return PreTrainedTokenizerFast(
            tokenizer_object=raw, additional_special_tokens=list(cls.markers), model_max_length=512, **named
        )

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20})


class HearingProcessor__processing(Processor__processing):
    """The same with a feature extractor, which is no component by which the suite could build a processor."""

    markers = ("<image>", "<audio>")
    prepare_audio_inputs = ProcessorTesterMixin.prepare_audio_inputs
    # wants each saved argument as an attribute, which test_call_arguments_not_in_attributes forbids for `audio`
    test_processor_to_json_string = None

    @staticmethod
    def prepare_processor_dict():
        return {"audio": WhisperFeatureExtractor(feature_size=8, chunk_length=1).to_dict(), "max_seconds": 1.0}

    def _test_apply_chat_template(self, modality, batch_size, return_tensors, input_name, component, data):
        """The suite skips a component that is not listed; what it then does with its name is the same for each."""
        if modality == "audio":
            component = "image_processor"
        super()._test_apply_chat_template(modality, batch_size, return_tensors, input_name, component, data)
