# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Videos of a moving bar, and files of them."""

import numpy as np
import pytest
from helpers.builders import drawing
from PIL import Image

av = pytest.importorskip("av")


def write_video(path, frames, codec="mpeg4", kind=None, **options):
    """Write frames (F, H, W, 3) to a file, ten per second."""
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10, options={name: str(value) for name, value in options.items()})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def bar(count, size=64):
    """Frames (F, H, W, 3) with a white bar in column f + 1 of `count` in frame f."""
    frames = np.zeros((count, size, size, 3), np.uint8)
    for number, frame in enumerate(frames):
        start = number * size // count
        frame[:, start : start + max(2, size // count)] = 255
    return frames


def places(frames, count):
    """The places of these frames in `bar(count)`."""
    columns = [np.asarray(frame).mean(axis=(0, 2)) for frame in frames]
    return [int((column > column.max() / 2).nonzero()[0].mean() * count / len(column)) for column in columns]


@pytest.fixture
def folder(tmp_path):
    """A folder with a video of 32 frames, one of two, a folder of frames, and an image."""
    folder = tmp_path / "data"
    (folder / "frames").mkdir(parents=True)
    write_video(folder / "long.mp4", bar(32))
    write_video(folder / "short.mp4", bar(2))
    for number, frame in enumerate(bar(16)):
        Image.fromarray(frame).save(folder / "frames" / f"{number}.png")  # 10.png comes after 9.png
    drawing((200, 30, 30)).save(folder / "red.png")
    return folder
