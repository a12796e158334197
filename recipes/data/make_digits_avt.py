# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Classification of digits from an image, an audio clip and a hint in words, each of them unreliable.

    python -m recipes.data.make_digits_avt  # into runs/data/digits_avt; about a minute

The digit of each row is drawn uniformly; then, independently of each other,

- the image is clear, or pure noise without any trace of the digit, or absent; so is the audio clip
- the hint is absent, or states facts ("an odd number, below five"), or names the digit; one hint in ten is about a
  digit drawn at random

and a row without any of the three is drawn again. The best accuracy that any model can reach from a set of modalities
therefore follows from the construction; `ceilings` computes it, and the command prints it. Splits share no image and
no voice.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .digits import WORDS, digit_name, save_digit, save_image, split_images
from .speech import RATE, require_espeak, spoken_digit, write_audio, write_utterance
from .tables import SPLITS, command, write_in_parallel, write_table

TRAIN_ROWS = 4_000  # each training image is used in about two of them, with different audio and hints
VALIDATION_ROWS, TEST_ROWS = 400, 1_000  # at 1,000 rows, the standard error of an accuracy of 0.9 is 0.01
STATES = {"clear": 0.5, "noise": 0.35, "absent": 0.15}  # half are unusable, so that no modality suffices alone
KINDS = {"absent": 0.15, "parity": 0.15, "half": 0.15, "both": 0.40, "name": 0.15}  # kinds of hints
WRONG = 0.1
NOISES = 100  # images and clips per split, so few that each occurs with many labels and memorising them is useless
PHRASES = ("{}", "it should be {}", "i think it is {}", "a hint: {}")
Writer = Callable[[Path], None]  # writes one media file below the folder


class Case(NamedTuple):
    """A possible row: the content of each modality ('' if absent), and its probability."""

    digit: int
    picture: str
    sound: str
    hint: str
    probability: float


def hint(digit: int, kind: str) -> str:
    """The hint of this kind about the digit."""
    parity, half = ("even", "odd")[digit % 2], ("below five", "five or more")[digit // 5]
    return {
        "absent": "",
        "parity": f"an {parity} number",
        "half": f"a number, {half}",
        "both": f"an {parity} number, {half}",
        "name": WORDS[digit],
    }[kind]


def cases() -> Iterator[Case]:
    """The distribution of rows, as all cases with their probabilities."""
    possible = []
    for digit in range(10):
        hints: dict[str, float] = defaultdict(float)
        for kind, share in KINDS.items():
            for other in range(10):
                hints[hint(other, kind)] += share * (WRONG / 10 + (1 - WRONG) * (other == digit))
        contents = {{"clear": WORDS[digit], "noise": "noise", "absent": ""}[state]: p for state, p in STATES.items()}
        for picture, p in contents.items():
            for sound, q in contents.items():
                for text, r in hints.items():
                    if picture or sound or text:
                        possible.append(Case(digit, picture, sound, text, p * q * r))
    total = sum(case.probability for case in possible)
    return (case._replace(probability=case.probability / total) for case in possible)


def ceiling(*modalities: str) -> float:
    """Best accuracy from some of `picture`, `sound` and `hint`: that of the most probable digit given these."""
    likely: dict[tuple[str, ...], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for case in cases():
        likely[tuple(getattr(case, name) for name in modalities)][case.digit] += case.probability
    return sum(max(digits.values()) for digits in likely.values())


def ceilings() -> dict[str, float]:
    """Best accuracy from each set of modalities."""
    sets = (("picture",), ("sound",), ("hint",), ("picture", "sound"), ("picture", "hint"), ("sound", "hint"))
    return {"+".join(names): round(ceiling(*names), 4) for names in (*sets, ("picture", "sound", "hint"))}


def make(folder: Path, seed: int, train_rows: int, validation_rows: int, test_rows: int) -> dict[str, Any]:
    """Write the three splits to `folder`; return counts and ceilings."""
    require_espeak()
    counts: dict[str, Any] = {"output_dir": str(folder)}
    possible = list(cases())
    writers: dict[str, Writer] = {}
    for split, rows in zip(SPLITS, (train_rows, validation_rows, test_rows), strict=True):
        rng = random.Random(f"{seed} avt {split}")
        numbers = split_images(split, seed)
        table = []
        for case in rng.choices(possible, [case.probability for case in possible], k=rows):
            image, writers[image] = image_cell(case, split, rng, numbers, seed)
            audio, writers[audio] = audio_cell(case, split, rng, seed)
            text = rng.choice(PHRASES).format(case.hint) if case.hint else ""
            table.append((image, text, audio, WORDS[case.digit]))
        write_table(folder, split, ["image", "text", "audio", "label"], table)
        counts[f"{split}_rows"] = rows
    writers.pop("", None)
    counts["files"] = write_in_parallel(lambda cell: writers[cell](folder), writers, "Images and audio")
    return {**counts, "ceilings": ceilings()}


def image_cell(case: Case, split: str, rng: random.Random, numbers: list[list[int]], seed: int) -> tuple[str, Writer]:
    """The image cell of a row, and a function that writes its file."""
    if case.picture in STATES:
        name = f"noise-{split}-{seed}-{rng.randrange(NOISES)}.png"
        ink = np.random.default_rng(random.Random(name).getrandbits(64)).uniform(0, 16, (8, 8))
        return f"images/{name}", lambda folder: save_image(folder / "images" / name, ink)
    if not case.picture:
        return "", lambda folder: None
    number = rng.choice(numbers[case.digit])
    return f"images/{digit_name(number)}", lambda folder: save_digit(folder / "images", number)


def audio_cell(case: Case, split: str, rng: random.Random, seed: int) -> tuple[str, Writer]:
    """The audio cell of a row, and a function that writes its file."""
    if case.sound in STATES:
        name = f"noise-{split}-{seed}-{rng.randrange(NOISES)}.flac"
        return f"audio/{name}", lambda folder: write_noise(folder / "audio" / name)
    if not case.sound:
        return "", lambda folder: None
    spoken = spoken_digit(case.digit, split, rng, seed)
    return f"audio/{spoken.file_name}", lambda folder: write_utterance(folder / "audio", spoken)


def write_noise(path: Path) -> None:
    """Write pink noise, as long and as loud as a spoken digit, unless `path` exists."""
    if path.exists():
        return
    rng = np.random.default_rng(random.Random(path.name).getrandbits(64))
    length = int(RATE * rng.uniform(0.35, 0.75))
    spectrum = np.fft.rfft(rng.normal(size=length)) / np.sqrt(np.arange(length // 2 + 1) + 1)
    noise = np.fft.irfft(spectrum, length)
    write_audio(path, noise / noise.std() * rng.uniform(0.02, 0.08))


if __name__ == "__main__":
    command(make, __doc__, train_rows=TRAIN_ROWS, validation_rows=VALIDATION_ROWS, test_rows=TEST_ROWS)
