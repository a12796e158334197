# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The effect of fusion on a backbone: laws 1, 2 and 3 of the design, over many towers.

Shapes: B rows, T text tokens, D text width, V vocabulary.
"""

import pytest
import torch
from helpers.builders import (
    DECODERS,
    ENCODERS,
    IMAGE_ID,
    VISION,
    causal_model,
    mixed_rows,
    mm_config,
    mm_encoder,
    mm_model,
    open_gates,
    padded,
    pictures,
    text_config,
    text_inputs,
    token_row,
    vision_model,
)
from transformers import AutoModel

from modeling_mm import MMConfig, MMForConditionalGeneration, MMModel
from modeling_mm.model.media_mm import NEVER, media_start_from_markers

BACKBONES = [*DECODERS, *ENCODERS]


def head_for(text):
    return MMForConditionalGeneration if text in DECODERS else MMModel


def rows_out(model, **inputs):
    """Logits (B, T, V) of a decoder, or hidden states (B, T, D) of an encoder."""
    with torch.no_grad():
        output = model(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


def composed(text, vision, **fields):
    """Logits of a causal model (or states of an encoder) on a batch, and the model composed over it, gates at zero."""
    backbone = causal_model(text) if text in DECODERS else AutoModel.from_config(text_config(text)).eval()
    rows, image_index = mixed_rows()
    batch = text_inputs(padded(rows), text)
    expected = rows_out(backbone, **batch)
    fields = {"fusion_layers": [0, 2], "image_token_id": IMAGE_ID, **fields}
    model = head_for(text).from_towers(vision=vision_model(vision), text=backbone, **fields).eval()
    return expected, model, {**batch, **pictures(2, vision), "image_index": image_index}


@pytest.mark.parametrize("text", BACKBONES)
def test_gates_at_zero_leave_every_backbone_as_it_was(text):
    expected, model, inputs = composed(text, "clip_vision_model")
    assert torch.equal(rows_out(model, **inputs), expected)
    assert not torch.equal(rows_out(open_gates(model), **inputs), expected)


@pytest.mark.parametrize("vision", VISION)
def test_gates_at_zero_hide_every_vision_tower(vision):
    expected, model, inputs = composed("llama", vision)
    assert torch.equal(rows_out(model, **inputs), expected)
    assert not torch.equal(rows_out(open_gates(model), **inputs), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_latents": 3},
        {"fusion_mlp": True},
        {"fusion_num_attention_heads": 8, "fusion_num_key_value_heads": 2, "fusion_head_dim": 4},
        {"fusion_layers": [1]},
        {"fusion_layers": [0, 1, 2]},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_gates_at_zero_hide_every_form_of_fusion(fields):
    expected, model, inputs = composed("llama", "clip_vision_model", **fields)
    assert torch.equal(rows_out(model, **inputs), expected)
    assert not torch.equal(rows_out(open_gates(model), **inputs), expected)


def test_gates_at_zero_generate_what_the_backbone_generates():
    backbone, row = causal_model("llama"), token_row(8, [2])[None]
    expected = backbone.generate(row, max_new_tokens=8, do_sample=False)
    model = MMForConditionalGeneration.from_towers(vision=vision_model(), text=backbone, image_token_id=IMAGE_ID)
    generated = model.eval().generate(row, max_new_tokens=8, do_sample=False, **pictures(1))
    assert torch.equal(generated, expected)


@pytest.mark.parametrize("text", DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_before_a_marker_does_not_see_its_image(text, side):
    model = mm_model(text)
    batch = padded([token_row(10, [2, 6]), token_row(13)], side)
    real = batch["attention_mask"][0].bool()
    images = pictures(2)["pixel_values"]
    changed = images.clone()
    changed[1] = torch.randn_like(images[1])
    image_index = torch.tensor([[0, 1], [-1, -1]])
    before = rows_out(model, **batch, pixel_values=images, image_index=image_index)[0, real]
    after = rows_out(model, **batch, pixel_values=changed, image_index=image_index)[0, real]
    moved = (before - after).abs().amax(-1)  # (T)
    assert moved[:6].max() == 0
    assert moved[6:].min() > 1e-4
    without = rows_out(model, **batch)[0, real]
    assert torch.equal(without[:2], before[:2])
    assert (without - before)[2:].abs().amax(-1).min() > 1e-4


def test_markers_decide_from_which_column_an_image_is_seen():
    ids = torch.tensor([[5, 98, 6, 98], [5, 6, 7, 8], [98, 5, 6, 7]])
    image_index = torch.tensor([[0, 1], [1, -1], [0, 1]])
    start = media_start_from_markers(ids == IMAGE_ID, image_index)
    assert start.tolist() == [[1, 3], [0, NEVER], [0, NEVER]]
    assert media_start_from_markers(None, image_index).tolist() == [[0, 0], [0, NEVER], [0, 0]]


@pytest.mark.parametrize(
    "text,side",
    [*((text, side) for text in DECODERS for side in ("left", "right")), *((text, "right") for text in ENCODERS)],
)
def test_a_row_alone_equals_the_row_in_a_batch(text, side):
    model = mm_model(text, head=head_for(text))
    rows, image_index = mixed_rows()
    images = pictures(2)["pixel_values"]
    batch = text_inputs(padded(rows, side), text)
    together = rows_out(model, **batch, pixel_values=images, image_index=image_index)
    for row, ids in enumerate(rows):
        items = image_index[row][image_index[row] >= 0]
        media = {"pixel_values": images[items], "image_index": torch.arange(len(items))[None]} if len(items) else {}
        alone = rows_out(model, **text_inputs(padded([ids]), text), **media)[0]
        columns = slice(0, len(ids)) if side == "right" else slice(-len(ids), None)
        torch.testing.assert_close(together[row, columns], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vision", VISION)
def test_a_row_alone_equals_the_row_in_a_batch_for_every_vision_tower(vision):
    model = mm_model("llama", vision)
    rows, image_index = mixed_rows()
    images, batch = pictures(2, vision), padded(rows)
    together = rows_out(model, **batch, **images, image_index=image_index)
    row_media = {name: value[[1, 0]] for name, value in images.items()}
    alone = rows_out(model, **padded(rows[2:3]), **row_media, image_index=torch.tensor([[0, 1]]))
    torch.testing.assert_close(together[2, :11], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", BACKBONES)
def test_a_text_only_row_is_untouched_by_the_images_beside_it(text):
    model = mm_model(text, head=head_for(text))
    rows, image_index = mixed_rows()
    batch = text_inputs(padded(rows), text)
    with_images = rows_out(model, **batch, **pictures(2), image_index=image_index)
    without = rows_out(model, **batch)
    assert torch.equal(with_images[0], without[0])
    assert not torch.equal(with_images[1], without[1])
    no_images = torch.full_like(image_index, -1)
    assert torch.equal(rows_out(model, **batch, **pictures(2), image_index=no_images), without)


def test_another_row_s_image_changes_nothing():
    model = mm_model()
    rows, _ = mixed_rows()
    image_index = torch.tensor([[-1], [0], [1], [2]])
    images = pictures(3)["pixel_values"]
    changed = images.clone()
    changed[1] = torch.randn_like(images[1])
    before = rows_out(model, **padded(rows), pixel_values=images, image_index=image_index)
    after = rows_out(model, **padded(rows), pixel_values=changed, image_index=image_index)
    same = [torch.equal(before[row], after[row]) for row in range(4)]
    assert same == [True, True, False, True]


@pytest.mark.parametrize(
    "fields",
    [
        {"fusion_mlp": False},
        {"num_latents": 3},
        {"fusion_num_key_value_heads": 1},
        {"fusion_memory_size": 8},
        {"fusion_memory_size": 8, "num_latents": 3},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_forms_of_fusion_keep_the_row_laws(fields):
    model = mm_model(**fields)
    rows, image_index = mixed_rows()
    images = pictures(2)["pixel_values"]
    together = rows_out(model, **padded(rows, "left"), pixel_values=images, image_index=image_index)
    alone = rows_out(model, **padded(rows[1:2]), pixel_values=images[:1])
    torch.testing.assert_close(together[1, -7:], alone[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(together[0], rows_out(model, **padded(rows, "left"))[0])


def test_a_resampler_gives_its_number_of_slots_and_ignores_padded_patches():
    model = mm_model(vision="siglip2_vision_model", num_latents=3)
    images = pictures(2, "siglip2_vision_model")
    images["image_index"] = torch.tensor([[0], [1]])
    key_values = model.encode_media(**images)
    assert key_values.shape == (2, 2, 2, 2, 3, 8)  # rows, fusion layers, key and value, heads, slots, width
    loud = torch.where(images["pixel_attention_mask"][..., None] == 1, images["pixel_values"], 100.0)
    torch.testing.assert_close(model.encode_media(**{**images, "pixel_values": loud}), key_values)


def test_padded_patches_are_never_seen():
    model = mm_model(vision="siglip2_vision_model")
    images, row = pictures(2, "siglip2_vision_model"), token_row(6, [1])
    output = model(**padded([row, row]), **images, image_index=torch.tensor([[0], [1]]))
    # A row with only the first image, without its five padding patches.
    fewer = {**images, **{name: images[name][:1, :4] for name in ("pixel_values", "pixel_attention_mask")}}
    fewer["spatial_shapes"] = images["spatial_shapes"][:1]
    alone = model(**padded([row]), **fewer, image_index=torch.tensor([[0]]))
    assert alone.media_key_values.shape[4] == 4 < output.media_key_values.shape[4]
    torch.testing.assert_close(output.logits[0], alone.logits[0], atol=1e-5, rtol=1e-5)


def test_pixels_without_an_index_are_one_or_more_images_per_row():
    model = mm_model()
    row, images = token_row(8, [1, 4]), pictures(4)["pixel_values"]
    flat = rows_out(model, **padded([row, row]), pixel_values=images, image_index=torch.tensor([[0, 1], [2, 3]]))
    nested = rows_out(model, **padded([row, row]), pixel_values=images.view(2, 2, 3, 16, 16))
    assert torch.equal(flat, nested)
    with pytest.raises(ValueError, match="expected .B, C, H, W. for one image per row"):
        model(**padded([row, row]), pixel_values=images[0])
    assert torch.equal(rows_out(model, **padded([row, row]), pixel_values=images), flat)
    with pytest.raises(ValueError, match="3 images came without `image_index`, but the 2 texts hold 4 markers"):
        model(**padded([row, row]), pixel_values=images[:3])


def test_random_initialisation_is_small_and_closes_the_gates():
    model = MMModel(mm_config(num_latents=3, initializer_range=0.02, fusion_intermediate_size=256))
    names = [name for name, _ in model.fusion.named_parameters() if name.endswith("_gate")]
    assert len(names) == 4
    assert all(model.fusion.get_parameter(name).item() == 0 for name in names)
    for weight in (model.fusion.resampler.latents, model.fusion.kv_proj.weight, model.fusion.layers[0].mlp[0].weight):
        assert 0.015 < weight.std() < 0.025


def test_a_frozen_vision_tower_stays_in_evaluation_mode():
    model = mm_encoder(vision="resnet")
    assert model.train().vision_tower.training
    model.vision_tower.requires_grad_(False)
    assert model.train().training and not model.vision_tower.training
    statistics = {name: value.clone() for name, value in model.vision_tower.named_buffers()}
    model(input_ids=token_row(4)[None], **pictures(1))
    assert all(torch.equal(value, statistics[name]) for name, value in model.vision_tower.named_buffers())


def test_the_memory_is_as_wide_as_the_vision_tower_and_no_wider_than_the_backbone():
    widths = {(vision, text): MMConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": vision, "num_attention_heads": 4},
        text_config={"model_type": "llama", "hidden_size": text, "num_attention_heads": 4},
    ).fusion_memory_size for vision, text in [(128, 512), (16, 512), (768, 256)]}  # fmt: skip
    assert widths == {(128, 512): 128, (16, 512): 64, (768, 256): 256}
    assert MMConfig(late_fusion="sum").fusion_memory_size == MMConfig().text_config.hidden_size
    assert mm_model(fusion_memory_size=8, num_latents=3).model.fusion.kv_proj.in_features == 8
