# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Fixtures that every test file shares; the builders are in `helpers/`. Nothing here touches the network."""

import os
import re
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from helpers.builders import SENTENCES
from transformers import CLIPImageProcessorPil

from modeling_mm import MMProcessor
from modeling_mm.training.scratch import train_tokenizer

torch.set_num_threads(1)

CONFORMANCE = Path(__file__).parent / "conformance"
collect_ignore = [CONFORMANCE]  # these tests download transformers' test suites; collected with `-m conformance` only


def pytest_addoption(parser):
    parser.addoption("--conformance-page", help="with -m conformance: the file to write the results to")
    parser.addoption("--write-tables", action="store_true", help="write docs/backbones.md from what the tests find")


def pytest_configure(config):
    if re.search(r"(?<!not )\bconformance\b", config.option.markexpr):
        collect_ignore.clear()
        sys.path.insert(0, str(CONFORMANCE))
        config.pluginmanager.import_plugin("conformance_report")


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state, alone or in the suite."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def hub():
    """A Hub on loopback, for separate processes to talk to."""
    from helpers.hub_server import LoopbackHub

    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A saved tokenizer that knows `<image>`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(SENTENCES, "scratch-tiny").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tokenizer():
    """A new tokenizer for each test, that knows `<image>`."""
    return train_tokenizer(SENTENCES, "scratch-tiny")


@pytest.fixture
def processor(tokenizer):
    """A processor for 16 x 16 images."""
    size = {"height": 16, "width": 16}
    return MMProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size, do_convert_rgb=True), tokenizer=tokenizer
    )
