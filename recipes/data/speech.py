# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Speech synthesis by espeak-ng (Debian: `apt install espeak-ng`), in voices that no two splits share.

A voice is one of espeak-ng's variants, with its formants, timbre and breath. Accent, speed and pitch vary within a
voice. The content of a file follows from its name alone, so the same seed gives the same bytes and an interrupted run
can be continued. Audio is mono at 16 kHz, without the pause at the end of a sentence.
"""

import io
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from .digits import WORDS
from .tables import save

RATE = 16000
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")
SPEEDS = range(140, 201, 10)  # words per minute; espeak-ng's default is 175
PITCHES = range(35, 66, 5)  # from 0 to 99 within the range of the voice; espeak-ng's default is 50
WIDE_SPEEDS, WIDE_PITCHES = range(120, 221, 10), range(10, 91, 5)  # for training, in place of unseen voices
TAKES = 4  # recordings of a digit's name by each voice, differing in accent, speed and pitch, for validation and test
LOUDNESS = 40  # from 0 to 200; at espeak-ng's default of 100 the loudest voices clip
# Many voices for training, because generalisation to a new voice is learnt from their variety. Left out are robots,
# whispers and unintelligible voices; variants that are nearly the same (klatt and adam, m3 and croak, ...) are in one
# split.
VOICES = {
    "train": (
        *("adam", "benjamin", "edward", "klatt2", "klatt4", "steph", "steph2", "Gene", "aunty", "linda", "grandma"),
        *("f1", "f3", "m1", "m3", "m4", "m5", "m6", "m7", "anika", "Alex", "Mike", "john", "croak", "grandpa", "max"),
        *("Denis", "Diogo", "Hugo", "michel", "Marco", "Mario", "Nguyen", "Michael", "gustave", "ed", "rob", "Andy"),
        *("antonio", "sandro", "iven", "iven2", "iven3", "Jacky", "Tweaky", "AnxiousAndy", "RicishayMax", "quincy"),
    ),
    "validation": ("f4", "Annie", "m2", "paul", "travis", "miguel", "pedro", "norbert"),
    "test": (
        *("f2", "f5", "belinda", "Andrea", "david", "marcelo", "boris", "m8", "pablo", "shelby", "victor", "Lee"),
    ),
}


@dataclass(frozen=True)
class Utterance:
    """One recording of a sentence by a voice."""

    text: str
    voice: str
    accent: str
    speed: int
    pitch: int

    @property
    def file_name(self) -> str:
        words = "".join(letter if letter.isalnum() else "-" for letter in self.text.lower()).strip("-")
        return f"{words}_{self.accent}+{self.voice}_{self.speed}_{self.pitch}.flac"


def utterance(text: str, split: str, take: int, seed: int, wide: bool = False) -> Utterance:
    """Recording number `take` (0, 1, ...) of a sentence: the split's voices in turn, other settings random.

    Args:
        wide: draws speed and pitch from the wide ranges.
    """
    rng = random.Random(f"{seed} {split} {text} {take}")
    voice = VOICES[split][take % len(VOICES[split])]
    speeds, pitches = (WIDE_SPEEDS, WIDE_PITCHES) if wide else (SPEEDS, PITCHES)
    return Utterance(text, voice, rng.choice(ACCENTS), rng.choice(speeds), rng.choice(pitches))


def require_espeak() -> None:
    """Check that espeak-ng is installed with all voices; it silently replaces unknown ones by its default voice.

    Raises:
        ValueError: espeak-ng is not installed or lacks a voice.
    """
    if shutil.which("espeak-ng") is None:
        raise ValueError("the program espeak-ng, which speaks the sentences, is missing: apt install espeak-ng")
    listed = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    known = {line.split("!v/")[1].split("  ")[0].strip() for line in listed.splitlines() if "!v/" in line}
    missing = sorted({voice for voices in VOICES.values() for voice in voices} - known)
    if missing:
        raise ValueError(f"this espeak-ng lacks the voices {', '.join(missing)}; expected those of version 1.51")


def speak(utterance: Utterance) -> np.ndarray:
    """Audio samples (samples,) between -1 and 1, at `RATE`."""
    voice = f"{utterance.accent}+{utterance.voice}"
    options = ["-v", voice, "-s", str(utterance.speed), "-p", str(utterance.pitch), "-a", str(LOUDNESS), "-z"]
    wav = subprocess.run(["espeak-ng", *options, "--stdout", utterance.text], capture_output=True, check=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav))
    return resample_poly(samples, RATE, rate)


def write_audio(path: Path, samples: np.ndarray) -> None:
    """Write a FLAC file with 16 bits per sample."""
    save(path, lambda file: soundfile.write(file, samples.clip(-1, 1), RATE, format="FLAC", subtype="PCM_16"))


def write_utterance(folder: Path, utterance: Utterance) -> None:
    """Write the audio file of an utterance to `folder`, unless it exists."""
    path = folder / utterance.file_name
    if not path.exists():
        write_audio(path, speak(utterance))


def spoken_digit(digit: int, split: str, rng: random.Random, seed: int, train_takes: int = 16) -> Utterance:
    """A random take of the digit's name in the split; training has `train_takes` takes by each voice."""
    take = rng.randrange((train_takes if split == "train" else TAKES) * len(VOICES[split]))
    return utterance(WORDS[digit], split, take, seed, wide=split == "train")
