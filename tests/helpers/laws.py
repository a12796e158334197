# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Laws that models and pipelines of every modality are held to."""

import pytest
import torch
from helpers.builders import padded

from modeling_mm.model.media_mm import MODALITIES

GREEDY = {"max_new_tokens": 6, "do_sample": False}


def row_media(media, row):
    """The media of one row of a batch, without the items of other rows."""
    alone = {}
    for modality in MODALITIES.values():
        if modality.index not in media:
            continue
        index = media[modality.index][row]
        items = index[index >= 0]
        if len(items):
            alone |= {name: media[name][items] for name in (*modality.raw, *modality.details) if name in media}
            alone[modality.index] = torch.arange(len(items))[None]
    return alone


def assert_generates_alike(model, rows, media):
    """Tokens are the same with a dynamic, a static and no cache; with and without beams, alone and in the batch."""
    batch = padded(rows, "left")
    batch.pop("position_ids")
    plain = model.generate(**batch, **media, **GREEDY)
    assert torch.equal(plain, model.generate(**batch, **media, **GREEDY, use_cache=False))
    static = model.generate(**batch, **media, **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(plain, static)
    beams = model.generate(**batch, **media, **GREEDY, num_beams=3)
    for row, ids in enumerate(rows):
        alone = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], **row_media(media, row)}
        assert torch.equal(model.generate(**alone, **GREEDY)[0, len(ids) :], plain[row, -6:])
        assert torch.equal(model.generate(**alone, **GREEDY, num_beams=3)[0, len(ids) :], beams[row, -6:])


def assert_classified_alike(classify, rows):
    """A pipeline scores rows alone as in a batch, and the first two of them differently."""
    together = classify(rows, batch_size=len(rows), top_k=None)
    for row, scores in zip(rows, together, strict=True):
        (alone,) = classify([row], top_k=None)
        assert [score["label"] for score in alone] == [score["label"] for score in scores]
        assert [score["score"] for score in alone] == pytest.approx([score["score"] for score in scores], abs=1e-5)
    assert abs(together[0][0]["score"] - together[1][0]["score"]) > 1e-4
