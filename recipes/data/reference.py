# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Scores of simple classifiers on the datasets of `recipes/data/make_*.py`, with each modality alone and with all.

    python -m recipes.data.reference runs/data/digits_avt

The classifier is a logistic regression on pixels, on log-mel frames averaged over twelve equal parts of the clip, and
on word counts. It shows that a modality is informative for unseen images and voices, and how much; a model should
score higher. Accuracy on the test rows:

    digits_avt                        image 0.496, audio 0.532, text 0.375, all 0.798
"""

import argparse
import csv
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from .speech import RATE

MELS, PARTS, SIDE = 40, 12, 16
Row = dict[str, str]


def pixels(path: Path) -> np.ndarray:
    """The RGB values of an image at 16 x 16 pixels, from 0 to 1."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)).ravel() / 255


def log_mel(path: Path) -> np.ndarray:
    """Mean log-mel frame of each of `PARTS` equal parts of the clip, minus their overall mean."""
    filters = mel_filter_bank(257, MELS, 60.0, 7600.0, RATE, norm="slaney", mel_scale="slaney")
    window = window_function(400, "hann")
    samples, _ = soundfile.read(path)
    frames = spectrogram(samples, window, 400, 160, 512, power=2.0, mel_filters=filters, mel_floor=1e-8, log_mel="log")
    parts = np.array_split(frames, PARTS, axis=1)  # (mels, frames) each
    means = np.stack([part.mean(1) for part in parts])
    return (means - means.mean()).ravel()


def media(folder: Path, rows: list[Row], column: str, read: Callable[[Path], np.ndarray]) -> np.ndarray | None:
    """Features of a column of files, with zeros and an indicator for empty cells; None if all cells are empty."""
    cells = list(dict.fromkeys(row[column] for row in rows if row[column]))
    if not cells:
        return None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        features = dict(zip(cells, pool.map(lambda cell: read(folder / cell), cells), strict=True))
    absent = np.zeros_like(features[cells[0]])
    return np.stack([np.append(features.get(row[column], absent), row[column] == "") for row in rows])


def columns_of(folder: Path, rows: list[Row], words: CountVectorizer) -> dict[str, np.ndarray]:
    """Features of each modality that occurs in the rows."""
    found = {"image": media(folder, rows, "image", pixels), "audio": media(folder, rows, "audio", log_mel)}
    if words.vocabulary_:
        found["text"] = words.transform(row["text"] for row in rows).toarray()
    return {name: features for name, features in found.items() if features is not None}


def rows_of(folder: Path, split: str) -> list[Row]:
    """The rows of a split."""
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def accuracy(train: np.ndarray, truth: list[str], test: np.ndarray, expected: list[str]) -> float:
    """Accuracy of logistic regression on the test rows."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200)).fit(train, truth)
    return round(float(model.score(test, expected)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="label", help="the column to predict; `sentence` is the spoken sentence")
    options = parser.parse_args()
    rows = {split: rows_of(options.folder, split) for split in ("train", "test")}
    for row in (*rows["train"], *rows["test"]):
        row["sentence"] = Path(row["audio"]).name.split("_")[0]
    words = CountVectorizer()
    texts = [row["text"] for row in rows["train"]]
    words.vocabulary_ = {} if not any(texts) else words.fit(texts).vocabulary_
    load = partial(columns_of, options.folder, words=words)
    train, test = load(rows["train"]), load(rows["test"])
    truth, expected = ([row[options.target] for row in rows[split]] for split in ("train", "test"))
    result = {name: accuracy(train[name], truth, test[name], expected) for name in train}
    result["all"] = accuracy(np.hstack(list(train.values())), truth, np.hstack(list(test.values())), expected)
    print(json.dumps({"folder": str(options.folder), "target": options.target, "accuracy": result}))


if __name__ == "__main__":
    main()
