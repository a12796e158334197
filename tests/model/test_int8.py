# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""int8 weights, of the text backbone only: close to full precision, and saved and loaded exactly, by commands too."""

import importlib.util
import json

import easy_vqa
import pytest
import torch
from helpers.builders import mixed_rows, mm_model, padded, pictures
from torch import nn

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, cli
from modeling_mm.checkpoint import load_checkpoint, quantized

pytest.importorskip("torchao")


@pytest.fixture
def folder(tmp_path, processor):
    """A saved tiny model with its processor."""

    def save(text="llama", head=MMForConditionalGeneration, **fields):
        model = mm_model(text, head=head, image_token_id=processor.image_token_id, **fields)
        model.resize_token_embeddings(len(processor.tokenizer))
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save


def logits(model):
    torch.manual_seed(1)
    batch = {name: value for name, value in padded(mixed_rows()[0]).items() if name != "position_ids"}
    with torch.no_grad():
        return model(**batch, **pictures(2), image_index=mixed_rows()[1]).logits


@pytest.mark.parametrize(
    "text, head", [("llama", MMForConditionalGeneration), ("bert", MMForSequenceClassification)], ids=["llama", "bert"]
)
def test_int8_is_close_and_saved_exactly(folder, tmp_path, text, head):
    source = folder(text, head)
    full, processor = load_checkpoint(source)
    small, _ = load_checkpoint(source, **quantized("int8"))
    changed = {name for name, p in small.named_parameters() if type(p) is not nn.Parameter}
    layers = {f"{name}.weight" for name, m in full.named_modules() if isinstance(m, nn.Linear)}
    assert changed == {name for name in layers if name.startswith("model.text_model.")}
    expected, found = logits(full), logits(small)
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    small.save_pretrained(tmp_path / "int8")
    processor.save_pretrained(tmp_path / "int8")
    again, _ = load_checkpoint(str(tmp_path / "int8"))
    assert torch.equal(logits(again), found)


def test_the_commands_take_int8_weights_from_either_kind_of_folder(folder, tmp_path, capsys):
    source, picture = folder(), easy_vqa.get_test_image_paths()[0]
    (tmp_path / "t.csv").write_text(f"image,text,answer\n{picture},is there a red square,yes\n{picture},blue,no\n")
    small, processor = load_checkpoint(source, **quantized("int8"))
    small.save_pretrained(tmp_path / "int8")
    processor.save_pretrained(tmp_path / "int8")
    losses = []
    for model, flags in ((source, ["--quantization", "int8"]), (tmp_path / "int8", []), (source, [])):
        argv = ["--model", model, *flags, "--device", "cpu"]
        test = ["--test_file", tmp_path / "t.csv", "--max_new_tokens", 2]
        assert cli.main(["evaluate", *map(str, [*argv, *test])]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
        text = ["--text", "is there a red square", "--max_new_tokens", 2]
        assert cli.main(["predict", *map(str, [*argv, *text])]) == 0
        capsys.readouterr()
    assert losses[0] == losses[1] != losses[2]
    assert cli.main(["evaluate", "--model", source, "--test_file", "t.csv", "--quantization", "int3"]) == 2


def test_a_missing_torchao_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert quantized(None) == {}
    with pytest.raises(ValueError, match=r'needs torchao; pip install "modeling-mm\[quantization\]"'):
        quantized("int8")
