# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The folder that becomes a repository: weights, code, processor and card of a checkpoint, with or without towers."""

import fnmatch
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ..checkpoint import BASE, is_adapter, read_config
from ..model.processing_mm import MMProcessor
from ..model.towers_mm import CHANGES, tower_tensors, tower_weights
from ..tasks import head_of, task_of
from .model_card import card_of

SENTENCE_TRANSFORMERS = (
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    "[0-9]_*/config.json",
)
REPLACED = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    CHANGES,
    *("adapter_config.json", "adapter_model.safetensors", "*_mm.py"),
    *("processor_config.json", "preprocessor_config.json", "feature_extractor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template.jinja", "additional_chat_templates/*.jinja"),
    *SENTENCE_TRANSFORMERS,
    "README.md",
)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
# other files of `Trainer` with `push_to_hub` and of folders that `modeling-mm train` wrote
TRAINER_PICKLES = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth")
TRAINER_FILES = (
    *(".gitattributes", ".gitignore", "trainer_state.json", "*_results.json", "report.json", "report.html"),
    *("time_limit.json", "search/trials.db"),
    *("predictions.jsonl", "bad_rows.jsonl"),
)
CHECKPOINTS = ("checkpoint-*/", "last-checkpoint/")


def matches(path: str, patterns: Iterable[str]) -> bool:
    """True if a path matches one of the patterns, folder by folder."""
    return any(fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)


def is_replaced(path: str) -> bool:
    """True if pushing writes a file of this path, and deletes it when it is no longer needed."""
    return matches(path, REPLACED)


def is_pickle_of_trainer(path: str) -> bool:
    """True if a file is one of the pickles that `Trainer` writes, beside a model or in a checkpoint."""
    return matches(path, TRAINER_PICKLES) or matches(path, (c + p for c in CHECKPOINTS for p in TRAINER_PICKLES))


def is_known(path: str) -> bool:
    """True if pushing, `Trainer` or `modeling-mm train` writes a file of this path."""
    if path.startswith(("runs/", "features/")) or is_pickle_of_trainer(path):
        return True  # runs/ is for TensorBoard, features/ for those of frozen towers
    inner = path.split("/", 1)[1] if matches(path.split("/", 1)[0] + "/", (*CHECKPOINTS, f"{BASE}/")) else path
    return is_replaced(inner) or matches(inner, TRAINER_FILES) or ("/" not in path and path.endswith(IMAGES))


def files_of(folder: Path) -> dict[str, int]:
    """The sizes in bytes of a folder's files, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def open_whole(source: Path) -> tuple[PreTrainedModel, MMProcessor]:
    """Load model and processor of a trained folder, in evaluation mode; for an adapter, its base without it.

    Raises:
        ValueError: there is no model with a head, or the weights of an adapter are a pickle.
    """
    adapter = is_adapter(str(source))
    if adapter and not (source / "adapter_model.safetensors").is_file():
        raise ValueError(f"'{source}' has no adapter_model.safetensors; pickled adapters are not pushed")
    folder = source / BASE if adapter else source
    names = read_config(str(folder)).architectures or []
    head = head_of(names)
    if head is None:
        raise ValueError(f"'{folder}' holds {names}; expected a model with a head, as training saves it")
    return head.from_pretrained(folder, use_safetensors=True).eval(), MMProcessor.from_pretrained(source)


def stage(source: Path, folder: Path, repo_id: str, fusion_only: bool = False) -> tuple[PreTrainedModel, MMProcessor]:
    """Write the repository into an empty folder; returns the trained model, with its adapter if any, and processor.

    Raises:
        ValueError: the folder cannot be loaded, or `fusion_only` is set for an adapter or for towers not from the Hub.
    """
    if fusion_only and is_adapter(str(source)):
        raise ValueError(f"'{source}' is an adapter, which is pushed beside its whole base; leave --fusion_only out")
    model, processor = open_whole(source)
    task = task_of(model)
    processor.save_pretrained(folder)
    if fusion_only:
        save_fusion_only(model, folder)
    else:
        model.save_pretrained(folder)
    if is_adapter(str(source)):
        shutil.copy(source / "adapter_model.safetensors", folder)
        adapter = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
        adapter["base_model_name_or_path"] = repo_id  # where `from_pretrained` looks for the base
        (folder / "adapter_config.json").write_text(json.dumps(adapter, indent=2), encoding="utf-8")
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(source)).eval()
    for pattern in SENTENCE_TRANSFORMERS:
        for path in source.glob(pattern):
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    images = add_card(source, folder, repo_id, task)
    if unexpected := [path for path in files_of(folder) if not is_replaced(path) and path not in images]:
        raise ValueError(f"saving '{source}' wrote '{unexpected[0]}', which is not on the list of files to push")
    return model, processor


def add_card(source: Path, folder: Path, repo_id: str, task: str) -> list[str]:
    """Write the card, whose code loads the repository, and copy its images; returns their names."""
    card = card_of(source, repo_id, task)
    (folder / "README.md").write_text(card, encoding="utf-8")
    linked = [name for name in re.findall(r"!\[[^\]]*\]\(([^)/\\]+)\)", card) if (source / name).is_file()]
    images = [name for name in dict.fromkeys(linked) if name.lower().endswith(IMAGES)]
    for name in images:
        shutil.copy(source / name, folder)
    return images


def changed_part(tensor: torch.Tensor, fetched: torch.Tensor | None) -> torch.Tensor | None:
    """The part of a tensor that differs from the fetched one: None, the rows that were added, or all of it."""
    if fetched is None or tensor.dim() != fetched.dim() or tensor.shape[1:] != fetched.shape[1:]:
        return tensor
    rows = len(fetched) if fetched.dim() else 0
    original = fetched.to(tensor.dtype)
    if tensor.shape == fetched.shape:
        return None if torch.equal(tensor, original) else tensor
    return tensor[rows:] if len(tensor) > rows and torch.equal(tensor[:rows], original) else tensor


def save_fusion_only(model: PreTrainedModel, folder: Path) -> None:
    """Write config, code and all weights except those of unchanged towers.

    Raises:
        ValueError: no tower came from the Hub, or training changed all that did.
    """
    sources, fetched = model.config.tower_sources or {}, []
    changes: dict[str, torch.Tensor] = {}
    if not sources:
        raise ValueError("--fusion_only needs towers from the Hub, and the config of this model names none")
    for part, source in sources.items():
        weights = tower_weights(part, source, model.get_output_embeddings() is not None)
        tensors = tower_tensors(model, part)
        parts = {name: changed_part(value, weights.get(name)) for name, value in tensors.items()}
        changed = {name: value for name, value in parts.items() if value is not None}
        if sum(value.numel() for value in changed.values()) < sum(value.numel() for value in tensors.values()) / 2:
            fetched.append(part)
            changes |= {name: value.clone() for name, value in changed.items()}
    if not fetched:
        raise ValueError(f"--fusion_only leaves out frozen towers, but training changed {' and '.join(sources)}")
    names = {name for part in fetched for name in tower_tensors(model, part)}
    weights = {name: value for name, value in model.state_dict().items() if name.removeprefix("model.") not in names}
    model.config.fetched_towers = fetched
    model.save_pretrained(folder, state_dict=weights)
    model.config.fetched_towers = None
    save_file(changes, folder / CHANGES, {"format": "pt"})
