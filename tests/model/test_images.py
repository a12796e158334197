# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Opening an image: supported values, shapes and sources, and errors of one sentence for all others."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers.images import SIDE, coloured, drawn_on_nothing, processor_of, turned
from PIL import Image

from modeling_mm.data.media import BadRow, open_image
from modeling_mm.model import images_mm
from modeling_mm.model.video_mm import read_video


@pytest.fixture
def processor(tokenizer):
    return processor_of(tokenizer)


@pytest.mark.parametrize("colour", ["whitish", None, 3, "#12"])
def test_a_background_that_is_no_colour_is_refused(tokenizer, colour):
    with pytest.raises(ValueError, match="`image_background` is .*; expected a colour"):
        processor_of(tokenizer, image_background=colour)


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 4), -1.0),
        np.full((4, 4), 300.0),
        np.full((4, 4), np.nan),
        np.full((4, 4), np.inf),
        np.full((4, 4), -5, np.int32),
        np.full((4, 4), 70_000, np.int32),
    ],
    ids=lambda values: str(values[0, 0]),
)
def test_values_of_no_known_range_are_refused_in_one_sentence(values, tmp_path):
    Image.fromarray(values.astype(np.float32) if values.dtype.kind == "f" else values).save(tmp_path / "a.tif")
    for source in (values, torch.from_numpy(values), Image.open(tmp_path / "a.tif"), tmp_path / "a.tif"):
        with pytest.raises(ValueError, match="^the image .* holds values from .*, whose range is not known; expected"):
            images_mm.open_image(source)
    with pytest.raises(BadRow, match="a.tif' holds values from"):
        open_image(str(tmp_path / "a.tif"))


@pytest.mark.parametrize(
    "array", [np.zeros((2, 4, 4, 3)), np.zeros(4), np.zeros((5, 5, 6)), np.zeros((0, 4)), 3, None]
)
def test_what_is_no_single_image_is_refused(array):
    with pytest.raises(
        ValueError, match=r"^the image is (an array of float64 of shape|of type (int|NoneType); expected)"
    ):
        images_mm.open_image(array)


def test_channels_stand_first_or_last(processor):
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE + 2, 3), np.uint8)
    expected = processor.flat_images([[Image.fromarray(image)]])["pixel_values"]
    first = image.transpose(2, 0, 1)
    for array in (
        image,
        first,
        torch.from_numpy(image),
        torch.from_numpy(first.copy()),
        image / 255,
        image.astype(int),
    ):
        assert torch.equal(processor.flat_images([[array]])["pixel_values"], expected)
    narrow = np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8)  # either axis may be the channels
    last, first = (processor.flat_images([[narrow]], input_data_format=f"channels_{end}") for end in ("last", "first"))
    assert torch.equal(last["pixel_values"], processor.flat_images([[narrow]])["pixel_values"])
    assert torch.equal(first["pixel_values"], processor.flat_images([[torch.from_numpy(narrow)]])["pixel_values"])
    assert last["pixel_values"].shape == (1, 3, 3, 5) and first["pixel_values"].shape == (1, 3, 5, 3)


def test_arrays_that_are_not_to_be_rescaled_come_through_as_they_are(processor):
    pixels = torch.randn(3, SIDE, SIDE)
    found = processor(images=[pixels], text=["yes"], do_rescale=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(found[0], pixels)


def test_frames_of_one_array_have_one_range():
    faint = np.zeros((2, 4, 4, 3))
    faint[0], faint[1] = 1, 200  # a peak of 255: alone, the first frame would be white
    assert [frame.getpixel((0, 0)) for frame in read_video(faint, 2)] == [(1, 1, 1), (200, 200, 200)]


def test_a_transparent_animation_lies_on_the_background(tmp_path):
    pytest.importorskip("av")
    frames = [drawn_on_nothing("RGBA"), drawn_on_nothing("RGBA").transpose(Image.Transpose.ROTATE_90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    for frame in read_video(tmp_path / "a.gif", 2, "#00ff00"):
        assert frame.getpixel((0, 0)) == (0, 255, 0) and frame.getpixel((8, 8)) == (0, 0, 0)


def test_an_image_that_is_rgb_already_is_not_copied():
    image = coloured()
    assert images_mm.open_image(image) is image


def test_an_image_given_is_left_as_it_was(tmp_path):
    turned().save(tmp_path / "turned.jpg", exif=turned().getexif())
    with Image.open(tmp_path / "turned.jpg") as image:
        images_mm.open_image(image)
        assert image.getexif()[0x0112] == 6


def test_a_clear_colour_of_sixteen_bits_is_found_in_eight(tmp_path):
    """PIL keeps the high bytes of a 16-bit RGB PNG, but all 16 bits of its transparent colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    clear = struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)
    line = b"\0" + clear + struct.pack(">HHH", 0, 0, 0)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0),
        b"tRNS": clear,
        b"IDAT": zlib.compress(line),
        b"IEND": b"",
    }
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts.items())
    opened = images_mm.open_image(content)
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]
    with Image.open(io.BytesIO(content)) as image:
        assert images_mm.open_image(image).getpixel((0, 0)) == (255, 255, 255)
