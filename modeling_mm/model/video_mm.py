# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Video from any kind of source: a few evenly spaced frames as RGB images; and pixels for a vision tower.

- A source is a file that FFmpeg reads (through PyAV), the bytes of such a file, a folder of images, a list of frames,
  or an array (F, H, W, C). A video with fewer frames than requested gives each of them once.
- The time stamps of a file are read first, without decoding; then only the packets from the preceding key frame to a
  sampled frame are decoded. At most the sampled frames are in memory.

Shapes: V videos, F frames, H height, W width, C channels.
"""

import importlib
import io
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from .dealing_mm import items_per_row
from .images_mm import BACKGROUND, as_array, eight_bit, open_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def import_av() -> Any:
    """PyAV, imported when the first video file is read.

    Raises:
        ImportError: names the package extra to install.
    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ImportError('reading video needs av: pip install "modeling-mm[video]"') from error


def is_frame(source: Any) -> bool:
    """True for one image: a PIL image, an array of two or three dimensions, a file or its bytes; a GIF is a video."""
    if isinstance(source, (str, os.PathLike)):
        return os.path.splitext(source)[1].lower() in IMAGE_SUFFIXES
    if isinstance(source, bytes):
        try:
            return Image.open(io.BytesIO(source)).format != "GIF"
        except OSError:
            return False
    return isinstance(source, Image.Image) or (hasattr(source, "__array__") and np.asarray(source).ndim in (2, 3))


def is_video(source: Any) -> bool:
    """True for one video, a list of images or no list at all; False for a list of videos."""
    return not isinstance(source, (list, tuple)) or len(source) > 0 and all(is_frame(part) for part in source)


def videos_per_row(videos: Any, rows: int | None, markers: list[int]) -> list[list]:
    """One list of videos for each row; see `items_per_row`."""
    return items_per_row(videos, rows, markers, is_video, "videos")


