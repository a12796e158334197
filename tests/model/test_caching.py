# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Every way to continue a sequence gives the same tokens: law 4, for rows with no, one and three images.

Assisted decoding, beams and samples, later turns from a cache, embeddings, streams, parts in another precision.
Shapes: B rows, T text tokens, V vocabulary.
"""

import threading

import pytest
import torch
from helpers.builders import (
    IMAGE_ID,
    causal_model,
    drawing,
    mm_model,
    padded,
    pictures,
    rows_of_0_1_3_images,
    token_row,
)
from transformers import DynamicCache, StaticCache, StoppingCriteriaList, TextIteratorStreamer

# A random model could generate a marker without an image, so markers are suppressed.
GREEDY = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE_ID]}


def prompts(side="left"):
    """A padded batch with no, one and three images per row: inputs for `generate`."""
    rows, image_index = rows_of_0_1_3_images()
    batch = padded(rows, side)
    batch.pop("position_ids")
    return {**batch, **pictures(3), "image_index": image_index}


def alone(inputs, row):
    """One row of a batch, without padding and with its own images only."""
    real, index = inputs["attention_mask"][row].bool(), inputs["image_index"][row]
    text = {name: inputs[name][row, real][None] for name in ("input_ids", "attention_mask")}
    if (images := index[index >= 0]).numel() == 0:
        return text
    return {**text, "pixel_values": inputs["pixel_values"][images], "image_index": torch.arange(len(images))[None]}


@torch.no_grad()
def forward_logits(model, inputs, sequences):
    """Logits (B, new, V) of one pass over whole sequences, at the positions that predict the new tokens."""
    times, prompt = len(sequences) // len(inputs["input_ids"]), inputs["input_ids"].shape[1]
    new = sequences.shape[1] - prompt
    repeated = {name: inputs[name].repeat_interleave(times, 0) for name in ("attention_mask", "image_index")}
    mask = torch.nn.functional.pad(repeated["attention_mask"], (0, new), value=1)
    logits = model(
        input_ids=sequences,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        pixel_values=inputs["pixel_values"],
        image_index=repeated["image_index"],
    ).logits
    return logits[:, prompt - 1 : -1]


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("how", ["lookup", "text_draft", "draft", "itself"])
def test_speculation_gives_the_same_tokens(how, row):
    model, inputs = mm_model(), alone(prompts(), row)
    options = {
        "lookup": {"prompt_lookup_num_tokens": 3},
        "text_draft": {"assistant_model": causal_model()},
        "draft": {"assistant_model": mm_model(fusion_layers=[1], num_latents=2)},
        "itself": {"assistant_model": model},
    }
    assert torch.equal(model.generate(**inputs, **GREEDY, **options[how]), model.generate(**inputs, **GREEDY))


@pytest.mark.parametrize("text", ["llama", "gpt2"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["beams", "beam_sample"])
def test_beams_have_the_score_of_a_forward_pass(text, do_sample):
    model, inputs = mm_model(text), prompts()
    options = {"num_beams": 3, "num_return_sequences": 2, "do_sample": do_sample, "top_k": 0, "max_new_tokens": 6}
    beams = model.generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
    chosen = beams.sequences[:, -6:, None]
    steps = forward_logits(model, inputs, beams.sequences).log_softmax(-1).gather(2, chosen)
    torch.testing.assert_close(beams.sequences_scores, steps.mean(dim=(1, 2)), atol=1e-4, rtol=1e-4)


def test_samples_are_drawn_from_the_logits_of_a_forward_pass():
    model, inputs = mm_model(), prompts()
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6}
    drawn = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    assert drawn.sequences.shape == (9, 11 + 6) and len(drawn.sequences.unique(dim=0)) > 3
    logits = forward_logits(model, inputs, drawn.sequences)
    torch.testing.assert_close(torch.stack(drawn.logits, dim=1), logits, atol=1e-4, rtol=1e-4)


def test_a_seed_gives_the_same_samples_from_pixels_and_from_encoded_media():
    model, inputs = mm_model(), prompts()
    torch.manual_seed(7)
    expected = model.generate(**inputs, do_sample=True, max_new_tokens=6)
    inputs["media_key_values"] = model.encode_media(inputs.pop("pixel_values"), inputs["image_index"])
    torch.manual_seed(7)
    assert torch.equal(model.generate(**inputs, do_sample=True, max_new_tokens=6), expected)


@pytest.mark.parametrize("text", ["llama", "gpt2", "gemma2"])
def test_embeddings_give_the_tokens_of_their_ids(text):
    model, inputs = mm_model(text), prompts()
    expected = model.generate(**inputs, **GREEDY)
    embeddings = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    assert torch.equal(model.generate(**inputs, **embeddings, **GREEDY), expected)
    ids = inputs.pop("input_ids")  # markers are found by their embedding
    assert torch.equal(model.generate(**inputs, **embeddings, **GREEDY), expected[:, ids.shape[1] :])
    logits = model(input_ids=ids, **inputs).logits
    torch.testing.assert_close(model(**embeddings, **inputs).logits, logits, atol=1e-5, rtol=1e-5)


def conversation(model):
    """A first turn of three rows, generated; then a second one, in which two rows get another image."""
    first = prompts()
    answer = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    question = torch.stack([token_row(5, [1]), token_row(5, [2]), token_row(5)])
    ids = torch.cat([answer.sequences, question], dim=1)
    mask = torch.nn.functional.pad(first["attention_mask"], (0, ids.shape[1] - 11), value=1)
    pixel_values = torch.cat([first["pixel_values"], pictures(1)["pixel_values"]])
    image_index = torch.tensor([[3, -1, -1], [0, 3, -1], [1, 0, 2]])
    return answer, {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values, "image_index": image_index}


@pytest.mark.parametrize("text", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("ids", ["all", "new"])
def test_a_later_turn_goes_on_from_the_cache(text, ids):
    model = mm_model(text)
    answer, second = conversation(model)
    expected = model.generate(**second, **GREEDY)[:, -6:]
    changed = {**second, "pixel_values": torch.cat([second["pixel_values"][:3], pictures(1)["pixel_values"]])}
    before = answer.past_key_values.get_seq_length()
    assert before == 11 + 6 - 1
    if ids == "new":
        second["input_ids"] = second["input_ids"][:, before:]
    got = model.generate(**second, past_key_values=answer.past_key_values, **GREEDY)
    assert torch.equal(got[:, -6:], expected)
    assert not torch.equal(model.generate(**changed, **GREEDY)[:2, -6:], expected[:2])  # the new image is seen


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_a_pass_over_new_columns_equals_a_pass_over_all(kind):
    model = mm_model()
    _, whole = conversation(model)
    positions = (whole["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = model(**whole, position_ids=positions).logits
    cache = StaticCache(model.config.text_config, max_cache_len=64) if kind == "static" else DynamicCache()
    got = []
    for columns, index in [(slice(0, 12), prompts()["image_index"]), (slice(12, 22), whole["image_index"])]:
        output = model(
            input_ids=whole["input_ids"][:, columns],
            attention_mask=whole["attention_mask"][:, : columns.stop],
            position_ids=positions[:, columns],
            past_key_values=cache,
            pixel_values=whole["pixel_values"],
            image_index=index,
        )
        got.append(output.logits)
    real = whole["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(got, dim=1)[real], expected[real], atol=1e-4, rtol=1e-4)


def test_encoded_media_of_two_turns_are_joined():
    model = mm_model()
    images, row = pictures(2)["pixel_values"], token_row(8, [1, 5])[None]
    both = torch.cat([model.encode_media(images[:1]), model.encode_media(images[1:])], dim=4)
    expected = model.generate(row, pixel_values=images[None], **GREEDY)
    assert torch.equal(model.generate(row, media_key_values=both, **GREEDY), expected)
    with pytest.raises(ValueError, match="both `pixel_values` and `media_key_values` were given"):
        model(input_ids=row, pixel_values=images[None], media_key_values=both)


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 4}, {"guidance_scale": 1.0}], ids=str)
def test_ways_of_reading_the_prompt_give_the_same_tokens(options):
    model, inputs = mm_model(), prompts()
    assert torch.equal(model.generate(**inputs, **GREEDY, **options), model.generate(**inputs, **GREEDY))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cache", ["static", "offloaded", "offloaded_static"])
def test_caches_of_a_gpu_give_the_same_tokens(cache):
    model, inputs = mm_model().cuda(), {name: value.cuda() for name, value in prompts().items()}
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation=cache), expected)


def test_a_stream_says_what_generate_says(processor):
    model = mm_model(image_token_id=processor.image_token_id)
    model.resize_token_embeddings(len(processor.tokenizer))
    inputs = dict(processor(drawing((200, 30, 30)), "<image>what colour", return_tensors="pt"))
    options = {**GREEDY, "suppress_tokens": [processor.image_token_id]}
    expected = processor.tokenizer.decode(model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :])
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **options, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == expected and expected


def test_each_row_stops_by_itself():
    model, inputs = mm_model(), prompts()
    expected = model.generate(**inputs, **GREEDY)[:, 11:]
    stop = int(expected[1, 2])
    got = model.generate(**inputs, **GREEDY, eos_token_id=stop, pad_token_id=0)[:, 11:]
    lengths = [[*row, stop].index(stop) + 1 for row in expected.tolist()]
    assert lengths[1] <= 3 < max(lengths)
    for row, length in enumerate(lengths):
        assert torch.equal(got[row, :length], expected[row, :length])
        assert not got[row, length:].any()
    seen = []
    criteria = StoppingCriteriaList([lambda ids, scores: seen.append(ids.shape) or torch.full((3,), len(seen) == 4)])
    short = model.generate(**inputs, **GREEDY, stopping_criteria=criteria)[:, 11:]
    assert torch.equal(short, expected[:, :4])


def test_pictures_without_a_prompt_start_from_the_first_token():
    model, images = mm_model(), pictures(2)
    ids = torch.full((2, 1), model.config.text_config.bos_token_id)
    assert torch.equal(model.generate(**images, **GREEDY), model.generate(ids, **images, **GREEDY))


@pytest.mark.parametrize("part", ["all", "fusion", "vision_tower", "text_model"])
@pytest.mark.parametrize("num_latents", [None, 3])
@torch.no_grad()
def test_parts_may_have_another_precision(part, num_latents):
    model, inputs = mm_model(num_latents=num_latents, initializer_range=0.05), prompts()
    expected = model(**inputs).logits
    (model if part == "all" else getattr(model.model, part)).to(torch.bfloat16)
    model.lm_head.to(model.model.text_model.dtype)
    got = model(**inputs).logits
    assert got.dtype == model.model.text_model.dtype
    real = inputs["attention_mask"].bool()
    difference = (got.float() - expected)[real].abs().max() / expected[real].abs().max()
    assert 0 < difference < 0.05
    inputs["media_key_values"] = model.encode_media(inputs.pop("pixel_values"), inputs["image_index"]).double()
    torch.testing.assert_close(model(**inputs).logits, got)
    assert model.generate(**inputs, **GREEDY).shape == (3, 17)


@pytest.mark.parametrize("argument", ["input_ids", "inputs_embeds"])
def test_images_without_their_marker_are_refused(argument):
    model, images = mm_model(), pictures(2)["pixel_values"]
    for markers in ([1], [1, 3, 4]):
        ids = torch.stack([token_row(7), token_row(7, markers)])
        text = {"input_ids": ids} if argument == "input_ids" else {"inputs_embeds": model.get_input_embeddings()(ids)}
        with pytest.raises(ValueError, match=f"row 1: 2 images came with {len(markers)} image markers"):
            model.generate(**text, pixel_values=images, image_index=torch.tensor([[0, 1], [0, 1]]))
    blind = token_row(7, [1, 3])[None]  # a text without its images is still allowed
    expected = model.generate(blind, **GREEDY)
    nothing = torch.tensor([[-1]])
    assert torch.equal(model.generate(blind, pixel_values=images, image_index=nothing, **GREEDY), expected)


def test_a_later_turn_without_the_earlier_pictures_is_refused():
    model = mm_model()
    answer, second = conversation(model)
    second["image_index"] = torch.tensor([[3], [3], [-1]])
    with pytest.raises(ValueError, match="row 1: 1 images came with 2 .* pass the images of the earlier turns again"):
        model.generate(**second, past_key_values=answer.past_key_values, **GREEDY)
