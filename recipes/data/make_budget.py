# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Budget: does the money suffice for as many items as an image says? Price, money and packing are cells of a table.

    python -m recipes.data.make_budget  # into runs/data/budget; 5 s

A row is the image of a digit, a price, an amount of money, and the packing of an item: single or pair, which costs two
prices. The label is "yes" if the money suffices for as many items as the digit says. Money in prices is uniform, so
that the best guess from the image alone, or from the table alone, is right in about three quarters of the rows. One
price in 50 is missing. Splits share no image.
"""

import random
from pathlib import Path
from typing import Any

from .digits import digit_images, digit_name, save_digit, split_images
from .tables import SPLITS, command, write_in_parallel, write_table

PACKINGS = {"single": 1, "pair": 2}
MISSING = 0.02


def make(folder: Path, seed: int, train_rows: int, validation_rows: int, test_rows: int) -> dict[str, Any]:
    """Write the three splits to `folder`; return counts."""
    sizes = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    counts: dict[str, Any] = {"output_dir": str(folder)}
    used = []
    for split in SPLITS:
        rng = random.Random(f"{seed} budget {split}")
        images = [number for numbers in split_images(split, seed) for number in numbers]
        table = []
        for _ in range(sizes[split]):
            used.append(rng.choice(images))
            cells, label = purchase(int(digit_images()[1][used[-1]]), rng)
            table.append((f"images/{digit_name(used[-1])}", *cells, label))
        write_table(folder, split, ["image", "price", "money", "packing", "label"], table)
        counts[f"{split}_rows"] = len(table)
    counts["pictures"] = write_in_parallel(lambda number: save_digit(folder / "images", number), used, "Images")
    return counts


def purchase(items: int, rng: random.Random) -> tuple[tuple[str, str, str], str]:
    """The cells price, money and packing of a random purchase of `items`, and its label."""
    packing, price = rng.choice(list(PACKINGS)), round(rng.uniform(0.5, 20), 2)
    cost = items * PACKINGS[packing] * price
    money = round(rng.uniform(0, 10) * PACKINGS[packing] * price, 2)
    shown = "" if rng.random() < MISSING else f"{price:.2f}"
    return (shown, f"{money:.2f}", packing), "yes" if cost <= money else "no"


if __name__ == "__main__":
    command(make, __doc__, train_rows=4_000, validation_rows=400, test_rows=1_000)
