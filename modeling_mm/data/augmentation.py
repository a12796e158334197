# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Augmentation: random changes of training rows, drawn anew in each epoch.

- A distinct image or audio clip has one view in a batch, however many rows have it, and is encoded once.
- Draws depend on seed, epoch and the rows of the batch, on no state: neither workers nor an interruption change
  them. Those of words and modalities depend on the row's number, those of an audio clip on its file, those of an
  image on the images of its size in the batch, which are transformed together.
- kornia, which nothing else needs, changes the images. Hue is left alone, as red would become orange. An image larger
  than the tower's input is shrunk first, which saves time and changes little.

Shapes: A clips, S samples, F frames, M mel bins.
"""

import math
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ClapFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from ..model.audio_mm import import_audio_library
from ..model.media_mm import MODALITIES, TABLE
from ..model.processing_mm import MMProcessor
from .media import MediaRef
from .rows import Row, present_modalities, without

IMAGES = ("crop", "rotate", "flip", "color")
AUDIO = ("speed", "noise", "shift", "vtlp", "specaugment")
SHORT_SIDE = 512  # pixels to which larger images are shrunk if the tower's input size is not known
DEGREES = 10.0
CROP = (0.7, 1.0)  # share of the image's area that a crop keeps
COLOR = 0.2  # largest relative change of brightness, contrast and saturation
DECIBELS = (10.0, 30.0)  # signal-to-noise ratio of added noise
WARP = 1.25  # largest factor by which `vtlp` raises or lowers frequencies
SPEED = 1.15  # largest factor by which `speed` makes a clip faster or slower
SHIFT = 0.1  # maximum seconds of silence in front of a clip
BANDS, FRAMES = 0.125, 0.1  # widest mask as a share of all mel bins and of all frames; there are MASKS of each
MASKS = 2
IN_FEATURES = {"vtlp", "specaugment"}  # changes of log-mel features; the others change samples


@dataclass
class Augmentation:
    """The changes of training rows.

    Args:
        images: any of `crop`, `rotate`, `flip` (left and right; not for digits, letters or sides), `color`.
        audio: any of `speed` (faster and higher, or slower and lower; Ko et al. 2015; needs soxr), `noise`, `shift`
            (silence in front), and in log-mel features `vtlp` (vocal tract length perturbation: higher or lower
            frequencies, as of another voice; Jaitly and Hinton 2013) and `specaugment` (masks; Park et al. 2019).
        word_dropout: probability with which a word leaves its text.
        modality_dropout: probability with which a modality leaves its row.
        seed: of all draws.

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
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # persistent workers see it change

    def check(self, processor: MMProcessor) -> None:
        """Check that this processor's audio can be augmented as asked.

        Raises:
            ValueError: there is no audio tower, or it takes no log-mel features, which a change asked for is made in.
        """
        if self.audio and not hasattr(processor, "feature_extractor"):
            raise ValueError("--augment_audio needs a model with an audio tower (--audio_tower)")
        in_features = [name for name in self.audio if name in IN_FEATURES]
        if in_features and isinstance(processor.feature_extractor, Wav2Vec2FeatureExtractor):
            raise ValueError(
                f"--augment_audio {in_features[0]} changes log-mel features, but this audio tower takes waveforms; "
                "expected speed, noise or shift"
            )

    def derived_seed(self, *parts: Any) -> int:
        """The seed of one random decision of this epoch."""
        return zlib.crc32(repr((self.seed, int(self.epoch), *parts)).encode())

    def rows(self, rows: list[Row], markers: Mapping[str, str]) -> list[Row]:
        """The rows with random modalities and words left out; the argument itself if nothing can be left out.

        Args:
            markers: the marker of each modality beside the text, by its name.
        """
        if not (self.word_dropout or self.modality_dropout):
            return rows
        changed = []
        for row in rows:
            generator = np.random.default_rng(self.derived_seed("row", row.number))
            row = drop_modalities(row, self.modality_dropout, markers, generator)
            words = drop_words(row.text, self.word_dropout, markers.values(), generator)
            changed.append(replace(row, text=words))
        return changed

    def short_side(self, image_processor: Any) -> int:
        """Pixels of the shorter side of an image to augment: the tower's, before a crop, or `SHORT_SIDE`."""
        size = getattr(image_processor, "size", None)
        if not size or not getattr(image_processor, "do_resize", False):
            return SHORT_SIDE
        target = max((size.get(name) or 0 for name in ("height", "width", "shortest_edge")), default=0)
        share = getattr(image_processor, "crop_pct", None) or 1  # of a resized image's side that the crop keeps
        share *= math.sqrt(CROP[0]) if "crop" in self.images else 1
        return min(math.ceil(target / share) or SHORT_SIDE, SHORT_SIDE)

    def image_views(self, images: Mapping[str, Image.Image], image_processor: Any = None) -> dict[str, Image.Image]:
        """A view of each image, by the same keys, of the same size or shrunk to `short_side`."""
        if not self.images:
            return dict(images)
        side = self.short_side(image_processor)
        views = {key: shrunk(image, side) for key, image in images.items()}
        for size in dict.fromkeys(view.size for view in views.values()):
            keys = [key for key, view in views.items() if view.size == size]
            pixels = np.stack([np.asarray(views[key]) for key in keys])
            with torch.random.fork_rng(devices=[]):  # kornia draws from torch's global state
                torch.default_generator.manual_seed(self.derived_seed("pictures", keys))
                views |= zip(keys, transformed(pixels, image_transform(self.images, size)), strict=True)
        return views

    def audio_views(
        self, processor: MMProcessor, clips: list[list[MediaRef]], samples: Mapping[str, np.ndarray]
    ) -> dict[str, torch.Tensor]:
        """The tensors of `processor.flat_audio` for one view of each distinct clip, whose samples are given by key."""
        rate, views = processor.feature_extractor.sampling_rate, dict[str, Any]()
        for key in dict.fromkeys(clip.key for row_clips in clips for clip in row_clips):
            generator = np.random.default_rng(self.derived_seed("sound", key))
            views[key] = (self.waveform(samples[key], processor, generator), rate)
        batch = processor.flat_audio([[views[clip.key] for clip in row_clips] for row_clips in clips])
        if IN_FEATURES & set(self.audio):
            features = log_mel_frames(batch["input_features"], processor.feature_extractor)
            if "vtlp" in self.audio:
                draws = [np.random.default_rng(self.derived_seed("vtlp", key)).uniform(-1, 1) for key in views]
                scale_frequencies(features, WARP ** np.array(draws), processor.feature_extractor)
            if "specaugment" in self.audio:
                mask = batch.get("input_features_mask")
                for index, (key, frames) in enumerate(zip(views, features, strict=True)):
                    real = 1.0 if mask is None else float(mask[index].float().mean())
                    generator = np.random.default_rng(self.derived_seed("masks", key))
                    spec_augment(frames[: max(1, round(real * len(frames)))], generator)
        return batch

    def waveform(self, clip: np.ndarray, processor: MMProcessor, generator: np.random.Generator) -> np.ndarray:
        """Samples (S,) at another speed, with silence in front and noise added, as `audio` asks."""
        rate = processor.feature_extractor.sampling_rate
        if "speed" in self.audio:
            factor = SPEED ** generator.uniform(-1, 1)
            clip = import_audio_library("soxr").resample(clip, rate * factor, rate).astype(np.float32)
            clip = clip[: int(processor.max_seconds * rate)]
        if "shift" in self.audio:
            silence = int(generator.integers(0, int(SHIFT * rate) + 1))
            clip = np.pad(clip, (silence, 0))[: int(processor.max_seconds * rate)]
        if "noise" in self.audio:
            loudness = np.sqrt(np.mean(clip**2)) * 10 ** (-generator.uniform(*DECIBELS) / 20)
            noise = generator.standard_normal(len(clip), dtype=np.float32)
            clip = np.clip(clip + np.float32(loudness) * noise, -1, 1)
        return clip


