# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Each distinct picture and sound of a table opened once, to say what is wrong with it before any work is done."""

from collections.abc import Iterable
from concurrent.futures import Executor

from .audio_mm import is_silent, open_audio
from .images import image_complaint, image_key

LISTED = 20  # sounds that a remark names


class MediaCheck:
    """What was found out about the media looked at so far.

    Args:
        pool: where they are opened.
        max_seconds: of a sound that will be used.
    """

    def __init__(self, pool: Executor, max_seconds: float):
        self.pool, self.max_seconds = pool, max_seconds
        self.images: dict[str, str | None] = {}
        self.sounds: dict[str, str | None] = {}
        self.cut: list[str | bytes] = []
        self.silent: list[str | bytes] = []

    def look(self, images: Iterable[str | bytes], sounds: Iterable[str | bytes]) -> None:
        """Open those that were not opened before.

        Raises:
            ValueError: there is sound, and the libraries that read it are not installed.
        """
        for media, known, complaint in (
            (images, self.images, image_complaint),
            (sounds, self.sounds, self.sound_complaint),
        ):
            new = {image_key(medium): medium for medium in media}
            new = {key: medium for key, medium in new.items() if key not in known}
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

    def complaint(self, images: list[str | bytes], sounds: list[str | bytes]) -> str | None:
        """The first thing that is wrong with media which were looked at."""
        found = [self.images[image_key(image)] for image in images]
        found += [self.sounds[image_key(sound)] for sound in sounds]
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
                said.append(f"{len(sources)} of {len(self.sounds)} sounds are {what}{listed}")
        return said
