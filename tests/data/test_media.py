# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""References to media: equal by their keys, each key computed once from row to batch."""

import hashlib
import io
import itertools
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from helpers.augmentation import listener  # noqa: F401
from helpers.builders import drawing
from helpers.feature_cache import build, tiny_model, tower_of

from modeling_mm.data.augmentation import Augmentation
from modeling_mm.data.collator import MMCollator, RetrievalCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.media import MediaCache, MediaRef
from modeling_mm.data.rows import Columns, Row
from modeling_mm.data.shards import open_shards
from modeling_mm.data.stream import MMStream

COUNT = 16
LABELS = ["no", "yes"]
COLLATORS = {
    "plain": lambda processor: MMCollator(processor, "classification"),
    "image cache": lambda processor: MMCollator(processor, "classification", image_cache=MediaCache(1)),
    "augmented": lambda processor: MMCollator(processor, "classification", augmentation=Augmentation(["flip"])),
    "matching": lambda processor: MMCollator(processor, "matching", negatives_seed=0),
    "retrieval": lambda processor: RetrievalCollator(processor, "retrieval"),
}


def encoded(number):
    buffer = io.BytesIO()
    drawing((9 * number, 20, 90)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def dataset():
    """Rows of embedded images."""
    cells = [{"bytes": encoded(n), "path": None} for n in range(COUNT)]
    columns = {"image": cells, "text": [f"red {n}" for n in range(COUNT)], "label": LABELS * (COUNT // 2)}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    return MMDataset("t", table, Path(), Columns(target="label"), LABELS)


@pytest.fixture
def hashed(monkeypatch):
    """The contents whose SHA-256 digests are computed, in order."""
    contents, images, sha256 = [], {encoded(n) for n in range(COUNT)}, hashlib.sha256

    def counting(content=b"", **options):
        if content in images:
            contents.append(content)
        return sha256(content, **options)

    monkeypatch.setattr(hashlib, "sha256", counting)
    return contents


@pytest.mark.parametrize("kind", COLLATORS)
def test_an_embedded_image_is_hashed_once_from_row_to_batch(dataset, processor, hashed, kind):
    COLLATORS[kind](processor)([dataset[n] for n in range(COUNT)])
    assert len(hashed) == COUNT == len(set(hashed))


def test_an_embedded_image_is_hashed_once_by_a_check_and_by_the_feature_cache(dataset, processor, tmp_path, hashed):
    dataset.check()
    assert len(hashed) == COUNT
    del hashed[:]
    cached = build(tower_of(tiny_model(), processor), dataset, tmp_path)
    assert set(hashed) == {encoded(n) for n in range(COUNT)} and len(hashed) == COUNT
    del hashed[:]
    rows = [dataset[n] for n in range(COUNT)]
    collator = MMCollator(processor, "classification", cached={"image": cached}, image_cache=MediaCache(1))
    assert len(collator(rows)["image_states"]) == COUNT == len(hashed)


def test_a_streamed_image_that_was_decoded_by_the_check_is_hashed_once(dataset, processor, tmp_path, hashed):
    dataset.table.to_parquet(tmp_path / "train-0000.parquet")
    del hashed[:]
    stream = MMStream(open_shards(str(tmp_path)), Columns(target="label"), "classification", LABELS)
    rows = list(itertools.islice(stream, COUNT))
    assert all(list(row.opened) == [row.images[0].key] for row in rows)
    MMCollator(processor, "classification")(rows)
    assert len(hashed) == COUNT == len(set(hashed))


def test_references_are_equal_by_path_or_content_and_a_pickled_one_knows_its_key(hashed):
    path, content, frames = MediaRef("a.png"), MediaRef(encoded(1)), MediaRef(["a.png", encoded(1)])
    assert path == MediaRef("a.png") != MediaRef("b.png") and path.path == path.key == "a.png"
    assert content == MediaRef(encoded(1)) != MediaRef(encoded(2)) and content.path is None
    assert frames == MediaRef(["a.png", encoded(1)]) and frames.key == f"a.png\n{content.key}"
    assert len({path, MediaRef("a.png"), content, frames}) == 3
    del hashed[:]
    assert pickle.loads(pickle.dumps(content)) == content and not hashed


def test_a_row_wraps_sources_and_keeps_references():
    reference = MediaRef("a.png")
    row = Row(1, [reference, "b.png"], "text", videos=[["1.png", "2.png"]])
    assert row.images[0] is reference and row.images[1] == MediaRef("b.png")
    assert row.videos == [MediaRef(["1.png", "2.png"])] and row.audio == []


def test_an_embedded_clip_of_two_rows_is_encoded_once(listener, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) / 9), 16_000)
    content = (tmp_path / "a.wav").read_bytes()
    rows = [Row(n, [], "a", 0, audio=[bytes(bytearray(content))]) for n in range(3)]
    batch = MMCollator(listener, "classification")(rows)
    assert len(batch["input_features"]) == 1 and batch["audio_index"].tolist() == [[0], [0], [0]]
