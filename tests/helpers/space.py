# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Shared code of the tests of the Space: tiny models, and a process that serves them without the package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import torch
from helpers.audio import ears
from helpers.builders import SENTENCES, mm_model, save_with_processor
from helpers.programs import ABSENT
from transformers import CLIPImageProcessorPil

from modeling_mm import MMForConditionalGeneration, MMForImageTextRetrieval, MMForSequenceClassification, MMProcessor
from modeling_mm.training.scratch import feature_extractor, train_tokenizer

SPACE = Path(__file__).parents[2] / "hub_space"
# One process for all folders, as importing takes longest; it ends when its input closes, so also if the tests die.
SERVE = (
    ABSENT
    + """
import json
import os
import torch

torch.set_num_threads(1)
from app import build, launch_options
from loading import load

urls = {}
for folder in sys.argv[1:]:
    loaded = load(folder)
    _, url, _ = build(loaded).launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options())
    urls[loaded.name] = url
print(json.dumps(urls), flush=True)
sys.stdin.read()
os._exit(0)
"""
)


class Server(NamedTuple):
    """URLs of Spaces by the names of their folders, and the process that serves them."""

    urls: dict[str, str]
    process: subprocess.Popen

    def upload(self, name, content, file="picture.png"):
        """Upload a file; return Gradio's description of it."""
        answer = httpx.post(f"{self.urls[name]}gradio_api/upload", files={"files": (file, content)}, timeout=60)
        answer.raise_for_status()
        return file_data(answer.json()[0])

    def call(self, name, endpoint, *data):
        """Call an endpoint by plain HTTP, also as no client would; return its result and error, one of them None."""
        base = f"{self.urls[name]}gradio_api/call/{endpoint}"
        kind = {"Content-Type": "application/json"}
        started = httpx.post(base, content=json.dumps({"data": data}), headers=kind, timeout=60)
        if started.status_code != 200:
            return None, f"{started.status_code}: {started.text}"
        events = httpx.get(f"{base}/{started.json()['event_id']}", timeout=120).text
        kind, _, value = events.strip().rpartition("event: ")[2].partition("\ndata: ")
        value = json.loads(value)
        return (value, None) if kind == "complete" else (None, value and value["error"])


def file_data(path):
    """The description of a file that a browser sends."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def serve(*folders, **environment):
    """Start a server of Spaces for these folders; the caller stops it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *map(str, folders)],
        cwd=SPACE,
        env={
            **os.environ,
            "PYTHONPATH": str(SPACE),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MM_REQUESTS_PER_MINUTE": "0",
            **environment,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if environment.get("QUIET") else None,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("{"):
            return Server(json.loads(line), process)
    raise RuntimeError(f"the Space exited with status {process.wait()} before it accepted requests")


def stop(server):
    server.process.terminate()
    server.process.wait(timeout=60)


def tiny_processor(audio):
    """A processor for 16 x 16 images and, if `audio`, clips of one second."""
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_convert_rgb=True)
    tokenizer = train_tokenizer(SENTENCES, "scratch-tiny", audio=audio)
    options = {"audio": feature_extractor(1.0), "max_seconds": 1.0} if audio else {}
    return MMProcessor(image_processor=images, tokenizer=tokenizer, **options)


def save_tiny(folder, head, text="llama", audio=False, **fields):
    """Save a tiny random model with open gates and its processor; return the folder."""
    torch.manual_seed(0)
    processor = tiny_processor(audio)
    if audio:
        audio_id = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
        fields |= {"audio_config": ears("resnet"), "audio_token_id": audio_id}
    model = mm_model(text, head=head, image_token_id=processor.image_token_id, **fields)
    save_with_processor(model, processor, folder)
    return folder


def save_all(folder):
    """Save a tiny model for each tab: generation and classification with audio, and retrieval."""
    labels = {0: "blue", 1: "<b>no</b>", 2: "yes"}
    return [
        save_tiny(folder / "asked", MMForConditionalGeneration, audio=True),
        save_tiny(folder / "classified", MMForSequenceClassification, "bert", audio=True, id2label=labels),
        save_tiny(folder / "found", MMForImageTextRetrieval, "bert"),
    ]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(folders, tmp_path_factory):
    """Spaces of tiny models, with uploads in a temporary folder."""
    running = serve(*folders, GRADIO_TEMP_DIR=str(tmp_path_factory.mktemp("uploads")))
    yield running
    stop(running)
