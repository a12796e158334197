# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Classification of emoji into Unicode's eight groups, from a drawing and two of the emoji's keywords.

    python -m recipes.data.make_emoji_groups  # into runs/data/emoji_groups; about a minute, 191 MB of packages

- train: drawings by four vendors, each with keywords drawn anew; there are more rows than drawings if need be
- validation: drawings by the same vendors of emoji that are in no other split
- test: the drawings by Twemoji, a vendor in no other split, of emoji in no other split, each with two texts

Keywords such as "animal" and "food" are among them, so either modality tells the group of many emoji, and neither of
all. A training set is the start of a larger one with the same seed, and validation and test do not depend on its size.
Two rows of the test split about one drawing are not independent of each other.

Sources and licences are those of make_emoji, which fetches the packages with npm.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .make_emoji import (
    TEST_VENDOR,
    Drawing,
    check_apart,
    first_duplicates,
    hold_out,
    image_name,
    read_drawings,
    read_emoji,
    write_image,
    write_licences,
)
from .tables import SPLITS, command, write_in_parallel, write_table

TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 4_000, 400, 800
WORDS = 2  # keywords in a text; with three, logistic regression on the text alone already is right in 0.8 of the rows


def split_drawings(
    same: dict[Drawing, Drawing], seed: int, validation_emoji: int, test_emoji: int
) -> dict[str, list[Drawing]]:
    """The distinct drawings of each split, in random order; no two splits share an emoji or one that looks like it."""
    rng = random.Random(f"{seed} emoji groups")
    emoji = [emoji_code for vendor, emoji_code in same if vendor == TEST_VENDOR]
    test = hold_out(emoji, same, test_emoji, rng)
    kept = {drawing: first for drawing, first in same.items() if drawing[1] not in test}
    validation = hold_out([emoji_code for emoji_code in emoji if emoji_code not in test], kept, validation_emoji, rng)
    splits: dict[str, list[Drawing]] = {split: [] for split in SPLITS}
    distinct = list(dict.fromkeys(same.values()))
    for vendor, emoji_code in rng.sample(distinct, len(distinct)):
        split = "test" if emoji_code in test else "validation" if emoji_code in validation else "train"
        if (vendor == TEST_VENDOR) == (split == "test"):
            splits[split].append((vendor, emoji_code))
    return splits


def rounds(drawings: list[Drawing], count: int) -> Iterator[tuple[int, Drawing]]:
    """`count` drawings, again from the first after the last, each with the number of its round."""
    return ((number // len(drawings), drawings[number % len(drawings)]) for number in range(count))


def make(
    folder: Path,
    seed: int,
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    validation_emoji: int,
    test_emoji: int,
) -> dict[str, Any]:
    """Write the three splits to `folder`; return counts."""
    emoji = {code: entry for code, entry in read_emoji(folder / "packages").items() if len(entry.keywords) >= WORDS}
    drawings = read_drawings(emoji, folder / "packages")
    splits = split_drawings(first_duplicates(drawings), seed, validation_emoji, test_emoji)
    check_apart(drawings, splits)
    counts: dict[str, Any] = {"output_dir": str(folder)}
    used = []
    for split, rows in zip(SPLITS, (train_rows, validation_rows, test_rows), strict=True):
        table = []
        for number, (vendor, code) in rounds(splits[split], rows):
            words = random.Random(f"{seed} {vendor} {code} {number}").sample(sorted(emoji[code].keywords), WORDS)
            table.append((image_name(vendor, code), ", ".join(words), emoji[code].group))
            used.append((vendor, code))
        write_table(folder, split, ["image", "text", "label"], table)
        counts |= {f"{split}_rows": len(table), f"{split}_pictures": len({image for image, *_ in table})}
    write_licences(folder)
    write_in_parallel(lambda drawing: write_image(folder / image_name(*drawing), drawings[drawing]), used, "Images")
    return counts


if __name__ == "__main__":
    rows = {"train_rows": TRAIN_ROWS, "validation_rows": VALIDATION_ROWS, "test_rows": TEST_ROWS}
    command(make, __doc__, **rows, validation_emoji=150, test_emoji=400)
