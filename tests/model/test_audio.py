"""Audio sources of every kind give the same clip, and one that cannot be read gives a sentence that names it."""

import importlib

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    ASTFeatureExtractor,
    ClapFeatureExtractor,
    EncodecFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from modeling_mm.model.audio_mm import CUT_UP_TO, audio_features, is_silent, read_audio, window_seconds
from modeling_mm.training.scratch import feature_extractor

RATE = 16000


def tone(seconds=0.5, rate=RATE, hertz=440.0):
    """A pure tone of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def written(path, clip, rate=RATE, **options):
    """Write a clip to a file and return its path."""
    soundfile.write(path, clip, rate, **options)
    return str(path)


def frequency(clip, rate=RATE):
    """The loudest frequency of a clip in hertz."""
    return np.abs(np.fft.rfft(clip * np.hanning(len(clip)))).argmax() * rate / len(clip)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_every_kind_of_file_is_the_same_clip(tmp_path, kind):
    path = written(tmp_path / f"a.{kind}", tone())
    for source in (path, tmp_path / f"a.{kind}", open(path, "rb").read()):
        clip = read_audio(source, RATE)
        assert clip.dtype == np.float32 and clip.ndim == 1
        assert abs(len(clip) - 8000) <= 8000 * 0.3 * (kind == "mp3") + 1  # MP3 pads
        assert abs(frequency(clip) - 440) < 3 and 0.4 < np.abs(clip).max() < 0.6


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_another_rate_is_resampled(tmp_path, rate):
    clip = read_audio(written(tmp_path / "a.wav", tone(rate=rate), rate), RATE)
    assert abs(len(clip) - 8000) <= 1 and abs(frequency(clip) - 440) < 3
    inner = slice(400, -400)
    assert np.abs(clip[: len(tone())][inner] - tone()[: len(clip)][inner]).max() < 0.01


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([tone(), 0.5 * tone()], axis=1)
    expected = 0.75 * tone()
    path = written(tmp_path / "s.wav", stereo, subtype="FLOAT")
    for source in (path, (stereo, RATE), (stereo.T, RATE), stereo):
        np.testing.assert_allclose(read_audio(source, RATE), expected, atol=1e-6)


def test_every_source_of_one_clip_is_equal(tmp_path):
    clip = tone()
    path = written(tmp_path / "a.wav", clip, subtype="FLOAT")
    sources = [
        path,
        (clip, RATE),
        clip,
        torch.from_numpy(clip),
        clip.astype(np.float64),
        {"array": clip, "sampling_rate": RATE},
        {"bytes": open(path, "rb").read(), "path": None},
        {"bytes": None, "path": path},
        {"bytes": open(path, "rb").read(), "path": "gone.wav"},
    ]
    for source in sources:
        np.testing.assert_array_equal(read_audio(source, RATE), clip)


def test_integers_are_scaled_to_one():
    for dtype in (np.int16, np.int32, np.int8):
        info = np.iinfo(dtype)
        assert read_audio(np.array([info.min, 0, info.max], dtype), RATE) == pytest.approx([-1, 0, 1], abs=0.01)
    assert read_audio(np.array([0, 128, 255], np.uint8), RATE) == pytest.approx([-1, 0, 1], abs=0.01)


class Decoder:
    """A stand-in for torchcodec's AudioDecoder, which is not installed here; it records the requested range."""

    def __init__(self, clip):
        self.clip, self.asked = torch.from_numpy(clip)[None], None

    def get_samples_played_in_range(self, start_seconds, stop_seconds):
        self.asked = stop_seconds
        samples = type("AudioSamples", (), {"sample_rate": RATE})
        samples.data = self.clip[:, : int(stop_seconds * RATE)]
        return samples


def test_of_a_decoder_no_more_is_read_than_may_be_cut():
    np.testing.assert_array_equal(read_audio(Decoder(tone()), RATE), tone())
    decoder = Decoder(tone(20))
    with pytest.raises(ValueError, match="expected at most 2 s"):
        read_audio(decoder, RATE, max_seconds=2)
    assert decoder.asked == 2 * CUT_UP_TO + 1


def test_a_clip_a_little_too_long_is_cut_with_a_warning(tmp_path):
    path = written(tmp_path / "long.wav", tone(1.5), subtype="FLOAT")
    for source, name in ((path, "long.wav"), (tone(1.5), "the audio clip")):
        with pytest.warns(UserWarning, match=rf"{name}.* lasts 1.5 s; only its first 1 s are used"):
            clip = read_audio(source, RATE, max_seconds=1)
        np.testing.assert_array_equal(clip, tone(1.5)[:RATE])


def test_of_a_longer_file_only_the_part_that_is_heard_is_decoded(tmp_path, monkeypatch):
    path, asked, real = written(tmp_path / "long.flac", tone(1.9)), [], soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda file, frames, **rest: asked.append(frames) or real(file, frames, **rest)
    )
    with pytest.warns(UserWarning, match="only its first 1 s are used"):
        assert len(read_audio(path, RATE, max_seconds=1)) == RATE
    assert asked == [RATE]


def test_an_hour_is_refused_without_being_read(tmp_path, monkeypatch):
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, format="FLAC") as file:
        for _ in range(60):
            file.write(np.zeros(8000 * 60, np.int16))
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(ValueError, match=r"hour.flac' lasts 3600 s; expected at most 30 s"):
        read_audio(path, RATE)


