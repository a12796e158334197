# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Media files, and a processor with audio, for tests of augmentation."""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from modeling_mm import MMProcessor
from modeling_mm.training import scratch

RATE = 16000


@pytest.fixture
def files(tmp_path):
    """Paths of three images that differ in every part, and of two audio clips."""
    rng = np.random.default_rng(0)
    images, clips = [], []
    for number in range(3):
        image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        image.save(tmp_path / f"{number}.png")
        images.append(str(tmp_path / f"{number}.png"))
    for number in range(2):
        tone = 0.5 * np.sin(2 * np.pi * 300 * (number + 1) * np.arange(RATE // 2) / RATE)
        soundfile.write(tmp_path / f"{number}.wav", tone, RATE)
        clips.append(str(tmp_path / f"{number}.wav"))
    return images, clips


@pytest.fixture
def listener(processor):
    """A processor that also takes audio."""
    return MMProcessor(processor.image_processor, processor.tokenizer, audio=scratch.feature_extractor(1.0))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
