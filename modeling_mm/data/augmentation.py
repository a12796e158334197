# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Augmentation: what training sees of its rows for once, and differently in the next epoch.

- A distinct image or sound has one view in a batch, however many rows ask about it, and is encoded once.
- What is drawn depends on seed, epoch and the rows at hand, on no state: neither workers nor an interruption change
  it. A row's words and modalities depend on its number, the view of a sound on its file, that of an image on the
  images of its size in the batch, which are turned together.
- Images are changed by kornia; nothing else needs it. Hue stays, by which red would become orange. An image larger
  than its tower sees it is shrunk first, which saves time and changes little.

Shapes: A clips, F frames, M mel bins.
"""

import math
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ClapFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from ..model.audio_mm import read_audio
from ..model.media_mm import MODALITIES
from ..model.processing_mm import MMProcessor
from .media import MediaRef
from .rows import Row, present_modalities, without

IMAGES = ("crop", "rotate", "flip", "color")
AUDIO = ("noise", "shift", "specaugment")
SHORT_SIDE = 512  # of a larger image, which is shrunk first where the tower's size is not known
DEGREES = 10.0
CROP = (0.7, 1.0)  # share of the image's area that a crop keeps
COLOR = 0.2  # brightness, contrast and saturation change by this much at most
DECIBELS = (10.0, 30.0)  # of a clip above the noise that is added to it
SHIFT = 0.1  # seconds of silence in front of a clip, at most
BANDS, FRAMES = 0.125, 0.1  # widest mask of mel bins and of frames, in parts of all; there are MASKS of each
MASKS = 2


@dataclass
class Augmentation:
    """How training rows are changed.

    Args:
        images: any of `crop`, `rotate`, `flip` (left and right; not for digits, letters or sides), `color`.
        audio: any of `noise`, `shift` (silence in front), `specaugment` (masks in log-mel features; Park et al. 2019).
        word_dropout: probability with which a word leaves its text.
        modality_dropout: probability with which a modality leaves its row.
        seed: another one draws everything anew.

    Raises:
        ValueError: an unknown name, a probability not in [0, 1), or kornia is needed and not installed.
    """

    images: Sequence[str] = ()
    audio: Sequence[str] = ()
    word_dropout: float = 0.0
    modality_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for flag, names, known in (("images", self.images, IMAGES), ("audio", self.audio, AUDIO)):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"--augment_{flag} knows no '{unknown[0]}'; choose from {', '.join(known)}")
        for flag, share in (("word_dropout", self.word_dropout), ("modality_dropout", self.modality_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"--{flag} is {share}; expected a probability, at least 0 and below 1")
        if self.images:
            kornia_augmentation()
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # workers that live on see it change

    def check(self, processor: MMProcessor) -> None:
        """Refuse what this processor's sounds cannot have.

        Raises:
            ValueError: there is no audio tower, or one that takes no log-mel features, which SpecAugment masks.
        """
        if self.audio and not hasattr(processor, "feature_extractor"):
            raise ValueError("--augment_audio needs a model that hears (--audio_tower)")
        if "specaugment" in self.audio and isinstance(processor.feature_extractor, Wav2Vec2FeatureExtractor):
            raise ValueError(
                "--augment_audio specaugment masks log-mel features, but this audio tower takes waveforms; expected "
                "noise or shift"
            )

    def number(self, *what: Any) -> int:
        """A seed for this epoch's draws about something."""
        return zlib.crc32(repr((self.seed, int(self.epoch), *what)).encode())

    def rows(self, rows: list[Row], markers: Mapping[str, str]) -> list[Row]:
        """The rows with some modalities and words left out; `markers` are those of media, by modality.

        Where nothing is left out, the very rows that were given.
        """
        if not (self.word_dropout or self.modality_dropout):
            return rows
        changed = []
        for row in rows:
            generator = np.random.default_rng(self.number("row", row.number))
            row = drop_modalities(row, self.modality_dropout, markers, generator)
            words = drop_words(row.text, self.word_dropout, markers.values(), generator)
            changed.append(replace(row, text=words))
        return changed

    def short_side(self, image_processor: Any) -> int:
        """Pixels of an image's shorter side that are changed: what the tower will see of it, or `SHORT_SIDE`."""
        size = getattr(image_processor, "size", None)
        if not size or not getattr(image_processor, "do_resize", False):
            return SHORT_SIDE
        seen = max((size.get(name) or 0 for name in ("height", "width", "shortest_edge")), default=0)
        share = getattr(image_processor, "crop_pct", None) or 1  # of the side, which is left of a resized image
        share *= math.sqrt(CROP[0]) if "crop" in self.images else 1
        return min(math.ceil(seen / share) or SHORT_SIDE, SHORT_SIDE)

    def pictures(self, images: Mapping[str, Image.Image], image_processor: Any = None) -> dict[str, Image.Image]:
        """A view of each image, by the same keys, in its size, or as large as the tower will see it, if smaller."""
        if not self.images:
            return dict(images)
        side = self.short_side(image_processor)
        views = {key: shrunk(image, side) for key, image in images.items()}
        for size in dict.fromkeys(view.size for view in views.values()):
            keys = [key for key, view in views.items() if view.size == size]
            pixels = np.stack([np.asarray(views[key]) for key in keys])
            with torch.random.fork_rng(devices=[]):  # kornia draws from torch's global state
                torch.default_generator.manual_seed(self.number("pictures", keys))
                views |= zip(keys, transformed(pixels, picture_transform(self.images, size)), strict=True)
        return views

    def sounds(self, processor: MMProcessor, clips: list[list[MediaRef]]) -> dict[str, torch.Tensor]:
        """What `processor.flat_audio` gives, of one view of each distinct clip."""
        heard: dict[str, Any] = {}
        for source in (source for own in clips for source in own):
            if (key := source.key) not in heard:
                clip = read_audio(source.source, processor.feature_extractor.sampling_rate, processor.max_seconds)
                generator = np.random.default_rng(self.number("sound", key))
                heard[key] = (self.waveform(clip, processor, generator), processor.feature_extractor.sampling_rate)
        batch = processor.flat_audio([[heard[source.key] for source in own] for own in clips])
        if "specaugment" in self.audio:
            mask = batch.get("input_features_mask")
            clips_of_frames = log_mel_frames(batch["input_features"], processor.feature_extractor)
            for index, (key, frames) in enumerate(zip(heard, clips_of_frames, strict=True)):
                real = 1.0 if mask is None else float(mask[index].float().mean())
                generator = np.random.default_rng(self.number("masks", key))
                spec_augment(frames[: max(1, round(real * len(frames)))], generator)
        return batch

    def waveform(self, clip: np.ndarray, processor: MMProcessor, generator: np.random.Generator) -> np.ndarray:
        """(samples,) with silence in front and noise over it, where these are asked for."""
        if "shift" in self.audio:
            silence = int(generator.integers(0, int(SHIFT * processor.feature_extractor.sampling_rate) + 1))
            clip = np.pad(clip, (silence, 0))[: int(processor.max_seconds * processor.feature_extractor.sampling_rate)]
        if "noise" in self.audio:
            loudness = np.sqrt(np.mean(clip**2)) * 10 ** (-generator.uniform(*DECIBELS) / 20)
            noise = generator.standard_normal(len(clip), dtype=np.float32)
            clip = np.clip(clip + np.float32(loudness) * noise, -1, 1)
        return clip


