# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Which digit? Seen, heard and hinted at, each of them unreliable: image + text + audio -> digit.

    python -m recipes.data.make_digits_avt  # into runs/data/digits_avt; about a minute

Each row's digit is drawn evenly; then independently of each other

- the image is clear, or only noise, or absent; the sound likewise: of a digit under noise nothing is left
- the hint is absent, or states facts ("an odd number, below five"), or names the digit; one hint in ten was given for
  a digit drawn at random

and a row without any of the three is drawn again. So the best accuracy that any model can reach from some of the
modalities follows from the construction; `ceilings` adds it up, and the command prints it. Splits share no image and
no voice.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .digits import WORDS, digit_name, save_digit, save_picture, split_pictures, spoken_digit
from .speech import RATE, require_espeak, write_sound, write_utterance
from .tables import SPLITS, command, side_by_side, write_table

TRAIN_ROWS = 4_000  # each training image is clear in about two of them, with other companions
VALIDATION_ROWS, TEST_ROWS = 400, 1_000  # 1,000: the standard error of 0.9 is 0.01
STATES = {"clear": 0.5, "noise": 0.35, "absent": 0.15}  # half unusable, so that nobody may rely on one modality
KINDS = {"absent": 0.15, "parity": 0.15, "half": 0.15, "both": 0.40, "name": 0.15}  # what a hint tells
WRONG = 0.1
NOISES = 100  # images and sounds per split, so few that each meets many labels: nothing to learn by heart
PHRASES = ("{}", "it should be {}", "i think it is {}", "a hint: {}")
Writer = Callable[[Path], None]  # writes one media file below the folder that it is given


class Case(NamedTuple):
    """One way in which a row can come about: what each modality shows ('' where absent), and how likely it is."""

    digit: int
    picture: str
    sound: str
    hint: str
    probability: float


def hint(digit: int, kind: str) -> str:
    """What a hint of this kind says about the digit."""
    parity, half = ("even", "odd")[digit % 2], ("below five", "five or more")[digit // 5]
    return {
        "absent": "",
        "parity": f"an {parity} number",
        "half": f"a number, {half}",
        "both": f"an {parity} number, {half}",
        "name": WORDS[digit],
    }[kind]


def cases() -> Iterator[Case]:
    """The whole distribution of rows."""
    possible = []
    for digit in range(10):
        hints: dict[str, float] = defaultdict(float)
        for kind, share in KINDS.items():
            for other in range(10):
                hints[hint(other, kind)] += share * (WRONG / 10 + (1 - WRONG) * (other == digit))
        shown = {{"clear": WORDS[digit], "noise": "noise", "absent": ""}[state]: p for state, p in STATES.items()}
        for picture, p in shown.items():
            for sound, q in shown.items():
                for text, r in hints.items():
                    if picture or sound or text:
                        possible.append(Case(digit, picture, sound, text, p * q * r))
    total = sum(case.probability for case in possible)
    return (case._replace(probability=case.probability / total) for case in possible)


def ceiling(*modalities: str) -> float:
    """The best accuracy from some of `picture`, `sound` and `hint`: always the digit that is likeliest given them."""
    likely: dict[tuple[str, ...], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for case in cases():
        likely[tuple(getattr(case, name) for name in modalities)][case.digit] += case.probability
    return sum(max(digits.values()) for digits in likely.values())


def ceilings() -> dict[str, float]:
    """The best accuracy from each set of modalities that matters."""
    sets = (("picture",), ("sound",), ("hint",), ("picture", "sound"), ("picture", "hint"), ("sound", "hint"))
    return {"+".join(some): round(ceiling(*some), 4) for some in (*sets, ("picture", "sound", "hint"))}


def make(folder: Path, seed: int, train_rows: int, validation_rows: int, test_rows: int) -> dict[str, Any]:
    """Write the three splits to `folder`; returns counts and ceilings."""
    require_espeak()
    counts: dict[str, Any] = {"output_dir": str(folder)}
    every = list(cases())
    writers: dict[str, Writer] = {}
    for split, rows in zip(SPLITS, (train_rows, validation_rows, test_rows), strict=True):
        chance = random.Random(f"{seed} avt {split}")
        numbers = split_pictures(split, seed)
        table = []
        for case in chance.choices(every, [case.probability for case in every], k=rows):
            image, writers[image] = picture_cell(case, split, chance, numbers, seed)
            audio, writers[audio] = sound_cell(case, split, chance, seed)
            text = chance.choice(PHRASES).format(case.hint) if case.hint else ""
            table.append((image, text, audio, WORDS[case.digit]))
        write_table(folder, split, ["image", "text", "audio", "label"], table)
        counts[f"{split}_rows"] = rows
    writers.pop("", None)
    counts["files"] = side_by_side(lambda cell: writers[cell](folder), writers, "Pictures and sounds")
    return {**counts, "ceilings": ceilings()}


def picture_cell(
    case: Case, split: str, chance: random.Random, numbers: list[list[int]], seed: int
) -> tuple[str, Writer]:
    """The image cell of a row, and what writes the file that it names into the folder."""
    if case.picture in STATES:
        name = f"noise-{split}-{seed}-{chance.randrange(NOISES)}.png"
        ink = np.random.default_rng(random.Random(name).getrandbits(64)).uniform(0, 16, (8, 8))
        return f"images/{name}", lambda folder: save_picture(folder / "images" / name, ink)
    if not case.picture:
        return "", lambda folder: None
    number = chance.choice(numbers[case.digit])
    return f"images/{digit_name(number)}", lambda folder: save_digit(folder / "images", number)


def sound_cell(case: Case, split: str, chance: random.Random, seed: int) -> tuple[str, Writer]:
    """The audio cell of a row, and what writes the file that it names into the folder."""
    if case.sound in STATES:
        name = f"noise-{split}-{seed}-{chance.randrange(NOISES)}.flac"
        return f"audio/{name}", lambda folder: write_noise(folder / "audio" / name)
    if not case.sound:
        return "", lambda folder: None
    said = spoken_digit(case.digit, split, chance, seed)
    return f"audio/{said.file_name}", lambda folder: write_utterance(folder / "audio", said)


def write_noise(path: Path) -> None:
    """Pink noise as long and as loud as a spoken digit, unless it was written before."""
    if path.exists():
        return
    chance = np.random.default_rng(random.Random(path.name).getrandbits(64))
    length = int(RATE * chance.uniform(0.35, 0.75))
    spectrum = np.fft.rfft(chance.normal(size=length)) / np.sqrt(np.arange(length // 2 + 1) + 1)
    noise = np.fft.irfft(spectrum, length)
    write_sound(path, noise / noise.std() * chance.uniform(0.02, 0.08))


if __name__ == "__main__":
    command(make, __doc__, train_rows=TRAIN_ROWS, validation_rows=VALIDATION_ROWS, test_rows=TEST_ROWS)
