"""A feature cache of a tiny model over generated images, filled in this process or, as a program, in a separate one.

python -m helpers.feature_cache TABLE FOLDER LOG SECONDS

It sleeps for SECONDS in each batch, and writes a line to LOG.
"""

import contextlib
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from helpers.builders import mm_model
from PIL import Image
from transformers import CLIPImageProcessorPil

from modeling_mm import MMProcessor
from modeling_mm.data import feature_cache, feature_store
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.feature_cache import FrozenTower, build_cache, sources_of
from modeling_mm.data.rows import Columns
from modeling_mm.training.scratch import train_tokenizer


@dataclass
class CountingTower(FrozenTower):
    """A tower that counts the media it encodes after the check, and sleeps for each batch."""

    log: Path | None = None
    seconds: float = 0.0
    checked: bool = False
    count: int = 0

    def check(self, prepared):
        size = super().check(prepared)
        self.checked = True
        return size

    def run(self, prepared):
        if self.checked:
            self.count += len(prepared)
            time.sleep(self.seconds)
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(f"{len(prepared)}\n")
        return super().run(prepared)


def picture_rows(folder, count=24):
    """A dataset of `count` generated images, two of which have the same content."""
    for number in range(count):
        pixels = torch.randint(256, (20, 20, 3), generator=torch.Generator().manual_seed(max(1, number)))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number}.png")
    table = {"image": [f"{number}.png" for number in range(count)], "text": ["what is it"] * count}
    return MMDataset("rows", datasets.Dataset.from_dict(table), folder, Columns(target=None))


def tower_of(model, processor, modality="image", dtype=torch.float32, **options):
    return CountingTower(modality, model.base_model, processor, dtype, contextlib.nullcontext, "no", **options)


def tiny_model(vision="clip_vision_model", **fields):
    torch.manual_seed(0)
    return mm_model(vision=vision, **fields).requires_grad_(False)


def tiny_processor(**options):
    size = {"height": 16, "width": 16}
    options = {"size": size, "crop_size": size, "do_convert_rgb": True, **options}
    return MMProcessor(CLIPImageProcessorPil(**options), train_tokenizer(["what is it"], "scratch-tiny"))


def build(tower, dataset, folder, batch_size=2):
    return build_cache(tower, sources_of([dataset], "image"), folder, batch_size, quiet=True)


def small_parts(monkeypatch=None):
    """Write a shard for every batch and a bucket for every few images."""
    for module, name, value in ((feature_cache, "SHARD_SECONDS", 0), (feature_store, "BUCKET_KEYS", 4)):
        if monkeypatch is None:
            setattr(module, name, value)
        else:
            monkeypatch.setattr(module, name, value)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    images, folder, log, seconds = sys.argv[1:]
    small_parts()
    names = sorted(Path(images).glob("*.png"), key=lambda path: int(path.stem))
    table = {"image": [path.name for path in names], "text": ["what is it"] * len(names)}
    rows = MMDataset("rows", datasets.Dataset.from_dict(table), Path(images), Columns(target=None))
    tower = tower_of(tiny_model(), tiny_processor(), log=Path(log), seconds=float(seconds))
    build(tower, rows, Path(folder))
    print(tower.count)
