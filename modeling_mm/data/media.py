# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Images, sounds and videos of a table: told apart, opened with care, kept in memory, and what is wrong with each."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

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
        """The path, or the SHA-256 digest of the bytes; the keys of all frames of a video."""
        if isinstance(self.source, list):
            return "\n".join(MediaRef(frame).key for frame in self.source)
        return self.source if isinstance(self.source, str) else hashlib.sha256(self.source).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MediaRef) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


Media: TypeAlias = Mapping[str, Sequence[MediaRef]]  # by the name of their modality

LISTED = 20  # sounds that a remark names


class MediaCheck:
    """What was found out about the media looked at so far.

    Args:
        pool: where they are opened.
        max_seconds: of a sound that will be used.
        num_frames: of a video that will be used; None where the model takes no video.
    """

    def __init__(self, pool: Executor, max_seconds: float, num_frames: int | None = None):
        self.pool, self.max_seconds, self.num_frames = pool, max_seconds, num_frames
        self.known: dict[str, dict[str, str | None]] = {name: {} for name in MODALITIES}
        self.cut: list[MediaRef] = []
        self.silent: list[MediaRef] = []

    def look(self, media: Media) -> None:
        """Open those that were not opened before.

        Raises:
            ValueError: there is sound or video, and the libraries that read it are not installed.
        """
        complaints = {"image": image_complaint, "audio": self.sound_complaint, "video": self.video_complaint}
        for name, items in media.items():
            new = {item.key: item for item in items if item.key not in self.known[name]}
            self.known[name].update(zip(new, self.pool.map(complaints[name], new.values()), strict=True))

    def sound_complaint(self, medium: MediaRef) -> str | None:
        """What is wrong with a sound, None where it can be used."""
        try:
            clip, _, seconds = open_audio(medium.source, self.max_seconds)
        except ImportError as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            return str(error)
        if seconds > self.max_seconds:
            self.cut.append(medium)
        if is_silent(clip):
            self.silent.append(medium)
        return None

    def video_complaint(self, medium: MediaRef) -> str | None:
        """What is wrong with a video, None where it can be used."""
        if self.num_frames is None:
            return "there is a video, but this model takes none (a new one takes it by --num_frames)"
        try:
            read_video(medium.source, self.num_frames)
        except ImportError as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            return str(error)
        return None

    def complaint(self, media: Media) -> str | None:
        """The first thing that is wrong with media which were looked at."""
        found = [self.known[name][item.key] for name, items in media.items() for item in items]
        return next(filter(None, found), None)

    def remarks(self) -> list[str]:
        """What to know of the sounds that can be used."""
        said = []
        for media, what in (
            (self.cut, f"longer than {self.max_seconds:g} s and will be cut"),
            (self.silent, "silent"),
        ):
            if media:
                names = sorted(f"'{medium.path}'" for medium in media if medium.path is not None)
                more = [f"{len(media) - len(names[:LISTED])} more"] if len(media) > len(names[:LISTED]) else []
                listed = f": {', '.join([*names[:LISTED], *more])}" if names else ""
                said.append(f"{len(media)} of {len(self.known['audio'])} sounds are {what}{listed}")
        return said


class BadRow(ValueError):
    """A row that cannot be used; the message says what was found and what was expected."""


def open_image(source: MediaSource | Image.Image, background: str = BACKGROUND) -> Image.Image:
    """The RGB image of a cell, a file or an object; see `images_mm.open_image`.

    Raises:
        BadRow: it is missing, no image, truncated, or so large that it may be a decompression bomb.
    """
    try:
        return images_mm.open_image(source, background)
    except ValueError as error:
        raise BadRow(str(error)) from None


def image_complaint(image: MediaRef) -> str | None:
    """What is wrong with an image, None where it opens."""
    try:
        open_image(image.source)
    except BadRow as error:
        return str(error)
    return None


BYTES_PER_PIXEL = 4  # of Pillow's RGB


class ImageCache:
    """Images by a key. Once the room is taken, others are opened each time: in a random order every image is as
    likely to be the next, so that nothing is gained by making room.

    Args:
        megabytes: of images that are kept at most, in each process that opens any.
    """

    def __init__(self, megabytes: int = 0):
        self.room = megabytes * 2**20
        self.pictures: dict[Hashable, Image.Image] = {}

    def get(self, key: Hashable, opened: Callable[[], Image.Image]) -> Image.Image:
        """The image of this key, `opened` where it is not in memory."""
        if key in self.pictures:
            return self.pictures[key]
        picture = opened()
        size = picture.width * picture.height * BYTES_PER_PIXEL
        if size <= self.room:
            self.room -= size
            self.pictures[key] = picture
        return picture
