# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Written graphs compute what their model computes, in shapes they were not traced in, and a wrong one is refused."""

import importlib.util
import json

import pytest
import torch
from helpers.builders import OLD_LIBRARY, SENTENCES, drawing, mm_model
from transformers import CLIPImageProcessorPil

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel, MMProcessor, cli
from modeling_mm.export.graphs import CHECKED, TRACED, Decoder, OneGraph, graphs_of
from modeling_mm.export.runtime import ExportedMM
from modeling_mm.export.writer import check_graphs, export_model
from modeling_mm.training.scratch import train_tokenizer

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

pytestmark = pytest.mark.skipif(OLD_LIBRARY, reason="an export needs transformers 5.23 or newer")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def processor():
    """A processor for 16 x 16 images, its vocabulary larger than the tiny models'."""
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_convert_rgb=True)
    return MMProcessor(image_processor=images, tokenizer=train_tokenizer(SENTENCES, "scratch-tiny"))


def saved(folder, processor, text="llama", head=MMForConditionalGeneration, **fields):
    """A tiny model that fits the processor, and the folder that holds both."""
    model = mm_model(text, head=head, image_token_id=processor.image_token_id, **fields)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def batch(processor):
    """Rows with one, two and no images, in other numbers than any graph is traced or checked with."""
    red, blue = drawing((255, 0, 0)), drawing((0, 0, 255))
    texts = ["<image> what colour is the circle", "<image><image> is there a red square", "no", "yes", "blue"]
    images = [[red], [red, blue], [], [], [blue]]
    return processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")


def flat_batch(processor):
    """Rows with two, no and one image, all with their markers, so that no index comes."""
    red, blue = drawing((255, 0, 0)), drawing((0, 0, 255))
    texts = ["<image> is <image> red", "no", "<image> what colour is the circle"]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    inputs = processor(images=[[red, blue], [], [blue]], text=texts, **options)
    assert "image_index" not in inputs
    return inputs


def run(capsys, *argv):
    """Exit code, result and messages of the command."""
    code = cli.main(["export", *map(str, argv)])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err.strip()


