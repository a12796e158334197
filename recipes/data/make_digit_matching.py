# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Matching: pairs of the image of a digit and a text that names it.

    python -m recipes.data.make_digit_matching  # into runs/data/digit_matching; 4 s

Each row is an image and a text that names its digit. Training and evaluation draw a negative text for it from rows
with another value of the column `digit`. Splits share no image.
"""

import random
from pathlib import Path
from typing import Any

from .digits import WORDS, digit_name, save_digit, split_images
from .tables import SPLITS, command, write_in_parallel, write_table

PHRASES = (
    *("a handwritten {word}", "the digit {digit}", "a picture of the digit {word}", "the number {word}, by hand"),
    *("someone wrote a {digit}", "{word}", "this is a {word}", "a scan of the figure {digit}"),
)


def make(folder: Path, seed: int, train_rows: int, validation_rows: int, test_rows: int) -> dict[str, Any]:
    """Write the three splits to `folder`, with at most `..._rows` rows each; return counts."""
    limits = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    counts: dict[str, Any] = {"output_dir": str(folder)}
    used = []
    for split in SPLITS:
        rng = random.Random(f"{seed} matching {split}")
        images = [(digit, number) for digit, numbers in enumerate(split_images(split, seed)) for number in numbers]
        rng.shuffle(images)
        table = []
        for digit, number in images[: limits[split]]:
            used.append(number)
            table.append((f"images/{digit_name(number)}", phrase(digit, rng), WORDS[digit]))
        write_table(folder, split, ["image", "text", "digit"], table)
        counts[f"{split}_rows"] = len(table)
    counts["pictures"] = write_in_parallel(lambda number: save_digit(folder / "images", number), used, "Images")
    return counts


def phrase(digit: int, rng: random.Random) -> str:
    """A random text that names the digit."""
    return rng.choice(PHRASES).format(word=WORDS[digit], digit=digit)


if __name__ == "__main__":
    command(make, __doc__, train_rows=1_197, validation_rows=200, test_rows=400)  # all images of the dataset
