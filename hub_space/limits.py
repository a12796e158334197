# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Limits of the Space; input beyond them is refused with one sentence for the visitor.

- Gradio checks inputs in the browser only, which API calls bypass, so every function here checks them again.
- Only this code opens files, and only files in Gradio's upload folder; URLs are never fetched.
- Any other error is written to the server's log, and the visitor reads only that something went wrong.
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

MAX_FILE_BYTES = 10_000_000
MAX_PIXELS = 20_000_000
MAX_AUDIO_SECONDS = 30
MAX_CHARACTERS = 1_000  # of a text
MAX_MEDIA = 8  # images and audio clips of one conversation
MAX_GALLERY = 60  # images to search in
MAX_NEW_TOKENS = 256  # of an answer
ANSWER_SECONDS = 60
REQUESTS_PER_MINUTE = 30  # of one session; ten times as many from one IP address, which many people may share
FAILED = "Something went wrong on the server; its log has the details."
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
AUDIO_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # at twice this size Pillow itself refuses to open an image, in any code


class Refused(gr.Error):
    """An error shown to the visitor as one sentence; it never quotes their input, as a browser may render it."""

    def __init__(self, sentence: str):
        super().__init__(sentence, title="Not possible", print_exception=False)


class GuardedBlocks(gr.Blocks):
    """Blocks that fetch no URL, and that report every error, expected or not, as one sentence."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args, **kwargs) -> list[Any]:
        """Extends the base method: refuses URLs, which Gradio would fetch, and reports all malformed input alike."""
        refuse_urls(inputs)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except Exception as error:  # also gr.Error of Gradio itself, which prints a traceback and quotes the input
            logger.info("refused an input: %s", error)
            raise Refused("An input has an unexpected type or size; the API page describes each input.") from None

    async def process_api(self, *args, **kwargs) -> dict[str, Any]:
        """Extends the base method, which serves browsers, API clients and MCP: logs and hides unexpected errors."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        except Exception:
            logger.exception("a request failed")
            raise Refused(FAILED) from None


def refuse_urls(value: Any) -> None:
    """Check that no file, anywhere in a payload, is a URL or inline data in place of an upload.

    Raises:
        Refused: a file is a URL or inline data.
    """
    if isinstance(value, dict):
        path, url = value.get("path"), value.get("url")
        # the url of an upload points to this server; only paths are ever followed
        if isinstance(path, str) and ("://" in path or path.startswith("data:")):
            raise Refused("URLs are not fetched here; upload the file itself.")
        if isinstance(url, str) and url.startswith("data:"):
            raise Refused("Inline data is not read here; upload the file itself.")
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            refuse_urls(item)


class RateLimiter:
    """A limit on the requests of each session and each IP address in a minute.

    Args:
        per_minute: requests of one session; 0 for no limit. One address may make ten times as many.
    """

    MAX_KEYS = 10_000  # sessions and addresses remembered

    def __init__(self, per_minute: int):
        self.per_minute, self.lock = per_minute, threading.Lock()
        self.times: OrderedDict[str, deque[float]] = OrderedDict()

    def admit(self, request: gr.Request | None) -> None:
        """Count a request; it is None if an endpoint's function is called from Python.

        Raises:
            Refused: the session or the address made too many.
        """
        if request is None or not self.per_minute:
            return
        session = f"session {request.session_hash}"
        address = f"address {request.client.host if request.client else None}"
        with self.lock:
            for key, limit in ((session, self.per_minute), (address, 10 * self.per_minute)):
                self.count(key, limit, time.monotonic())

    def count(self, key: str, limit: int, now: float) -> None:
        times = self.times.setdefault(key, deque())
        self.times.move_to_end(key)
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= limit:
            raise Refused(f"That was more than {limit} requests in a minute; please wait a little.")
        times.append(now)
        while len(self.times) > self.MAX_KEYS:
            self.times.popitem(last=False)


