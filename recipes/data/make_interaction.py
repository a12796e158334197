# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arithmetic across modalities: the text names an operation, one operand is drawn, the other is spoken.

    python -m recipes.data.make_interaction  # into runs/data/interaction; minutes

The label is the result modulo ten (3 - 7 gives 6). Every operation is a Latin square: without the image, or without
the audio, all ten labels are equally likely, and a sum of scores of the three modalities (`recipes/data/additive.py`)
stays at chance when trained by maximum likelihood; 0.455 is the best that a search found. Without the text, 0.44 can
be reached, because a sum and a difference agree if an operand is 0 or 5.

- train: 12,000 rows in which all 400 combinations of operation and digits are equally frequent, with any of 1,197
  images and 48 voices, and 8,000 rows that ask for one digit alone ("name what you hear"). Without those, learning
  does not start: as long as one operand is not recognised at all, the other carries no information
- validation, test: arithmetic only, with equally frequent combinations, in other images and voices
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .digits import digit_name, save_digit, split_images
from .speech import require_espeak, spoken_digit, write_utterance
from .tables import SPLITS, command, write_in_parallel, write_table

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
TRAIN_TAKES = 64  # recordings of a digit by each voice; hardly a clip occurs twice, as few takes would be memorised
VALIDATION_ROWS, TEST_ROWS = 400, 1_000  # at 1,000 rows, the standard error of an accuracy of 0.95 is 0.007


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


def make(
    folder: Path,
    seed: int,
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    naming_share: float = NAMING_SHARE,
) -> dict[str, Any]:
    """Write the three splits to `folder`; `naming_share` of the training rows ask for one digit. Returns counts.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= naming_share <= 1:
        raise ValueError(f"--naming_share is {naming_share}; expected a share between 0 and 1")
    require_espeak()
    counts: dict[str, Any] = {"output_dir": str(folder)}
    image_numbers, utterances = [], []
    for split, rows in zip(SPLITS, (train_rows, validation_rows, test_rows), strict=True):
        rng = random.Random(f"{seed} interaction {split}")
        numbers = split_images(split, seed)
        table = []
        naming = round(rows * naming_share) if split == "train" else 0
        exercises = combinations(OPERATIONS, rows - naming, rng) + combinations(NAMING, naming, rng)
        rng.shuffle(exercises)
        for operation, drawn, spoken in exercises:
            number, utterance = rng.choice(numbers[drawn]), spoken_digit(spoken, split, rng, seed, TRAIN_TAKES)
            image_numbers.append(number)
            utterances.append(utterance)
            text, label = rng.choice((OPERATIONS | NAMING)[operation]), str(result(operation, drawn, spoken))
            table.append((f"images/{digit_name(number)}", text, f"audio/{utterance.file_name}", label))
        write_table(folder, split, ["image", "text", "audio", "label"], table)
        counts[f"{split}_rows"] = rows
    counts["pictures"] = write_in_parallel(
        lambda number: save_digit(folder / "images", number), image_numbers, "Images"
    )
    counts["sounds"] = write_in_parallel(
        lambda utterance: write_utterance(folder / "audio", utterance), utterances, "Speaking"
    )
    return counts


def combinations(operations: Iterable[str], count: int, rng: random.Random) -> list[tuple[str, int, int]]:
    """Combinations of an operation and two digits, all equally often (to within one)."""
    distinct = [(operation, drawn, spoken) for operation in operations for drawn in range(10) for spoken in range(10)]
    repeats, rest = divmod(count, len(distinct))
    return distinct * repeats + rng.sample(distinct, rest)


if __name__ == "__main__":
    command(
        make,
        __doc__,
        train_rows=TRAIN_ROWS,
        validation_rows=VALIDATION_ROWS,
        test_rows=TEST_ROWS,
        naming_share=NAMING_SHARE,
    )
