# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Pictures from paths and bytes: opened with care, told apart, and what is wrong with them in one sentence."""

import hashlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class BadRow(ValueError):
    """A row that cannot be used; the message says what was found and what was expected."""


def open_image(source: str | bytes) -> Image.Image:
    """An RGB picture from a path or from encoded bytes, fully decoded and turned the way its EXIF data says.

    Raises:
        BadRow: it is missing, no picture, truncated, or so large that it may be a decompression bomb.
    """
    name = f"'{source}'" if isinstance(source, str) else "its embedded bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                image: Image.Image = file
                if image.mode.startswith("I;16"):  # `convert` would clip its 65,536 greys to the first 256
                    image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
                return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise BadRow(f"the image {name} does not exist") from None
    except UnidentifiedImageError:
        raise BadRow(f"the image {name} is not in a format that can be read; expected PNG, JPEG, ...") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = Image.MAX_IMAGE_PIXELS
        raise BadRow(f"the image {name} has more than {limit} pixels and may be a decompression bomb") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadRow(f"the image {name} is broken: {error}") from None


def image_key(source: str | bytes | list) -> str:
    """What makes two cells the same medium: the path, or a digest of the bytes; those of all frames."""
    if isinstance(source, list):
        return "\n".join(map(image_key, source))
    return source if isinstance(source, str) else hashlib.sha256(source).hexdigest()


def image_complaint(source: str | bytes) -> str | None:
    """What is wrong with a picture, None where it opens."""
    try:
        open_image(source)
    except BadRow as error:
        return str(error)
    return None
