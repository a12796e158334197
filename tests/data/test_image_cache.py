"""Cached images are opened once, and change nothing in training and evaluation."""

from dataclasses import replace

import pytest
import torch
from helpers.builders import drawing
from PIL import Image

from modeling_mm import cli
from modeling_mm.data import collator
from modeling_mm.data.augmentation import Augmentation
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.media import ImageCache
from modeling_mm.data.rows import Row


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
    kept = replace(without, image_cache=ImageCache(1))
    for epoch in range(3):
        if augmentation is not None:
            augmentation.epoch.fill_(epoch)
        del opened[:]
        first, second = without(rows), kept(rows)
        assert len(opened) == (8 if epoch == 0 else 4)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_augmentation_shrank_is_not_what_evaluation_sees(processor, rows, opened):
    options = {"augmentation": Augmentation(["rotate"]), "image_cache": ImageCache(1)}
    training = MMCollator(processor, "classification", **options)
    training(rows)
    evaluation = replace(training, augmentation=None)
    for _ in range(2):
        assert {image.size for (image,) in evaluation.open_images(rows)} == {(256, 128)}
    side = processor.image_processor.size["height"]
    assert {image.size for (image,) in training.open_images(rows)} == {(2 * side, side)}
    assert len(opened) == 8


def test_room_for_three_pictures_keeps_three(opened, tmp_path):
    memory = ImageCache(1)
    images = [Image.new("RGB", (256, 300)) for _ in range(4)]  # 0.29 MiB each
    for _ in range(2):
        for number, image in enumerate(images):
            assert memory.get(number, lambda image=image: image) is image
    assert list(memory.images) == [0, 1, 2] and memory.room == 2**20 - 3 * 256 * 300 * 4
    nothing = ImageCache()
    nothing.get(0, lambda: images[0])
    assert not nothing.images


def test_negative_room_is_refused(tmp_path, capsys):
    arguments = ["train", "--train_file", "no.csv", "--output_dir", str(tmp_path), "--image_cache_mb", "-1"]
    assert cli.main(arguments) == 2
    assert "--image_cache_mb is -1; expected megabytes, 0 or more" in capsys.readouterr().err


def test_the_former_name_of_an_argument_is_answered_with_the_new_one(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text("keep_pictures: 64\n")
    for former in (["--keep_pictures", "64"], ["--keep_pictures=64"], ["--config", str(tmp_path / "old.yaml")]):
        assert cli.main(["train", "--train_file", "no.csv", "--output_dir", str(tmp_path), *former]) == 2
        assert "--keep_pictures was renamed to --image_cache_mb" in capsys.readouterr().err