def sample_evenly(count: int, samples: int) -> list[int]:
    """Indices of `samples` of `count` frames: the middle frame of each of as many equal parts, or all if fewer."""
    if count <= samples:
        return list(range(count))
    return [(2 * part + 1) * count // (2 * samples) for part in range(samples)]


def read_video(source: Any, num_frames: int, background: str = BACKGROUND) -> list[Image.Image]:
    """At most `num_frames` evenly spaced RGB images of a video, in their order.

    Args:
        source: the path of a file or of a folder of images, a file's bytes, a list of frames (PIL, arrays, paths or
            bytes), or an array (F, H, W, C), all of whose frames share one value range (see `images_mm`).
        background: the colour behind transparent pixels.

    Raises:
        ValueError: names the source that is missing, unreadable, without frames or of another kind.
        ImportError: PyAV is needed and not installed.
    """
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        files = sorted((name for name in os.listdir(source) if is_frame(name)), key=frames_by_number)
        if not files:
            raise ValueError(f"the video folder '{os.fspath(source)}' holds no images; expected PNG, JPEG, ...")
        source = [os.path.join(source, name) for name in files]
    if isinstance(source, (str, os.PathLike, bytes)):
        return [open_image(frame, background) for frame in decode_video(source, num_frames)]
    frames: Any = source if isinstance(source, (list, tuple)) else as_array(source)
    if not isinstance(frames, (list, tuple)) and frames.ndim != 4:
        what = f"an array of shape {frames.shape}" if hasattr(source, "__array__") else type(source).__name__
        raise ValueError(f"{what} is no video; expected a path, bytes, a list of frames or an array (F, H, W, C)")
    if len(frames) == 0:
        raise ValueError("a video has no frames; expected at least one")
    indices = sample_evenly(len(frames), num_frames)
    frames = [frames[index] for index in indices] if isinstance(frames, (list, tuple)) else frames[indices]
    frames = eight_bit(frames, "video") if isinstance(frames, np.ndarray) else frames
    return [open_image(frame, background, "channels_last", "video's frame") for frame in frames]


def frames_by_number(name: str) -> list[tuple[int, str]]:
    """A sort key that puts 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def decode_video(source: str | os.PathLike | bytes, num_frames: int) -> list[Image.Image]:
    """At most `num_frames` images of a video file, by its path or its bytes."""
    av = import_av()
    name = "in its embedded bytes" if isinstance(source, bytes) else f"'{os.fspath(source)}'"
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise ValueError(f"the video {name} does not exist")

    def open_container() -> Any:
        return av.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source))

    try:
        with open_container() as container:
            if not container.streams.video:
                raise ValueError(f"the video {name} has no frames, only audio or text")
            stamps, keys = time_stamps(container)
            sampled = [stamps[index] for index in sample_evenly(len(stamps), num_frames)]
            frames = list(frames_at(container, sampled, keys))
        if not keys:
            with open_container() as container:
                indices = sample_evenly(sum(1 for _ in container.decode(video=0)), num_frames)
            with open_container() as container:
                frames = [frame_image(frame) for i, frame in enumerate(container.decode(video=0)) if i in indices]
    except (av.FFmpegError, OSError) as error:
        reason = str(error.strerror or error).rstrip(".")
        raise ValueError(f"the video {name} cannot be read ({reason}); expected MP4, WebM, AVI, GIF, ...") from None
    if not frames:
        raise ValueError(f"the video {name} has no frames; expected at least one")
    return frames


def time_stamps(container: Any) -> tuple[list[int], list[int]]:
    """The time stamps of all frames of an open file, and of its key frames, sorted; empty if the file has none."""
    packets = [(p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size and not p.is_discard]
    if any(stamp is None for stamp, _ in packets):  # AVI, raw streams
        return [], []
    return sorted(stamp for stamp, _ in packets), sorted(stamp for stamp, is_key in packets if is_key)


def frames_at(container: Any, stamps: list[int], keys: list[int]) -> Iterator[Image.Image]:
    """The frames at these time stamps, each decoded from the preceding key frame or from the last decoded frame."""
    decoded: Iterator[Any] = iter(())
    reached = None
    for stamp in stamps if keys else []:
        key = keys[max(0, bisect_right(keys, stamp) - 1)]
        if reached is None or key > reached:  # seek instead of decoding all frames in between
            container.seek(key, stream=container.streams.video[0])
            decoded = container.decode(video=0)
        frame = next((frame for frame in decoded if frame.pts is None or frame.pts >= stamp), None)
        reached = stamp
        if frame is not None:
            yield frame_image(frame)


def frame_image(frame: Any) -> Image.Image:
    """A decoded frame as RGB, or RGBA if it has alpha, rotated by its camera orientation."""
    transparent = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    pixels = frame.to_ndarray(format="rgba" if transparent else "rgb24")
    return Image.fromarray(np.rot90(pixels, round(frame.rotation / 90)))


def video_features(
    image_processor: Any, videos: list[Any], num_frames: int, background: str = BACKGROUND
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pixels of videos (V, num_frames, C, H, W) for a vision tower, and a mask (V, num_frames), 0 for padding frames.

    Padding frames are zeros behind the others. The mask is None without padding.

    Raises:
        ValueError: a video cannot be read, or the image processor returns more than pixels of one size.
    """
    clips = [read_video(video, num_frames, background) for video in videos]
    prepared = image_processor([frame for clip in clips for frame in clip], return_tensors="pt")
    if set(prepared) != {"pixel_values"}:
        kind = type(image_processor).__name__
        raise ValueError(f"{kind} returns {', '.join(prepared)}; video needs one that returns only `pixel_values`")
    real = torch.arange(num_frames) < torch.tensor([len(clip) for clip in clips])[:, None]
    pixels = prepared["pixel_values"].new_zeros(*real.shape, *prepared["pixel_values"].shape[1:])
    pixels[real] = prepared["pixel_values"]
    return pixels, None if real.all() else real.long()
