# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Examples to click, drawn and played by code so that nobody's images are needed."""

import random
import tempfile
import wave
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
}
SHAPES = ("circle", "rectangle", "triangle")
SIDE, SMOOTH = 64, 4  # pixels; drawn so many times larger, for soft edges


@cache
def folder() -> Path:
    """Where they are written, once for each run."""
    return Path(tempfile.mkdtemp(prefix="space_examples_"))


@cache
def shape(colour: str, kind: str) -> str:
    """The path of an image with one shape somewhere on a light ground; the same on every run."""
    chance = random.Random(f"{colour} {kind}")
    ground = tuple(chance.randint(232, 252) for _ in range(3))
    picture = Image.new("RGB", (SIDE * SMOOTH, SIDE * SMOOTH), ground)
    size = chance.randint(18, 28) * SMOOTH
    left, top = (chance.randint(4 * SMOOTH, SIDE * SMOOTH - size - 4 * SMOOTH) for _ in range(2))
    draw, box = ImageDraw.Draw(picture), (left, top, left + size, top + size)
    if kind == "circle":
        draw.ellipse(box, COLOURS[colour])
    elif kind == "rectangle":
        draw.rectangle((left, top, left + size, top + round(size * 0.65)), COLOURS[colour])
    else:
        draw.polygon([(left, top + size), (left + size, top + size), (left + size // 2, top)], COLOURS[colour])
    path = folder() / f"{colour}_{kind}.png"
    picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(path)
    return str(path)


def gallery() -> list[str]:
    """One image of each shape in each of four colours."""
    return [shape(colour, kind) for colour in ("red", "blue", "yellow", "teal") for kind in SHAPES]


@cache
def tone(pitch: float = 440.0, seconds: float = 1.0, rate: int = 16_000) -> str:
    """The path of a tone that fades in and out."""
    time = np.arange(int(seconds * rate)) / rate
    samples = 0.4 * np.sin(2 * np.pi * pitch * time) * np.sin(np.pi * time / seconds)
    path = folder() / f"tone_{pitch:.0f}.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return str(path)
