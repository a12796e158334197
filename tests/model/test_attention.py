# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Every attention implementation gives the same result (law 5), and each part uses the one it was set to.

Shapes: B rows, T text tokens, D text width, H query heads, S memory slots.
"""

import pytest
import torch
from helpers.builders import (
    DECODERS,
    IMAGE_ID,
    mixed_rows,
    mm_config,
    mm_model,
    padded,
    pictures,
    rows_of_0_1_3_images,
    text_config,
    text_inputs,
    token_row,
    vision_config,
)
from helpers.laws import assert_generates_alike
from transformers import AutoModelForImageTextToText
from transformers.utils import is_flash_attn_2_available

from modeling_mm import MMConfig, MMForConditionalGeneration, MMModel

PER_PART = {"vision_config": "eager", "text_config": "sdpa", "": "flex_attention"}


def head_for(text):
    return MMForConditionalGeneration if text in DECODERS else MMModel


def batch(text="llama", side="right"):
    """Padded rows with no, one and three images."""
    rows, image_index = rows_of_0_1_3_images()
    return {**text_inputs(padded(rows, side), text), **pictures(3), "image_index": image_index}


@torch.no_grad()
def real_rows(model, inputs):
    """Logits or hidden states of all tokens that are not padding: (tokens, V or D)."""
    output = model(**inputs)
    states = output.logits if "logits" in output else output.last_hidden_state
    return states[inputs["attention_mask"].bool()].float()


def kinds(model):
    """The attention of vision tower, text backbone and fusion."""
    base = model.base_model
    parts = (base.vision_tower, base.text_model, base.fusion.layers[0].cross_attn)
    return [part.config._attn_implementation for part in parts]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("text", ["llama", "qwen3", "gpt2", "bert", "modernbert"])
def test_eager_attention_equals_sdpa(text, side, tmp_path):
    head = head_for(text)
    mm_model(text, head=head).save_pretrained(tmp_path)
    eager = head.from_pretrained(tmp_path, attn_implementation="eager").eval()
    sdpa = head.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert (kinds(eager), kinds(sdpa)) == (["eager"] * 3, ["sdpa"] * 3)
    inputs = batch(text, side)
    torch.testing.assert_close(real_rows(eager, inputs), real_rows(sdpa, inputs), atol=1e-5, rtol=1e-5)


def check_flex(text, side):
    """Compare flex_attention in all parts with sdpa in all parts: close outputs, and equal tokens from a decoder."""
    model, inputs = mm_model(text, head=head_for(text), num_latents=3), batch(text, side)
    expected = real_rows(model, inputs)
    model.set_attn_implementation("flex_attention")
    assert kinds(model) == ["flex_attention"] * 3
    torch.testing.assert_close(real_rows(model, inputs), expected, atol=1e-4, rtol=1e-4)
    if text in DECODERS and side == "left":
        inputs.pop("position_ids")
        generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        model.set_attn_implementation("sdpa")
        assert torch.equal(generated, model.generate(**inputs, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("text,side", [("llama", "right"), ("llama", "left"), ("bert", "right")])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_sdpa(text, side):
    with torch.compiler.set_stance("force_eager"):  # the same operator, without half a minute of compilation
        check_flex(text, side)


@pytest.mark.slow
def test_compiled_flex_attention_equals_sdpa():
    # for a second, symbolic shape, torch 2.13 generates C++ that does not compile; on a GPU the code is another
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        check_flex("llama", "right")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("side", ["left", "right"])
def test_flash_and_flex_attention_equal_sdpa_on_a_gpu(side):
    model = mm_model().to("cuda", torch.bfloat16)
    inputs = {name: value.cuda() for name, value in batch(side=side).items()}
    expected = real_rows(model, inputs)
    faster = ["flex_attention"] + (["flash_attention_2"] if is_flash_attn_2_available() else [])
    for attention in faster:
        model.set_attn_implementation(attention)
        got = real_rows(model, inputs)
        # bfloat16 keeps 8 bits: compare directions of the logits, and their size loosely
        assert torch.cosine_similarity(got, expected, dim=-1).min() > 0.999, attention
        torch.testing.assert_close(got, expected, atol=0.25, rtol=0.05)


@pytest.mark.parametrize("how", ["pretrained", "auto", "config", "from_config", "towers", "set"])
def test_each_part_attends_as_it_was_asked_to(how, tmp_path):
    saved = mm_model()
    saved.save_pretrained(tmp_path)
    if how == "pretrained":
        model = MMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=PER_PART)
    elif how == "auto":
        model = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=PER_PART)
    elif how == "config":
        model = MMForConditionalGeneration(mm_config(attn_implementation=PER_PART))
    elif how == "from_config":
        config = MMConfig.from_pretrained(tmp_path)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=PER_PART)
    elif how == "towers":
        towers = {"vision": vision_config(), "text": text_config()}
        model = MMForConditionalGeneration.from_towers(**towers, image_token_id=IMAGE_ID, attn_implementation=PER_PART)
    else:
        model = MMForConditionalGeneration.from_pretrained(tmp_path)
        model.set_attn_implementation(PER_PART)
    assert kinds(model) == ["eager", "sdpa", "flex_attention"]
    if how in ("pretrained", "auto", "set"):
        inputs = batch()
        torch.testing.assert_close(real_rows(model.eval(), inputs), real_rows(saved, inputs), atol=1e-5, rtol=1e-5)


def test_a_part_that_is_not_named_keeps_its_attention():
    model = mm_model(attn_implementation="eager")
    model.set_attn_implementation({"text_config": "sdpa"})
    assert kinds(model) == ["eager", "sdpa", "eager"]
    towers = {"vision": vision_config(), "text": text_config()}
    model = MMForConditionalGeneration.from_towers(**towers, attn_implementation={"vision_config": "eager"})
    assert kinds(model) == ["eager", "sdpa", "sdpa"]


def test_a_convolutional_tower_stands_beside_any_attention_of_the_other_parts():
    asked = {"text_config": "flex_attention", "": "flex_attention"}
    model = mm_model(vision="resnet", attn_implementation=asked)
    assert kinds(model) == ["eager", "flex_attention", "flex_attention"]


@pytest.mark.parametrize("how", ["pretrained", "config", "towers", "set"])
@pytest.mark.parametrize(
    "asked,message",
    [
        ("fast", 'Specified `attn_implementation="fast"` is not supported'),
        ({"text_config": "fast"}, 'Specified `attn_implementation="fast"` is not supported'),
        ({"text_model": "eager"}, r"names \['text_model'\]; expected \['vision_config', 'text_config', "),
    ],
    ids=["name", "name_of_a_part", "part"],
)
def test_an_attention_or_a_part_that_does_not_exist_is_named(how, asked, message, tmp_path):
    saved = mm_model()
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        if how == "pretrained":
            MMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=asked)
        elif how == "config":
            MMForConditionalGeneration(mm_config(attn_implementation=asked))
        elif how == "towers":
            towers = {"vision": vision_config(), "text": text_config()}
            MMForConditionalGeneration.from_towers(**towers, attn_implementation=asked)
        else:
            saved.set_attn_implementation(asked)


@pytest.mark.parametrize("text", ["llama", "bert"])
def test_cross_attentions_sum_to_one_where_a_token_sees_and_to_zero_elsewhere(text, tmp_path):
    mm_model(text, head=head_for(text)).save_pretrained(tmp_path)
    model = head_for(text).from_pretrained(tmp_path, attn_implementation="eager").eval()
    rows, image_index = mixed_rows()
    inputs = {**text_inputs(padded(rows), text), **pictures(2), "image_index": image_index}
    output = model(**inputs, output_attentions=True)
    assert len(output.attentions) == 3
    assert len(output.cross_attentions) == len(model.config.fusion_layers) == 2
    seen = torch.ones(4, 11)
    seen[0], seen[1, :2], seen[2, :1] = 0, 0, 0
    for weights in output.cross_attentions:  # (B, H, T, S)
        assert weights.shape == (4, 4, 11, 10)
        torch.testing.assert_close(weights.sum(-1), seen[:, None].expand(-1, 4, -1))
        assert weights[1, :, :, 5:].abs().max() == 0  # the row's absent second image
        assert weights[2, :, :5, 5:].abs().max() == 0  # an image whose marker comes later
        assert weights[2, :, 5:, 5:].min() > 0
    states = output.get("logits", output.get("last_hidden_state"))
    assert torch.equal(states[inputs["attention_mask"].bool()], real_rows(model, inputs))


RANKED = {"recency_ranks": 3, "initializer_range": 0.2}


def ranked_model(bias=None, **fields):
    """A model that knows the order of media, its biases drawn at random."""
    model = mm_model(**RANKED, **fields)
    with torch.no_grad():
        model.model.fusion.recency_bias.normal_(std=2.0) if bias is None else model.model.fusion.recency_bias.fill_(
            bias
        )
    return model


def two_image_rows():
    rows = [token_row(12, [1, 6]), token_row(9, [2]), token_row(5)]
    return rows, {**pictures(3), "image_index": torch.tensor([[0, 1], [2, -1], [-1, -1]])}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_biases_by_recency_change_only_what_sees_several_media(attention):
    rows, media = two_image_rows()
    model = ranked_model()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        found = model(**padded(rows), **media).logits
        model.model.fusion.recency_bias.zero_()
        plain = model(**padded(rows), **media).logits
    assert torch.equal(found[0, :6], plain[0, :6]) and (found[0, 6:12] - plain[0, 6:12]).abs().max() > 1e-3
    for row in (1, 2):
        torch.testing.assert_close(found[row, : len(rows[row])], plain[row, : len(rows[row])], atol=1e-5, rtol=1e-4)


def test_a_strong_bias_leaves_the_latest_image_alone():
    rows, media = two_image_rows()
    model = ranked_model(bias=-1e4)
    others = {**media, "pixel_values": media["pixel_values"].clone()}
    others["pixel_values"][0] += 1.0  # the first image of the first row
    with torch.no_grad():
        context = model.model
        weights = [
            context(**padded(rows), **inputs, output_attentions=True).cross_attentions[0] for inputs in (media, others)
        ]
    slots = weights[0].shape[-1] // 2
    assert weights[0][0, :, 6:12, :slots].abs().max() == 0  # behind the second marker, of the first image
    assert weights[0][0, :, 1:6, :slots].sum() > 0


def test_generation_with_biases_is_the_same_alone_in_a_batch_and_with_any_cache():
    rows, media = two_image_rows()
    assert_generates_alike(ranked_model(), rows, media)


@pytest.mark.parametrize("later", [[], [2]], ids=["text", "image"])
def test_a_later_turn_from_the_cache_equals_the_whole(later):
    model, media = ranked_model(), pictures(2 + len(later))
    first, second = token_row(10, [1, 5]), token_row(6, later)
    whole = torch.cat([first, second])[None]
    index = torch.arange(2 + len(later))[None]
    with torch.no_grad():
        want = model(input_ids=whole, **media, image_index=index).logits[:, 10:]
        earlier = {"pixel_values": media["pixel_values"][:2], "image_index": index[:, :2]}
        cache = model(input_ids=first[None], **earlier, use_cache=True).past_key_values
        found = model(input_ids=second[None], **media, image_index=index, past_key_values=cache).logits
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-3)


def test_media_that_are_given_together_are_equally_recent():
    rows, media = [token_row(9, [1, 2])], {**pictures(2), "image_index": torch.tensor([[0, 1]])}
    model = ranked_model()
    with torch.no_grad():
        found = model(**padded(rows), **media).logits
        model.model.fusion.recency_bias.zero_()
        torch.testing.assert_close(found, model(**padded(rows), **media).logits, atol=0, rtol=0)


def test_a_new_model_prefers_the_latest_image_and_an_old_config_knows_no_order():
    assert (mm_model(**RANKED).model.fusion.recency_bias == -2).all()
    assert mm_model().config.recency_ranks is None and not hasattr(mm_model().model.fusion, "recency_bias")
