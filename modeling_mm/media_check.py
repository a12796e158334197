# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Each distinct medium of a table opened once, to say what is wrong with it before any work is done."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TypeAlias

from .audio_mm import is_silent, open_audio
from .images import image_complaint, image_key
from .video_mm import read_video

Medium: TypeAlias = str | bytes | list  # a list holds the frames of a video
Media: TypeAlias = tuple[Sequence[Medium], Sequence[Medium], Sequence[Medium]]  # pictures, sounds, videos

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
        self.known: tuple[dict[str, str | None], ...] = ({}, {}, {})
        self.cut: list[str | bytes] = []
        self.silent: list[str | bytes] = []

    def look(self, media: Media) -> None:
        """Open those that were not opened before.

        Raises:
            ValueError: there is sound or video, and the libraries that read it are not installed.
        """
        complaints = (image_complaint, self.sound_complaint, self.video_complaint)
        for items, known, complaint in zip(media, self.known, complaints, strict=True):
            new = {image_key(item): item for item in items}
            new = {key: item for key, item in new.items() if key not in known}
            known.update(zip(new, self.pool.map(complaint, new.values()), strict=True))

    def sound_complaint(self, source: str | bytes) -> str | None:
        """What is wrong with a sound, None where it can be used."""
        try:
            clip, _, seconds = open_audio(source, self.max_seconds)
        except ImportError as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            return str(error)
        if seconds > self.max_seconds:
            self.cut.append(source)
        if is_silent(clip):
            self.silent.append(source)
        return None

    def video_complaint(self, source: Medium) -> str | None:
        """What is wrong with a video, None where it can be used."""
        if self.num_frames is None:
            return "there is a video, but this model takes none (a new one takes it by --num_frames)"
        try:
            read_video(source, self.num_frames)
        except ImportError as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            return str(error)
        return None

    def complaint(self, media: Media) -> str | None:
        """The first thing that is wrong with media which were looked at."""
        found = [known[image_key(item)] for items, known in zip(media, self.known, strict=True) for item in items]
        return next(filter(None, found), None)

    def remarks(self) -> list[str]:
        """What to know of the sounds that can be used."""
        said = []
        for sources, what in (
            (self.cut, f"longer than {self.max_seconds:g} s and will be cut"),
            (self.silent, "silent"),
        ):
            if sources:
                names = sorted(f"'{source}'" for source in sources if isinstance(source, str))
                more = [f"{len(sources) - len(names[:LISTED])} more"] if len(sources) > len(names[:LISTED]) else []
                listed = f": {', '.join([*names[:LISTED], *more])}" if names else ""
                said.append(f"{len(sources)} of {len(self.known[1])} sounds are {what}{listed}")
        return said