def test_a_classifier_is_one_onnx_file_that_onnxruntime_runs_alone(tmp_path, processor, capsys):
    import onnxruntime

    model = saved(tmp_path / "model", processor, "bert", MMForSequenceClassification, num_labels=3)
    code, result, _ = run(capsys, "--model", tmp_path / "model", "--output_dir", tmp_path / "onnx")
    assert code == 0 and result["max_difference"]["model"] < 1e-4
    files = {path.name: path.stat().st_size for path in (tmp_path / "onnx").iterdir()}
    assert files == result["files"]
    assert {"model.onnx", "config.json", "export.json", "processor_config.json", "tokenizer.json"} <= set(files)
    inputs = batch(MMProcessor.from_pretrained(tmp_path / "onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    names = [value.name for value in session.get_inputs()]
    assert names == ["input_ids", "attention_mask", "pixel_values", "image_index"]
    (logits,) = session.run(["logits"], {name: inputs[name].numpy() for name in names})
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(logits), model(**inputs).logits, **CLOSE)
    exported = ExportedMM.from_pretrained(tmp_path / "onnx")
    text = {name: inputs[name][2:4] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(exported(**text)["logits"], model(**text).logits, **CLOSE)
        flat = flat_batch(processor)
        torch.testing.assert_close(exported(**flat)["logits"], model(**flat).logits, **CLOSE)


def greedy_equals(exported, model, inputs):
    """The exported and the model's tokens for questions with images, about encoded ones, and without any."""
    options = {"max_new_tokens": 6}
    expected = model.generate(**inputs, **options, do_sample=False)
    assert torch.equal(exported.generate(**inputs, **options), expected)
    encoded = exported.encode_media(inputs["pixel_values"], inputs["image_index"])
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    again = exported.generate(**text, media_key_values=encoded, image_index=inputs["image_index"], **options)
    assert torch.equal(again, expected)
    blind = model.generate(**text, **options, do_sample=False)
    assert torch.equal(exported.generate(**text, **options), blind) and not torch.equal(blind, expected)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["llama", "gpt2", "qwen3", "gemma2"])
def test_three_onnx_graphs_generate_the_model_s_tokens(tmp_path, processor, text):
    model = saved(tmp_path / "model", processor, text)
    result = export_model(model, processor, str(tmp_path / "onnx"))
    assert set(result["max_difference"]) == {"media_encoder", "media_start", "decoder"}
    assert max(result["max_difference"].values()) < 1e-4
    exported, flat = ExportedMM.from_pretrained(tmp_path / "onnx"), flat_batch(processor)
    greedy_equals(exported, model, batch(processor))
    expected = model.generate(**flat, max_new_tokens=6, do_sample=False)
    assert torch.equal(exported.generate(**flat, max_new_tokens=6), expected)


@pytest.mark.slow
def test_a_row_that_ended_is_padded_as_generate_pads_it(tmp_path, processor):
    model, inputs = saved(tmp_path / "model", processor), batch(processor)
    free = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    model.generation_config.eos_token_id = [int(free[0, 2]), int(free[1, 1])]
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.repetition_penalty = 2.0  # no part of the graphs, so that the check leaves it out
    export_model(model, processor, str(tmp_path / "torch"), "torch")
    model.generation_config.repetition_penalty = 1.0
    exported = ExportedMM.from_pretrained(tmp_path / "torch")
    assert (exported.generate(**inputs, max_new_tokens=6) == processor.tokenizer.pad_token_id)[0, -1]
    greedy_equals(exported, model, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("export_format", ["onnx", "torch"])
@pytest.mark.parametrize("text", ["llama", "modernbert"])
def test_features_are_the_base_model_s_hidden_states(tmp_path, processor, capsys, text, export_format):
    head = MMForConditionalGeneration if text == "llama" else MMForSequenceClassification
    model = saved(tmp_path / "model", processor, text, head)
    argv = ["--model", tmp_path / "model", "--output_dir", tmp_path / "out", "--features", "--format", export_format]
    code, result, said = run(capsys, *argv)
    assert code == 0 and result["max_difference"]["model"] < 1e-4, said
    inputs = batch(processor)
    inputs["attention_mask"][:] = 1  # padding counts as text, since states of padding mean nothing
    given = ExportedMM.from_pretrained(tmp_path / "out")(**inputs)["last_hidden_state"]
    with torch.no_grad():
        torch.testing.assert_close(given, model.model(**inputs).last_hidden_state, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["siglip_vision_model", "vit", "dinov2", "swin", "resnet", "convnext"])
def test_every_tower_of_fixed_size_exports(tmp_path, processor, vision):
    model = mm_model("bert", vision, head=MMForSequenceClassification)
    result = export_model(model, processor, str(tmp_path))
    assert result["max_difference"]["model"] < 1e-4


@pytest.mark.slow
def test_a_resampler_exports(tmp_path, processor):
    model = mm_model("bert", head=MMForSequenceClassification, num_latents=3)
    assert export_model(model, processor, str(tmp_path))["max_difference"]["model"] < 1e-4


@pytest.mark.slow
def test_graphs_that_differ_are_refused_and_not_kept(tmp_path, processor):
    model = mm_model("bert", head=MMForSequenceClassification)
    export_model(model, processor, str(tmp_path / "out"), "torch")
    exported, graphs = ExportedMM.from_pretrained(tmp_path / "out"), graphs_of(model, processor)
    assert check_graphs(graphs, exported, 1e-4)["model"] < 1e-4
    with torch.no_grad():
        model.model.fusion.layers[0].cross_attn_gate.mul_(0.99)
        with pytest.raises(
            ValueError, match="the written graph 'model' differs from the model by .* nothing was saved"
        ):
            check_graphs(graphs, exported, 1e-4)
    with pytest.raises(ValueError, match="nothing was saved"):
        export_model(model, processor, str(tmp_path / "none"), "torch", tolerance=-1.0)
    assert not list((tmp_path / "none").iterdir())


def test_only_what_varies_is_dynamic(processor):
    axes = OneGraph(mm_model("bert", head=MMModel), (3, 16, 16), "last_hidden_state").dynamic_shapes()
    assert {name: sorted(one) for name, one in axes.items()} == {
        "input_ids": [0, 1], "attention_mask": [0, 1], "pixel_values": [0], "image_index": [0, 1],
    }  # fmt: skip
    axes = Decoder(mm_model(), (3, 16, 16)).dynamic_shapes()
    assert sorted(axes["past_key_values"]["0"]["key"]) == [0, 2] and sorted(axes["media_key_values"]) == [0, 4]
    assert not set(CHECKED) & {TRACED}


@pytest.mark.parametrize(
    "missing, sentence",
    [("onnxscript", r'needs onnxscript; pip install "modeling-mm\[export\]"'), ("onnx", "needs onnx; pip install")],
)
def test_missing_packages_are_named(tmp_path, monkeypatch, missing, sentence):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest)
    )
    with pytest.raises(ValueError, match=sentence):
        export_model(mm_model(), None, str(tmp_path))


def test_bad_input_is_one_sentence_and_code_2(tmp_path, processor, capsys):
    (tmp_path / "empty").mkdir()
    saved(tmp_path / "model", processor)
    saved(tmp_path / "recurrent", processor, "lfm2")
    for folder, flags, sentence in (
        (tmp_path / "empty", [], "is a checkpoint of type 'unknown'"),
        (tmp_path / "no", [], "neither a folder with a model nor a known Hub id"),
        (tmp_path / "model", ["--format", "tflite"], "invalid choice: 'tflite'"),
        (tmp_path / "model", ["--output_dir", tmp_path / "model"], "is the model's own folder"),
        (tmp_path / "recurrent", [], "'lfm2' keeps a recurrent state"),
    ):
        code, result, said = run(capsys, "--model", folder, "--output_dir", tmp_path / "out", *flags)
        said = said.splitlines()[-1]
        assert (code, result) == (2, None) and said.startswith("modeling-mm export: ") and sentence in said
    assert not (tmp_path / "out").exists()


def test_a_tower_of_many_shapes_is_refused(tmp_path, processor):
    from transformers import Siglip2ImageProcessorPil

    many = MMProcessor(image_processor=Siglip2ImageProcessorPil(), tokenizer=processor.tokenizer)
    with pytest.raises(ValueError, match="also gives pixel_attention_mask, spatial_shapes"):
        export_model(mm_model("llama", "siglip2_vision_model"), many, str(tmp_path))
