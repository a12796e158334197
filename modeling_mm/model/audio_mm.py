# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Audio clips from any kind of source: mono, at one sampling rate, bounded in length; and features for an audio tower.

- A source is a path, encoded bytes, an array, `(array, sampling rate)`, or a cell of a `datasets` Audio column.
- At most the first `max_seconds` are read. A clip up to twice as long is cut with a warning; a longer one is refused.
- Every clip is padded to one fixed length, so that its features and states never depend on the other clips of a batch:
  in many towers (group norms, convolutions over time) padding changes the states, masked or not.

Shapes: A clips, `samples` in time, T frames of a feature extractor.
"""

import importlib
import io
import os
import warnings
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import (
    ASTFeatureExtractor,
    ClapFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from .dealing_mm import items_per_row

MAX_SECONDS = 30.0
CUT_UP_TO = 2  # a clip of up to this many times `max_seconds` is cut; a longer one is probably the wrong recording
SILENT = 1e-4  # highest amplitude of a silent clip, 80 dB below full scale
SHORTEST = 0.1  # seconds to which a shorter clip is padded, more than the first window of any tower
Clip: TypeAlias = tuple[np.ndarray, float, float]  # samples, their rate, duration in seconds before any cut


def import_audio_library(name: str) -> Any:
    """soundfile or soxr, imported when the first audio file is read.

    Raises:
        ImportError: names the package extra to install.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without its libsndfile
        raise ImportError(f'reading audio needs {name}: pip install "modeling-mm[audio]"') from error


