# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Loads the model of the Space from a folder or from one commit on the Hub, with transformers alone.

Only safetensors, configuration, code and model card are fetched from a Hub repository, all from the same commit: code
that is committed while the Space runs does not run in it.
"""

import logging
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

logger = logging.getLogger(__name__)

FETCHED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.py",
    "README.md",
]
HEADS = {
    "MMForConditionalGeneration": ("generation", "AutoModelForImageTextToText"),
    "MMForSequenceClassification": ("classification", "AutoModelForSequenceClassification"),
    "MMForImageTextRetrieval": ("retrieval", "AutoModelForZeroShotImageClassification"),
}
LIMITS_HEADING = "Intended use and limits"  # in the card that training writes; other cards have another heading


@dataclass
class LoadedModel:
    """A model with its processor and its model card.

    kind: "generation", "classification" or "retrieval". commit: on the Hub; None for a folder. card: README.md.
    """

    name: str
    kind: str
    model: PreTrainedModel
    processor: Any
    commit: str | None = None
    card: str = field(default="", repr=False)

    @property
    def takes_audio(self) -> bool:
        """True if the model has an audio tower."""
        return self.model.config.audio_config is not None

    @property
    def table_columns(self) -> list[dict[str, Any]]:
        """The columns of the model's table; none for a model without, also of older code."""
        return getattr(self.processor, "table_columns", None) or []

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a text."""
        positions = self.model.config.text_config.to_dict().get("max_position_embeddings") or 2**20
        return min(positions, self.processor.tokenizer.model_max_length)


def fetch(model_id: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a model, and the commit if it was fetched from the Hub.

    Raises:
        ValueError: `model_id` is a path, and there is no such folder.
    """
    if Path(model_id).is_dir():
        return Path(model_id), None
    if model_id.startswith((".", "/", "~")):
        raise ValueError(f"there is no folder '{model_id}'; expected a folder with a trained model, or a Hub id")
    commit = revision or "main"
    if not re.fullmatch(r"[0-9a-f]{40}", commit):  # a branch may move; its present commit is used from now on
        commit = HfApi().model_info(model_id, revision=commit).sha
        logger.warning("MM_MODEL_REVISION is not a commit hash; this run uses %s@%s", model_id, commit)
    return Path(snapshot_download(model_id, revision=commit, allow_patterns=FETCHED)), commit


def load(model_id: str, revision: str | None = None) -> LoadedModel:
    """The model of a folder or Hub id, in evaluation mode, on a GPU if there is one.

    Raises:
        ValueError: its architecture is not in `HEADS`, or it is an adapter and `peft` is not installed.
    """
    folder, commit = fetch(model_id, revision)
    if (folder / "adapter_config.json").is_file() and not find_spec(
        "peft"
    ):  # otherwise the base model would load, without the adapter
        raise ValueError(f"'{model_id}' is an adapter; add `peft` to requirements.txt")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    architecture = (config.architectures or ["no architecture"])[0]
    if architecture not in HEADS:
        raise ValueError(f"'{model_id}' holds {architecture}; this Space shows {', '.join(HEADS)}")
    kind, auto_class = HEADS[architecture]
    model = getattr(transformers, auto_class).from_pretrained(
        folder,
        trust_remote_code=True,
        use_safetensors=True,
        attn_implementation={"": "eager"},  # for fusion layers only, whose attention weights the maps need
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    name = model_id if commit else folder.resolve().name
    return LoadedModel(name, kind, model.eval().to(device), processor, commit, text)


def limits_of(card: str) -> str:
    """The section of a model card about limits: the one that training writes, or one with "limit" in its heading."""
    untitled = re.sub(r"(?m)^# .*", "", card.split("\n---\n", 1)[-1], count=1)  # the title may hold the word too
    return section(card, LIMITS_HEADING) or section(untitled, "limit")


def section(card: str, word: str) -> str:
    """The first section of a model card whose heading contains the word; '' if there is none."""
    found = re.search(rf"(?im)^(#+)[^\n]*{word}[^\n]*\n(.*?)(?=^#{{1,6}} |\Z)", card, re.S)
    return found[2].strip() if found else ""
