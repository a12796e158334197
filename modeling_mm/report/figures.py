# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Figures of training runs, predictions, scores and attention."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..data.targets import normalize
from ..evaluation.metrics import wilson


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def shorten(text: str, most: int) -> str:
    """A text cut to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def draw_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw loss and validation accuracy, or recall for retrieval, by training step, from the Trainer's log history."""
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
    """Draw a grid of samples, dicts with `image` (PIL or None), `text`, `prediction`, `truth` and perhaps `audio`.

    `correct` sets the colour of the title (None: black); without it, predictions equal to the truth are correct.
    """
    rows = math.ceil(len(samples) / columns)
    figure = Figure(figsize=(2.9 * columns, 3.1 * rows))
    for axis, sample in zip(np.ravel(figure.subplots(rows, columns, squeeze=False)), samples, strict=False):
        if sample["image"] is not None:
            axis.imshow(sample["image"], interpolation="nearest")
        else:
            axis.text(0.5, 0.5, "no image", ha="center", va="center", color="grey", fontsize=8)
        right = sample.get("correct", normalize(sample["prediction"]) == normalize(sample["truth"]))
        color = "black" if right is None else "darkgreen" if right else "firebrick"
        verdict = f"{sample['prediction']}  (truth: {sample['truth']})"
        answer = [verdict] if len(verdict) <= 44 else [sample["prediction"], f"(truth: {sample['truth']})"]
        lines = [shorten(line, 44) for line in (sample["text"], sample.get("audio", ""), *answer) if line]
        axis.set_title("\n".join(lines), fontsize=8, color=color, parse_math=False)
    for axis in figure.axes:
        axis.axis("off")
    save(figure, path)


def draw_confusion(
    predictions: Sequence[str], truths: Sequence[str], path: Path, most: int = 20, order: Sequence[str] | None = None
) -> None:
    """Draw the confusion matrix of the most frequent classes or answers; colours are shares of a row.

    `order` is the order of the classes; without it, the most frequent come first.
    """
    frequent = Counter(map(normalize, truths)).most_common()
    names = [name for name, _ in frequent[:most]]
    if order is not None:
        names = [name for name in dict.fromkeys(map(normalize, order)) if name in names]
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names) + 1))
    for prediction, truth in zip(map(normalize, predictions), map(normalize, truths), strict=True):
        if truth in index:
            counts[index[truth], index.get(prediction, len(names))] += 1
    counts = counts if counts[:, -1].any() else counts[:, :-1]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = 3 + 0.42 * len(names)
    figure = Figure(figsize=(size + 0.8, size))
    axis = figure.subplots()
    colours = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts > 0):
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)
    rows = counts.sum(axis=1)
    names = [shorten(name, 28) for name in names]
    axis.set_xticks(range(counts.shape[1]), [*names, "other"][: counts.shape[1]], rotation=90, parse_math=False)
    labels = [f"{name} ({count:.0f})" for name, count in zip(names, rows, strict=True)]
    axis.set_yticks(range(len(names)), labels, parse_math=False)
    axis.set(xlabel="predicted", ylabel="truth (rows)")
    if len(frequent) > most:
        axis.set_title(f"the {most} most frequent of {len(frequent)}", fontsize=9)
    figure.colorbar(colours, ax=axis, label="share of the truth's rows", fraction=0.046, pad=0.03)
    save(figure, path)


def draw_attention(image: Image.Image, maps: Sequence[tuple[str, np.ndarray]], title: str, path: Path) -> None:
    """Draw the image, and over it the attention grid (h, w) of each word."""
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
    """Draw predicted against true numbers, one panel per label column."""
    predictions, truths = predictions.reshape(-1, len(names)), truths.reshape(-1, len(names))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 4 * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis, name, predicted, true in zip(axes, names, predictions.T, truths.T, strict=False):
        ends = [min(predicted.min(), true.min()), max(predicted.max(), true.max())]
        axis.plot(ends, ends, color="grey", linewidth=1, linestyle="--", label="predicted = truth")
        axis.scatter(true, predicted, s=max(6.0, 40 / (1 + len(true) / 100)), alpha=0.5, linewidths=0, label="a row")
        axis.set_title(f"{shorten(name, 40)} ({len(true)} rows)", fontsize=10, parse_math=False)
        axis.set(xlabel="truth", ylabel="predicted")
        axis.grid(alpha=0.3)
        axis.legend(loc="upper left", fontsize=8)
    for axis in axes[len(names) :]:
        axis.axis("off")
    save(figure, path)


