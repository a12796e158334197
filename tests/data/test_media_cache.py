"""Cached images and clips are decoded once, and change nothing in training and evaluation."""

from dataclasses import replace

import pytest
import torch
from helpers.augmentation import files, listener  # noqa: F401
from helpers.builders import drawing
from PIL import Image

from modeling_mm import cli
from modeling_mm.data import collator
from modeling_mm.data.augmentation import AUDIO, Augmentation
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.media import MediaCache
from modeling_mm.data.rows import Row
from modeling_mm.model.audio_mm import read_audio


@pytest.fixture
def rows(tmp_path):
    """Rows about four images of 128 x 256, twice as wide as high."""
    for number in range(4):
        drawing((50 * number, 9, 9), 128).resize((256, 128)).save(tmp_path / f"{number}.png")
    return [Row(n + 1, [str(tmp_path / f"{n % 4}.png")], "red", 0) for n in range(8)]


@pytest.fixture
def opened(monkeypatch):
    """The sources of opened images, in order."""
    sources = []

    def open_image(source, background):
        sources.append(source)
        return Image.open(source).convert("RGB")

    monkeypatch.setattr(collator, "open_image", open_image)
    return sources


@pytest.mark.parametrize("augmentation", [None, Augmentation(["rotate"])], ids=["plain", "rotated"])
def test_a_kept_picture_is_opened_once_and_a_batch_stays_the_same(processor, rows, opened, augmentation):
    without = MMCollator(processor, "classification", augmentation=augmentation)
    kept = replace(without, image_cache=MediaCache(1))
    for epoch in range(3):
        if augmentation is not None:
            augmentation.epoch.fill_(epoch)
        del opened[:]
        first, second = without(rows), kept(rows)
        assert len(opened) == (8 if epoch == 0 else 4)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_augmentation_shrank_is_not_what_evaluation_sees(processor, rows, opened):
    options = {"augmentation": Augmentation(["rotate"]), "image_cache": MediaCache(1)}
    training = MMCollator(processor, "classification", **options)
    training(rows)
    evaluation = replace(training, augmentation=None)
    for _ in range(2):
        assert {image.size for (image,) in evaluation.open_images(rows)} == {(256, 128)}
    side = processor.image_processor.size["height"]
    assert {image.size for (image,) in training.open_images(rows)} == {(2 * side, side)}
    assert len(opened) == 8


def test_room_for_three_pictures_keeps_three(opened, tmp_path):
    memory = MediaCache(1)
    images = [Image.new("RGB", (256, 300)) for _ in range(4)]  # 0.29 MiB each
    for _ in range(2):
        for number, image in enumerate(images):
            assert memory.get(number, lambda image=image: image) is image
    assert list(memory.media) == [0, 1, 2] and memory.room == 2**20 - 3 * 256 * 300 * 4
    nothing = MediaCache()
    nothing.get(0, lambda: images[0])
    assert not nothing.media


@pytest.mark.parametrize("augmentation", [None, Augmentation(audio=AUDIO)], ids=["plain", "changed"])
def test_a_cached_clip_is_decoded_once_and_a_batch_stays_the_same(listener, files, monkeypatch, augmentation):
    decoded = []

    def read(source, *rest):
        decoded.append(source)
        return read_audio(source, *rest)

    monkeypatch.setattr(collator, "read_audio", read)
    _, clips = files
    rows = [Row(n + 1, [], "red", 0, [clips[n % 2]]) for n in range(4)]
    without = MMCollator(listener, "classification", augmentation=augmentation)
    cached = replace(without, audio_cache=MediaCache(1))
    for epoch in range(3):
        if augmentation is not None:
            augmentation.epoch.fill_(epoch)
        del decoded[:]
        first, second = without(rows), cached(rows)
        assert len(decoded) == (4 if epoch == 0 else 2)
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert cached.audio_cache.room == 2**20 - sum(clip.nbytes for clip in cached.audio_cache.media.values())


@pytest.mark.parametrize("flag", ["image_cache_mb", "audio_cache_mb"])
def test_negative_room_is_refused(tmp_path, capsys, flag):
    arguments = ["train", "--train_file", "no.csv", "--output_dir", str(tmp_path), f"--{flag}", "-1"]
    assert cli.main(arguments) == 2
    assert f"--{flag} is -1; expected megabytes, 0 or more" in capsys.readouterr().err


def test_the_former_name_of_an_argument_is_answered_with_the_new_one(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text("keep_pictures: 64\n")
    for former in (["--keep_pictures", "64"], ["--keep_pictures=64"], ["--config", str(tmp_path / "old.yaml")]):
        assert cli.main(["train", "--train_file", "no.csv", "--output_dir", str(tmp_path), *former]) == 2
        assert "--keep_pictures was renamed to --image_cache_mb" in capsys.readouterr().err