def kornia_augmentation() -> Any:
    """kornia's module, which is not needed until images are changed.

    Raises:
        ValueError: says what to install.
    """
    try:
        import kornia.augmentation
    except ImportError:
        raise ValueError('augmenting images needs kornia: pip install "modeling-mm[augment]"') from None
    return kornia.augmentation


def picture_transform(names: Collection[str], size: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the names stand for, for images (I, 3, H, W) in [0, 1] of one size (W, H), each drawn for itself."""
    augmentation = kornia_augmentation()
    width, height = size
    ratio = (0.9 * width / height, 1.1 * width / height)
    steps = {
        "crop": augmentation.RandomResizedCrop(
            (height, width), scale=CROP, ratio=ratio, p=1.0, cropping_mode="resample"
        ),
        "rotate": augmentation.RandomAffine(DEGREES, padding_mode="border", p=1.0),
        "flip": augmentation.RandomHorizontalFlip(p=0.5),
        "color": augmentation.ColorJitter(COLOR, COLOR, COLOR, p=1.0),
    }
    return torch.nn.Sequential(*(step for name, step in steps.items() if name in names))


def transformed(pixels: np.ndarray, transform: Callable[[torch.Tensor], torch.Tensor]) -> list[Image.Image]:
    """RGB images of one size, from (I, H, W, 3) bytes through a transform of values in [0, 1]."""
    values = transform(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    values = (255 * values.clamp(0, 1)).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(view) for view in values.numpy()]


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """The image with at most `side` pixels on its shorter side."""
    factor = side / min(image.size)
    if factor >= 1:
        return image
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def log_mel_frames(features: torch.Tensor, feature_extractor: Any) -> torch.Tensor:
    """A view (A, F, M) of log-mel features in any layout of `audio_mm.audio_features`."""
    if isinstance(feature_extractor, WhisperFeatureExtractor):
        return features.transpose(1, 2)
    clap = isinstance(feature_extractor, ClapFeatureExtractor)
    bins = feature_extractor.feature_size if clap else feature_extractor.num_mel_bins
    return features.view(len(features), -1, bins)  # of SeamlessM4T two frames stand in one row


def spec_augment(frames: torch.Tensor, generator: np.random.Generator) -> None:
    """Masks in place some frames and some mel bins of a clip (F, M) by its mean (Park et al. 2019).

    transformers has such masks too, but private, of one width, and drawn from NumPy's global state.
    """
    mean = frames.mean()
    for axis, widest in ((frames, FRAMES), (frames.T, BANDS)):
        for _ in range(MASKS):
            width = int(generator.integers(0, round(widest * len(axis)) + 1))
            start = int(generator.integers(0, len(axis) - width + 1))
            axis[start : start + width] = mean


def drop_modalities(row: Row, share: float, markers: Mapping[str, str], generator: np.random.Generator) -> Row:
    """The row without some of its modalities, each left out with probability `share`, but never all of them.

    Where every one would go, each is equally likely to stay.
    """
    draws = {modality: generator.random() for modality in ("text", *MODALITIES)}
    present = present_modalities(row, markers)
    stays = max(present, key=lambda modality: draws[modality], default=None)
    return without(row, [m for m in present if m != stays and draws[m] < share], markers)


def drop_words(text: str, share: float, markers: Collection[str], generator: np.random.Generator) -> str:
    """A text without some of its words, each left out with probability `share`, but never all; markers stay."""
    marker = "|".join(map(re.escape, markers))
    pieces = re.findall(rf"(?:{marker})\s*|(?:(?!{marker})\S)+\s*|\s+", text)  # each with the space behind it
    words = [i for i, piece in enumerate(pieces) if piece.strip() and piece.strip() not in markers]
    draws = generator.random(len(words))
    left_out = {i for i, draw in zip(words, draws, strict=True) if draw < share and draw < draws.max()}
    if not left_out:
        return text
    return "".join(piece for i, piece in enumerate(pieces) if i not in left_out).rstrip()
