# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Videos from any kind of source: a few frames of each, at even places, and errors that name the source."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.video import av, bar, folder, places, write_video  # noqa: F401
from PIL import Image

from modeling_mm.model import video_mm
from modeling_mm.model.video_mm import read_video, sample_evenly

CODECS = {
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4.avi": {"codec": "mpeg4", "bf": 2},  # its packets have no time stamps
    "x264.mp4": {"codec": "libx264", "g": 7, "bf": 3},
    "x264.mkv": {"codec": "libx264", "g": 1000, "bf": 3},
    "vp9.webm": {"codec": "libvpx-vp9", "g": 5},
    "x264.h264": {"codec": "libx264", "g": 5, "bf": 2},
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("num_frames", [1, 4, 32, 40])
def test_frames_are_those_of_the_whole_video_at_even_places(tmp_path, name, num_frames):
    try:
        path = write_video(tmp_path / name, bar(32), **CODECS[name])
    except (ValueError, av.FFmpegError) as error:
        pytest.skip(f"this FFmpeg does not write it: {error}")
    assert places(read_video(path, num_frames), 32) == sample_evenly(32, num_frames)
    assert places(read_video(path.read_bytes(), num_frames), 32) == sample_evenly(32, num_frames)


def test_even_places_are_the_middles_of_equal_parts():
    found = [sample_evenly(8, count) for count in (1, 2, 4, 8, 9)]
    assert found == [[4], [2, 6], [1, 3, 5, 7], [*range(8)], [*range(8)]]
    assert sample_evenly(3, 2) == [0, 2] and sample_evenly(0, 2) == []


def test_of_a_long_video_only_the_neighbourhood_of_the_wanted_frames_is_decoded(tmp_path):
    path, decoded = write_video(tmp_path / "a.mp4", bar(300), "libx264", g=10, sc_threshold=0), []

    class Counted:
        """A container that counts what it decodes."""

        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def decode(self, video):
            for frame in self.container.decode(video=video):
                decoded.append(frame.pts)
                yield frame

    with av.open(str(path)) as container:
        stamps, keys = video_mm.time_stamps(container)
        assert (len(stamps), len(keys)) == (300, 30)
        sampled = [stamps[place] for place in sample_evenly(300, 4)]
        frames = list(video_mm.frames_at(Counted(container), sampled, keys))
    assert len(frames) == 4 and len(decoded) <= 4 * 10


def test_a_video_is_turned_as_the_camera_was_held(tmp_path):
    content = write_video(tmp_path / "a.mp4", bar(4)).read_bytes()
    upright = b"".join(number.to_bytes(4, "big") for number in (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30))
    turned = b"".join(number.to_bytes(4, "big") for number in (0, 65536, 0, 2**32 - 65536, 0, 0, 0, 0, 2**30))
    track = content.index(b"tkhd")
    assert upright in content[track:]
    content = content[:track] + content[track:].replace(upright, turned, 1)  # what phones write: a quarter clockwise
    straight, clockwise = read_video(tmp_path / "a.mp4", 4), read_video(content, 4)
    for before, after in zip(straight, clockwise, strict=True):
        assert np.abs(np.rot90(np.asarray(before), -1).astype(int) - np.asarray(after)).max() <= 1


def test_lists_arrays_and_folders_are_videos(folder):
    frames = bar(16)
    files = [str(folder / "frames" / f"{number}.png") for number in range(16)]
    sources = [str(folder / "frames"), folder / "frames", frames, torch.from_numpy(frames), frames / 255.0, files]
    sources += [
        list(frames),
        [Image.fromarray(frame) for frame in frames],
        [Path(file).read_bytes() for file in files],
    ]
    for source in sources:
        assert places(read_video(source, 4), 16) == [2, 6, 10, 14]
    assert len(read_video(frames[..., :1], 16)) == 16


def test_what_is_no_video_is_said(folder):
    (folder / "text.mp4").write_text("no video")
    (folder / "empty").mkdir()
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux([*stream.encode(silence), *stream.encode()])
    for source, message in {
        "none.mp4": "none.mp4' does not exist",
        "text.mp4": "text.mp4' cannot be read .*; expected MP4",
        "sound.mp4": "sound.mp4' (has no frames|cannot be read)",
        "empty": "the video folder '.*empty' holds no images",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_video(str(folder / source), 4)
    for value, message in (
        (3, "int is no video; expected a path"),
        ([], "a video has no frames"),
        (bar(0), "a video has no frames"),
        (bar(2)[0], r"an array of shape \(64, 64, 3\) is no video"),
        (np.zeros((2, 64, 64, 5), np.uint8), r"an array of uint8 of shape \(64, 64, 5\); expected"),
        (bar(2).astype(int) - 1, "the video holds values from -1 to .*; expected integers from 0 to 255"),
        ([str(folder / "none.png")], "the video's frame '.*none.png' does not exist"),
        ([str(folder / "text.mp4")], "the video's frame '.*text.mp4' is not in a format"),
        (b"no video", "in its embedded bytes cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_video(value, 4)


def test_a_truncated_file_gives_what_it_holds_or_is_named(folder):
    write_video(folder / "a.mkv", np.random.default_rng(0).integers(0, 255, (32, 64, 64, 3), np.uint8), "libx264")
    for name in ("a.mkv", "long.mp4"):
        content = (folder / name).read_bytes()
        try:
            assert 0 < len(read_video(content[: len(content) // 2], 4)) <= 4
        except ValueError as error:
            assert "the video in its embedded bytes" in str(error)
