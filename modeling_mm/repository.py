# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The folder of a Hub repository, written anew from a trained folder: what is not on the list does not get there.

An adapter stays an adapter: it lies beside the composed model that it is loaded over, and peft joins the two when
`from_pretrained` is called.
"""

import fnmatch
import json
import re
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from .card import card_of
from .checkpoint import BASE, TASKS, is_adapter, read_config, task_of
from .fusion_only import save_fusion_only
from .processing_mm import MMProcessor
from .towers_mm import CHANGES

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
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def is_replaced(path: str) -> bool:
    """Whether a file of a repository is one that pushing writes, and takes away when it is no longer needed."""
    return any(fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in REPLACED)


def files_of(folder: Path) -> dict[str, int]:
    """The size of every file of a folder, by its path in there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def open_whole(source: Path) -> tuple[PreTrainedModel, MMProcessor]:
    """Model and processor of a trained folder, in evaluation mode; of an adapter, its base without it.

    Raises:
        ValueError: there is no model with a head, or the weights of an adapter are a pickle.
    """
    adapter = is_adapter(str(source))
    if adapter and not (source / "adapter_model.safetensors").is_file():
        raise ValueError(f"'{source}' has no adapter_model.safetensors; pickled adapters are not pushed")
    folder = source / BASE if adapter else source
    names = read_config(str(folder)).architectures or []
    head = next((head for head in TASKS.values() if head.__name__ in names), None)
    if head is None:
        raise ValueError(f"'{folder}' holds {names}; expected a model with a head, as training leaves it")
    return head.from_pretrained(folder, use_safetensors=True).eval(), MMProcessor.from_pretrained(source)


def stage(source: Path, folder: Path, repo_id: str, fusion_only: bool = False) -> tuple[PreTrainedModel, MMProcessor]:
    """Write what is to be pushed into an empty folder; returns what the trained folder holds, an adapter in its place.

    Raises:
        ValueError: the folder cannot be opened, or `fusion_only` is asked of an adapter or of towers not from the Hub.
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
    pictures = add_card(source, folder, repo_id, task)
    if strangers := [path for path in files_of(folder) if not is_replaced(path) and path not in pictures]:
        raise ValueError(f"saving '{source}' wrote '{strangers[0]}', which is not on the list of what is pushed")
    return model, processor


def add_card(source: Path, folder: Path, repo_id: str, task: str) -> list[str]:
    """The card, whose code opens the repository from anywhere, and the pictures that it shows, which are returned."""
    card = card_of(source, repo_id, task)
    (folder / "README.md").write_text(card, encoding="utf-8")
    shown = [name for name in re.findall(r"!\[[^\]]*\]\(([^)/\\]+)\)", card) if (source / name).is_file()]
    pictures = [name for name in dict.fromkeys(shown) if name.lower().endswith(PICTURES)]
    for name in pictures:
        shutil.copy(source / name, folder)
    return pictures