def read_audio(source: Any, sampling_rate: int, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """A clip as float32 (samples,), mono, at `sampling_rate`.

    Args:
        source: a path (WAV, FLAC, OGG, MP3, ...), the bytes of such a file, an array at `sampling_rate`,
            `(array, rate)`, `{"array", "sampling_rate"}`, `{"bytes", "path"}`, or torchcodec's `AudioDecoder`. A two-
            dimensional array has its channels on the shorter side. Integers are scaled to [-1, 1], floats are not.
        sampling_rate: samples per second of the result.
        max_seconds: maximum length of the result.

    Raises:
        ValueError: names the source that is missing, unreadable, empty, without a rate, not finite or too long.
        ImportError: soundfile or soxr is needed and not installed.
    """
    clip, rate, seconds = open_audio(source, max_seconds, sampling_rate)
    if seconds > max_seconds:
        name = f"'{source}' " if isinstance(source, (str, os.PathLike)) else ""
        warnings.warn(
            f"the audio clip {name}lasts {seconds:.1f} s; only its first {max_seconds:g} s are used", stacklevel=2
        )
    if rate != sampling_rate:
        clip = import_audio_library("soxr").resample(clip, rate, sampling_rate).astype(np.float32)
        clip = clip if len(clip) else np.zeros(1, np.float32)  # a few samples at a high rate may resample to none
    return clip[: max(1, int(max_seconds * sampling_rate))]  # resampling may have added a sample


def load_conversation_audio(conversation: Any, sampling_rate: int, max_seconds: float) -> Any:
    """A conversation, or a list of them, whose audio parts hold arrays at `sampling_rate` in place of sources.

    A source that occurs in several parts is read once and is the same array in all of them. Arrays are left as they
    are, and so are URLs, which transformers fetches.

    Raises:
        ValueError, ImportError: as in `read_audio`.
    """
    arrays: dict[Any, Any] = {}

    def read(source: Any) -> Any:
        if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
            return source
        key = source if isinstance(source, str) else id(source)
        if key not in arrays:
            is_array = hasattr(source, "__array__")
            arrays[key] = np.asarray(source) if is_array else read_audio(source, sampling_rate, max_seconds)
        return arrays[key]

    def replace_sources(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [replace_sources(element) for element in value]
        if not isinstance(value, dict):
            return value
        if value.get("type") == "audio":
            fields = {name: field for name, field in value.items() if field is not None}
            return {name: read(field) if name in ("audio", "path", "url") else field for name, field in fields.items()}
        return {**value, "content": replace_sources(value["content"])} if "content" in value else value

    return replace_sources(conversation)


def clips_per_row(audio: Any, rows: int | None, markers: list[int]) -> list[list]:
    """One list of clips for each row; see `items_per_row`."""
    return items_per_row(audio, rows, markers, lambda clip: not isinstance(clip, list), "audio clips")


def sampling_rate_from(kwargs: dict[str, Any]) -> int | None:
    """The sampling rate in a processor's arguments, at the top level or in `audio_kwargs`; None without one."""
    return kwargs.get("sampling_rate") or (kwargs.get("audio_kwargs") or {}).get("sampling_rate")


def open_audio(source: Any, max_seconds: float = MAX_SECONDS, rate: int | None = None) -> Clip:
    """The first `max_seconds` of a clip as float32 (samples,), mono; its sampling rate, and its duration in seconds.

    `rate` is the sampling rate of an array that comes without one.

    Raises:
        ValueError, ImportError: as in `read_audio`.
    """
    if isinstance(source, dict) and {"bytes", "path"} & set(source):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if isinstance(source, (str, os.PathLike, bytes)):
        return open_encoded(source, max_seconds)
    if hasattr(source, "get_samples_played_in_range"):  # an AudioDecoder: read just enough to tell cut from refused
        samples = source.get_samples_played_in_range(0, CUT_UP_TO * max_seconds + 1)
        source = (samples.data, samples.sample_rate)
    if isinstance(source, dict):
        source = (source.get("array"), source.get("sampling_rate"))
    array, rate = source if isinstance(source, (tuple, list)) and len(source) == 2 else (source, rate)
    if array is None or not hasattr(array, "__array__") or isinstance(rate, np.ndarray):
        raise ValueError(
            f"{type(source).__name__} is no audio clip; expected a path, bytes, an array, (array, sampling rate), "
            "or a dict with 'array' and 'sampling_rate' or with 'bytes' and 'path'"
        )
    if not isinstance(rate, (int, float, np.number)) or not 0 < rate < float("inf"):
        raise ValueError(f"the sampling rate of an audio array is {rate}; expected a number above 0")
    clip = to_mono(scaled(np.asarray(array)))
    return bounded(clip, len(clip) / float(rate), float(rate), max_seconds, "in an array")


def open_encoded(source: str | os.PathLike | bytes, max_seconds: float) -> Clip:
    """The first `max_seconds` of an audio file, by its path or its bytes."""
    soundfile = import_audio_library("soundfile")
    name = "in its embedded bytes" if isinstance(source, bytes) else f"'{os.fspath(source)}'"
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise ValueError(f"the audio clip {name} does not exist")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as file:
            rate, seconds = file.samplerate, file.frames / file.samplerate
            clip = np.zeros((0, 1), np.float32)
            if seconds <= CUT_UP_TO * max_seconds:
                clip = file.read(int(max_seconds * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(error).rpartition(": ")[2].strip().rstrip(".")
        expected = "WAV, FLAC, OGG, MP3, ..."
        raise ValueError(f"the audio clip {name} cannot be read ({reason}); expected {expected}") from None
    return bounded(clip.mean(axis=1), seconds, rate, max_seconds, name)


def bounded(clip: np.ndarray, seconds: float, rate: float, max_seconds: float, name: str) -> Clip:
    """The first `max_seconds` of a clip that lasts `seconds`.

    Raises:
        ValueError: the clip is too long, empty, or has samples that are not finite.
    """
    if seconds > CUT_UP_TO * max_seconds:
        raise ValueError(f"the audio clip {name} lasts {seconds:.0f} s; expected at most {max_seconds:g} s")
    if len(clip) == 0:
        raise ValueError(f"the audio clip {name} has no samples; expected at least one")
    if not np.isfinite(clip).all():
        raise ValueError(f"the audio clip {name} has samples that are not finite (NaN or infinite)")
    return clip[: max(1, int(max_seconds * rate))], rate, seconds


def scaled(array: np.ndarray) -> np.ndarray:
    """Samples as float32, integers of any width scaled to [-1, 1].

    Raises:
        ValueError: the array holds no numbers.
    """
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"an audio array holds {array.dtype}; expected floats or integers")
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    return ((array - (half if array.dtype.kind == "u" else 0.0)) / half).astype(np.float32)


def to_mono(array: np.ndarray) -> np.ndarray:
    """(samples,) from (samples,), (channels, samples) or (samples, channels); the shorter side holds the channels.

    Raises:
        ValueError: the array has another number of dimensions.
    """
    if array.ndim not in (1, 2):
        raise ValueError(f"an audio array has shape {array.shape}; expected (samples,) or (channels, samples)")
    return array if array.ndim == 1 else array.mean(axis=int(array.shape[0] > array.shape[1]))


def is_silent(clip: np.ndarray) -> bool:
    """True if a clip stays 80 dB below full scale."""
    return float(np.abs(clip).max(initial=0.0)) < SILENT


def window_seconds(feature_extractor: Any) -> float | None:
    """Fixed input length of the tower of a feature extractor, in seconds; None if the tower takes any length."""
    rate = feature_extractor.sampling_rate
    if isinstance(feature_extractor, WhisperFeatureExtractor):  # scratch towers have a window of their own
        return getattr(feature_extractor, "window_samples", feature_extractor.n_samples) / rate
    if isinstance(feature_extractor, ClapFeatureExtractor):
        return feature_extractor.nb_max_samples / rate
    if isinstance(feature_extractor, ASTFeatureExtractor):  # windows of 400 samples, 160 apart
        return (400 + 160 * (feature_extractor.max_length - 1)) / rate
    return None


def audio_features(
    feature_extractor: Any, clips: list[np.ndarray], max_seconds: float = MAX_SECONDS
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features of clips for an audio tower, and the mask of their padding.

    Args:
        feature_extractor: the one of Whisper, AST, CLAP, Wav2Vec2 or SeamlessM4T (for Wav2Vec2-BERT).
        clips: as `read_audio` returns them, at the extractor's rate.
        max_seconds: length to which every clip is padded, unless the extractor has a fixed window. A second of padding
            costs the tower as much as a second of audio: choose the length of the longest clip.

    Returns:
        features, (A, mel bins, T) for Whisper, (A, T, mel bins) for AST, (A, 1 or 4, T, mel bins) for CLAP,
        (A, samples) for Wav2Vec2, (A, T, 2 mel bins) for SeamlessM4T; and a mask (A, T) or (A, samples), 0 in the
        padding, or None for AST and CLAP, whose extractors return no mask.

    Raises:
        ValueError: the extractor is of another kind.
    """
    rate, window = feature_extractor.sampling_rate, window_seconds(feature_extractor)
    longest = round(rate * (window or max_seconds))
    clips = [np.pad(clip[:longest], (0, max(0, int(SHORTEST * rate) - len(clip)))) for clip in clips]
    options: dict[str, Any] = {"padding": "max_length", "return_attention_mask": True}
    if isinstance(feature_extractor, (ASTFeatureExtractor, ClapFeatureExtractor)):
        options = {}
    elif isinstance(feature_extractor, SeamlessM4TFeatureExtractor):
        options["max_length"] = max(2, num_windows(longest))
    elif isinstance(feature_extractor, (Wav2Vec2FeatureExtractor, WhisperFeatureExtractor)):
        options["max_length"] = longest
    else:
        raise ValueError(
            f"the feature extractor is a {type(feature_extractor).__name__}; expected the feature extractor of "
            "Whisper, AST, CLAP, Wav2Vec2 or SeamlessM4T"
        )
    output = feature_extractor(clips, sampling_rate=rate, return_tensors="pt", **options)
    return output[feature_extractor.model_input_names[0]], output.get("attention_mask")


def num_windows(samples: int) -> int:
    """Number of windows of 400 samples, 160 apart, into which AST and SeamlessM4T divide a clip."""
    return 1 + (samples - 400) // 160
