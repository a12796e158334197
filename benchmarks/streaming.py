"""A stream of 100,000 rows through two workers: memory, throughput, and a kill in the middle; writes STREAMING.md.

    python benchmarks/streaming.py               # some minutes on two CPU cores
    python benchmarks/streaming.py --rows 10000  # smaller

- The rows are written first: Parquet shards, each row with a picture of its own and its number in the text.
- One pass is trained by a small model with `MMTrainer` in a process of its own with two workers, which is killed
  (SIGKILL) in the middle and started again. Every batch that is trained on is noted with the numbers of its rows.
- Memory is the proportional set size of that process and its workers, asked for each second.
"""

import argparse
import io
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import transformers
from PIL import Image
from transformers import CLIPImageProcessorPil, TrainingArguments

from modeling_mm import MMConfig, MMForSequenceClassification, MMProcessor
from modeling_mm.collator import MMCollator
from modeling_mm.rows import Columns
from modeling_mm.scratch import train_tokenizer
from modeling_mm.shards import open_shards
from modeling_mm.stream import MMStream
from modeling_mm.trainer import MMTrainer

SIDE, BATCH = 32, 32
LABELS = ["even", "odd"]
COLUMNS = Columns(target="label")


def picture(number: int) -> bytes:
    """A PNG of noise that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, rows: int, shards: int, kind: str = "parquet", picture=picture) -> str:
    """`rows` rows in as many shards, with their numbers in order; returns the glob that names them.

    Columns of Parquet are image, text, label; members of a tar (WebDataset) png and json, with text and label.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard, numbers in enumerate(np.array_split(np.arange(rows), shards)):
        made = [(picture(int(n)), f"row {n} what is it", LABELS[n % 2]) for n in numbers]
        path = folder / f"train-{shard:04d}.{kind}"
        if kind == "parquet":
            write_parquet(path, made)
        else:
            write_tar(path, made)
    return str(folder / f"train-*.{kind}")


def write_parquet(path: Path, rows: list[tuple[bytes | None, str, str]]) -> None:
    images = [None if image is None else {"bytes": image, "path": None} for image, _, _ in rows]
    table = {"text": [text for _, text, _ in rows], "label": [label for _, _, label in rows]}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array(images, kind), **table}), path, row_group_size=500)


def write_tar(path: Path, rows: list[tuple[bytes | None, str, str]]) -> None:
    with tarfile.open(path, "w") as archive:
        for place, (image, text, label) in enumerate(rows):
            members = {"png": image, "json": json.dumps({"text": text, "label": label}).encode()}
            for kind, data in members.items():
                if data is not None:
                    info = tarfile.TarInfo(f"{place:06d}.{kind}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def number_of(text: str) -> int:
    """The number of a row, which its text tells."""
    return int(text.split()[1])
