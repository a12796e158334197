# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Does the text name the digit in the picture? Image + text -> match, no match.

    python -m recipes.make_digit_matching    # into runs/data/digit_matching; 4 s

- train: matching pairs only, since training makes its negatives within the batch; a text for each of 1,197 pictures
- validation, test: of each of the 200 and 400 pictures, one matching pair and one whose text names another digit

In a batch one negative in ten names the right digit by chance: with as many negatives as positives, the best score of
a matching pair is 1 / 1.1 = 0.91.
"""

import random
from pathlib import Path
from typing import Any

from recipes.digits import WORDS, digit_name, save_digit, split_pictures
from recipes.tables import SPLITS, command, side_by_side, write_table

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
        for digit, number in shown[: wanted[split] if split == "train" else wanted[split] // 2]:
            used.append(number)
            table.append((f"images/{digit_name(number)}", phrase(digit, chance), "", "match"))
            if split != "train":
                other = chance.choice([other for other in range(10) if other != digit])
                table.append((f"images/{digit_name(number)}", phrase(other, chance), "", "no match"))
        write_table(folder, split, ["image", "text", "audio", "label"], table)
        counts[f"{split}_rows"] = len(table)
    counts["pictures"] = side_by_side(lambda number: save_digit(folder / "images", number), used, "Pictures")
    return counts


def phrase(digit: int, chance: random.Random) -> str:
    """One of the texts that name the digit."""
    return chance.choice(PHRASES).format(word=WORDS[digit], digit=digit)


if __name__ == "__main__":
    command(make, __doc__, train_rows=1_197, validation_rows=400, test_rows=800)  # all pictures there are
