# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A saved folder is complete: without the package, its own files load the model, give equal outputs and save it again.

One subprocess, in which the package cannot be imported, loads every folder; the tests check its report.
"""

import ast
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.builders import IMAGE_ID, SENTENCES, drawing, mm_config, mm_model
from helpers.programs import ABSENT, run_without_package
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessorPil, pipeline

import modeling_mm
from modeling_mm import (
    MMForConditionalGeneration,
    MMForImageTextRetrieval,
    MMForSequenceClassification,
    MMModel,
    MMProcessor,
)
from modeling_mm.checkpoint import merge_adapter
from modeling_mm.model.configuration_mm import AUTO_MAP, DEFAULT_LORA_TARGETS
from modeling_mm.training.scratch import train_tokenizer

PACKAGE = Path(modeling_mm.__file__).parent / "model"
TRAVELLING = sorted(path.name for path in PACKAGE.glob("*_mm.py"))
PROCESSOR_FILES = sorted(
    f"{name}_mm.py"
    for name in (
        "audio",
        "audio_towers",
        "chat",
        "compose",
        "configuration",
        "dealing",
        "media",
        "images",
        "outputs",
        "pooling",
        "processing",
        "table",
        "towers",
        "video",
    )
)
MODEL_FILES = [file for file in TRAVELLING if file not in ("chat_mm.py", "processing_mm.py")]  # for its pipeline
CLASSES = {
    "base": MMModel,
    "generation": MMForConditionalGeneration,
    "classification": MMForSequenceClassification,
    "retrieval": MMForImageTextRetrieval,
}

LOAD_WITHOUT_THE_PACKAGE = (
    ABSENT
    + """
import json

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    pipeline,
)

inputs, results, said = load_file("inputs.safetensors"), {}, {}
try:
    import modeling_mm
except ImportError:
    said["package"] = "absent"
loaders = [
    ("base", "base", AutoModel),
    ("generation", "generation", AutoModelForImageTextToText),
    ("multimodal", "generation", AutoModelForMultimodalLM),
    ("classification", "classification", AutoModelForSequenceClassification),
    ("retrieval", "retrieval", AutoModelForZeroShotImageClassification),
    ("base_of_generation", "generation", AutoModel),
    ("base_of_classification", "classification", AutoModel),
    ("base_of_retrieval", "retrieval", AutoModel),
    ("generation_of_base", "base", AutoModelForImageTextToText),
]
for name, folder, auto_class in loaders:
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        output = model(**inputs)
    results[name] = next(output[f] for f in ("logits", "logits_per_image", "last_hidden_state") if f in output).clone()
    said[name] = [type(model).__module__.split(".")[0], type(model).__name__]
    if name == folder:
        model.save_pretrained(f"again/{name}")
        second = auto_class.from_pretrained(f"again/{name}", trust_remote_code=True)
        second.save_pretrained(f"third/{name}")
    if name == "generation":
        results["generated"] = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        vision, text = model.config.vision_config, model.config.text_config
        towers = AutoModel.from_config(vision), AutoModelForCausalLM.from_config(text)
        composed = type(model).from_towers(*towers)
        said["from_towers"] = [type(composed).__module__.split(".")[0], type(composed).__name__]
    if name == "multimodal":
        adapted = get_peft_model(model, LoraConfig())
        said["default"] = adapted.peft_config["default"].target_modules
        model = adapted.unload()
        said["targets"] = model.lora_targets("text", "fusion")
        model = get_peft_model(model, LoraConfig(target_modules=said["targets"], init_lora_weights=False)).eval()
        model(**inputs).logits.logsumexp(-1).sum().backward()
        said["without gradient"] = [n for n, p in model.named_parameters() if "lora_" in n and not p.grad.any()]
        with torch.no_grad():
            results["adapted"] = model(**inputs).logits
        model.save_pretrained("adapter")
