# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Pictures of a training run, of predictions, and of where a model looked."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .metrics import normalize


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def shorten(text: str, most: int) -> str:
    """A text that fits its place in a figure."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def draw_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """Loss and validation accuracy, of a retrieval recall, over training steps, from the Trainer's log history."""
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    scores = [(f"eval_{name}", right) for name in ("accuracy", "text_to_image_r1", "image_to_text_r1")]
    for key, axis in (("loss", left), ("eval_loss", left), *scores):
        points = [(log["step"], log[key]) for log in history if key in log]
        if points:
            axis.plot(*zip(*points, strict=True), label=key.replace("eval_", "validation "), marker=".", markersize=4)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.set(xlabel="step", ylabel="accuracy")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    save(figure, path)


def draw_samples(samples: Sequence[dict[str, Any]], path: Path, columns: int = 4) -> None:
    """A grid of pictures; each sample has `image` (PIL or None), `text`, `prediction` and `truth`.

    `correct`, where given, is its colour (None: neither right nor wrong); otherwise whether the two are equal.
    """
    rows = math.ceil(len(samples) / columns)
    figure = Figure(figsize=(2.9 * columns, 3.1 * rows))
    for axis, sample in zip(np.ravel(figure.subplots(rows, columns, squeeze=False)), samples, strict=False):
        if sample["image"] is not None:
            axis.imshow(sample["image"], interpolation="nearest")
        right = sample.get("correct", normalize(sample["prediction"]) == normalize(sample["truth"]))
        color = "black" if right is None else "darkgreen" if right else "firebrick"
        verdict = f"{sample['prediction']}  (truth: {sample['truth']})"
        said = [verdict] if len(verdict) <= 44 else [sample["prediction"], f"(truth: {sample['truth']})"]
        lines = [shorten(line, 44) for line in (sample["text"], *said)]
        axis.set_title("\n".join(lines), fontsize=8, color=color, parse_math=False)
    for axis in figure.axes:
        axis.axis("off")
    save(figure, path)


def draw_confusion(predictions: Sequence[str], truths: Sequence[str], path: Path, most: int = 20) -> None:
    """Confusion matrix of the most frequent classes or answers, rows scaled to shares of the truth."""
    names = [name for name, _ in Counter(map(normalize, truths)).most_common(most)]
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names) + 1))
    for prediction, truth in zip(map(normalize, predictions), map(normalize, truths), strict=True):
        if truth in index:
            counts[index[truth], index.get(prediction, len(names))] += 1
    counts = counts if counts[:, -1].any() else counts[:, :-1]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = 2.5 + 0.45 * len(names)
    figure = Figure(figsize=(size, size))
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts > 0):
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7, color=color)
    names = [shorten(name, 28) for name in names]
    axis.set_xticks(range(counts.shape[1]), [*names, "other"][: counts.shape[1]], rotation=90, parse_math=False)
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set(xlabel="predicted", ylabel="truth")
    save(figure, path)


def draw_attention(image: Image.Image, maps: Sequence[tuple[str, np.ndarray]], title: str, path: Path) -> None:
    """The picture, and over it one attention grid (h, w) for each word."""
    figure = Figure(figsize=(3 * (len(maps) + 1), 3.4))
    axes = np.ravel(figure.subplots(1, len(maps) + 1, squeeze=False))
    axes[0].imshow(image)
    axes[0].set_title(title[:60], fontsize=9, parse_math=False)
    for axis, (word, grid) in zip(axes[1:], maps, strict=True):
        scaled = Image.fromarray((255 * grid / max(grid.max(), 1e-9)).astype(np.uint8))
        scaled = scaled.resize(image.size, Image.Resampling.BICUBIC)
        axis.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255)
        axis.imshow(np.asarray(scaled), cmap="jet", alpha=0.5)
        axis.set_title(word, fontsize=9, parse_math=False)
    for axis in axes:
        axis.axis("off")
    save(figure, path)


def draw_scatter(predictions: np.ndarray, truths: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Predicted numbers over true ones, one panel for each label column."""
    predictions, truths = predictions.reshape(-1, len(names)), truths.reshape(-1, len(names))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 4 * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis, name, said, true in zip(axes, names, predictions.T, truths.T, strict=False):
        ends = [min(said.min(), true.min()), max(said.max(), true.max())]
        axis.plot(ends, ends, color="grey", linewidth=1)
        axis.scatter(true, said, s=max(4.0, 30 / (1 + len(true) / 100)), alpha=0.6, linewidths=0)
        axis.set_title(shorten(name, 40), fontsize=10, parse_math=False)
        axis.set(xlabel="truth", ylabel="predicted")
        axis.grid(alpha=0.3)
    for axis in axes[len(names) :]:
        axis.axis("off")
    save(figure, path)


def draw_bars(values: Sequence[tuple[str, float]], what: str, path: Path, most: int = 40) -> None:
    """Horizontal bars with their figures; of more than `most`, the lowest are shown."""
    shown = sorted(values, key=lambda pair: pair[1])[:most] if len(values) > most else list(values)
    figure = Figure(figsize=(7, 0.8 + 0.3 * len(shown)))
    axis = figure.subplots()
    bars = axis.barh(range(len(shown)), [value for _, value in shown], height=0.7)
    axis.bar_label(bars, [f"{value:.3f}" for _, value in shown], padding=3, fontsize=8)
    axis.set_yticks(range(len(shown)), [shorten(name, 40) for name, _ in shown], parse_math=False)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlim(right=max(1.12, axis.get_xlim()[1]))
    axis.set_xlabel(what.replace("_", " "))
    axis.grid(axis="x", alpha=0.3)
    save(figure, path)


def draw_reliability(curves: Mapping[str, Sequence[tuple[float, float, int]]], path: Path) -> None:
    """Share of true predictions over confidence, a point for each bin, its size by the rows in it."""
    figure = Figure(figsize=(4.6, 4.4))
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for name, points in curves.items():
        sure, true, counts = (np.array(column) for column in zip(*points, strict=True))
        (line,) = axis.plot(sure, true, label=name, linewidth=1)
        axis.scatter(sure, true, s=12 + 150 * counts / counts.sum(), color=line.get_color(), alpha=0.7)
    axis.set(xlabel="confidence", ylabel="share that is true", xlim=(-0.03, 1.05), ylim=(-0.03, 1.05))
    axis.grid(alpha=0.3)
    if len(curves) > 1:
        axis.legend(loc="upper left")
    save(figure, path)
