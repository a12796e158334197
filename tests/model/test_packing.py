# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Packed conversations equal those in rows of their own, and see no media but theirs: law 16."""

import pytest
import torch
from helpers.audio import hearing, mixed
from helpers.builders import (
    DECODERS,
    REENTRANT,
    mm_model,
    padded,
    pictures,
    token_row,
)
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithFlattening

from modeling_mm import MMForSequenceClassification
from modeling_mm.model.packing_mm import ATTENTION

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def conversations():
    """Rows of 0 to 3 images, and their `image_index`."""
    rows = [token_row(9, [1]), token_row(20, [0, 7]), token_row(4), token_row(13, [2]), token_row(17, [0, 5, 9])]
    index = [[0, -1, -1], [1, 0, -1], [-1, -1, -1], [2, -1, -1], [0, 2, 1]]
    return rows, torch.tensor(index)


def packed(rows, **options):
    """The rows as transformers packs them."""
    collate = DataCollatorWithFlattening(return_tensors="pt", **options)
    return dict(collate([{"input_ids": row.tolist()} for row in rows]))


def unpacked(states, rows):
    """States (B, T, ...) of padded rows, without padding, one after the other."""
    return torch.cat([state[: len(row)] for state, row in zip(states, rows, strict=True)])


def labels_of(batch):
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


def gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_training(model, rows, media):
    """Packed and padded rows have the same loss and gradients."""
    batch, flat = padded(rows), packed(rows)
    count = int((flat["labels"] != -100).sum())
    options = {**media, "num_items_in_batch": count}
    loss, want = gradients(model, {**batch, **options, "labels": labels_of(batch)})
    packed_loss, found = gradients(model, {**flat, **options})
    torch.testing.assert_close(packed_loss, loss, **CLOSE)
    assert want.keys() == found.keys()
    for name in want:
        torch.testing.assert_close(found[name], want[name], **CLOSE)


@pytest.mark.parametrize("text", [*DECODERS, "gpt_neox", "phi", "phi3", "qwen3_moe"])
def test_logits_equal_those_of_padded_rows(text):
    torch.manual_seed(0)
    model, (rows, index), media = mm_model(text), conversations(), pictures(3)
    with torch.no_grad():
        want = unpacked(model(**padded(rows), **media, image_index=index).logits, rows)
        for options in ({}, {"return_flash_attn_kwargs": True}):
            batch = packed(rows, **options)
            del batch["labels"]
            found = model(**batch, **media, image_index=index).logits[0]
            torch.testing.assert_close(found, want, **CLOSE)
        blind = unpacked(model(**padded(rows)).logits, rows)
    assert (blind - want).abs().max() > 1e-3


@pytest.mark.parametrize("text", ["llama", "gpt2", "qwen3", "smollm3", "gpt_neox", "phi3", "qwen3_moe"])
def test_attention_within_each_conversation_equals_that_under_the_mask(text):
    model, (rows, index), media = mm_model(text), conversations(), pictures(3)
    flat = packed(rows)
    del flat["labels"]
    with torch.no_grad():
        want = model(**flat, **media, image_index=index).logits
        model.set_attn_implementation({"text_config": ATTENTION})
        torch.testing.assert_close(model(**flat, **media, image_index=index).logits, want, **CLOSE)
        batch = padded(rows)  # rows that are not packed go by their mask
        alone = model(**batch, **media, image_index=index).logits
    torch.testing.assert_close(unpacked(alone, rows), want[0], **CLOSE)


def test_two_rows_of_packed_conversations_equal_one():
    model, (rows, index), media = mm_model(), conversations(), pictures(3)
    rows[2], rows[3] = token_row(5), torch.cat([rows[3], token_row(4)])  # so that 3 conversations are as long as 2
    flat = packed(rows)
    del flat["labels"]
    with torch.no_grad():
        alone = model(**flat, **media, image_index=index).logits
        split = model(**{name: part.view(2, 34) for name, part in flat.items()}, **media, image_index=index).logits
    torch.testing.assert_close(split.flatten(0, 1), alone[0], **CLOSE)


def test_flat_images_belong_to_the_markers_of_their_conversation():
    model, (rows, _) = mm_model(), conversations()
    rows, media = [rows[0], rows[1], rows[2]], pictures(3)
    with torch.no_grad():
        want = unpacked(model(**padded(rows), **media).logits, rows)
        found = model(**{k: v for k, v in packed(rows).items() if k != "labels"}, **media).logits[0]
        embeds = model.get_input_embeddings()(torch.cat(rows))[None]
        by_embeds = model(inputs_embeds=embeds, position_ids=packed(rows)["position_ids"], **media).logits[0]
    torch.testing.assert_close(found, want, **CLOSE)
    torch.testing.assert_close(by_embeds, want, **CLOSE)


