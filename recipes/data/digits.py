# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Digits to look at and to listen to: scikit-learn's 1,797 handwritten ones, and their names spoken.

Splits share no image and no voice. Of each digit 40 images are for the test and 20 for validation; the
1,197 others are for training.
"""

import random
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from .speech import VOICES, Utterance, utterance
from .tables import save

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD = {"test": 40, "validation": 20}  # per digit: 400 and 200 images, enough for 1,000 rows in other combinations
TAKES = 4  # of a word by each voice, in different accents, speeds and pitches, for validation and test
SIDE = 32  # pixels; the originals are 8 x 8


@cache
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's images (1797, 8, 8), ink 0 to 16, and which digit each shows (1797,)."""
    digits = load_digits()
    return digits.images, digits.target


def split_pictures(split: str, seed: int) -> list[list[int]]:
    """For each digit, the numbers of the split's images of it."""
    chosen = []
    for digit in range(10):
        numbers = np.flatnonzero(pictures()[1] == digit).tolist()
        random.Random(f"{seed} pictures {digit}").shuffle(numbers)
        test, validation = HELD["test"], HELD["test"] + HELD["validation"]
        places = {"test": slice(test), "validation": slice(test, validation), "train": slice(validation, None)}
        chosen.append(numbers[places[split]])
    return chosen


def save_picture(path: Path, ink: np.ndarray) -> None:
    """Ink (8, 8), 0 to 16, as dark on white, unless `path` was written before."""
    if not path.exists():
        grey = Image.fromarray((255 - ink * 15.9).astype("uint8"))
        save(path, lambda file: grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG"))


def save_digit(folder: Path, number: int) -> None:
    """Image `number` of scikit-learn's as `folder/digit<number>.png`."""
    save_picture(folder / digit_name(number), pictures()[0][number])


def digit_name(number: int) -> str:
    return f"digit{number}.png"


def spoken_digit(digit: int, split: str, chance: random.Random, seed: int, train_takes: int = 16) -> Utterance:
    """The digit's name, in any of the takes of the split: for training, `train_takes` by each voice."""
    take = chance.randrange((train_takes if split == "train" else TAKES) * len(VOICES[split]))
    return utterance(WORDS[digit], split, take, seed, wide=split == "train")
