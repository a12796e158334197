# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""What the Space refuses, each time with one sentence for the person who asked.

- Gradio checks inputs in the browser and the API passes these checks by, so every function here checks them again.
- Files are opened by this code alone, from Gradio's folder of uploads alone; addresses are never fetched.
- What goes wrong for any other reason is written to the server's log, and the person reads no more than that it did.
"""

import logging
import math
import os
import threading
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

FILE_BYTES = 10_000_000
PIXELS = 20_000_000
SECONDS = 30  # of sound
CHARACTERS = 1_000  # of a text
PICTURES = 8  # images and sounds of one question
GALLERY = 60  # images to search in
NEW_TOKENS = 256  # of an answer
ANSWER_SECONDS = 60
REQUESTS_PER_MINUTE = 30  # of one session; ten times as many from one address, behind which many people may be
FAILED = "Something went wrong on the server; its log has the details."
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SOUND_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")

Image.MAX_IMAGE_PIXELS = PIXELS  # twice as many, and Pillow itself refuses on opening, whoever opens


class Refused(gr.Error):
    """One sentence for the person who asked; it holds nothing of what they wrote, as a browser may render it."""

    def __init__(self, sentence: str):
        super().__init__(sentence, title="Not possible", print_exception=False)


class GuardedBlocks(gr.Blocks):
    """Blocks that fetch no address and whose every failure, expected or not, reaches people as one sentence."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args, **kwargs) -> list[Any]:
        """As Gradio's, which would fetch addresses, and raise in many ways for what is not of a component's type."""
        refuse_addresses(inputs)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except Exception as error:  # Gradio's own sentences too: they print a traceback, and quote
            logger.info("refused an input: %s", error)
            raise Refused("An input is not of the kind or size expected; see the API page for what each is.") from None

    async def process_api(self, *args, **kwargs) -> dict[str, Any]:
        """As Gradio's, for all requests of browsers, clients and MCP."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        except Exception:
            logger.exception("a request failed")
            raise Refused(FAILED) from None


def refuse_addresses(value: Any) -> None:
    """Refuse a file, anywhere in a payload, that is an address or inline data in place of an upload.

    Raises:
        Refused: there is one.
    """
    if isinstance(value, dict):
        path, url = value.get("path"), value.get("url")
        # an upload's own url is this server's; only a path is ever followed
        if isinstance(path, str) and ("://" in path or path.startswith("data:")):
            raise Refused("Addresses are not fetched here; upload the file itself.")
        if isinstance(url, str) and url.startswith("data:"):
            raise Refused("Inline data are not read here; upload the file itself.")
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            refuse_addresses(one)


class Visits:
    """How many requests each session and each address made in the last minute.

    Args:
        per_minute: of a session; 0 for no limit.
    """

    KNOWN = 10_000  # sessions and addresses remembered

    def __init__(self, per_minute: int):
        self.per_minute, self.lock = per_minute, threading.Lock()
        self.times: OrderedDict[str, deque[float]] = OrderedDict()

    def admit(self, request: gr.Request | None) -> None:
        """Count a request; none is given where a function is called from Python.

        Raises:
            Refused: there were too many.
        """
        if request is None or not self.per_minute:
            return
        session = f"session {request.session_hash}"
        address = f"address {request.client.host if request.client else None}"
        with self.lock:
            for key, most in ((session, self.per_minute), (address, 10 * self.per_minute)):
                self.count(key, most, time.monotonic())

    def count(self, key: str, most: int, now: float) -> None:
        times = self.times.setdefault(key, deque())
        self.times.move_to_end(key)
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= most:
            raise Refused(f"That was more than {most} requests in a minute; please wait a little.")
        times.append(now)
        while len(self.times) > self.KNOWN:
            self.times.popitem(last=False)


visits = Visits(int(os.environ.get("MM_REQUESTS_PER_MINUTE", REQUESTS_PER_MINUTE)))


def uploaded_file(given: Any, what: str) -> Path | None:
    """The file that a person uploaded, from a path or Gradio's description of a file; None where there is none.

    Raises:
        Refused: it is no upload, or too large.
    """
    if given is None:
        return None
    if isinstance(given, dict):
        given = given.get("path")
    if not isinstance(given, (str, Path)) or "\0" in str(given):
        raise Refused(f"The {what} is not an uploaded file.")
    path = Path(given).resolve()  # links and ".." followed, before asking where it is
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise Refused(f"The {what} is not here (any more); upload it again.")
    if path.stat().st_size > FILE_BYTES:
        raise Refused(f"The {what} is larger than {FILE_BYTES // 10**6} MB.")
    return path


def open_picture(path: Path, processor: Any) -> Image.Image:
    """An RGB image, decoded in full and made of the file as the model's processor does.

    Raises:
        Refused: it is none that can be read, or has too many pixels.
    """
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as file:
            if file.width * file.height > PIXELS:  # known before anything is decoded
                raise Refused(f"The image has more than {PIXELS // 10**6} million pixels.")
            if hasattr(processor, "open_image"):
                return processor.open_image(file).copy()  # which the file, closed below, has no part in
            image: Image.Image = file  # the code of an older checkpoint
            if image.mode.startswith("I;16"):  # `convert` would clip its 65,536 greys to the first 256
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError:
        raise Refused(f"The image has more than {PIXELS // 10**6} million pixels.") from None
    except Refused:
        raise
    except Exception:  # Pillow's plugins raise of all kinds for broken files
        raise Refused("The image cannot be read; expected PNG, JPEG, WebP, GIF or BMP.") from None


def open_sound(path: Path) -> tuple[np.ndarray, int]:
    """A clip as float32 (samples,), mono, and its sampling rate.

    Raises:
        Refused: it is none that can be read, empty or too long.
    """
    import soundfile  # only models that hear need it

    try:
        with soundfile.SoundFile(path) as file:
            rate, frames, channels = file.samplerate, file.frames, file.channels
            known = file.format in SOUND_FORMATS and 1_000 <= rate <= 200_000 and channels <= 8
            clip = file.read(SECONDS * rate, dtype="float32", always_2d=True) if known else np.zeros((0, 1))
    except (soundfile.SoundFileError, RuntimeError, ValueError, OSError):
        raise Refused("The sound cannot be read; expected WAV, FLAC, OGG or MP3.") from None
    if not known or not len(clip) or not np.isfinite(clip).all():
        raise Refused("The sound cannot be used; expected samples in a WAV, FLAC, OGG or MP3 file.")
    if frames > SECONDS * rate:
        raise Refused(f"The sound is longer than {SECONDS} seconds.")
    return clip.mean(axis=1), rate


def checked_text(text: Any, processor: Any) -> str:
    """A text as the model may read it: printable, without the words that structure a prompt.

    Raises:
        Refused: it is no text, or too long.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise Refused("The text is not a string.")
    if len(text) > CHARACTERS:
        raise Refused(f"The text is longer than {CHARACTERS:,} characters.")
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    markers = [processor.image_token, processor.audio_token, processor.video_token]
    for word in sorted({*processor.tokenizer.all_special_tokens, *markers}, key=len, reverse=True):
        text = text.replace(word, " ")  # not "", by which the halves of another could meet
    return text.strip()


def checked_number(number: Any, least: int, most: int, what: str) -> int:
    """A whole number within bounds.

    Raises:
        Refused: it is none.
    """
    plain = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
    if not plain or not least <= number <= most:
        raise Refused(f"{what} must be a number from {least} to {most}.")
    return int(number)
