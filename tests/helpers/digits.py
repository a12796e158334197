"""Scikit-learn's handwritten digits as a folder of images and a CSV, written on request."""

import csv
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_digits(folder: Path, name: str, start: int, count: int, header: tuple[str, str, str]) -> Path:
    """Write `folder/name` with one row per digit: image, text and the name of the digit in the last column."""
    digits = load_digits()
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i in range(start, start + count):
            image = f"digit{i}.png"
            pixels = (255 - digits.images[i] * 15.9).astype("uint8")
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(folder / image)
            writer.writerow([image, "which digit is this?", WORDS[digits.target[i]]])
    return path
