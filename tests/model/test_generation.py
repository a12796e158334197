# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Every generation method gives the same tokens: law 4; and media are encoded once: law 10.

Shapes: B rows, T text tokens, V vocabulary, I distinct images.
"""

import pytest
import torch
from helpers.builders import DECODERS, causal_model, mm_model, padded, pictures, token_row

from modeling_mm import MMForSequenceClassification

GREEDY = {"max_new_tokens": 8, "do_sample": False}


def prompts(side="left"):
    """A batch with no, one and two images per row: inputs for `generate`."""
    batch = padded([token_row(9), token_row(7, [2]), token_row(11, [1, 5])], side)
    batch.pop("position_ids")
    return {**batch, **pictures(2), "image_index": torch.tensor([[-1, -1], [0, -1], [1, 0]])}


def one_prompt():
    """One row with an image and a repeated pattern for prompt lookup."""
    row = torch.tensor([[5, 6, 98, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]])
    return {"input_ids": row, "attention_mask": torch.ones_like(row), **pictures(1)}


def alone(inputs, row):
    """One row of `prompts`, without padding and with its own images only."""
    real = inputs["attention_mask"][row].bool()
    images = inputs["image_index"][row][inputs["image_index"][row] >= 0]
    text = {name: inputs[name][row, real][None] for name in ("input_ids", "attention_mask")}
    return (
        {**text, "pixel_values": inputs["pixel_values"][images]}
        if len(images) == 1
        else {
            **text,
            **(
                {"pixel_values": inputs["pixel_values"][images], "image_index": torch.arange(len(images))[None]}
                if len(images)
                else {}
            ),
        }
    )


def new_tokens(model, inputs, **options):
    """The tokens after the prompt: (B, 8)."""
    generated = model.generate(**inputs, **{**GREEDY, **options})
    return generated[:, inputs["input_ids"].shape[1] :]


class VisionCalls:
    """A counter of the calls of a vision tower and their images."""

    def __init__(self, model):
        self.images = []
        tower = getattr(model, "model", model).vision_tower
        tower.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs, output):
        self.images.append(kwargs["pixel_values"].shape[0])


@pytest.mark.parametrize("text", DECODERS)
@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=["none", "static"])
def test_every_cache_gives_the_same_tokens(text, options):
    model, inputs = mm_model(text), prompts()
    expected = new_tokens(model, inputs)
    assert torch.equal(new_tokens(model, inputs, **options), expected)
    text_only = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    same = (new_tokens(model, text_only) == expected).all(dim=1)
    assert same.tolist() == [True, False, False]  # the images change the tokens of their rows


@pytest.mark.parametrize("text", DECODERS)
def test_cached_logits_equal_a_full_forward(text):
    model, inputs = mm_model(text), prompts()
    steps = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 8, dtype=torch.long)], dim=1)
    media = {name: inputs[name] for name in ("pixel_values", "image_index")}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    full = model(input_ids=steps.sequences, attention_mask=mask, position_ids=positions, **media).logits
    start = inputs["input_ids"].shape[1] - 1
    cached = torch.stack(steps.logits, dim=1)  # (B, 8, V)
    torch.testing.assert_close(cached, full[:, start : start + 8], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["llama", "gpt2", "qwen3"])
def test_prompt_lookup_gives_the_same_tokens(text):
    model, inputs = mm_model(text), one_prompt()
    expected = new_tokens(model, inputs)
    assert torch.equal(new_tokens(model, inputs, prompt_lookup_num_tokens=3), expected)


def test_a_text_only_draft_model_gives_the_same_tokens():
    model, inputs = mm_model(), one_prompt()
    expected = new_tokens(model, inputs)
    assert torch.equal(new_tokens(model, inputs, assistant_model=causal_model("llama")), expected)


def test_a_draft_model_with_fusion_gives_the_same_tokens():
    model, inputs = mm_model(), one_prompt()
    expected = new_tokens(model, inputs)
    assert torch.equal(new_tokens(model, inputs, assistant_model=mm_model()), expected)


def test_a_draft_that_is_the_model_itself_is_always_right():
    model, inputs = mm_model(), one_prompt()
    expected = new_tokens(model, inputs)
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(new_tokens(model, inputs, assistant_model=model), expected)
    # every draft is accepted, so that eight tokens take about eight calls of the draft and a few of the model
    assert len(calls) < 8 + 8


@pytest.mark.parametrize("text", DECODERS)
def test_a_row_generates_in_a_batch_what_it_generates_alone(text):
    model, inputs = mm_model(text), prompts()
    together = new_tokens(model, inputs)
    for row in range(3):
        assert torch.equal(new_tokens(model, alone(inputs, row))[0], together[row])


@pytest.mark.parametrize("text", ["llama", "gpt2"])
def test_beams_of_a_batch_equal_beams_of_each_row(text):
    model, inputs = mm_model(text), prompts()
    together = new_tokens(model, inputs, num_beams=3)
    for row in range(3):
        assert torch.equal(new_tokens(model, alone(inputs, row), num_beams=3)[0], together[row])


def test_several_sequences_per_row_belong_to_their_row():
    model, inputs = mm_model(), prompts()
    beams = new_tokens(model, inputs, num_beams=4, num_return_sequences=2)
    assert beams.shape == (6, 8)
    assert torch.equal(beams[::2], new_tokens(model, inputs, num_beams=4))
    sampled = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=5)
    assert sampled.shape == (15, 11 + 4)
    assert torch.equal(sampled[:, :11], inputs["input_ids"].repeat_interleave(5, 0))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_encoded_media_stand_for_pixels(num_beams):
    model, inputs = mm_model(), prompts()
    expected = new_tokens(model, inputs, num_beams=num_beams)
    pixels, image_index = inputs.pop("pixel_values"), inputs["image_index"]
    inputs["media_key_values"] = model.encode_media(pixels, image_index)
    assert torch.equal(new_tokens(model, inputs, num_beams=num_beams), expected)
    output = model(input_ids=inputs["input_ids"], pixel_values=pixels, image_index=image_index)
    assert torch.equal(output.media_key_values, inputs["media_key_values"])


def test_encoded_media_with_their_starts_need_no_index():
    model, inputs = mm_model(), prompts()
    expected = new_tokens(model, inputs)
    media = {name: inputs.pop(name) for name in ("pixel_values", "image_index")}
    key_values, start = model.model.cross_attention_inputs(inputs["input_ids"], **media)
    assert torch.equal(new_tokens(model, {**inputs, "media_key_values": key_values, "media_start": start}), expected)


def test_encoded_media_without_an_index_are_one_image_per_marker():
    model = mm_model()
    row, images = token_row(8, [1, 4])[None], pictures(2)["pixel_values"]
    expected = model.generate(row, pixel_values=images[None], **GREEDY)
    key_values = model.encode_media(images[None])
    assert torch.equal(model.generate(row, media_key_values=key_values, **GREEDY), expected)
    with pytest.raises(ValueError, match="do not share evenly"):
        model(input_ids=token_row(8, [1, 2, 4])[None], media_key_values=key_values)


def test_generation_starts_from_embeddings():
    model, ids = mm_model(), token_row(7)[None]  # without a marker, the whole row sees the image
    embeddings = model.get_input_embeddings()(ids)
    expected = model.generate(ids, **GREEDY, **(images := pictures(1)))
    generated = model.generate(inputs_embeds=embeddings, **GREEDY, **images)
    assert torch.equal(generated, expected[:, 7:])
    assert not torch.equal(model.generate(inputs_embeds=embeddings, **GREEDY), generated)


def test_logits_to_keep_are_the_last_ones():
    model, inputs = mm_model(), prompts()
    logits = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, logits[:, -2:])
    chosen = model(**inputs, logits_to_keep=torch.tensor([0, 4])).logits
    torch.testing.assert_close(chosen, logits[:, [0, 4]])


@pytest.mark.parametrize("head", ["generation", "classification"])
def test_a_distinct_image_is_encoded_once_for_all_its_rows(head):
    model = mm_model() if head == "generation" else mm_model("bert", head=MMForSequenceClassification)
    calls = VisionCalls(model)
    ids, images = torch.stack([token_row(6, [1]) for _ in range(6)]), pictures(2)["pixel_values"]
    image_index = torch.tensor([0, 0, 1, 0, 1, 1])[:, None]
    shared = model(input_ids=ids, pixel_values=images, image_index=image_index).logits
    assert calls.images == [2]
    repeated = model(input_ids=ids, pixel_values=images[image_index[:, 0]]).logits
    assert calls.images == [2, 6]
    torch.testing.assert_close(shared, repeated, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_generation_runs_the_vision_tower_once(options):
    model, inputs = mm_model(), prompts()
    calls = VisionCalls(model)
    new_tokens(model, inputs, **options)
    assert calls.images == [2]


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": None}], ids=str)
def test_speculative_generation_runs_the_vision_tower_once(options):
    model = mm_model()
    calls = VisionCalls(model)
    options = {"assistant_model": causal_model("llama")} if "assistant_model" in options else options
    new_tokens(model, one_prompt(), **options)
    assert calls.images == [1]


def test_a_second_question_runs_no_vision_tower():
    model, inputs = mm_model(), prompts()
    first = model(**inputs)
    calls = VisionCalls(model)
    second = {**padded([token_row(6), token_row(8, [1]), token_row(5, [1, 2])], "left")}
    second.pop("position_ids")
    media = {"media_key_values": first.media_key_values, "image_index": inputs["image_index"]}
    answer = new_tokens(model, {**second, **media})
    assert calls.images == []
    pixels = {name: inputs[name] for name in ("pixel_values", "image_index")}
    assert torch.equal(new_tokens(model, {**second, **pixels}), answer)
    assert calls.images == [2]


def test_a_draft_that_sees_is_given_no_media_of_another_model():
    model, draft = mm_model(), mm_model(fusion_layers=[1])  # with keys and values of another shape than the model's
    batch = {"input_ids": token_row(6, [1])[None], **pictures(1)}
    plain = model.generate(**batch, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(**batch, max_new_tokens=6, do_sample=False, assistant_model=draft), plain)
