# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""augmented.png: training rows before and after augmentation, for a look before a long training."""

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
IMAGES, CLIPS, TEXTS = 16, 3, 8  # at most
ROWS = 64  # rows that they are taken from, spread evenly over the data
PAIRS = 4  # images in a line


def draw_augmented(dataset: MMDataset, collator: MMCollator, path: Path) -> None:
    """Draw rows as the collator's augmentation changes them in the first epoch; unchanged modalities are left out.

    An augmented image depends on its batch, so that training uses images of the same kind but not these.
    """
    augmentation, processor = collator.augmentation, collator.processor
    if augmentation is None:
        return
    rows = [dataset.row(number) for number in dataset.kept[:: max(1, len(dataset) // ROWS)][:ROWS]]
    parts: list[tuple[float, Any]] = []
    images = distinct((image for row in rows for image in row.images), IMAGES) if augmentation.images else {}
    if images:
        before = {key: open_image(image.source, processor.image_background) for key, image in images.items()}
        views = augmentation.image_views(before, processor.image_processor)
        pairs = list(zip(before.values(), views.values(), strict=True))
        parts.append((1.5 * -(-len(pairs) // PAIRS), lambda part: show_images(part, pairs)))
    audio = distinct((clip for row in rows for clip in row.audio), CLIPS) if augmentation.audio else {}
    if clips := list(audio.values()):
        samples = {clip.key: collator.cached_clip(clip.key, clip.source) for clip in clips}
        plain = processor.flat_audio([list(samples.values())])
        both = (plain, augmentation.audio_views(processor, [clips], samples))
        strips = list(zip(*(spectrograms(batch, processor) for batch in both), strict=True))
        parts.append((1.3 * len(strips), lambda part: show_clips(part, strips)))
    original = [row for row in rows if row.text][:: max(1, len(rows) // TEXTS)][:TEXTS] or rows[:TEXTS]
    after = augmentation.rows(original, collator.media_markers)
    if after is not original:
        lines = [changes(*pair, collator.media_markers) for pair in zip(original, after, strict=True)]
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
    """The first `most` different media by their keys."""
    found: dict[str, MediaRef] = {}
    for medium in media:
        if len(found) < most:
            found.setdefault(medium.key, medium)
    return found


def spectrograms(batch: dict[str, torch.Tensor], processor: MMProcessor) -> list[np.ndarray]:
    """Log-mel features (M, F) or the waveform (samples,) of each clip, without padding at its end."""
    features, mask = batch["input_features"], batch.get("input_features_mask")
    frames = features if features.dim() == 2 else log_mel_frames(features, processor.feature_extractor)
    real = [1.0] * len(frames) if mask is None else mask.float().mean(dim=1).tolist()
    return [clip[: max(1, round(share * len(clip)))].T.numpy() for clip, share in zip(frames, real, strict=True)]


def changes(before: Row, after: Row, markers: dict[str, str]) -> str:
    """One line that describes how augmentation changed a row."""
    dropped = set(present_modalities(before, markers)) - set(present_modalities(after, markers))
    suffix = f"   [{', '.join(sorted(dropped))} dropped]" if dropped else ""
    return f"{shorten(before.text, 70)!r}  →  {shorten(after.text, 70)!r}{suffix}"


def show_images(part: SubFigure, pairs: Sequence[tuple[Image.Image, Image.Image]]) -> None:
    """Draw images, each with its augmented version on its right."""
    axes = part.subplots(-(-len(pairs) // PAIRS), 2 * PAIRS, squeeze=False)
    for axis, image in zip(axes.flat, (image for pair in pairs for image in pair), strict=False):
        axis.imshow(image, interpolation="nearest")
    for column, axis in enumerate(axes[0]):
        axis.set_title("after" if column % 2 else "before", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="silver", visible=bool(axis.images))


def show_clips(part: SubFigure, strips: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw log-mel features, or waveforms if the tower takes those, each with its augmented version on its right."""
    axes = part.subplots(len(strips), 2, squeeze=False)
    for line, pair in zip(axes, strips, strict=True):
        for axis, strip in zip(line, pair, strict=True):
            if strip.ndim == 2:
                axis.imshow(strip, aspect="auto", origin="lower", vmin=pair[0].min(), vmax=pair[0].max())
            else:
                axis.plot(strip, linewidth=0.4)
            axis.set(xticks=[], yticks=[])
    axes[0][0].set_title("audio before", fontsize=9)
    axes[0][1].set_title("after", fontsize=9)


def show_lines(part: SubFigure, lines: Sequence[str]) -> None:
    """Draw lines of text."""
    axis = part.subplots()
    axis.axis("off")
    axis.set_title("rows before and after", fontsize=9)
    for number, line in enumerate(lines):
        height = 1 - (number + 0.5) / len(lines)
        axis.text(0, height, line, fontsize=9, va="center", parse_math=False, transform=axis.transAxes)