@pytest.mark.parametrize("rate", [0, -1, None, "16000", float("nan"), float("inf")])
def test_a_sampling_rate_must_be_a_number_above_zero(rate):
    for source in ((tone(), rate), {"array": tone(), "sampling_rate": rate}):
        with pytest.raises(ValueError, match=f"sampling rate of an audio array is {rate}; expected a number"):
            read_audio(source, RATE)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    written(tmp_path / "empty.wav", np.zeros(0, np.float32))
    written(tmp_path / "nan.wav", np.array([0, np.nan, 1], np.float32), subtype="FLOAT")
    messages = {
        "none.wav": "none.wav' does not exist",
        "text.wav": "text.wav' cannot be read .*expected WAV, FLAC, OGG, MP3",
        "empty.wav": "empty.wav' has no samples",
        "nan.wav": "nan.wav' has samples that are not finite",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message):
            read_audio(str(tmp_path / name), RATE)
    with pytest.raises(ValueError, match="embedded bytes cannot be read"):
        read_audio(b"no sound", RATE)
    with pytest.raises(ValueError, match="the audio clip in an array has no samples"):
        read_audio(np.zeros(0, np.float32), RATE)


@pytest.mark.parametrize("source", [None, 3, {}, {"array": None}, (RATE, tone()), [1.0, 2.0], {"path": None}])
def test_what_is_no_sound_is_said(source):
    with pytest.raises(ValueError, match="is no audio clip; expected a path, bytes, an array"):
        read_audio(source, RATE)


def test_arrays_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\); expected \(samples,\)"):
        read_audio(np.zeros((2, 2, 2), np.float32), RATE)
    with pytest.raises(ValueError, match="holds complex64; expected floats or integers"):
        read_audio(np.zeros(4, np.complex64), RATE)


def test_a_truncated_file_gives_what_it_holds_or_is_named(tmp_path):
    for kind in ("wav", "flac"):
        whole = open(written(tmp_path / f"a.{kind}", tone(2)), "rb").read()
        try:
            assert 0 < len(read_audio(whole[: len(whole) // 2], RATE)) < 2 * RATE
        except ValueError as error:
            assert "embedded bytes cannot be read" in str(error)


def test_silence_is_told_and_allowed(tmp_path):
    quiet = written(tmp_path / "q.wav", np.zeros(800, np.float32))
    assert is_silent(read_audio(quiet, RATE)) and is_silent(1e-5 * tone())
    assert not is_silent(tone()) and not is_silent(0.001 * tone())


@pytest.mark.parametrize("name", ["soundfile", "soxr"])
def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch, name):
    path = written(tmp_path / "a.wav", tone(rate=8000), 8000)
    real = importlib.import_module

    def without(wanted, *rest):
        if wanted == name:
            raise ImportError(wanted)
        return real(wanted, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=rf'reading audio needs {name}: pip install "modeling-mm\[audio\]"'):
        read_audio(path, RATE)
    np.testing.assert_array_equal(read_audio(tone(), RATE), tone())  # an array at the right rate needs neither


def test_features_of_an_unknown_extractor_are_refused():
    with pytest.raises(ValueError, match="EncodecFeatureExtractor; expected the feature extractor of Whisper"):
        audio_features(EncodecFeatureExtractor(), [tone()])


def test_a_clip_s_features_do_not_depend_on_those_beside_it():
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    clips = [tone(0.3), 0.01 * tone(0.9, hertz=200), np.zeros(10, np.float32)]
    features, mask = audio_features(extractor, clips)
    assert features.shape == (3, 16, 100) and mask.sum(dim=1).tolist() == [30, 90, 10]
    for row, clip in enumerate(clips):
        alone, alone_mask = audio_features(extractor, [clip])
        assert torch.equal(alone[0], features[row]) and torch.equal(alone_mask[0], mask[row])


def test_the_window_of_a_scratch_tower_is_as_long_as_asked_for_and_travels(tmp_path):
    extractor = feature_extractor(1.27)
    extractor.save_pretrained(tmp_path)
    for each in (extractor, WhisperFeatureExtractor.from_pretrained(tmp_path)):
        assert window_seconds(each) == 1.28  # 64 frames of 20 ms
        features, mask = audio_features(each, [tone(1.27), tone(0.5), tone(3.0)], max_seconds=9)
        assert features.shape == (3, 64, 64) and mask.sum(dim=1).tolist() == [64, 25, 64]


EXTRACTORS = {
    "whisper": WhisperFeatureExtractor(feature_size=16, chunk_length=1),
    "ast": ASTFeatureExtractor(max_length=64, num_mel_bins=32),
    "clap": ClapFeatureExtractor(feature_size=16, max_length_s=1, sampling_rate=RATE),
    "wav2vec2": Wav2Vec2FeatureExtractor(return_attention_mask=True),
    "seamless": SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16),
}
FLAT = {
    "silent": np.zeros(8000),
    "constant": np.full(8000, 0.5),
    "one sample": np.ones(1),
    "denormal": np.full(800, 1e-42),
}


@pytest.mark.parametrize("kind", EXTRACTORS)
@pytest.mark.parametrize("clip", FLAT)
def test_a_clip_in_which_nothing_moves_has_finite_features(kind, clip):
    features, _ = audio_features(EXTRACTORS[kind], [read_audio(FLAT[clip], RATE), tone()], 1.0)
    assert features.isfinite().all() and not torch.equal(features[0], features[1])
