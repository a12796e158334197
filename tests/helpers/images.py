# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""One ramp in the colour modes and file formats that people have."""

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil

from modeling_mm import (
    MMProcessor,
)

SIDE = 16  # of files and of what the tower sees, so that its pixels are the file's
RAMP = np.linspace(0, 1, SIDE)[None].repeat(SIDE, 0)
GREY = (RAMP * 255).round()  # of most files here


def square():
    """Alpha (H, W): a square in the middle, and nothing around it."""
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[4:12, 4:12] = 255
    return alpha


def coloured(colour="RGB"):
    """The ramp in a colour mode."""
    return Image.fromarray(GREY.astype(np.uint8)).convert("RGB").convert(colour)


def turned():
    """The ramp with the orientation of a camera that was turned by a quarter."""
    image = coloured()
    image.getexif()[0x0112] = 6
    return image


def drawn_on_nothing(mode):
    """A black square on a transparent ground."""
    black = Image.new("L", (SIDE, SIDE))
    return Image.merge("LA", [black, Image.fromarray(square())]).convert(mode)


def processor_of(tokenizer, **fields):
    """A processor that only scales, so that its pixels are those of the file."""
    images = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_normalize=False, do_convert_rgb=False)
    return MMProcessor(images, tokenizer, **fields)
