# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Does the text name the digit in the image? Pairs of an image and a text that belong together.

    python -m recipes.data.make_digit_matching  # into runs/data/digit_matching; 4 s

Each row is an image and a text that names its digit; training and evaluation draw a wrong text for it from rows with
another digit, which is what the column `digit` is for. Splits share no image.
"""

import random
from pathlib import Path
from typing import Any

from .digits import WORDS, digit_name, save_digit, split_pictures
from .tables import SPLITS, command, side_by_side, write_table

PHRASES = (
    *("a handwritten {word}", "the digit {digit}", "a picture of the digit {word}", "the number {word}, by hand"),
    *("someone wrote a {digit}", "{word}", "this is a {word}", "a scan of the figure {digit}"),
)


def make(folder: Path, seed: int, train_rows: int, validation_rows: int, test_rows: int) -> dict[str, Any]:
    """Write the three splits to `folder`, at most `..._rows` each; returns counts."""
    wanted = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    counts: dict[str, Any] = {"output_dir": str(folder)}
    used = []
    for split in SPLITS:
        chance = random.Random(f"{seed} matching {split}")
        shown = [(digit, number) for digit, some in enumerate(split_pictures(split, seed)) for number in some]
        chance.shuffle(shown)
        table = []
        for digit, number in shown[: wanted[split]]:
            used.append(number)
            table.append((f"images/{digit_name(number)}", phrase(digit, chance), WORDS[digit]))
        write_table(folder, split, ["image", "text", "digit"], table)
        counts[f"{split}_rows"] = len(table)
    counts["pictures"] = side_by_side(lambda number: save_digit(folder / "images", number), used, "Pictures")
    return counts


def phrase(digit: int, chance: random.Random) -> str:
    """One of the texts that name the digit."""
    return chance.choice(PHRASES).format(word=WORDS[digit], digit=digit)


if __name__ == "__main__":
    command(make, __doc__, train_rows=1_197, validation_rows=200, test_rows=400)  # all images there are
