# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""KeptPictures: pictures stay in memory as they were opened, so that later epochs need not decode them again."""

from collections.abc import Callable, Hashable

from PIL import Image

BYTES_PER_PIXEL = 4  # of Pillow's RGB


class KeptPictures:
    """Pictures by a key. Once the room is taken, others are opened each time: in a random order every picture is as
    likely to be the next, so that nothing is gained by making room.

    Args:
        megabytes: of pictures that are kept at most, in each process that opens any.
    """

    def __init__(self, megabytes: int = 0):
        self.room = megabytes * 2**20
        self.pictures: dict[Hashable, Image.Image] = {}

    def get(self, key: Hashable, opened: Callable[[], Image.Image]) -> Image.Image:
        """The picture of this key, `opened` where it is not in memory."""
        if key in self.pictures:
            return self.pictures[key]
        picture = opened()
        size = picture.width * picture.height * BYTES_PER_PIXEL
        if size <= self.room:
            self.room -= size
            self.pictures[key] = picture
        return picture
