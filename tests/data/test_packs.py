# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Packs hold every row once and little padding; a batch of packs trains as its rows alone would."""

import random

import pytest
import torch
from helpers.builders import drawing, model_for
from helpers.conversations import dataset_of, write_conversations

from modeling_mm.data.collator import MMCollator
from modeling_mm.data.packing import PackedRows, first_fit
from modeling_mm.data.rows import Row

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.mark.parametrize("size", [400, 1024, 4096])
def test_ragged_rows_fill_their_packs(size):
    draw = random.Random(0)
    lengths = [draw.randint(10, 400) for _ in range(3000)]
    packs = first_fit(lengths, size)
    assert sorted(index for pack in packs for index in pack) == list(range(3000))
    assert all(sum(lengths[i] for i in pack) <= size for pack in packs)
    assert sum(lengths) / (size * len(packs)) > (0.95 if size > 400 else 0.9)


def test_a_row_longer_than_a_pack_is_one():
    assert first_fit([5, 50, 5], 10) == [[0, 2], [1]]


def test_packs_depend_on_the_seed_alone_and_keep_groups_together(tmp_path):
    rows = dataset_of(write_conversations(tmp_path, "messages", 40))
    lengths = [20] * 40
    packs = PackedRows(rows, lengths, 100, seed=1)
    assert packs.packs == PackedRows(rows, lengths, 100, seed=1).packs != PackedRows(rows, lengths, 100, seed=2).packs
    assert len(packs) == 8 and packs.fill == 1 and [row.turns for row in packs[0]]
    together = PackedRows(rows, lengths, 200, seed=1, groups=rows.groups())
    images = [len({row.images[0].key for row in together[i]}) for i in range(len(together))]
    assert images == [1] * 4


def rows_of(tmp_path):
    """Rows of a generation of different lengths, with 0 to 2 images."""
    paths = []
    for name, colour in (("a", (200, 0, 0)), ("b", (0, 0, 200))):
        drawing(colour).save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
    return [
        Row(1, paths[:1], "what colour is the circle", "blue"),
        Row(2, [], "is there a red square", "yes"),
        Row(3, paths[::-1], "is <image> a small <image> green triangle", "no"),
        Row(4, paths[1:], "what", "a small green triangle"),
        Row(5, paths[:1], "colour", "blue"),
    ]


def test_a_batch_of_packs_has_the_loss_and_gradients_of_its_rows(processor, tmp_path):
    rows, collate = rows_of(tmp_path), MMCollator(processor, "generation")
    model = model_for(processor).train()
    losses, gradients = [], []
    for batch in (collate(rows), collate([rows[:3], rows[3:]])):
        model.zero_grad()
        loss = model(**batch, num_items_in_batch=(batch["labels"] != -100).sum()).loss
        loss.backward()
        losses.append(loss)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], **CLOSE)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, **CLOSE)
    assert "attention_mask" not in batch and batch["input_ids"].shape[0] == 2
    assert batch["pixel_values"].shape[0] == 2  # each image is encoded once, though both packs have both


def test_padding_of_a_pack_is_not_learned(processor, tmp_path):
    rows = rows_of(tmp_path)
    batch = MMCollator(processor, "generation")([rows[:1], rows[1:4]])
    real = [sum(len(tokens.ids) for tokens in MMCollator(processor, "generation").tokens([row])) for row in rows]
    assert (batch["labels"][0, real[0] :] == -100).all() and (batch["position_ids"][0].diff() == 1).all()
    assert (batch["position_ids"][1] == 0).sum() == 3
