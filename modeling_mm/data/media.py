# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Images, audio clips and videos of a table: references, careful opening, checks, and a cache of decoded images."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from ..model import images_mm
from ..model.audio_mm import is_silent, open_audio
from ..model.images_mm import BACKGROUND
from ..model.media_mm import MODALITIES
from ..model.video_mm import read_video

MediaSource: TypeAlias = str | bytes | list  # a list holds the frames of a video


@dataclass(frozen=True, eq=False)
class MediaRef:
    """An image, audio clip or video of a row, and the key by which equal ones are recognised.

    The key is computed once, however often it is asked for; two references are equal if their keys are.

    Args:
        source: a path, encoded bytes, or a list of paths and bytes, the frames of a video.
    """

    source: MediaSource

    @property
    def path(self) -> str | None:
        """The path; None for embedded bytes and for frames."""
        return self.source if isinstance(self.source, str) else None

    @cached_property
    def key(self) -> str:
        """The path, the SHA-256 digest of the bytes, or the keys of all frames of a video."""
        if isinstance(self.source, list):
            return "\n".join(MediaRef(frame).key for frame in self.source)
        return self.source if isinstance(self.source, str) else hashlib.sha256(self.source).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MediaRef) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


Media: TypeAlias = Mapping[str, Sequence[MediaRef]]  # by the name of their modality

LISTED = 20  # audio clips that a remark names


class MediaCheck:
    """Findings about the media that were checked so far.

    Args:
        pool: runs the checks.
        max_seconds: seconds of an audio clip that will be used.
        num_frames: frames of a video that will be used; None if the model takes no video.
    """

    def __init__(self, pool: Executor, max_seconds: float, num_frames: int | None = None):
        self.pool, self.max_seconds, self.num_frames = pool, max_seconds, num_frames
        self.known: dict[str, dict[str, str | None]] = {name: {} for name in MODALITIES}
        self.cut: list[MediaRef] = []
        self.silent: list[MediaRef] = []
        self.seconds: list[float] = []  # of each audio clip, before any cut

    def look(self, media: Media) -> None:
        """Open the media that were not opened before.

        Raises:
            ValueError: there is audio or video, and the libraries that read it are not installed.
        """
        complaints = {"image": image_complaint, "audio": self.audio_complaint, "video": self.video_complaint}
        for name, items in media.items():
            new = {item.key: item for item in items if item.key not in self.known[name]}
            self.known[name].update(zip(new, self.pool.map(complaints[name], new.values()), strict=True))

    def audio_complaint(self, medium: MediaRef) -> str | None:
        """The reason why an audio clip cannot be used; None if it can."""
        try:
            clip, _, seconds = open_audio(medium.source, self.max_seconds)
        except ImportError as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            return str(error)
        self.seconds.append(seconds)
        if seconds > self.max_seconds:
            self.cut.append(medium)
        if is_silent(clip):
            self.silent.append(medium)
        return None

    def video_complaint(self, medium: MediaRef) -> str | None:
        """The reason why a video cannot be used; None if it can."""
        if self.num_frames is None:
            return "the row has a video, but this model takes none (--num_frames makes a new model that does)"
        try:
            read_video(medium.source, self.num_frames)
        except ImportError as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            return str(error)
        return None

    def complaint(self, media: Media) -> str | None:
        """The first reason why one of these media, all checked before, cannot be used; None if all can."""
        found = [self.known[name][item.key] for name, items in media.items() for item in items]
        return next(filter(None, found), None)

    def remarks(self) -> list[str]:
        """Warnings about audio clips that can be used, but not as they are."""
        remarks = []
        for media, finding in (
            (self.cut, f"longer than {self.max_seconds:g} s and will be cut"),
            (self.silent, "silent"),
        ):
            if media:
                names = sorted(f"'{medium.path}'" for medium in media if medium.path is not None)
                more = [f"{len(media) - len(names[:LISTED])} more"] if len(media) > len(names[:LISTED]) else []
                listed = f": {', '.join([*names[:LISTED], *more])}" if names else ""
                remarks.append(f"{len(media)} of {len(self.known['audio'])} audio clips are {finding}{listed}")
        return remarks


class BadRow(ValueError):
    """A row that cannot be used; the message says what was found and what was expected."""


def open_image(source: MediaSource | Image.Image, background: str = BACKGROUND) -> Image.Image:
    """The RGB image of a cell, a file or an object; see `images_mm.open_image`.

    Raises:
        BadRow: the image is missing, not an image, truncated, or so large that it may be a decompression bomb.
    """
    try:
        return images_mm.open_image(source, background)
    except ValueError as error:
        raise BadRow(str(error)) from None


def image_complaint(image: MediaRef) -> str | None:
    """The reason why an image cannot be opened; None if it can."""
    try:
        open_image(image.source)
    except BadRow as error:
        return str(error)
    return None


Decoded = TypeVar("Decoded", bound=Image.Image | np.ndarray)
BYTES_PER_PIXEL = 4  # of Pillow's RGB


class MediaCache(Generic[Decoded]):
    """Decoded images, or samples of audio clips, by a key. Once the cache is full, others are decoded each time: in a
    random order every one is as likely to be the next, so that nothing is gained by evicting one.

    Args:
        megabytes: size of the cache, in each process that decodes media.
    """

    def __init__(self, megabytes: int = 0):
        self.room = megabytes * 2**20
        self.media: dict[Hashable, Decoded] = {}

    def get(self, key: Hashable, decode: Callable[[], Decoded]) -> Decoded:
        """The cached medium with this key, or the one that `decode` returns, which is cached if there is room."""
        if key in self.media:
            return self.media[key]
        medium = decode()
        if isinstance(medium, Image.Image):
            size = medium.width * medium.height * BYTES_PER_PIXEL
        else:
            size = medium.nbytes
        if size <= self.room:
            self.room -= size
            self.media[key] = medium
        return medium
