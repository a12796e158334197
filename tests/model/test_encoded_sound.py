# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Audio clips are encoded once: for a second text, for `generate`, and for the loss and the answer in evaluation."""

import pytest
import torch
from helpers.audio import clips, heard_row, hearing, hearing_processor, mixed, tone
from helpers.builders import drawing, padded
from helpers.laws import GREEDY
from transformers import TrainingArguments

from modeling_mm.data.collator import MMCollator
from modeling_mm.data.rows import Row
from modeling_mm.training.trainer import MMTrainer

soundfile = pytest.importorskip("soundfile")


def counted(model):
    """Two lists that record the number of items in each call of the vision and of the audio tower."""
    seen, heard = [], []
    for tower, calls in ((model.model.vision_tower, seen), (model.model.audio_tower, heard)):
        name = tower.main_input_name
        tower.register_forward_pre_hook(
            lambda module, args, inputs, name=name, calls=calls: calls.append(len(inputs[name])), with_kwargs=True
        )
    return seen, heard


def other_rows():
    """Another text for each row of `mixed`, with as many markers at other places."""
    return [
        heard_row(5),
        heard_row(9, [0]),
        heard_row(6, (), [4]),
        heard_row(7, [5], [0]),
        heard_row(8, (), [1, 6]),
    ]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["resnet", "wav2vec2", "whisper"])
def test_a_resampled_sound_needs_its_index_only(kind):
    model, (rows, media) = hearing(kind, num_latents=3), mixed(kind)
    index = {name: media[name] for name in ("image_index", "audio_index")}
    encoded = {"media_key_values": model.encode_media(**media), **index}
    for texts in (rows, other_rows()):
        inputs = padded(texts, "left")
        assert torch.equal(model(**inputs, **encoded).logits, model(**inputs, **media).logits)
        inputs.pop("position_ids")
        for options in ({}, {"num_beams": 2}, {"use_cache": False}):
            expected = model.generate(**inputs, **media, **GREEDY, **options)
            assert torch.equal(model.generate(**inputs, **encoded, **GREEDY, **options), expected)


@torch.no_grad()
def test_a_resampled_sound_alone_is_heard_from_its_marker_on():
    model, row = hearing(num_latents=3), heard_row(8, (), [3])[None]
    encoded = {"media_key_values": model.encode_media(**clips(1)), "audio_index": torch.tensor([[0]])}
    text = model(row).logits
    heard = model(row, **encoded).logits
    assert torch.equal(heard[:, :3], text[:, :3]) and not torch.equal(heard[:, 3:], text[:, 3:])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["resnet", "wav2vec2", "whisper"])
def test_memories_answer_a_second_text_without_a_tower(kind):
    model, (rows, media) = hearing(kind), mixed(kind)
    seen, heard = counted(model)
    memories = model.project_media(**media)
    for texts in (rows, other_rows()):
        inputs = padded(texts, "left")
        inputs.pop("position_ids")
        key_values, start = model.attended(memories, inputs["input_ids"])
        assert torch.equal(start, model.media_starts(memories, inputs["input_ids"]))
        answer = model.generate(**inputs, media_key_values=key_values, media_start=start, **GREEDY)
        assert (len(seen), len(heard)) == (1, 1)
        assert torch.equal(answer, model.generate(**inputs, **media, **GREEDY))
        del seen[1:], heard[1:]


@torch.no_grad()
def test_what_cannot_be_told_apart_is_refused():
    row, index = heard_row(5, (), [1])[None], torch.tensor([[0]])
    model = hearing()
    encoded = model.encode_media(**clips(1))
    with pytest.raises(ValueError, match="`media_start` .* which `media_starts` returns"):
        model(row, media_key_values=encoded, audio_index=index)
    with pytest.raises(ValueError, match="pass the `image_index` and `audio_index`"):
        model(row, media_key_values=encoded)
    model = hearing(num_latents=3)
    encoded = model.encode_media(**clips(1))
    with pytest.raises(ValueError, match="3 slots per row, which 2 images or audio clips do not share evenly"):
        model(row, media_key_values=encoded, audio_index=torch.tensor([[0, -1]]))
    with pytest.raises(ValueError, match="the media have 1 rows, `audio_index` 2 and the text 1"):
        model(row, media_key_values=encoded, audio_index=torch.tensor([[0], [0]]))


@pytest.fixture
def questions(tmp_path):
    """Rows about two images and two clips, shared among several rows."""
    for number in range(2):
        drawing(90 * number + 40).save(tmp_path / f"{number}.png")
        soundfile.write(tmp_path / f"{number}.wav", *tone(300 + 900 * number))
    image, sound = str(tmp_path / "{}.png"), str(tmp_path / "{}.wav")
    media_of_rows = [([0], [0]), ([0], [1]), ([], [1]), ([1], []), ([], []), ([1, 0], [0, 1])]
    return [
        Row(number, [image.format(i) for i in images], "what do you hear", "a tone", [sound.format(i) for i in sounds])
        for number, (images, sounds) in enumerate(media_of_rows, 1)
    ]


@pytest.mark.parametrize("fields", [{}, {"num_latents": 3}])
def test_evaluation_runs_each_tower_once_per_batch_on_the_distinct_items(questions, fields, tmp_path):
    listener, model = hearing_processor(), hearing(**fields)
    ids = {f"{kind}_token_id": listener.tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "audio")}
    model.resize_token_embeddings(len(listener.tokenizer))
    model.config.image_token_id, model.config.audio_token_id = ids["image_token_id"], ids["audio_token_id"]
    model.generation_config.eos_token_id = listener.tokenizer.eos_token_id
    model.generation_config.pad_token_id = listener.tokenizer.pad_token_id
    arguments = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_eval_batch_size": 3}
    trainer = MMTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path / "out"), **arguments),
        data_collator=MMCollator(listener, "generation", with_prompts=True),
        processing_class=listener,
        max_new_tokens=4,
    )
    seen, heard = counted(model)
    output = trainer.predict(questions)
    assert seen == [1, 2] and heard == [2, 2]
    losses, counts = [], []
    for number, row in enumerate(questions):
        batch = MMCollator(listener, "generation", with_prompts=True)([row])
        prompt = {name: batch.pop(f"prompt_{name}") for name in ("input_ids", "attention_mask")}
        media = {name: batch[name] for name in batch if name not in ("input_ids", "attention_mask", "labels")}
        answer = model.generate(**prompt, **media, max_new_tokens=4, do_sample=False)
        answer = answer[0, prompt["input_ids"].shape[1] :]
        assert output.predictions[number, : len(answer)].tolist() == answer.tolist()
        with torch.no_grad():
            losses.append(model(**batch).loss)
        counts.append((batch["labels"][:, 1:] != -100).sum().item())
    assert len(set(counts)) == 1  # so that the mean over rows is the mean over tokens
    assert output.metrics["test_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