config = AutoConfig.from_pretrained("classification", trust_remote_code=True)
said["config"] = [type(config).__module__.split(".")[0], type(config).__name__]
processor = AutoProcessor.from_pretrained("generation", trust_remote_code=True)
said["processor"] = [type(processor).__module__.split(".")[0], type(processor).__name__]
processor.save_pretrained("again/generation")
AutoProcessor.from_pretrained("again/generation", trust_remote_code=True).save_pretrained("third/generation")
drawn = Image.new("RGB", (20, 20), (200, 30, 30))
results.update({f"processed_{k}": v for k, v in processor(drawn, "<image>a red square", return_tensors="pt").items()})
classify = pipeline("multimodal-classification", model="pipeline", trust_remote_code=True)
rows = [{"image": drawn, "text": "a red square"}, {"text": "yes"}, {"image": [drawn, drawn], "text": None}]
said["pipeline"] = [type(classify).__module__.split(".")[0], classify(rows, top_k=None)]
classify.save_pretrained("again/pipeline")
again = pipeline("multimodal-classification", model="again/pipeline", trust_remote_code=True)
assert again(rows, top_k=None) == said["pipeline"][1]
find = pipeline("zero-shot-image-classification", model="finder", trust_remote_code=True)
said["finder"] = [type(find.model).__module__.split(".")[0], find(drawn, ["red", "a square"])]
save_file({name: value.contiguous() for name, value in results.items()}, "results.safetensors")
print(json.dumps(said))
"""
)


def files_in(folder):
    return sorted(path.name for path in folder.glob("*.py"))


@pytest.fixture(scope="module")
def inputs():
    """Token ids with a marker in each row, and an image per row."""
    torch.manual_seed(0)
    ids = torch.randint(5, 90, (2, 7))
    ids[:, 2] = IMAGE_ID
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 16, 16)}


@pytest.fixture(scope="module")
def work(tmp_path_factory, inputs, processor):
    """A folder with a saved model of each class, one for a pipeline, and the inputs of all."""
    work = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    for name, head in CLASSES.items():
        mm_model(head=head).save_pretrained(work / name)
    classifier = mm_model("bert", head=MMForSequenceClassification, num_labels=3)
    classifier.resize_token_embeddings(len(processor.tokenizer))
    classifier.save_pretrained(work / "pipeline")
    processor.save_pretrained(work / "pipeline")
    finder = mm_model("bert", head=MMForImageTextRetrieval)
    finder.resize_token_embeddings(len(processor.tokenizer))
    finder.save_pretrained(work / "finder")
    processor.save_pretrained(work / "finder")
    save_file(inputs, work / "inputs.safetensors")
    return work


@pytest.fixture(scope="module")
def processor():
    size = {"height": 16, "width": 16}
    return MMProcessor(CLIPImageProcessorPil(size=size, crop_size=size), train_tokenizer(SENTENCES, "scratch-tiny"))


@pytest.fixture(scope="module")
def remote(work, processor):
    """The report of the subprocess without the package, and the tensors that it computed."""
    processor.save_pretrained(work / "generation")
    stdout = run_without_package(LOAD_WITHOUT_THE_PACKAGE, work)
    return json.loads(stdout.splitlines()[-1]), load_file(work / "results.safetensors")


def test_every_class_loads_without_the_package(remote):
    report, _ = remote
    generation = ["transformers_modules", "MMForConditionalGeneration"]
    base = ["transformers_modules", "MMModel"]
    assert report["package"] == "absent"
    assert report["generation"] == report["multimodal"] == report["generation_of_base"] == generation
    assert report["base"] == report["base_of_generation"] == report["base_of_classification"] == base
    assert report["base_of_retrieval"] == base
    assert report["retrieval"] == ["transformers_modules", "MMForImageTextRetrieval"]
    assert report["classification"] == ["transformers_modules", "MMForSequenceClassification"]
    assert report["config"] == ["transformers_modules", "MMConfig"]
    assert report["processor"] == ["transformers_modules", "MMProcessor"]


@torch.no_grad()
def test_remote_code_gives_the_plugin_s_output(remote, work, inputs):
    _, results = remote
    for name, head in CLASSES.items():
        model = head.from_pretrained(work / name).eval()
        output = model(**inputs)
        field = next(f for f in ("logits", "logits_per_image", "last_hidden_state") if f in output)
        assert torch.equal(results[name], output[field]), name
        if name != "base":
            assert torch.equal(results[f"base_of_{name}"], model.model(**inputs).last_hidden_state), name
        if name == "generation":
            assert torch.equal(results["multimodal"], output.logits)
            assert torch.equal(results["generated"], model.generate(**inputs, max_new_tokens=5, do_sample=False))


@torch.no_grad()
def test_an_adapter_trained_on_remote_code_fits_the_plugin(remote, work, inputs):
    report, results = remote
    model = MMForConditionalGeneration.from_pretrained(work / "generation").eval()
    assert report["targets"] == model.lora_targets("text", "fusion")
    assert report["default"] == DEFAULT_LORA_TARGETS
    assert report["without gradient"] == []
    plain = model(**inputs).logits
    adapted = merge_adapter(model, str(work / "adapter"))(**inputs).logits
    torch.testing.assert_close(adapted, results["adapted"], atol=1e-4, rtol=0)
    assert (plain - adapted).abs().max() > 1e-2


def test_a_remote_processor_gives_the_plugin_s_tensors(remote, processor):
    _, results = remote
    expected = processor(drawing((200, 30, 30)), "<image>a red square", return_tensors="pt")
    assert {f"processed_{name}" for name in expected} == {name for name in results if name.startswith("processed_")}
    assert all(torch.equal(results[f"processed_{name}"], value) for name, value in expected.items())


def test_a_model_is_composed_by_the_code_of_a_checkpoint(remote):
    assert remote[0]["from_towers"] == ["transformers_modules", "MMForConditionalGeneration"]


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_saved_from_any_class_carries_the_whole_model(work, name):
    expected = MODEL_FILES
    assert set(expected) <= set(files_in(work / name))
    assert set(files_in(work / name)) <= set(TRAVELLING)
    assert json.loads((work / name / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_a_config_carries_its_code(tmp_path):
    mm_config().save_pretrained(tmp_path)
    assert files_in(tmp_path) == ["configuration_mm.py"]


def test_a_processor_carries_its_code(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert files_in(tmp_path) == PROCESSOR_FILES
    assert json.loads((tmp_path / "processor_config.json").read_text())["auto_map"] == {
        "AutoProcessor": "processing_mm.MMProcessor"
    }


@pytest.mark.parametrize("generation", ["again", "third"])
@pytest.mark.parametrize("name", CLASSES)
def test_saving_again_from_remote_code_keeps_everything(remote, work, name, generation):
    assert files_in(work / generation / name) == files_in(work / name)
    for file in files_in(work / name):
        assert (work / generation / name / file).read_text() == (PACKAGE / file).read_text()
    # A class loaded from a folder may prefix the folder's name, as in "repository--file.Class".
    auto_map = json.loads((work / generation / name / "config.json").read_text())["auto_map"]
    assert {auto: reference.split("--")[-1] for auto, reference in auto_map.items()} == AUTO_MAP


def test_the_pipeline_works_without_the_package(remote, work):
    report, _ = remote
    classify = pipeline("multimodal-classification", model=str(work / "pipeline"))
    drawn = drawing((200, 30, 30))
    rows = [{"image": drawn, "text": "a red square"}, {"text": "yes"}, {"image": [drawn, drawn], "text": None}]
    assert report["pipeline"] == ["transformers_modules", classify(rows, top_k=None)]
    assert type(classify).__module__ == "modeling_mm.model.pipeline_mm"
    again = work / "again" / "pipeline"
    assert pipeline("multimodal-classification", model=str(again))(rows, top_k=None) == report["pipeline"][1]
    assert set(files_in(again)) == set(TRAVELLING) and "custom_pipelines" not in (again / "config.json").read_text()


def test_the_zero_shot_pipeline_works_without_the_package(remote, work):
    ask = pipeline("zero-shot-image-classification", model=str(work / "finder"))
    scores = ask(drawing((200, 30, 30)), ["red", "a square"])
    assert remote[0]["finder"] == ["transformers_modules", scores]


@pytest.mark.parametrize("name", CLASSES)
def test_saving_twice_from_the_plugin_keeps_everything(work, tmp_path, name):
    CLASSES[name].from_pretrained(work / name).save_pretrained(tmp_path / "second")
    CLASSES[name].from_pretrained(tmp_path / "second").save_pretrained(tmp_path / "third")
    assert files_in(tmp_path / "third") == MODEL_FILES
    assert json.loads((tmp_path / "third" / "config.json").read_text())["auto_map"] == AUTO_MAP
    first, third = (load_file(folder / "model.safetensors") for folder in (work / name, tmp_path / "third"))
    assert first.keys() == third.keys() and all(torch.equal(value, third[key]) for key, value in first.items())


@pytest.mark.parametrize("generation", ["again", "third"])
@torch.no_grad()
def test_a_folder_saved_again_loads_in_the_plugin(remote, work, inputs, generation):
    _, results = remote
    model = AutoModelForImageTextToText.from_pretrained(work / generation / "generation").eval()
    assert type(model) is MMForConditionalGeneration
    assert torch.equal(model(**inputs).logits, results["generation"])
    assert type(AutoProcessor.from_pretrained(work / "again" / "generation")) is MMProcessor


def imports_of(file):
    """Import statements of a file: those at its top level (including `TYPE_CHECKING`), and all of them."""
    tree = ast.parse((PACKAGE / file).read_text())
    kinds = (ast.Import, ast.ImportFrom)
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    anywhere = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [node for node in anywhere if id(node) not in inner], anywhere


@pytest.mark.parametrize("file", TRAVELLING)
def test_travelling_files_import_flat_relative_names_only(file):
    top, anywhere = imports_of(file)
    for node in anywhere:
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module, f"{file}:{node.lineno} must be `from .x import y`"
            assert f"{node.module}.py" in TRAVELLING, f"{file}:{node.lineno} imports a file that stays home"
    absolute = [a.name for node in top if isinstance(node, ast.Import) for a in node.names]
    absolute += [node.module for node in top if isinstance(node, ast.ImportFrom) and not node.level]
    allowed = {"torch", "transformers", "huggingface_hub", "PIL", "numpy", *sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in absolute} <= allowed


def test_every_class_of_the_auto_map_is_in_a_travelling_file():
    for reference in AUTO_MAP.values():
        module, name = reference.split(".")
        assert f"{module}.py" in TRAVELLING
        assert hasattr(importlib.import_module(f"modeling_mm.model.{module}"), name)


def test_the_folder_the_suffix_and_what_travels_are_one():
    assert {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"} == set(TRAVELLING)
    assert not list(PACKAGE.glob("*/*.py"))
    everywhere = {path for path in PACKAGE.parent.rglob("*_mm.py")}
    assert everywhere == {PACKAGE / name for name in TRAVELLING}
