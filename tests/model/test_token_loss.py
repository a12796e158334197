# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Logits where they are learned: loss and gradients are those of all logits."""

import pytest
import torch
from helpers.builders import DECODERS, mixed_rows, mm_model, open_gates, padded, pictures
from peft import LoraConfig, get_peft_model

from modeling_mm.model import token_loss_mm

EXACT = {"atol": 1e-6, "rtol": 1e-5}


def training_batch(learned=0.4):
    """A batch of which a share of the tokens is learned."""
    torch.manual_seed(0)
    rows, index = mixed_rows()
    batch = padded(rows)
    hidden = (torch.rand(batch["input_ids"].shape) > learned) | (batch["attention_mask"] == 0)
    return {**batch, **pictures(2), "image_index": index, "labels": batch["input_ids"].masked_fill(hidden, -100)}


def gradients(model, **batch):
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_loss(model, batch):
    """Loss and gradients with and without all logits agree."""
    whole, want = gradients(model, **batch)
    part, found = gradients(model, **batch, skip_logits=True)
    assert part.logits is None
    torch.testing.assert_close(part.loss, whole.loss, **EXACT)
    assert found.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(found[name], want[name], **EXACT)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("items", [None, 11, torch.tensor(11)], ids=["mean", "sum", "tensor"])
def test_loss_and_gradients_are_exact(chunk, items, monkeypatch):
    monkeypatch.setattr(token_loss_mm, "CHUNK_BYTES", chunk * 4 * 99)
    batch = training_batch()
    assert_same_loss(mm_model().train(), batch if items is None else {**batch, "num_items_in_batch": items})


@pytest.mark.parametrize("text", DECODERS)  # with tied heads, scaled and capped logits
def test_every_decoder_has_the_same_loss(text, monkeypatch):
    monkeypatch.setattr(token_loss_mm, "CHUNK_BYTES", 3 * 4 * 99)
    assert_same_loss(mm_model(text), training_batch())


def test_adapters_of_the_head_learn_alike(monkeypatch):
    monkeypatch.setattr(token_loss_mm, "CHUNK_BYTES", 3 * 4 * 99)
    adapted = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    assert_same_loss(open_gates(get_peft_model(mm_model(), adapted)), training_batch())


def test_only_learned_tokens_reach_the_head():
    model, batch, seen = mm_model(), training_batch(), []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    model(**batch, skip_logits=True)
    assert seen == [int((batch["labels"][:, 1:] != -100).sum())]


def test_a_batch_without_learned_tokens_has_no_gradient_to_give():
    model, batch = mm_model(), training_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    output, found = gradients(model, **batch, skip_logits=True, num_items_in_batch=3)
    assert output.loss.item() == 0 and not any(gradient.any() for gradient in found.values())
