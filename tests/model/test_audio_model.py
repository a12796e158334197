# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The laws for models with an audio tower: rows with an image, an audio clip, both and neither, in one batch.

Shapes: B rows, N clips per row, A distinct clips, T text tokens.
"""

import csv
import json

import numpy as np
import pytest
import torch
from helpers.audio import AUDIO_ID, EARS, clips, ears, heard_row, hearing, hearing_processor, mixed, tone
from helpers.builders import (
    IMAGE_ID,
    causal_model,
    drawing,
    mm_model,
    open_gates,
    padded,
    vision_config,
)
from helpers.laws import GREEDY, assert_generates_alike, row_media
from transformers import AutoModelForSequenceClassification

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel, MMProcessor, cli

soundfile = pytest.importorskip("soundfile")


@torch.no_grad()
@pytest.mark.parametrize("kind", EARS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_row_alone_equals_the_row_in_any_batch(kind, side):
    model = hearing(kind)
    rows, media = mixed(kind)
    together = model(**padded(rows, side), **media).logits
    for row, ids in enumerate(rows):
        alone = model(**padded([ids]), **row_media(media, row)).logits[0]
        columns = slice(0, len(ids)) if side == "right" else slice(-len(ids), None)
        torch.testing.assert_close(together[row, columns], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(together[0], model(**padded(rows, side)).logits[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", EARS)
def test_a_sound_is_heard_from_its_marker_on(kind):
    model, row, media = hearing(kind), heard_row(8, (), [3])[None], clips(1, kind)
    before = model(row, **media).logits
    after = model(row, **{**media, "input_features": torch.randn_like(media["input_features"])}).logits
    assert torch.equal(before[:, :3], after[:, :3])
    assert ((before[:, 3:] - after[:, 3:]).abs().amax(-1) > 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", EARS)
def test_closed_gates_give_the_backbone_s_output(kind):
    backbone = causal_model("llama")
    rows, media = mixed(kind)
    expected = backbone(**padded(rows)).logits
    model = MMForConditionalGeneration.from_towers(
        vision=vision_config(), text=backbone, audio=ears(kind), image_token_id=IMAGE_ID, audio_token_id=AUDIO_ID
    )
    assert torch.equal(model.eval()(**padded(rows), **media).logits, expected)
    assert not torch.equal(open_gates(model)(**padded(rows), **media).logits, expected)


@torch.no_grad()
def test_however_it_generates_the_tokens_are_the_same():
    assert_generates_alike(hearing(), *mixed())


@torch.no_grad()
def test_a_clip_is_heard_once_however_many_rows_play_it():
    model, calls = hearing(), []
    model.model.audio_tower.register_forward_hook(lambda module, args, output: calls.append(output[0].shape[0]))
    row = heard_row(6, (), [1])
    model(**padded([row] * 4), **clips(1), audio_index=torch.zeros(4, 1, dtype=torch.long))
    assert calls == [1]


@torch.no_grad()
@pytest.mark.parametrize("kind", EARS)
@pytest.mark.parametrize("head", [MMModel, MMForConditionalGeneration, MMForSequenceClassification])
def test_a_model_that_hears_comes_back_to_the_bit(head, kind, tmp_path):
    model = hearing(kind, head)
    rows, media = mixed(kind)
    expected = model(**padded(rows), **media)[0]
    model.save_pretrained(tmp_path)
    again = head.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**padded(rows), **media)[0], expected)


@pytest.mark.parametrize("fields", [{}, {"num_latents": 2}, {"late_fusion": "gated", "cross_attention": True}])
def test_every_part_that_hears_gets_a_gradient(fields):
    model = hearing(head=MMForSequenceClassification, **fields).train()
    rows, media = mixed()
    model(**padded(rows), **media, labels=torch.tensor([0, 1, 0, 1, 1])).loss.backward()
    silent = [n for n, p in model.named_parameters() if "audio" in n and (p.grad is None or not p.grad.any())]
    assert silent == []
    frozen = hearing(head=MMForSequenceClassification).train()
    frozen.model.audio_tower.requires_grad_(False)
    assert not frozen.train().model.audio_tower.training
    frozen(**padded(rows), **media, labels=torch.tensor([0, 1, 0, 1, 1])).loss.backward()
    assert all(p.grad is None for p in frozen.model.audio_tower.parameters())


@torch.no_grad()
@pytest.mark.parametrize("late_fusion", ["concat", "sum", "weighted", "gated", "product", "product_mlp"])
def test_late_fusion_takes_sound_and_misses_it_as_if_it_had_none(late_fusion):
    model = hearing(head=MMForSequenceClassification, late_fusion=late_fusion)
    rows, media = mixed()
    together = model(**padded(rows), **media).logits
    for row, ids in enumerate(rows):
        torch.testing.assert_close(
            together[row], model(**padded([ids]), **row_media(media, row)).logits[0], atol=1e-5, rtol=1e-5
        )
    louder = {**media, "input_features": media["input_features"] + 1}
    changed = (model(**padded(rows), **louder).logits - together).abs().amax(-1) > 1e-6
    assert changed.tolist() == [False, False, True, True, True]


def test_lora_lands_in_the_audio_tower_alone(capsys):
    model = hearing("whisper")
    assert "audio_tower" in model.lora_targets("audio")
    assert "audio 12" in capsys.readouterr().out  # two layers of four projections and two linear layers


@torch.no_grad()
@pytest.mark.parametrize("kind", EARS)
@pytest.mark.parametrize("head", [MMModel, MMForConditionalGeneration])
def test_audio_features_are_the_tower_s_states_in_one_layout(kind, head):
    model, media = hearing(kind, head), clips(3, kind)
    output = model.get_audio_features(**media, output_hidden_states=True)
    assert output.last_hidden_state.shape[0] == 3 and len(output.hidden_states) == 3
    states, mask = output.pooler_output, output.attention_mask
    assert states.ndim == 3 and (mask is not None) == (kind == "wav2vec2")
    if mask is not None:
        assert mask.shape == states.shape[:2] and mask.sum(1).tolist() == [9, 4, 9]
    assert model.get_audio_features(**media).hidden_states is None
    as_tuple = model.get_audio_features(**media, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.last_hidden_state)


@torch.no_grad()
def test_bad_use_is_one_sentence():
    with pytest.raises(ValueError, match="this model has no audio tower"):
        mm_model()(heard_row(5, (), [1])[None], **clips(1))
    model, row = hearing(), heard_row(5, (), [1, 2])[None]
    with pytest.raises(ValueError, match="row 0: 1 audio clips came with 2 audio markers"):
        model.generate(row, **clips(1), audio_index=torch.tensor([[0]]), **GREEDY)
    with pytest.raises(ValueError, match=r"the media have 2 rows \(`audio_index`\) and the text 1"):
        model(row, **clips(2), audio_index=torch.tensor([[0], [1]]))
    with pytest.raises(ValueError, match="3 audio clips came without `audio_index`, but the 1 texts hold 2 markers"):
        model(row, **clips(3))
    with pytest.raises(ValueError, match=r"`audio_index` has shape \(1,\)"):
        model(row, **clips(1), audio_index=torch.tensor([0]))
    encoded = model.encode_media(**clips(1))
    with pytest.raises(ValueError, match="need the `media_start`"):
        model(row, media_key_values=encoded, audio_index=torch.tensor([[0]]))


@pytest.fixture(scope="module")
def listener():
    """A processor with a feature extractor, shared by the tests of this file."""
    return hearing_processor()


def test_a_processor_prepares_sound_and_comes_back(listener, tmp_path):
    low, high = tone(220), tone(880)
    texts = ["<audio>what do you hear", "what do you hear", "<audio><audio>a tone"]
    batch = listener(text=texts, audio=[low, None, [high, low]], images=[None, drawing(9), None], return_tensors="pt",
                     padding=True, deduplicate=True)  # fmt: skip
    assert batch["input_features"].shape == (2, 64, 50)
    assert batch["audio_index"].tolist() == [[0, -1], [-1, -1], [1, 0]]
    assert batch["image_index"].tolist() == [[-1], [0], [-1]]
    assert (batch["input_ids"] == listener.tokenizer.convert_tokens_to_ids("<audio>")).sum() == 3
    listener.save_pretrained(tmp_path)
    again = MMProcessor.from_pretrained(tmp_path)
    second = again(text=texts, audio=[low, None, [high, low]], return_tensors="pt", padding=True, deduplicate=True)
    assert torch.equal(second["input_features"], batch["input_features"]) and again.max_seconds == 1.0
    with pytest.raises(ValueError, match="row 0: the text has 1 '<audio>' markers but 2 audio clips"):
        listener(text="<audio>hm", audio=[[low, high]])
    with pytest.raises(ValueError, match="2 audio clips or lists of audio clips came with 3 texts"):
        listener(text=["hm"] * 3, audio=[low, high])
    with pytest.raises(ValueError, match="row 0: truncation left 0 of its 1 '<audio>' markers"):
        listener(text="what do you hear <audio>", audio=low, truncation=True, max_length=3)
    assert listener(text="hm", audio=[low, high], return_tensors="pt")["audio_index"].tolist() == [[0, 1]]


def test_from_a_csv_with_sound_to_a_model_that_predicts(tmp_path, capsys):
    rng = np.random.default_rng(0)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "audio", "label"])
        for number in range(24):
            label, pitch = ("low", 220) if number % 2 else ("high", 1760)
            soundfile.write(tmp_path / f"{number}.wav", *tone(pitch * rng.uniform(0.9, 1.1)))
            drawing(number * 9).save(tmp_path / f"{number}.png")
            image = "" if number % 5 < 2 else f"{number}.png"
            text = "" if number % 3 == 0 else "how high is the tone"  # rows 0, 6, 15 and 21 are a sound alone
            writer.writerow([image, text, "" if number == 23 else f"{number}.wav", label])
    towers = sum(([f"--{name}", "scratch-tiny"] for name in ("vision_tower", "text_model", "audio_tower")), [])
    options = ["--num_train_epochs", "40", "--per_device_train_batch_size", "8", "--learning_rate", "3e-3"]
    quiet = ["--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no", "--eval_strategy", "no"]
    command = ["train", "--task", "classification", "--train_file", str(tmp_path / "t.csv"), "--audio_column", "audio"]
    output = ["--output_dir", str(tmp_path / "out"), "--max_seconds", "1", "--use_cpu", "true"]
    assert cli.main([*command, *towers, *options, *quiet, *output, "--validation_file", str(tmp_path / "t.csv")]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["accuracy"] >= 0.9 > report["blind_accuracy"]
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")) is MMForSequenceClassification
    heard = ["predict", "--model", str(tmp_path / "out"), "--audio"]
    for name, expected in (("1.wav", "low"), ("2.wav", "high")):
        assert cli.main([*heard, str(tmp_path / name)]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"][0]["label"] == expected
    evaluate = ["evaluate", "--model", str(tmp_path / "out"), "--test_file", str(tmp_path / "t.csv")]
    assert cli.main([*evaluate, "--audio_column", "audio", "--max_seconds", "1"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])["modalities"]
    assert scores["audio alone"] > scores["without audio"]


def test_sound_needs_a_column_and_a_tower(tmp_path, capsys):
    command = ["train", "--train_file", "t.csv", "--output_dir", str(tmp_path), "--text_model", "scratch-tiny"]
    assert cli.main([*command, "--audio_column", "audio"]) == 2
    sentence = (
        "audio needs both --audio_column, the column with the clips, and --audio_tower, the model that encodes them"
    )
    assert sentence in capsys.readouterr().err
