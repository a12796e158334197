# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Check that a repository is complete: without this package it gives the same tensors and logits, bit for bit."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..model.configuration_mm import AUTO_MAP
from ..model.processing_mm import MMProcessor
from ..tasks import TASKS, task_of
from . import standalone


@dataclass
class Verification:
    """A sample, the trained model's outputs for it, and the Auto class that loads the model.

    The files that the sample names must exist as long as the verification is used.
    """

    auto_class: str
    sample: dict[str, Any]
    expected: dict[str, torch.Tensor]

    def check(self, source: str, revision: str | None = None, offline: bool = False) -> None:
        """Load a folder, or a Hub id at a revision, in a process without this package and with empty caches.

        Raises:
            ValueError: it does not load, or its outputs differ.
        """
        name_of_source = f"'{source}'" if revision is None else f"'{source}' at revision {revision}"
        with tempfile.TemporaryDirectory() as work:
            found = self.load(source, revision, offline, Path(work), name_of_source)
        for name, expected in self.expected.items():
            if name not in found or not torch.equal(found[name], expected):
                raise ValueError(
                    f"{name_of_source}, loaded without this package, gives another '{name}' than the model itself"
                )

    def load(
        self, source: str, revision: str | None, offline: bool, work: Path, name_of_source: str
    ) -> dict[str, torch.Tensor]:
        """The outputs of a process without this package for the sample; `work` holds its caches."""
        task: dict[str, Any] = {"source": source, "revision": revision, "auto_class": self.auto_class}
        task |= {"sample": self.sample, "threads": torch.get_num_threads(), "found": str(work / "found.safetensors")}
        (work / "task.json").write_text(json.dumps(task), encoding="utf-8")
        caches = {"HF_HUB_CACHE": str(work / "hub"), "HF_MODULES_CACHE": str(work / "modules")}
        caches |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        program = Path(standalone.__file__).read_text(encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", program, str(work / "task.json")],
            cwd=work,
            env={**os.environ, **caches},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ValueError(f"{name_of_source} does not load without this package: {last}")
        return load_file(task["found"])


def verify_repository(model: PreTrainedModel, processor: MMProcessor, folder: Path) -> Verification:
    """The verification of a model, or of one with an adapter, on a sample with all modalities that it takes.

    Writes the sample's files to `folder`.
    """
    head = model.get_base_model() if hasattr(model, "peft_config") else model
    config, generator = head.config, np.random.default_rng(0)
    noise = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "sample.png")
    text, sample = "what is in the image?", {"images": str(folder / "sample.png")}
    if config.audio_config is not None:
        rate = processor.feature_extractor.sampling_rate
        samples = int(rate * min(0.5, processor.max_seconds))
        np.save(folder / "sample.npy", generator.normal(0, 0.1, samples).astype(np.float32))
        sample |= {"audio": str(folder / "sample.npy"), "sampling_rate": rate}
        text = processor.audio_token + text
    if config.num_frames is not None:
        sample["videos"] = sample["images"]
        text = processor.video_token + text
    if TASKS[task_of(head)].embeds:
        sample["text"] = text
    else:
        sample["text"] = processor.image_token + text
    names = {reference.split(".")[1]: auto for auto, reference in reversed(AUTO_MAP.items())}
    return Verification(names[type(head).__name__], sample, standalone.outputs(model, processor, sample))
