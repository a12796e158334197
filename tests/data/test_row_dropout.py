"""A row with dropped modalities equals a row with empty cells; answers, markers and the last modality stay."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from helpers.augmentation import files, listener, same  # noqa: F401

from modeling_mm.data.augmentation import Augmentation, drop_words
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.rows import Row

MARKERS = {"image": "<image>", "audio": "<audio>"}


def kept_of(batch, index):
    """The modalities of a row that are in a batch."""
    has = {name: name in batch and bool((batch[name][index] >= 0).any()) for name in ("image_index", "audio_index")}
    text = "text_present" not in batch or bool(batch["text_present"][index])
    return has["image_index"], has["audio_index"], text


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "with markers"])
def test_a_dropped_modality_leaves_the_row_as_if_its_cell_were_empty(listener, files, marked):
    image_files, clip_files = files
    text = "is <image> red <audio>" if marked else "is it red"
    rows = [Row(n + 1, [image_files[n % 3]], text, n % 2, [clip_files[n % 2]]) for n in range(64)]
    collator = MMCollator(listener, "classification", augmentation=Augmentation(modality_dropout=0.5))
    plain = MMCollator(listener, "classification")
    batch = collator(rows)
    kept = [kept_of(batch, index) for index in range(64)]
    assert set(kept) == set(itertools.product([True, False], repeat=3)) - {(False, False, False)}
    emptied = []
    for row, (image, audio, words) in zip(rows, kept, strict=True):
        text_left = text if image else text.replace("<image>", "")
        text_left = text_left if audio else text_left.replace("<audio>", "")
        media = {"images": row.images if image else [], "audio": row.audio if audio else []}
        emptied.append(replace(row, text=text_left if words else "", **media))
    assert same(batch, plain(emptied))
    alone = [r for r, k in zip(rows[:8], kept, strict=False) if not k[0]]
    assert alone and "pixel_values" not in collator(alone)  # nor is it encoded


def test_modalities_are_dropped_as_often_as_asked_and_one_stays():
    changes = Augmentation(modality_dropout=0.2)
    rows = [Row(n, ["a"], "<image> x", 0, ["b"]) for n in range(3000)]
    after = changes.rows(rows, MARKERS)
    empty = {
        "image": [not row.images for row in after],
        "audio": [not row.audio for row in after],
        "text": [row.text in ("", "<image>") for row in after],
    }
    assert all(0.17 < np.mean(rows) < 0.23 for rows in empty.values())
    alone = [Row(n, ["a"], "<image>", 0) for n in range(200)] + [Row(n, [], "x", 0) for n in range(200)]
    assert Augmentation(modality_dropout=0.99).rows(alone, MARKERS) == alone
    assert Augmentation(images=["crop"]).rows(rows, MARKERS) is rows


def test_the_answer_of_a_generation_stays_and_a_text_goes_only_where_media_stay(listener, files):
    image_files, _ = files
    rows = [Row(n, [image_files[0]] * (n % 2), "is it red", "a small green triangle") for n in range(40)]
    changes = Augmentation(word_dropout=0.5, modality_dropout=0.5)
    batch = MMCollator(listener, "generation", augmentation=changes)(rows)
    answers = {tuple(labels[labels != -100].tolist()) for labels in batch["labels"]}
    assert {listener.decode(answer) for answer in answers} == {"a small green triangle</s>"}
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    prompts = [listener.decode(ids[mask.bool()]) for ids, mask in pairs]
    wordless = ["red" not in p and "it" not in p and "is" not in p for p in prompts]
    assert any(wordless[1::2]) and not any(wordless[::2])
    assert all("<image>" in p for p, no_words in zip(prompts, wordless, strict=True) if no_words)


@pytest.mark.parametrize(
    "text", ["<image>is it<audio> red\nor blue", "what <image> is\t<image> it", "<image>", "", "  one ", "<image>ab"]
)
def test_a_dropped_word_leaves_the_others_and_every_marker(text):
    words = text.replace("<image>", " ").replace("<audio>", " ").split()
    lost = 0
    for seed in range(60):
        after = drop_words(text, 0.4, MARKERS.values(), np.random.default_rng(seed))
        left = after.replace("<image>", " ").replace("<audio>", " ").split()
        assert all(after.count(marker) == text.count(marker) for marker in MARKERS.values())
        remaining = iter(words)
        assert all(word in remaining for word in left)  # in their order
        assert bool(left) == bool(words)
        assert after == text if len(left) == len(words) else len(after) < len(text)
        lost += len(words) - len(left)
    assert (lost > 0) == (len(words) > 1)
