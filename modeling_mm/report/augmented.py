# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""augmented.png: some training rows before and after augmentation, to look at before a long training."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from ..data.augmentation import log_mel_frames
from ..data.collator import MMCollator
from ..data.dataset import MMDataset
from ..data.media import MediaRef, open_image
from ..data.rows import Row, present_modalities
from ..model.processing_mm import MMProcessor
from .figures import save, shorten

logger = logging.getLogger(__name__)
PICTURES, SOUNDS, TEXTS = 16, 3, 8  # at most
ROWS = 64  # looked at for them, evenly over the data
PAIRS = 4  # images in a line


def draw_augmented(dataset: MMDataset, collator: MMCollator, path: Path) -> None:
    """What the collator's augmentation makes of some rows in the first epoch; modalities that it leaves are not shown.

    An image's view depends on the batch it stands in, so these are of the kind that training sees, not the same.
    """
    augmentation, processor = collator.augmentation, collator.processor
    if augmentation is None:
        return
    rows = [dataset.row(number) for number in dataset.kept[:: max(1, len(dataset) // ROWS)][:ROWS]]
    parts: list[tuple[float, Any]] = []
    pictures = distinct((image for row in rows for image in row.images), PICTURES) if augmentation.images else {}
    if pictures:
        before = {key: open_image(image.source, processor.image_background) for key, image in pictures.items()}
        views = augmentation.image_views(before, processor.image_processor)
        pairs = list(zip(before.values(), views.values(), strict=True))
        parts.append((1.5 * -(-len(pairs) // PAIRS), lambda part: show_pictures(part, pairs)))
    sounds = distinct((sound for row in rows for sound in row.audio), SOUNDS) if augmentation.audio else {}
    if clips := list(sounds.values()):
        both = (processor.flat_audio([[clip.source for clip in clips]]), augmentation.audio_views(processor, [clips]))
        strips = list(zip(*(spectrograms(batch, processor) for batch in both), strict=True))
        parts.append((1.3 * len(strips), lambda part: show_sounds(part, strips)))
    shown = [row for row in rows if row.text][:: max(1, len(rows) // TEXTS)][:TEXTS] or rows[:TEXTS]
    after = augmentation.rows(shown, collator.media_markers)
    if after is not shown:
        lines = [changes(*pair, collator.media_markers) for pair in zip(shown, after, strict=True)]
        parts.append((0.3 + 0.35 * len(lines), lambda part: show_lines(part, lines)))
    if not parts:
        return
    height = sum(height for height, _ in parts) + 0.3 * len(parts)
    figure = Figure(figsize=(12, height), layout="constrained")
    figures = np.ravel(figure.subfigures(len(parts), 1, height_ratios=[height for height, _ in parts], squeeze=False))
    for part, (_, show) in zip(figures, parts, strict=True):
        show(part)
    save(figure, path)
    logger.warning(f"augmented training rows are shown in {path}")


def distinct(media: Iterable[MediaRef], most: int) -> dict[str, MediaRef]:
    """The first few different ones by their keys."""
    found: dict[str, MediaRef] = {}
    for medium in media:
        if len(found) < most:
            found.setdefault(medium.key, medium)
    return found


def spectrograms(batch: dict[str, torch.Tensor], processor: MMProcessor) -> list[np.ndarray]:
    """(M, F) or (samples,) of each clip, without the padding behind it."""
    features, mask = batch["input_features"], batch.get("input_features_mask")
    frames = features if features.dim() == 2 else log_mel_frames(features, processor.feature_extractor)
    real = [1.0] * len(frames) if mask is None else mask.float().mean(dim=1).tolist()
    return [clip[: max(1, round(share * len(clip)))].T.numpy() for clip, share in zip(frames, real, strict=True)]


def changes(before: Row, after: Row, markers: dict[str, str]) -> str:
    """What became of a row, in one line."""
    left = set(present_modalities(before, markers)) - set(present_modalities(after, markers))
    said = f"   [{', '.join(sorted(left))} left out]" if left else ""
    return f"{shorten(before.text, 70)!r}  →  {shorten(after.text, 70)!r}{said}"


def show_pictures(part: SubFigure, pairs: Sequence[tuple[Image.Image, Image.Image]]) -> None:
    """Images, each with its view on its right."""
    axes = part.subplots(-(-len(pairs) // PAIRS), 2 * PAIRS, squeeze=False)
    for axis, image in zip(axes.flat, (image for pair in pairs for image in pair), strict=False):
        axis.imshow(image, interpolation="nearest")
    for column, axis in enumerate(axes[0]):
        axis.set_title("after" if column % 2 else "before", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="silver", visible=bool(axis.images))


def show_sounds(part: SubFigure, strips: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Log-mel features, or waveforms where the tower takes them, each with its view on its right."""
    axes = part.subplots(len(strips), 2, squeeze=False)
    for line, pair in zip(axes, strips, strict=True):
        for axis, strip in zip(line, pair, strict=True):
            if strip.ndim == 2:
                axis.imshow(strip, aspect="auto", origin="lower", vmin=pair[0].min(), vmax=pair[0].max())
            else:
                axis.plot(strip, linewidth=0.4)
            axis.set(xticks=[], yticks=[])
    axes[0][0].set_title("sound before", fontsize=9)
    axes[0][1].set_title("after", fontsize=9)


def show_lines(part: SubFigure, lines: Sequence[str]) -> None:
    """Lines of text."""
    axis = part.subplots()
    axis.axis("off")
    axis.set_title("rows before and after", fontsize=9)
    for number, line in enumerate(lines):
        place = 1 - (number + 0.5) / len(lines)
        axis.text(0, place, line, fontsize=9, va="center", parse_math=False, transform=axis.transAxes)