def kornia_augmentation() -> Any:
    """kornia's module of augmentations, imported only when images are augmented.

    Raises:
        ValueError: kornia is not installed.
    """
    try:
        import kornia.augmentation
    except ImportError:
        raise ValueError('augmenting images needs kornia: pip install "modeling-mm[augment]"') from None
    return kornia.augmentation


def image_transform(names: Collection[str], size: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The transform of these names, for images (I, 3, H, W) in [0, 1] of one size (W, H), drawn for each image."""
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
    return features.view(len(features), -1, bins)  # SeamlessM4T puts two frames into one row


def scale_frequencies(features: torch.Tensor, factors: np.ndarray, feature_extractor: Any) -> None:
    """Multiply the frequencies in log-mel features (A, F, M) by a factor per clip (A), in place.

    Values between two bins are interpolated; in place of what would come from beyond the highest bin is that bin.
    """
    extractor, bins = feature_extractor, features.shape[2]
    slaney = isinstance(extractor, (WhisperFeatureExtractor, ClapFeatureExtractor))
    to_mel, to_hertz = (partial(f, mel_scale="slaney" if slaney else "kaldi") for f in (hertz_to_mel, mel_to_hertz))
    lowest, highest = (getattr(extractor, f"frequency_{end}", None) for end in ("min", "max"))
    ends = to_mel(lowest or 0.0), to_mel(highest or extractor.sampling_rate / 2)
    centres = np.linspace(*ends, num=bins + 2)[1:-1]
    positions = np.interp(to_mel(to_hertz(centres) / factors[:, None]), centres, np.arange(bins))  # (A, M)
    below = torch.from_numpy(np.minimum(positions.astype(int), bins - 2))
    share = (torch.from_numpy(positions) - below).to(features)[:, None]
    below = below[:, None].expand(features.shape)
    low, high = features.gather(2, below), features.gather(2, below + 1)
    features.copy_(torch.lerp(low, high, share))


def spec_augment(frames: torch.Tensor, generator: np.random.Generator) -> None:
    """Mask random frames and mel bins of a clip (F, M) by its mean, in place (Park et al. 2019).

    transformers has such masks too, but private, of one width, and drawn from NumPy's global state.
    """
    mean = frames.mean()
    for axis, widest in ((frames, FRAMES), (frames.T, BANDS)):
        for _ in range(MASKS):
            width = int(generator.integers(0, round(widest * len(axis)) + 1))
            start = int(generator.integers(0, len(axis) - width + 1))
            axis[start : start + width] = mean


def drop_modalities(row: Row, share: float, markers: Mapping[str, str], generator: np.random.Generator) -> Row:
    """The row with each of its modalities left out with probability `share`, but never all of them.

    If all would be left out, each is equally likely to stay.
    """
    draws = {m: generator.random() for m in ("text", *MODALITIES, *([TABLE] if row.table else []))}
    present = present_modalities(row, markers)
    stays = max(present, key=lambda modality: draws[modality], default=None)
    return without(row, [m for m in present if m != stays and draws[m] < share], markers)


def drop_words(text: str, share: float, markers: Collection[str], generator: np.random.Generator) -> str:
    """The text with each of its words left out with probability `share`, but never all; markers stay."""
    marker = "|".join(map(re.escape, markers))
    pieces = re.findall(rf"(?:{marker})\s*|(?:(?!{marker})\S)+\s*|\s+", text)  # each with the space behind it
    words = [i for i, piece in enumerate(pieces) if piece.strip() and piece.strip() not in markers]
    draws = generator.random(len(words))
    left_out = {i for i, draw in zip(words, draws, strict=True) if draw < share and draw < draws.max()}
    if not left_out:
        return text
    return "".join(piece for i, piece in enumerate(pieces) if i not in left_out).rstrip()
