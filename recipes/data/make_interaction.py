# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arithmetic with what is seen and heard: the text names an operation, one operand is drawn, the other is spoken.

    python -m recipes.data.make_interaction  # into runs/data/interaction; minutes

The label is the last digit of the result (of 3 - 7 it is 6: counted modulo ten). Every operation is a Latin square:
whoever lacks the image, or the sound, has ten labels left that are equally likely, and a sum of scores of the three
modalities (`recipes/additive.py`) gets chance when trained by likelihood, and 0.455 is the most that a search found.
Without the text 0.44 can be right, as a sum and a difference agree where an operand is 0 or 5.

- train: 12,000 rows with all 400 combinations of operation and digits equally often, in any of 1,197 images and 48
  voices, and 8,000 that ask for one digit alone ("name what you hear"). Without those no learning starts: as long as
  nothing is known of one operand, the other tells nothing
- validation, test: arithmetic only, combinations equally often too, in other images and voices
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .digits import digit_name, save_digit, split_pictures, spoken_digit
from .speech import require_espeak, write_utterance
from .tables import SPLITS, command, side_by_side, write_table

OPERATIONS = {
    "sum": ("the drawn digit plus the spoken digit", "add what you hear to what you see", "both digits together"),
    "drawn minus spoken": ("the drawn digit minus the spoken digit", "take what you hear from what you see"),
    "spoken minus drawn": ("the spoken digit minus the drawn digit", "take what you see from what you hear"),
    "rest": ("what is missing from the sum to a full ten", "minus the drawn digit minus the spoken digit"),
}
NAMING = {
    "drawn": ("the drawn digit", "name what you see"),
    "spoken": ("the spoken digit", "name what you hear"),
}
TRAIN_ROWS = 20_000
NAMING_SHARE = 0.4  # of the training rows
TRAIN_TAKES = 64  # of a digit by each voice, so that hardly a clip is heard twice: few takes are learnt by heart
VALIDATION_ROWS, TEST_ROWS = 400, 1_000  # 1,000: the standard error of 0.95 is 0.007


def result(operation: str, drawn: int, spoken: int) -> int:
    """The label, 0 to 9."""
    return {
        "drawn": drawn,
        "spoken": spoken,
        "sum": drawn + spoken,
        "drawn minus spoken": drawn - spoken,
        "spoken minus drawn": spoken - drawn,
        "rest": -drawn - spoken,
    }[operation] % 10


def make(folder: Path, seed: int, train_rows: int, validation_rows: int, test_rows: int) -> dict[str, Any]:
    """Write the three splits to `folder`; returns counts."""
    require_espeak()
    counts: dict[str, Any] = {"output_dir": str(folder)}
    shown, spoken = [], []
    for split, rows in zip(SPLITS, (train_rows, validation_rows, test_rows), strict=True):
        chance = random.Random(f"{seed} interaction {split}")
        numbers = split_pictures(split, seed)
        table = []
        naming = round(rows * NAMING_SHARE) if split == "train" else 0
        asked = combinations(OPERATIONS, rows - naming, chance) + combinations(NAMING, naming, chance)
        chance.shuffle(asked)
        for operation, drawn, heard in asked:
            number, said = chance.choice(numbers[drawn]), spoken_digit(heard, split, chance, seed, TRAIN_TAKES)
            shown.append(number)
            spoken.append(said)
            text, label = chance.choice((OPERATIONS | NAMING)[operation]), str(result(operation, drawn, heard))
            table.append((f"images/{digit_name(number)}", text, f"audio/{said.file_name}", label))
        write_table(folder, split, ["image", "text", "audio", "label"], table)
        counts[f"{split}_rows"] = rows
    counts["pictures"] = side_by_side(lambda number: save_digit(folder / "images", number), shown, "Pictures")
    counts["sounds"] = side_by_side(lambda said: write_utterance(folder / "audio", said), spoken, "Speaking")
    return counts


def combinations(operations: Iterable[str], count: int, chance: random.Random) -> list[tuple[str, int, int]]:
    """Operation and two digits, each combination as often as any other (to within one)."""
    every = [(operation, drawn, heard) for operation in operations for drawn in range(10) for heard in range(10)]
    whole, rest = divmod(count, len(every))
    return every * whole + chance.sample(every, rest)


if __name__ == "__main__":
    command(make, __doc__, train_rows=TRAIN_ROWS, validation_rows=VALIDATION_ROWS, test_rows=TEST_ROWS)
