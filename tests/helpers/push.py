# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Shared code of the tests of `push`: processes that talk to a Hub on loopback, trained folders, and checks.

The client reads the Hub's address when it is imported, so everything that pushes or loads runs in a separate process,
against one `LoopbackHub` for all tests of a file.
"""

import json
import re
import subprocess
import sys

from helpers.builders import SENTENCES, drawing, mm_model
from helpers.programs import ABSENT
from huggingface_hub import ModelCard
from transformers import CLIPImageProcessorPil

from modeling_mm import MMForSequenceClassification, MMProcessor, cli
from modeling_mm.hub.repository import PICKLES, is_replaced
from modeling_mm.training.scratch import train_tokenizer


def python(hub, folder, *argv, token="write"):
    """Run Python in a separate process that talks to the Hub."""
    environment = hub.environment(folder, token)
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


def push(hub, folder, *argv, token="write"):
    """Run `modeling-mm push`; return its result, or its error message."""
    done = python(hub, folder, "-m", "modeling_mm.cli", "push", *argv, token=token)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 2, done.stderr[-3000:]
    return done.stderr.strip().splitlines()[-1]


def make_table(folder, rows=8):
    lines = ["image,text,answer,caption"]
    for i in range(rows):
        drawing((30 * i, 240 - 30 * i, 90)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,what is it {i % 3},{'yes' if i % 2 else 'no'},number {i}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")


def train(folder, *argv):
    """Train for two steps by the command."""
    if not (folder / "t.csv").exists():
        make_table(folder)
    argv = [
        "train", "--train_file", folder / "t.csv", "--validation_file", folder / "t.csv", "--max_steps", "2",
        "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--use_cpu", *argv,
    ]  # fmt: skip
    assert cli.main([*map(str, argv)]) == 0


SCRATCH = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny"]


def code_of(card):
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return block


def check_repository(hub, name, revision):
    """Check that only listed files and the card's images, and no pickle, are there, and that the card is valid."""
    files = hub.repositories["model", name].commits[revision].files
    card = files["README.md"].data.decode()
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card)
    assert set(images) <= set(files)
    assert [path for path in files if not is_replaced(path) and path not in (".gitattributes", *images)] == []
    assert not any(path.endswith(PICKLES) or path == "training_args.bin" for path in files)
    data = ModelCard(card).data
    assert data.library_name == "transformers" and data.pipeline_tag
    return files, card, data


def check_card_runs(hub, folder, card):
    """Run the card's code in a process without the package and with empty caches."""
    done = python(hub, folder, "-c", ABSENT + code_of(card), token=None)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout  # at least a line: an answer may be empty


def make_model(folder, head=MMForSequenceClassification):
    """Save a model with a processor, without training and so without a card."""
    size = {"height": 16, "width": 16}
    tokenizer = train_tokenizer(SENTENCES, "scratch-tiny")
    processor = MMProcessor(CLIPImageProcessorPil(size=size, crop_size=size), tokenizer)
    model = mm_model("bert", head=head)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model
