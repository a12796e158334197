# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Opening images: every kind of source becomes an RGB PIL image, in the same way everywhere.

- The image is rotated according to its EXIF data, and transparency is composited onto a background colour.
- Samples are scaled to 8 bits by the range of their type: booleans by 1, 8-bit samples by 255, 16-bit samples (PIL's
  "I;16", uint16) by 65535. Wider types have no set range, so the values decide: integers by 255 or else by 65535 (a
  16-bit PGM, PIL's "I"), floats by 1 or else by 255. Larger and negative values are refused.
- Any other mode is converted by PIL.

Shapes: H height, W width, C channels: grey, grey and alpha, RGB or RGBA.
"""

import base64
import io
import os
import warnings
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from .dealing_mm import items_per_row

BACKGROUND = "white"
CHANNELS = (1, 2, 3, 4)
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
NAME_LENGTH = 200  # maximum length of a source in a message; a string may hold a whole image in base64


def is_image(source: Any) -> bool:
    """True for one image: a path, a URL, encoded bytes, a PIL image, an array or a tensor."""
    return isinstance(source, (str, os.PathLike, bytes, Image.Image)) or hasattr(source, "__array__")


def images_per_row(images: Any, rows: int | None, markers: list[int]) -> list[list]:
    """One list of images for each row; see `items_per_row`."""

    def is_item(value: Any) -> bool:
        return not isinstance(value, (list, tuple)) and getattr(value, "ndim", 3) < 4  # an array (B, C, H, W) is not

    return items_per_row(images, rows, markers, is_item, "images")


def open_image(
    source: Any, background: str = BACKGROUND, layout: str | None = None, what: str = "image"
) -> Image.Image:
    """The RGB image of a source, fully decoded; a PIL image that is RGB already is returned as it is.

    Args:
        source: a path, encoded bytes, a PIL image, or an array or tensor (H, W), (H, W, C) or (C, H, W).
        background: the colour behind transparent pixels, by its name in `PIL.ImageColor`.
        layout: "channels_first" or "channels_last" for an array; default: the one that its shape allows. If both are
            possible, a tensor has its channels first and an array last.
        what: the noun for messages.

    Raises:
        ValueError: the source is missing, no image, truncated, so large that it may be a decompression bomb, or has
            values of unknown range.
    """
    if isinstance(source, Image.Image):
        name = f"'{name_of(filename)}'" if (filename := getattr(source, "filename", None)) else f"({source.mode})"
        return decoded(source, background, f"{what} {name}")
    if isinstance(source, (str, os.PathLike, bytes)):
        name = "its embedded bytes" if isinstance(source, bytes) else f"'{name_of(source)}'"
        return decoded(source, background, f"{what} {name}")
    if not hasattr(source, "__array__"):
        expected = "a path, bytes, a PIL image, an array or a tensor"
        raise ValueError(f"the {what} is of type {type(source).__name__}; expected {expected}")
    array = channels_last(source, layout, what)
    return as_rgb(Image.fromarray(eight_bit(array, f"{what} (an array of {array.dtype})")), background)


def name_of(source: str | os.PathLike) -> str:
    """A path for a message, shortened if it is a whole file in base64."""
    name = os.fspath(source)
    return name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}..."


def decoded(source: Any, background: str, name: str) -> Image.Image:
    """The RGB image of a path, bytes or a PIL image; one sentence for any error.

    Raises:
        ValueError: as for `open_image`.
    """
    try:
        if isinstance(source, Image.Image):
            source.load()
            return as_rgb(source, background, name)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                file.load()
                image = as_rgb(file, background, name)
                return image.copy() if image is file else image
    except UnknownRange:
        raise
    except FileNotFoundError:
        raise ValueError(f"the {name} does not exist") from None
    except UnidentifiedImageError:
        raise ValueError(f"the {name} is not in a format that can be read; expected PNG, JPEG, ...") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"the {name} has more than {limit} pixels and may be a decompression bomb") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"the {name} is broken: {error}") from None


def as_rgb(image: Image.Image, background: str, name: str = "image") -> Image.Image:
    """A decoded image rotated by its EXIF data, scaled to 8 bits and composited onto the background."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = scaled_grey(image, name)
    if is_transparent(image):
        image = image.convert("LA") if image.mode == "La" else with_8_bit_transparency(image)
        canvas = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """True if an image has an alpha band, a palette with alpha, or a transparent colour."""
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    return image.mode in WITH_ALPHA or palette.endswith("A") or "transparency" in image.info


def with_8_bit_transparency(image: Image.Image) -> Image.Image:
    """The image with its transparent colour in 8 bits, like its samples: PIL drops the low bytes of a 16-bit PNG."""
    transparent = image.info.get("transparency")
    if image.mode != "RGB" or not isinstance(transparent, tuple) or max(transparent) <= 255:
        return image
    image = image.copy()
    image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


def scaled_grey(image: Image.Image, name: str) -> Image.Image:
    """A greyscale image of 16 bits or more as "L", or as "LA" if one of its values is transparent."""
    values = np.asarray(image)
    grey = Image.fromarray(eight_bit(values, name))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


class UnknownRange(ValueError):
    """Raised for samples of unknown range; the message describes them."""


def eight_bit(values: np.ndarray, name: str) -> np.ndarray:
    """Samples as uint8 by the range of their type.

    Raises:
        UnknownRange: the values do not fit the ranges of their type.
    """
    if values.dtype == np.uint8:
        return values
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return values.astype(np.uint8) * 255
    if kind == "u" and size == 2:
        return np.rint(values / 257).astype(np.uint8)
    least, most = (values.min(), values.max()) if values.size and kind in "iuf" else (0, np.nan)
    peak = next((peak for peak in ((1, 255) if kind == "f" else (255, 65535)) if most <= peak), None)
    if peak is None or not least >= 0:
        found = f"values from {least:g} to {most:g}" if values.size and kind in "iuf" else f"{values.dtype}"
        raise UnknownRange(
            f"the {name} holds {found}, whose range is not known; expected integers from 0 to 255 or 65535, or floats "
            "from 0 to 1 or 255"
        )
    return np.rint(values.astype(np.float64) * (255 / peak)).astype(np.uint8)


def as_array(source: Any) -> np.ndarray:
    """The values of an array or of a tensor on any device."""
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = source.float() if source.dtype == torch.bfloat16 else source
    return np.asarray(source)


def channels_last(source: Any, layout: str | None, what: str) -> np.ndarray:
    """An array or tensor as (H, W) or (H, W, 2, 3 or 4).

    Raises:
        ValueError: the shape is not that of a single image.
    """
    array = as_array(source)
    first = array.ndim == 3 and array.shape[0] in CHANNELS and layout != "channels_last"
    last = array.ndim == 3 and array.shape[2] in CHANNELS and layout != "channels_first"
    if not array.size or not (first or last or array.ndim == 2):
        raise ValueError(
            f"the {what} is an array of {array.dtype} of shape {array.shape}; expected (height, width), or (height, "
            "width, channels) or (channels, height, width) with 1 to 4 channels"
        )
    if first and not (last and not isinstance(source, torch.Tensor)):
        array = array.transpose(1, 2, 0)
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def fetch_image(source: Any) -> Any:
    """The bytes behind a URL or in a base64 string, as transformers reads them; any other source as it is.

    Raises:
        ValueError: the URL cannot be fetched, or its base64 is broken.
    """
    if not isinstance(source, str):
        return source
    if source.startswith(("http://", "https://")):
        return download(source)
    inline = source.startswith("data:image/")
    if not inline and os.path.exists(source):
        return source
    text = source.partition(",")[2] if inline else source
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
        if not inline:  # the path of a missing file may look like base64
            Image.open(io.BytesIO(content)).close()
    except (OSError, ValueError):
        if inline:
            raise ValueError(f"the image '{name_of(source)}' is broken: it is not valid base64") from None
        return source
    return content


def download(url: str) -> bytes:
    """The bytes behind a URL.

    Raises:
        ValueError: the URL cannot be fetched.
    """
    import httpx

    try:
        return httpx.get(url, follow_redirects=True, timeout=60).raise_for_status().content
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the image '{name_of(url)}' cannot be fetched: {reason}") from None


def check_background(colour: Any) -> str:
    """Refuse a colour that PIL does not know; returns the colour.

    Raises:
        ValueError: the value is not such a colour.
    """
    try:
        ImageColor.getrgb(colour)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"`image_background` is {colour!r}; expected a colour like 'white' or '#ffffff'") from None
    return colour
