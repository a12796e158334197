# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Opening an image: whatever holds one becomes an RGB image of PIL, in one way for every door.

- It is turned the way its EXIF data say, and transparency is laid on a background colour.
- Samples become 8-bit by the range of their type: truth values by 1, 8-bit samples by 255, 16-bit samples ("I;16" of
  PIL, uint16) by 65535. Wider types tell no range, so the values decide: integers by 255 or else by 65535 (those of a
  16-bit PGM, "I" of PIL), floats by 1 or else by 255. What exceeds that, or is negative, is refused.
- Any other mode is converted as PIL does it.

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

BACKGROUND = "white"
CHANNELS = (1, 2, 3, 4)
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
NAME_LENGTH = 200  # of a source in a message; a string may hold a whole image in base64


def is_image(source: Any) -> bool:
    """Whether something is one image: a path, an address, encoded bytes, an image of PIL, an array or a tensor."""
    return isinstance(source, (str, os.PathLike, bytes, Image.Image)) or hasattr(source, "__array__")


def open_image(
    source: Any, background: str = BACKGROUND, layout: str | None = None, what: str = "image"
) -> Image.Image:
    """The RGB image that a source holds, fully decoded; an image of PIL that is one already comes back itself.

    Args:
        source: a path, encoded bytes, an image of PIL, or an array or tensor (H, W), (H, W, C) or (C, H, W).
        background: the colour below transparent places, as `PIL.ImageColor` names it.
        layout: "channels_first" or "channels_last" of an array; default: the one that its shape allows. Where both
            are possible, a tensor has its channels first and an array last.
        what: the noun for messages.

    Raises:
        ValueError: it is missing, no image, truncated, so large that it may be a decompression bomb, or holds values
            whose range is not known.
    """
    if isinstance(source, Image.Image):
        name = f"'{name_of(filename)}'" if (filename := getattr(source, "filename", None)) else f"({source.mode})"
        return decoded(source, background, f"{what} {name}")
    if isinstance(source, (str, os.PathLike, bytes)):
        name = "its embedded bytes" if isinstance(source, bytes) else f"'{name_of(source)}'"
        return decoded(source, background, f"{what} {name}")
    if not hasattr(source, "__array__"):
        expected = "a path, bytes, an image of PIL, an array or a tensor"
        raise ValueError(f"the {what} is of type {type(source).__name__}; expected {expected}")
    array = channels_last(source, layout, what)
    return as_rgb(Image.fromarray(eight_bit(array, f"{what} (an array of {array.dtype})")), background)


def name_of(source: str | os.PathLike) -> str:
    """A path for a message, cut where it is none but a whole file in base64."""
    name = os.fspath(source)
    return name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}..."


def decoded(source: Any, background: str, name: str) -> Image.Image:
    """As `open_image`, of a path, bytes or an image of PIL, with one sentence for whatever is wrong."""
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
    """A decoded image turned, its samples scaled, and laid on the background."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = scaled_grey(image, name)
    if is_transparent(image):
        image = image.convert("LA") if image.mode == "La" else with_clear_colour_of_8_bits(image)
        ground = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has alpha, in its bands, its palette or as one colour that is transparent."""
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    return image.mode in WITH_ALPHA or palette.endswith("A") or "transparency" in image.info


def with_clear_colour_of_8_bits(image: Image.Image) -> Image.Image:
    """An image whose transparent colour is as deep as its samples: PIL keeps only the high bytes of a 16-bit PNG."""
    clear = image.info.get("transparency")
    if image.mode != "RGB" or not isinstance(clear, tuple) or max(clear) <= 255:
        return image
    image = image.copy()
    image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image


def scaled_grey(image: Image.Image, name: str) -> Image.Image:
    """An image of one band of 16 bits or more as "L", or as "LA" where one of its greys is transparent."""
    values = np.asarray(image)
    grey = Image.fromarray(eight_bit(values, name))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


class UnknownRange(ValueError):
    """Samples that cannot be scaled; the message says what they are."""


def eight_bit(values: np.ndarray, name: str) -> np.ndarray:
    """Samples as uint8 by the range of their type.

    Raises:
        ValueError: the range is not known.
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
            f"the {name} holds {found}, whose range is not known; expected integers up to 255 or 65535, or floats up "
            "to 1 or 255"
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
        ValueError: its shape is not that of one image.
    """
    array = as_array(source)
    first = array.ndim == 3 and array.shape[0] in CHANNELS and layout != "channels_last"
    last = array.ndim == 3 and array.shape[2] in CHANNELS and layout != "channels_first"
    if not array.size or not (first or last or array.ndim == 2):
        raise ValueError(
            f"the {what} is an array of {array.dtype} of shape {array.shape}; expected (height, width), or (height, "
            "width, channels) or (channels, height, width) of 1 to 4 channels"
        )
    if first and not (last and not isinstance(source, torch.Tensor)):
        array = array.transpose(1, 2, 0)
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def fetch_image(source: Any) -> Any:
    """What a string stands for, as the library takes them: the bytes behind an address or in base64; else the source.

    Raises:
        ValueError: the address cannot be fetched, or its base64 is broken.
    """
    if not isinstance(source, str):
        return source
    if source.startswith(("http://", "https://")):
        return downloaded(source)
    inline = source.startswith("data:image/")
    if not inline and os.path.exists(source):
        return source
    text = source.partition(",")[2] if inline else source
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
        if not inline:  # a path that is missing may look like base64
            Image.open(io.BytesIO(content)).close()
    except (OSError, ValueError):
        if inline:
            raise ValueError(f"the image '{name_of(source)}' is broken: it is not in base64") from None
        return source
    return content


def downloaded(address: str) -> bytes:
    """The bytes behind an address.

    Raises:
        ValueError: they cannot be fetched.
    """
    import httpx

    try:
        return httpx.get(address, follow_redirects=True, timeout=60).raise_for_status().content
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the image '{name_of(address)}' cannot be fetched: {reason}") from None


def check_background(colour: Any) -> str:
    """The colour, where it is one.

    Raises:
        ValueError: it is none that PIL knows.
    """
    try:
        ImageColor.getrgb(colour)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"`image_background` is {colour!r}; expected a colour as 'white' or '#ffffff'") from None
    return colour
