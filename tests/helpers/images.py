# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A grey ramp in common colour modes and file formats."""

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil

from modeling_mm import MMProcessor

SIDE = 16  # of files and of the tower's input, so that its pixels are those of the file
RAMP = np.linspace(0, 1, SIDE)[None].repeat(SIDE, 0)
GREY = (RAMP * 255).round()  # the ramp in most files here


def square():
    """Alpha (H, W) of an opaque square in a transparent image."""
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[4:12, 4:12] = 255
    return alpha


def coloured(colour="RGB"):
    """The ramp in a colour mode."""
    return Image.fromarray(GREY.astype(np.uint8)).convert("RGB").convert(colour)


def turned():
    """The ramp with the EXIF orientation of a camera rotated by 90 degrees."""
    image = coloured()
    image.getexif()[0x0112] = 6
    return image


def drawn_on_nothing(mode):
    """A black square on a transparent background."""
    black = Image.new("L", (SIDE, SIDE))
    return Image.merge("LA", [black, Image.fromarray(square())]).convert(mode)


def processor_of(tokenizer, **fields):
    """A processor that only rescales values, so that its pixels are those of the file."""
    images = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_normalize=False, do_convert_rgb=False)
    return MMProcessor(images, tokenizer, **fields)
