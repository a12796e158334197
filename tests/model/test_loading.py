# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A model saved, loaded, copied, pickled, compiled or resized is the same model: laws 6 and 11."""

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from helpers.builders import (
    DECODERS,
    ENCODERS,
    VISION,
    mixed_rows,
    mm_config,
    mm_model,
    open_gates,
    padded,
    pictures,
    text_inputs,
    token_row,
    vision_config,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

from modeling_mm import MMConfig, MMForConditionalGeneration, MMForSequenceClassification, MMModel, MMProcessor


def batch_for(model):
    """A mixed batch with images for any model."""
    rows, image_index = mixed_rows()
    batch = text_inputs(padded(rows), model.config.text_config.model_type)
    return {**batch, **pictures(2, model.config.vision_config.model_type), "image_index": image_index}


@torch.no_grad()
def result(model, inputs):
    """Logits, or the last hidden states of a base model."""
    output = model.eval()(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


def load(auto_class, folder):
    """Load a model in evaluation mode, and assert that no weight was missing."""
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize(
    "text,vision",
    [*((text, "clip_vision_model") for text in [*DECODERS, *ENCODERS]), *(("llama", vision) for vision in VISION)],
)
def test_saved_and_loaded_is_bit_equal(text, vision, tmp_path):
    head = MMForConditionalGeneration if text in DECODERS else MMForSequenceClassification
    model = mm_model(text, vision, head=head)
    model.save_pretrained(tmp_path)
    loaded = load(head, tmp_path)
    inputs = batch_for(model)
    assert torch.equal(result(loaded, inputs), result(model, inputs))
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("auto_class", [AutoModelForImageTextToText, AutoModelForMultimodalLM])
def test_a_generating_model_loads_through_its_auto_classes(auto_class, tmp_path):
    model = mm_model(num_latents=2, fusion_num_key_value_heads=1)
    model.save_pretrained(tmp_path)
    loaded = load(auto_class, tmp_path)
    assert type(loaded) is MMForConditionalGeneration
    inputs = batch_for(model)
    assert torch.equal(result(loaded, inputs), result(model, inputs))
    generated = loaded.generate(inputs["input_ids"][2:3], pixel_values=inputs["pixel_values"][None], max_new_tokens=3)
    assert generated.shape == (1, 14)


def test_a_classifier_loads_through_its_auto_class(tmp_path):
    labels = {0: "no", 1: "yes", 2: "perhaps"}
    model = mm_model("bert", head=MMForSequenceClassification, id2label=labels)
    model.save_pretrained(tmp_path)
    loaded = load(AutoModelForSequenceClassification, tmp_path)
    assert type(loaded) is MMForSequenceClassification and loaded.config.id2label == labels
    inputs = batch_for(model)
    assert result(loaded, inputs).shape == (4, 3)
    assert torch.equal(result(loaded, inputs), result(model, inputs))


@pytest.mark.parametrize("head", [MMForConditionalGeneration, MMForSequenceClassification, MMModel])
def test_the_base_model_loads_from_every_folder(head, tmp_path):
    model = mm_model(head=head)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is MMModel
    inputs = batch_for(model)
    assert torch.equal(result(loaded, inputs), result(getattr(model, "model", model), inputs))


@pytest.mark.parametrize("saved", [MMModel, MMForConditionalGeneration])
def test_a_head_loads_over_the_weights_of_another_class(saved, tmp_path):
    model = mm_model(head=saved)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    inputs = batch_for(model)
    assert torch.equal(result(loaded.model, inputs), result(getattr(model, "model", model), inputs))
    assert 0 < loaded.classifier.weight.std() and not loaded.classifier.bias.any()


def test_config_and_processor_load_through_their_auto_classes(processor, tmp_path):
    model = mm_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MMConfig and config.text_config.model_type == "llama"
    assert type(AutoProcessor.from_pretrained(tmp_path)) is MMProcessor


@pytest.mark.parametrize("head", [MMForConditionalGeneration, MMForSequenceClassification, MMModel])
def test_weights_are_saved_as_safetensors_only(head, tmp_path):
    mm_model(head=head).save_pretrained(tmp_path)
    kinds = {path.suffix for path in tmp_path.iterdir()}
    assert kinds == {".safetensors", ".json", ".py"}


def test_tied_weights_stay_tied(tmp_path):
    model = mm_model("gpt2")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load(MMForConditionalGeneration, tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    untied = mm_model("llama")
    assert untied.lm_head.weight is not untied.get_input_embeddings().weight


def test_missing_weights_of_a_tower_are_initialised_as_the_tower_does(tmp_path):
    MMModel(mm_config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if not name.startswith("vision_tower.")}
    save_file(kept, file, metadata={"format": "pt"})
    loaded = AutoModel.from_pretrained(tmp_path).vision_tower
    fresh = AutoModel.from_config(vision_config())
    for name, value in fresh.named_parameters():
        if value.numel() > 100:
            assert loaded.get_parameter(name).std().item() == pytest.approx(value.std().item(), rel=0.3, abs=1e-6), (
                name
            )


def test_half_precision_is_kept(tmp_path):
    mm_model(vision="resnet").save_pretrained(tmp_path / "full")
    model = MMForConditionalGeneration.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "half", dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    inputs = batch_for(model)  # pixels in float32, as processors give them
    assert torch.equal(result(loaded, inputs), result(model, inputs))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_gives_the_same_output_and_shares_nothing(duplicate):
    model = mm_model(gate=0.5)
    inputs = batch_for(model)
    expected = result(model, inputs)
    other = duplicate(model)
    assert torch.equal(result(other, inputs), expected)
    open_gates(other, 0.0)  # the copy's text layers must meet the copy's fusion, not the model's
    assert torch.equal(result(model, inputs), expected)
    text_only = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
    assert torch.equal(result(other, inputs), result(model, text_only))


@pytest.mark.parametrize("text", ["llama", "bert"])
def test_compiled_without_a_graph_break_is_equal(text):
    model = mm_model(text, head=MMForConditionalGeneration if text == "llama" else MMModel)
    inputs = batch_for(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(result(compiled, inputs), result(model, inputs), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("text", ["llama", "gpt2"])
def test_new_tokens_leave_the_old_as_they_were(text, tmp_path):
    model = mm_model(text)
    inputs = batch_for(model)
    before = result(model, inputs)
    embeddings = model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(103)
    assert model.config.text_config.vocab_size == 103
    assert torch.equal(model.get_input_embeddings().weight[:99], embeddings)
    torch.testing.assert_close(result(model, inputs)[..., :99], before, atol=1e-6, rtol=1e-6)
    inputs["input_ids"][0, 3] = 102
    assert model(**inputs, labels=inputs["input_ids"]).loss.isfinite()
    model.save_pretrained(tmp_path)
    assert torch.equal(result(load(MMForConditionalGeneration, tmp_path), inputs), result(model, inputs))


def test_outputs_come_as_tuples_where_asked():
    for head in (MMForConditionalGeneration, MMForSequenceClassification, MMModel):
        model = mm_model(head=head)
        inputs = batch_for(model)
        assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs)[0])
        assert isinstance(model(**inputs, return_dict=False), tuple)


LOAD_WITH_NOTHING_ALLOWED = """
import json, sys

import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

import modeling_mm

folder, forbidden = sys.argv[1], ("pickle.find_class", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname")

def guard(event, args):
    if event in forbidden:
        raise RuntimeError(f"loading must not need {event} {args}")

def no_torch_load(*args, **kwargs):
    raise RuntimeError("loading must not need torch.load")

torch.load = no_torch_load
sys.addaudithook(guard)
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
base = AutoModel.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
ids = processor(text="what colour is the circle", return_tensors="pt")["input_ids"]
logits = model(input_ids=ids, pixel_values=torch.ones(1, 3, 16, 16)).logits
remote = [name for name in sys.modules if name.startswith("transformers_modules")]
print(json.dumps({"sum": logits.double().sum().item(), "type": type(model).__module__, "remote": remote}))
"""


def test_one_s_own_checkpoint_needs_no_remote_code_no_pickle_and_no_network(processor, tmp_path):
    fields = {"vocab_size": len(processor.tokenizer)}
    model = mm_model()
    model.resize_token_embeddings(fields["vocab_size"])
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITH_NOTHING_ALLOWED, str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["type"] == "modeling_mm.model.generation_mm" and report["remote"] == []
    ids = processor(text="what colour is the circle", return_tensors="pt")["input_ids"]
    logits = result(model, {"input_ids": ids, "pixel_values": torch.ones(1, 3, 16, 16)})
    assert report["sum"] == pytest.approx(logits.double().sum().item(), abs=1e-3)


def test_tuples_where_the_config_says_so_or_the_call():
    model = mm_model()
    batch = {"input_ids": token_row(7, [2])[None], **pictures(1)}
    expected = model(**batch).logits
    assert torch.equal(model(**batch, return_dict=False)[0], expected)
    model.config.return_dict = False
    assert torch.equal(model(**batch)[0], expected)
    assert torch.equal(model(**batch, return_dict=True).logits, expected)
