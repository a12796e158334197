# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Spoken questions of easy-VQA about its images: image + audio -> answer, without any text.

    python -m recipes.data.make_spoken_vqa  # into runs/data/spoken_vqa; minutes, 211 MB

Each of the 107 distinct sentences is spoken once by each voice that a row needs; rows share the files. Splits:

- train: official training questions, and 4,000 audio clips without image whose answer is the sentence (dictation), so
  that speech recognition is learnt from every word and not just from answers
- validation: official training questions about images and in voices that are in no other split
- test: two official test questions about each of the 1,000 official test images, in voices that are in no other split
"""

import random
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from modeling_mm.data.tables import read_easy_vqa

from .speech import VOICES, require_espeak, utterance, write_utterance
from .tables import command, save, write_in_parallel, write_table

TRAIN_ROWS = 34_000  # of 38,575: nearly all about nine tenths of the images; each sentence in nearly all 48 voices
DICTATION_ROWS = 4_000  # of the 5,136 pairs of a sentence and a voice
VALIDATION_ROWS = 800  # two questions about each image of a tenth of the training images, which training does not use
TEST_ROWS = 2_000  # of 9,673: two for each test image; the standard error of an accuracy of 0.95 is then 0.005


def questions(rows: dict[str, int], seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """Image path, sentence and answer of each row of each split, spread evenly over the split's images."""
    rng = random.Random(f"{seed} questions")
    by_image = {}
    for source in ("train", "test"):
        table = read_easy_vqa(source)
        by_image[source] = defaultdict(list)
        for image, text, answer in zip(table["image"], table["text"], table["answer"], strict=True):
            by_image[source][image].append((image, text, answer))
    train_images = sorted(by_image["train"])
    rng.shuffle(train_images)
    held_out = len(train_images) // 10
    images_of = {
        "train": train_images[held_out:],
        "validation": train_images[:held_out],
        "test": sorted(by_image["test"]),
    }
    return {
        split: evenly([by_image["test" if split == "test" else "train"][image] for image in images], rows[split], rng)
        for split, images in images_of.items()
    }


def evenly(groups: list[list[Any]], count: int, rng: random.Random) -> list[Any]:
    """`count` members, one from each group in turn, in random order within and between the groups."""
    groups = [rng.sample(group, len(group)) for group in rng.sample(groups, len(groups))]
    turns = [group[turn] for turn in range(max(map(len, groups))) for group in groups if turn < len(group)]
    if count > len(turns):
        raise ValueError(f"this split of easy-VQA has {len(turns)} rows; expected at least the requested {count}")
    return turns[:count]


def make(
    folder: Path, seed: int, train_rows: int, validation_rows: int, test_rows: int, dictation_rows: int = 0
) -> dict[str, Any]:
    """Write the three splits to `folder`; return counts."""
    require_espeak()
    split_rows = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    counts: dict[str, Any] = {"output_dir": str(folder)}
    images, utterances = {}, []
    for split, rows in questions(split_rows, seed).items():
        rng, table, sentences = random.Random(f"{seed} voices {split}"), [], {}
        for path, sentence, answer in rows:
            spoken = utterance(sentence, split, rng.randrange(len(VOICES[split])), seed)
            image = f"images/{'test' if split == 'test' else 'train'}{Path(path).name}"
            images[image] = path
            utterances.append(spoken)
            table.append((image, "", f"audio/{spoken.file_name}", answer))
            sentences[spoken.file_name] = sentence
        if split == "train":
            dictated = rng.sample(sorted(sentences), min(dictation_rows, len(sentences)))
            table += [("", "", f"audio/{name}", sentences[name]) for name in dictated]
            rng.shuffle(table)
        write_table(folder, split, ["image", "text", "audio", "answer"], table)
        counts[f"{split}_rows"] = len(table)
    counts["pictures"] = write_in_parallel(lambda name: copy(images[name], folder / name), images, "Images")
    counts["sounds"] = write_in_parallel(
        lambda spoken: write_utterance(folder / "audio", spoken), utterances, "Speaking"
    )
    return counts


def copy(source: str, path: Path) -> None:
    """Copy an image, unless `path` exists."""
    if not path.exists():
        with open(source, "rb") as image:
            save(path, lambda file: shutil.copyfileobj(image, file))


if __name__ == "__main__":
    rows = {"train_rows": TRAIN_ROWS, "validation_rows": VALIDATION_ROWS, "test_rows": TEST_ROWS}
    command(make, __doc__, **rows, dictation_rows=DICTATION_ROWS)
