# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Questions of easy-VQA, spoken, about its images: image + audio -> answer, without any text.

    python -m recipes.data.make_spoken_vqa  # into runs/data/spoken_vqa; minutes, 211 MB

The 107 distinct sentences are spoken once by each voice that a row asks for and shared between rows. Voices, images:

- train: official training questions, and 4,000 sounds alone whose answer is the sentence, so that hearing is learnt
  from every word and not just from answers
- validation: official training questions about images of its own, in voices of its own
- test: two official test questions about each of the 1,000 official test images, in voices of its own
"""

import random
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from modeling_mm.data.tables import read_easy_vqa

from .speech import VOICES, require_espeak, utterance, write_utterance
from .tables import command, save, side_by_side, write_table

TRAIN_ROWS = 34_000  # of 38,575: nearly all about nine tenths of the images; each sentence in nearly all 48 voices
DICTATION_ROWS = 4_000  # of the 5,136 pairs of a sentence and a voice
VALIDATION_ROWS = 800  # two about each of a tenth of the training images, which training then lacks
TEST_ROWS = 2_000  # of 9,673: two for each test image; the standard error of 0.95 is then 0.005


def questions(rows: dict[str, int], seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """Image path, sentence and answer for each row of each split, spread evenly over the split's images."""
    chance = random.Random(f"{seed} questions")
    asked = {}
    for source in ("train", "test"):
        table = read_easy_vqa(source)
        asked[source] = defaultdict(list)
        for image, text, answer in zip(table["image"], table["text"], table["answer"], strict=True):
            asked[source][image].append((image, text, answer))
    seen = sorted(asked["train"])
    chance.shuffle(seen)
    held = len(seen) // 10
    of_split = {"train": seen[held:], "validation": seen[:held], "test": sorted(asked["test"])}
    return {
        split: evenly([asked["test" if split == "test" else "train"][image] for image in images], rows[split], chance)
        for split, images in of_split.items()
    }


def evenly(groups: list[list[Any]], count: int, chance: random.Random) -> list[Any]:
    """`count` members, one of each group in turn, in random order within and between the groups."""
    groups = [chance.sample(group, len(group)) for group in chance.sample(groups, len(groups))]
    turns = [group[turn] for turn in range(max(map(len, groups))) for group in groups if turn < len(group)]
    if count > len(turns):
        raise ValueError(f"{count} rows are asked for, but easy-VQA has only {len(turns)} for this split")
    return turns[:count]


def make(
    folder: Path, seed: int, train_rows: int, validation_rows: int, test_rows: int, dictation_rows: int = 0
) -> dict[str, Any]:
    """Write the three splits to `folder`; returns counts."""
    require_espeak()
    split_rows = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    counts: dict[str, Any] = {"output_dir": str(folder)}
    images, spoken = {}, []
    for split, rows in questions(split_rows, seed).items():
        chance, table, said_once = random.Random(f"{seed} voices {split}"), [], {}
        for path, sentence, answer in rows:
            said = utterance(sentence, split, chance.randrange(len(VOICES[split])), seed)
            image = f"images/{'test' if split == 'test' else 'train'}{Path(path).name}"
            images[image] = path
            spoken.append(said)
            table.append((image, "", f"audio/{said.file_name}", answer))
            said_once[said.file_name] = sentence
        if split == "train":
            some = chance.sample(sorted(said_once), min(dictation_rows, len(said_once)))
            table += [("", "", f"audio/{name}", said_once[name]) for name in some]
            chance.shuffle(table)
        write_table(folder, split, ["image", "text", "audio", "answer"], table)
        counts[f"{split}_rows"] = len(table)
    counts["pictures"] = side_by_side(lambda name: copy(images[name], folder / name), images, "Pictures")
    counts["sounds"] = side_by_side(lambda said: write_utterance(folder / "audio", said), spoken, "Speaking")
    return counts


def copy(source: str, path: Path) -> None:
    """Copy an image, unless that was done before."""
    if not path.exists():
        with open(source, "rb") as picture:
            save(path, lambda file: shutil.copyfileobj(picture, file))


if __name__ == "__main__":
    rows = {"train_rows": TRAIN_ROWS, "validation_rows": VALIDATION_ROWS, "test_rows": TEST_ROWS}
    command(make, __doc__, **rows, dictation_rows=DICTATION_ROWS)