def test_another_conversation_changes_nothing():
    model, (rows, index), media = mm_model(), conversations(), pictures(3)
    flat = packed(rows)
    del flat["labels"]
    others = {**media, "pixel_values": media["pixel_values"].clone()}
    others["pixel_values"][1] += 1.0  # of the second conversation and the last
    with torch.no_grad():
        first = model(**flat, **media, image_index=index).logits[0].split([len(row) for row in rows])
        second = model(**flat, **others, image_index=index).logits[0].split([len(row) for row in rows])
    changed = [not torch.equal(*pair) for pair in zip(first, second, strict=True)]
    assert changed == [False, True, False, False, True]


@pytest.mark.parametrize("fields", [{}, {"num_latents": 2}], ids=["states", "latents"])
@pytest.mark.parametrize("attention", ["sdpa", ATTENTION])
def test_training_equals_that_of_padded_rows(fields, attention):
    model = mm_model(**fields)
    model.set_attn_implementation({"text_config": attention})
    rows, index = conversations()
    assert_same_training(model, rows, {**pictures(3), "image_index": index})


def test_encoded_media_serve_packed_conversations():
    model, (rows, index), media = mm_model(), conversations(), pictures(3)
    flat, batch = packed(rows), padded(rows)
    del flat["labels"]
    with torch.no_grad():
        key_values, start = model.model.cross_attention_inputs(batch["input_ids"], **media, image_index=index)
        want = unpacked(model(**batch, **media, image_index=index).logits, rows)
        found = model(**flat, media_key_values=key_values, media_start=start).logits[0]
    torch.testing.assert_close(found, want, **CLOSE)


def test_sound_and_images_together():
    model, (rows, media) = hearing(), mixed()
    flat = packed(rows)
    del flat["labels"]
    with torch.no_grad():
        want = unpacked(model(**padded(rows), **media).logits, rows)
        torch.testing.assert_close(model(**flat, **media).logits[0], want, **CLOSE)


@REENTRANT
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_lora_and_checkpointing_change_nothing():
    model = mm_model()
    lora = LoraConfig(r=4, target_modules=r".*text_model.*\.(q_proj|v_proj)", modules_to_save=["fusion"])
    model = get_peft_model(model, lora)
    model.train()
    model.enable_input_require_grads()
    model.base_model.model.gradient_checkpointing_enable()
    rows, index = conversations()
    assert_same_training(model, rows, {**pictures(3), "image_index": index})


def test_attention_maps_have_a_row_for_each_conversation():
    model, (rows, index), media = mm_model(), conversations(), pictures(3)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        want = model(**padded(rows), **media, image_index=index, output_attentions=True).cross_attentions[0]
        flat = {k: v for k, v in packed(rows).items() if k != "labels"}
        found = model(**flat, **media, image_index=index, output_attentions=True).cross_attentions[0]
    for row, (weights, expected) in enumerate(zip(found, want, strict=True)):
        torch.testing.assert_close(weights[:, : len(rows[row])], expected[:, : len(rows[row])], **CLOSE)


@pytest.mark.parametrize("text", ["opt", "lfm2"])
def test_a_backbone_that_mixes_conversations_is_refused(text):
    model, (rows, index) = mm_model(text, fusion_layers=[0]), conversations()
    with pytest.raises(ValueError, match=f"'{text}' mixes conversations"):
        model(**packed(rows), **pictures(3), image_index=index)


def test_a_cache_is_never_made_of_packed_conversations():
    model, (rows, index), media = mm_model(), conversations(), pictures(3)
    flat = packed(rows)
    del flat["labels"]
    with torch.no_grad():
        want = model(**flat, **media, image_index=index).logits
        torch.testing.assert_close(model(**flat, **media, image_index=index, use_cache=True).logits, want, **CLOSE)


def test_positions_of_one_row_for_all_rows_are_no_packing():
    model, rows = mm_model(), [token_row(9), token_row(7)]
    batch = padded(rows)
    batch["position_ids"] = torch.arange(9)[None]
    with torch.no_grad():
        found = model(**batch).logits
        want = model(**padded(rows)).logits
    torch.testing.assert_close(unpacked(found, rows), unpacked(want, rows), **CLOSE)


def test_what_would_mix_conversations_is_refused():
    model, (rows, index), media = mm_model(), conversations(), pictures(3)
    flat = packed(rows, return_flash_attn_kwargs=True)
    with pytest.raises(ValueError, match="leave the mask out"):
        model(**flat, attention_mask=torch.ones_like(flat["input_ids"]), **media, image_index=index)
    with pytest.raises(ValueError, match="cumulative lengths"):
        model(**{**flat, "cu_seq_lens_q": flat["cu_seq_lens_q"][:-1]}, **media, image_index=index)
    with pytest.raises(ValueError, match="one row of each per text"):
        model(**packed(rows), **media, image_index=index[:2])
    classifier = mm_model("bert", head=MMForSequenceClassification)
    with pytest.raises(ValueError, match="several packed conversations"):
        classifier(input_ids=flat["input_ids"], position_ids=flat["position_ids"])
