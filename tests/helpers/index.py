"""Shared code of the tests of index and search: a tiny random CLIP, generated images, the commands as functions."""

import csv

import numpy as np
import pytest
import torch
from helpers.builders import SENTENCES
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

pytest.importorskip("lancedb")

from modeling_mm import cli
from modeling_mm.commands import index, search
from modeling_mm.search.gallery import Gallery
from modeling_mm.training.scratch import train_tokenizer

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_clip(folder, seed=0, image_mean=0.5):
    """Save a tiny CLIP with random weights, large enough for images and texts to differ, and its processor."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(SENTENCES, "scratch-tiny")
    tower = {**TOWER, "initializer_factor": 5.0}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=[image_mean] * 3)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def draw(path, seed):
    """Write an image, distinct for each seed, to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((24, 20), Image.Resampling.NEAREST).save(path)
    return path


def run_index(**flags):
    """The result of `index` with these arguments; True stands for a flag without value."""
    argv = []
    for name, value in flags.items():
        argv += [f"--{name}", *([] if value is True else value if isinstance(value, list) else [str(value)])]
    return index.main(argv)


def run_search(**flags):
    """The hits of `search`."""
    return search.search(search.SearchArguments(**{name: value for name, value in flags.items()}))


def rows_of(folder):
    """The embedding of every row by its id; ids must be unique."""
    rows = Gallery.open(str(folder)).table.search().select(["id", "vector"]).to_arrow().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: np.asarray(row["vector"]) for row in rows}


def refused(capsys, verb, *argv):
    """The error message, one sentence, of a command with bad input."""
    assert cli.main([verb, *map(str, argv)]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("modeling-mm")]
    assert captured.out == "" and len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def image_folder(tmp_path):
    """A folder of 12 images, half of them in a subfolder."""
    for number in range(12):
        draw(tmp_path / "pictures" / ("inner" if number % 2 else "") / f"{number:02}.png", number)
    return tmp_path / "pictures"


@pytest.fixture
def table(image_folder, tmp_path):
    """A CSV of these images with a caption and a price."""
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "price", "code"])
        for number, image in enumerate(sorted(image_folder.rglob("*.png"))):
            writer.writerow([image.relative_to(tmp_path), f"<b>no. {number}</b>", number, f"{number:03}"])
    return path