rate_limiter = RateLimiter(int(os.environ.get("MM_REQUESTS_PER_MINUTE", REQUESTS_PER_MINUTE)))


def uploaded_file(file: Any, noun: str) -> Path | None:
    """Path of an uploaded file, from a path or Gradio's description of a file; None if there is no file.

    Args:
        noun: name of the input in error messages.

    Raises:
        Refused: it is not an upload, or too large.
    """
    if file is None:
        return None
    if isinstance(file, dict):
        file = file.get("path")
    if not isinstance(file, (str, Path)) or "\0" in str(file):
        raise Refused(f"The {noun} is not an uploaded file.")
    path = Path(file).resolve()  # resolves links and ".." before the check of the folder
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise Refused(f"The {noun} is not on the server (any more); upload it again.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise Refused(f"The {noun} is larger than {MAX_FILE_BYTES // 10**6} MB.")
    return path


def open_image(path: Path, processor: Any) -> Image.Image:
    """The RGB image of a file, fully decoded, converted exactly as by the model's processor.

    Raises:
        Refused: the file is not a readable image, or has too many pixels.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:  # read from the header, before anything is decoded
                raise Refused(f"The image has more than {MAX_PIXELS // 10**6} million pixels.")
            if hasattr(processor, "open_image"):
                return processor.open_image(file).copy()  # independent of the file, which is closed below
            image: Image.Image = file  # with the code of an older checkpoint
            if image.mode.startswith("I;16"):  # `convert` would clip its 65,536 greys to the first 256
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError:
        raise Refused(f"The image has more than {MAX_PIXELS // 10**6} million pixels.") from None
    except Refused:
        raise
    except Exception:  # Pillow's plugins raise errors of all types for broken files
        raise Refused("The image cannot be read; expected PNG, JPEG, WebP, GIF or BMP.") from None


def open_audio(path: Path) -> tuple[np.ndarray, int]:
    """The audio clip of a file as mono float32 samples (samples,), and its sampling rate in Hz.

    Raises:
        Refused: the file is not readable audio, or is empty or too long.
    """
    import soundfile  # needed only by models that take audio

    try:
        with soundfile.SoundFile(path) as file:
            rate, frames, channels = file.samplerate, file.frames, file.channels
            usable = file.format in AUDIO_FORMATS and 1_000 <= rate <= 200_000 and channels <= 8
            clip = file.read(MAX_AUDIO_SECONDS * rate, dtype="float32", always_2d=True) if usable else np.zeros((0, 1))
    except (soundfile.SoundFileError, RuntimeError, ValueError, OSError):
        raise Refused("The audio cannot be read; expected WAV, FLAC, OGG or MP3.") from None
    if not usable or not len(clip) or not np.isfinite(clip).all():
        raise Refused("The audio cannot be used; expected samples in a WAV, FLAC, OGG or MP3 file.")
    if frames > MAX_AUDIO_SECONDS * rate:
        raise Refused(f"The audio is longer than {MAX_AUDIO_SECONDS} seconds.")
    return clip.mean(axis=1), rate


def checked_text(text: Any, processor: Any) -> str:
    """The text with special tokens, media markers and unprintable characters replaced by spaces.

    Raises:
        Refused: it is not a string, or too long.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise Refused("The text is not a string.")
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"The text is longer than {MAX_CHARACTERS:,} characters.")
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    markers = [processor.image_token, processor.audio_token, processor.video_token]
    for word in sorted({*processor.tokenizer.all_special_tokens, *markers}, key=len, reverse=True):
        text = text.replace(word, " ")  # not "", which could join the halves of another special token
    return text.strip()


def checked_number(number: Any, minimum: int, maximum: int, noun: str) -> int:
    """The number as an integer.

    Raises:
        Refused: it is not a finite number from `minimum` to `maximum`.
    """
    plain = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
    if not plain or not minimum <= number <= maximum:
        raise Refused(f"{noun} must be a number from {minimum} to {maximum}.")
    return int(number)
