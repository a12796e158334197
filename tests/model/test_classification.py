# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The logits of a row depend on the row alone, and the loss is the one of the problem type."""

import pytest
import torch
from helpers.builders import mixed_rows, mm_model, padded, pictures, text_inputs, token_row
from torch.nn import functional

from modeling_mm import MMForSequenceClassification


def classifier(text="llama", **fields):
    return mm_model(text, head=MMForSequenceClassification, **fields)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize(
    "text,side", [("llama", "left"), ("llama", "right"), ("bert", "right"), ("modernbert", "right")]
)
def test_a_row_alone_equals_the_row_in_a_batch(text, side, pooling):
    model = classifier(text, pooling=pooling)
    rows, image_index = mixed_rows()
    images = pictures(2)["pixel_values"]
    together = model(**text_inputs(padded(rows, side), text), pixel_values=images, image_index=image_index).logits
    for row, ids in enumerate(rows):
        items = image_index[row][image_index[row] >= 0]
        media = {"pixel_values": images[items], "image_index": torch.arange(len(items))[None]} if len(items) else {}
        alone = model(input_ids=ids[None], **media).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_pooling_takes_what_it_says(pooling):
    model = classifier(pooling=pooling)
    ids, images = token_row(6, [1])[None], pictures(1)
    states = model.model(ids, **images).last_hidden_state[0]
    pooled = {"first": states[0], "last": states[-1], "mean": states.mean(0)}[pooling]
    torch.testing.assert_close(model(ids, **images).logits[0], model.classifier(pooled))


def test_each_kind_of_label_has_its_loss():
    rows, image_index = mixed_rows()
    inputs = {**padded(rows), **pictures(2), "image_index": image_index}
    classes, several, numbers = torch.tensor([0, 1, 2, 1]), torch.eye(4)[:, :3], torch.tensor([0.5, 2.0, -1.0, 0.0])
    model = classifier(num_labels=3)
    logits = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, labels=classes).loss, functional.cross_entropy(logits, classes))
    model = classifier(num_labels=3, problem_type="multi_label_classification")
    expected = functional.binary_cross_entropy_with_logits(model(**inputs).logits, several)
    torch.testing.assert_close(model(**inputs, labels=several).loss, expected)
    model = classifier(num_labels=1)
    expected = functional.mse_loss(model(**inputs).logits[:, 0], numbers)
    torch.testing.assert_close(model(**inputs, labels=numbers).loss, expected)


def test_one_model_computes_one_kind_of_loss_after_another():
    model = classifier(num_labels=3)
    inputs = {"input_ids": torch.stack([token_row(5), token_row(5)])}
    assert model(**inputs, labels=torch.tensor([0, 2])).loss.isfinite()
    assert model.config.num_labels == 3 and not MMForSequenceClassification.accepts_loss_kwargs


def test_dropout_is_the_config_s():
    model = classifier(classifier_dropout=0.9).train()
    ids = token_row(5)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)
