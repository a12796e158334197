# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Digits as images: scikit-learn's 1,797 handwritten digits.

Splits share no image. For each digit, 40 images are for the test and 20 for validation; the 1,197 others are for
training.
"""

import random
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from .tables import save

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = {"test": 40, "validation": 20}  # per digit: 400 and 200 images, enough for 1,000 rows in other combinations
SIDE = 32  # pixels; the originals are 8 x 8


@cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's images (1797, 8, 8), with ink from 0 to 16, and their digits (1797,)."""
    digits = load_digits()
    return digits.images, digits.target


def split_images(split: str, seed: int) -> list[list[int]]:
    """Numbers of the split's images, one list for each digit."""
    chosen = []
    for digit in range(10):
        numbers = np.flatnonzero(digit_images()[1] == digit).tolist()
        random.Random(f"{seed} pictures {digit}").shuffle(numbers)
        test, validation = HELD_OUT["test"], HELD_OUT["test"] + HELD_OUT["validation"]
        places = {"test": slice(test), "validation": slice(test, validation), "train": slice(validation, None)}
        chosen.append(numbers[places[split]])
    return chosen


def save_image(path: Path, ink: np.ndarray) -> None:
    """Write ink (8, 8), from 0 to 16, as a dark-on-white image, unless `path` exists."""
    if not path.exists():
        grey = Image.fromarray((255 - ink * 15.9).astype("uint8"))
        save(path, lambda file: grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG"))


def save_digit(folder: Path, number: int) -> None:
    """Write image `number` of scikit-learn as `folder/digit<number>.png`, unless it exists."""
    save_image(folder / digit_name(number), digit_images()[0][number])


def digit_name(number: int) -> str:
    return f"digit{number}.png"