def draw_bars(
    values: Sequence[tuple[str, float]],
    quantity: str,
    path: Path,
    most: int = 40,
    ends: Sequence[tuple[float, float] | None] | None = None,
    signed: bool = False,
) -> None:
    """Draw horizontal bars with their values; of more than `most` bars, only the lowest.

    Args:
        quantity: name of the values, for the axis.
        ends: the ends of an interval around each value.
        signed: make the axis symmetric around 0; otherwise it ends at 1.
    """
    pairs = list(zip(values, ends or [None] * len(values), strict=True))
    shown = sorted(pairs, key=lambda pair: pair[0][1])[:most] if len(pairs) > most else pairs
    numbers = [value for (_, value), _ in shown]
    figure = Figure(figsize=(7, 1.0 + 0.3 * len(shown)))
    axis = figure.subplots()
    axis.barh(range(len(shown)), numbers, height=0.7)
    lowest = min([0.0, *numbers, *(interval[0] for _, interval in shown if interval)])
    for place, (value, interval) in enumerate(zip(numbers, (interval for _, interval in shown), strict=True)):
        low, high = interval or (value, value)
        if interval:
            axis.plot(interval, [place, place], color="black", linewidth=1.2, marker="|", markersize=6)
        outside = (max(high, 0), 4, "left") if value >= 0 else (min(low, 0), -4, "right")
        axis.annotate(
            f"{value:.3f}",
            (outside[0], place),
            (outside[1], 0),
            textcoords="offset points",
            ha=outside[2],
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(shown)), [shorten(name, 40) for (name, _), _ in shown], parse_math=False)
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=0.8)
    if signed:
        limit = 1.3 * max([1e-3, *map(abs, numbers)])
        axis.set_xlim(-limit, limit)
    else:
        axis.set_xlim(1.25 * max(lowest, -1.0), 1.12)
    label = quantity.replace("_", " ") if len(shown) == len(pairs) else f"{quantity}, lowest {most} of {len(pairs)}"
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    save(figure, path)


def draw_search(
    trials: Sequence[dict[str, Any]], importance: Mapping[str, float], metric: str, best: int | None, path: Path
) -> None:
    """Draw the scores of a search's trials, in their order, and the importance of each argument.

    Args:
        trials: dicts with `trial`, its number, and `metric`, None for one that was not completed.
        importance: shares in the variance of the score; if there are none, only the scores are drawn.
        best: number of the best trial.
    """
    figure = Figure(figsize=(5 + 5 * bool(importance), 1.4 + 0.34 * max(6, len(importance))), layout="constrained")
    axes = np.ravel(figure.subplots(1, 1 + bool(importance), squeeze=False))
    scores = [(row["trial"], row[metric]) for row in trials if row[metric] is not None]
    others = [row["trial"] for row in trials if row[metric] is None]
    quantity, left = metric.replace("_", " "), axes[0]
    if scores:
        numbers, values = zip(*scores, strict=True)
        left.step(numbers, np.maximum.accumulate(values), where="post", color="grey", linewidth=1, label="best so far")
        left.scatter(numbers, values, label="completed", zorder=3)
        left.scatter([best], [max(values)], s=140, facecolors="none", edgecolors="C3", label="trained in full")
    if others:  # on the lower edge
        edge, style = left.get_xaxis_transform(), {"marker": "x", "color": "grey", "clip_on": False, "zorder": 3}
        left.scatter(others, [0] * len(others), label="pruned or failed", transform=edge, **style)
    left.set(xlabel="trial (the first has the defaults)", ylabel=f"{quantity} of the validation rows")
    left.set_xlim(-0.5, len(trials) - 0.5)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    for right in axes[1:]:
        bars = right.barh(range(len(importance)), list(importance.values()), height=0.7)
        right.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        names = [name.replace("_", " ") for name in importance]
        right.set_yticks(range(len(names)), names, parse_math=False)
        right.invert_yaxis()
        right.set_xlim(0, 1.15 * max(importance.values()))
        right.set_xlabel(f"importance: share in the variance of {quantity} ({len(scores)} trials)")
        right.grid(axis="x", alpha=0.3)
        right.set_axisbelow(True)
    save(figure, path)


def draw_reliability(curves: Mapping[str, Sequence[tuple[float, float, int]]], path: Path) -> None:
    """Draw the share of true predictions by confidence, with an interval for each bin, and below it the bin's size."""
    figure = Figure(figsize=(5, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="perfectly calibrated")
    for number, (name, points) in enumerate(curves.items()):
        confidence, accuracy, counts = (np.array(column) for column in zip(*points, strict=True))
        ends = np.array([wilson(round(share * count), count) for _, share, count in points])
        bars = np.abs(ends.T - accuracy).clip(min=0)
        label = (name or "the model") + (", with 95 % intervals" if number == 0 else "")
        errors = bars if number == 0 else None  # error bars of a second curve would overlap
        upper.errorbar(
            confidence, accuracy, errors, label=label, linewidth=1, elinewidth=0.8, marker="o", markersize=4, capsize=2
        )
        lower.plot(confidence, counts, drawstyle="steps-mid", marker=".", markersize=4, color=f"C{number}")
    upper.set(ylabel="share of true predictions", xlim=(-0.03, 1.05), ylim=(-0.03, 1.05))
    lower.set(xlabel="confidence", ylabel="predictions", yscale="symlog")
    lower.set_ylim(0, 3 * max(count for points in curves.values() for *_, count in points))
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
    upper.legend(loc="lower right", fontsize=8)
    save(figure, path)
