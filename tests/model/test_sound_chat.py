# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Audio in conversations: `apply_chat_template` returns the same tensors as the direct call."""

import numpy as np
import pytest
import torch
from helpers.audio import hearing, hearing_processor, tone
from helpers.builders import drawing
from helpers.laws import assert_classified_alike
from transformers import pipeline

from modeling_mm import MMForSequenceClassification

soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def listener():
    """A processor with a feature extractor, shared by the tests of this file."""
    return hearing_processor()


@pytest.fixture
def files(tmp_path):
    """Two audio files at other rates than the feature extractor's, one of them longer than `max_seconds`."""
    low, high = str(tmp_path / "low.wav"), str(tmp_path / "high.flac")
    soundfile.write(low, *tone(220, 0.5, 44100))
    soundfile.write(high, *tone(880, 1.3, 11025))
    return low, high


def message(role, *parts):
    """A message; parts are texts, images, and dicts with an audio source."""
    content = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif isinstance(part, dict):
            content.append({"type": "audio", **part})
        else:
            content.append({"type": "image", "image": part})
    return {"role": role, "content": content}


def tokens(listener, conversations, **options):
    """The tensors of conversations by the chat template."""
    options = {"return_tensors": "pt", "processor_kwargs": {"padding": True}, **options}
    return listener.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, **options
    )


def equal(left, right):
    """True if two batches hold the same tensors under the same names."""
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.filterwarnings("ignore:the audio clip .* lasts")
def test_conversations_of_several_turns_give_the_tensors_of_the_direct_call(listener, files):
    low, high = files
    picture = drawing(90)
    conversations = [
        [message("user", {"path": low}, "what do you hear"), message("assistant", "a tone"),
         message("user", picture, {"audio": high}, "what do you hear", {"url": low})],
        [message("user", picture, "what do you hear")],
        [message("user", {"path": high}, "a tone", picture)],
        [{"role": "user", "content": "what do you hear"}],
    ]  # fmt: skip
    once = {"processor_kwargs": {"padding": True, "deduplicate": True}}
    batch = tokens(listener, conversations, **once)
    assert batch["audio_index"].tolist() == [[0, 1, 0], [-1, -1, -1], [1, -1, -1], [-1, -1, -1]]
    assert batch["image_index"].tolist() == [[0], [0], [0], [-1]] and len(batch["input_features"]) == 2
    texts = listener.apply_chat_template(conversations, add_generation_prompt=True)
    sounds, pictures = [[low, high, low], None, high, None], [picture, picture, picture, None]
    assert equal(batch, listener(pictures, texts, audio=sounds, return_tensors="pt", padding=True, deduplicate=True))
    for row, conversation in enumerate(conversations):
        alone = tokens(listener, conversation, **once)
        index = batch["audio_index"][row][batch["audio_index"][row] >= 0]
        if len(index):
            row_features = alone["input_features"][alone["audio_index"][0]]
            assert torch.equal(row_features, batch["input_features"][index])
        else:
            assert "input_features" not in alone


def test_every_kind_of_source_is_heard(listener, files):
    low, _ = files
    clip, rate = tone(220, 0.5)
    expected = listener(text="<audio>\n", audio=[(clip, rate)], return_tensors="pt")["input_features"]
    cell = {"array": clip, "sampling_rate": rate}
    with open(low, "rb") as file:
        sources = [clip, (clip, rate), cell, torch.tensor(clip), {"bytes": file.read(), "path": None}]
    for source in sources[:4]:
        assert torch.equal(tokens(listener, [message("user", {"audio": source})])["input_features"], expected)
    by_path = tokens(listener, [message("user", {"path": low, "audio": None})])["input_features"]
    assert torch.equal(tokens(listener, [message("user", {"audio": sources[4]})])["input_features"], by_path)


@pytest.mark.parametrize("rate_arguments", [{"sampling_rate": 8000}, {"audio_kwargs": {"sampling_rate": 8000}}])
def test_a_sampling_rate_is_that_of_arrays_without_one(listener, rate_arguments):
    clip, rate = tone(220, 0.5, 8000)
    expected = listener(text="<audio>\n", audio=[(clip, rate)], return_tensors="pt")
    assert equal(listener(text="<audio>\n", audio=[clip], return_tensors="pt", **rate_arguments), expected)
    batch = tokens(listener, [message("user", {"audio": clip})], processor_kwargs=rate_arguments)
    assert torch.equal(batch["input_features"], expected["input_features"])


def test_a_flat_list_is_dealt_out_to_the_markers(listener):
    low, high = tone(220), tone(880)
    texts = ["<audio>a<audio>b", "c", "<audio>d"]
    nested = listener(text=texts, audio=[[low, high], None, [low]], return_tensors="pt", padding=True)
    assert equal(listener(text=texts, audio=[low, high, low], return_tensors="pt", padding=True), nested)


def test_tensors_are_of_the_kind_asked_for(listener, files):
    batch = tokens(
        listener, [message("user", {"path": files[0]}, drawing(9))], return_tensors="np", processor_kwargs={}
    )
    assert set(batch) == {name for name in listener.model_input_names if not name.endswith("_index")}
    assert all(isinstance(value, np.ndarray) for value in batch.values())


def test_without_tokens_no_sound_is_read(listener):
    assert "<audio>" in listener.apply_chat_template([message("user", {"path": "nowhere.wav"})])
    with pytest.raises(ValueError, match="the audio clip 'nowhere.wav' does not exist"):
        tokens(listener, [message("user", {"path": "nowhere.wav"})])


def test_the_library_s_pipeline_hears_what_generate_hears(listener, files):
    model = hearing()
    model.resize_token_embeddings(len(listener.tokenizer))
    ids = (listener.tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "audio"))
    model.config.image_token_id, model.config.audio_token_id = ids
    ask = pipeline("image-text-to-text", model=model, processor=listener)
    for parts in ([{"path": files[0]}], [drawing(90), {"audio": files[0]}]):
        chat = [message("user", *parts, "what do you hear")]
        answer = ask(text=chat, max_new_tokens=4, generate_kwargs={"do_sample": False})[0]["generated_text"][-1]
        batch = tokens(listener, chat)
        expected = model.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert answer["content"] == listener.decode(expected, skip_special_tokens=True)


def test_a_processor_without_ears_says_so(processor):
    assert not hasattr(processor, "feature_extractor")
    with pytest.raises(ValueError, match="without a feature extractor"):
        tokens(processor, [message("user", {"audio": tone(220)[0]})])


@pytest.mark.filterwarnings("ignore:the audio clip .* lasts")
def test_our_pipeline_takes_sound_in_any_row(listener, files):
    model = hearing(head=MMForSequenceClassification, text="bert")
    model.resize_token_embeddings(len(listener.tokenizer))
    ids = (listener.tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "audio"))
    model.config.image_token_id, model.config.audio_token_id = ids
    classify = pipeline("multimodal-classification", model=model, processor=listener)
    low, high = files
    rows = [{"audio": low, "text": "a tone"}, {"text": "a tone"}, {"audio": [tone(880), high], "image": drawing(9)}]
    assert_classified_alike(classify, rows)
