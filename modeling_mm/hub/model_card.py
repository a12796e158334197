# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The model card: facts that training knows about its model, as text and as metadata for the Hub.

`write_card` writes it into the training folder; `card_of` adapts its code to the repository that it is pushed to.
"""

import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData, model_info
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever huggingface_hub uses
from transformers import PreTrainedConfig, PreTrainedModel

from ..checkpoint import is_adapter
from ..data.rows import joined_text, split_names
from ..tasks import TASKS
from ..version import __version__

TAGS = ["modeling_mm", "multimodal", "cross-attention"]
NO_SCORES = ("train_seconds", "train_rows", "evaluated_rows", "skipped_rows", "rows", "pictures")
TOWERS = ("vision_tower", "audio_tower", "text_model")
LISTED_COLUMNS = 4  # of a table, in the example
TEMPLATE = Path(__file__).with_suffix(".md")
LIMITS_HEADING = "Intended use and limits"  # the Space finds the section by it, see `hub_space/loading.py`


def without_token(argv: Sequence[str]) -> list[str]:
    """The command line without tokens, so that it can be published."""
    secret = ("--hub_token", "--push_to_hub_token")
    pairs = zip(["", *argv], argv, strict=False)
    return [word for before, word in pairs if before not in secret and word.partition("=")[0] not in secret]


def on_hub(tower: str) -> bool:
    """True if a tower is a Hub id, neither a folder nor a scratch tower."""
    return not tower.startswith("scratch") and not Path(tower).exists()


def licence_of(tower: str) -> str:
    """The licence that a tower's own card states, if the Hub can be reached."""
    if not on_hub(tower):
        return "-"
    try:
        data = model_info(tower, timeout=10).card_data
    except (OSError, HTTPError):
        return "see its card"
    return (data and data.license) or "not stated"


def hardware() -> str:
    """The hardware that the model was trained on, in words."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = torch.distributed.get_world_size() if distributed else 1
    if torch.cuda.is_available():
        return f"{processes if distributed else torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {processes} process{'es' if processes > 1 else ''}"


def towers_of(config: PreTrainedConfig, settings: dict[str, Any]) -> dict[str, str]:
    """The source of each tower: from the flags of this training, or from the config of the model it continued from."""
    known = {part: source["id"] for part, source in (config.tower_sources or {}).items()}
    return {part: tower for part in TOWERS if (tower := settings[part] or known.get(part))}


def metadata(
    name: str, task: str, report: dict[str, Any], settings: dict[str, Any], towers: list[str]
) -> ModelCardData:
    """The front matter: the Hub's categories, and every score with the rows that it was measured on."""
    is_private = settings["dataset"] is None
    data = Path(settings["train_file"]).name if is_private else settings["dataset"]
    test = Path(settings["test_file"]).name if settings["test_file"] else data
    scores = {k: v for k, v in report.items() if isinstance(v, (int, float)) and k not in NO_SCORES and v == v}
    results = [
        EvalResult(
            task_type=TASKS[task].pipeline_tag,
            dataset_type="private" if is_private else data,
            dataset_name=test,
            dataset_split=report.get("evaluated_on"),
            metric_type=score,
            metric_value=value,
        )
        for score, value in scores.items()
    ]
    return card_data(
        task,
        model_name=name,
        base_model=[tower for tower in towers if on_hub(tower)] or None,
        eval_results=results or None,
    )


def card_data(task: str, **fields: Any) -> ModelCardData:
    """Front matter with the entries that every card has, and further fields."""
    tags = [*TAGS, *TASKS[task].libraries]
    return ModelCardData(library_name="transformers", pipeline_tag=TASKS[task].pipeline_tag, tags=tags, **fields)


def tower_rows(model: PreTrainedModel, towers: dict[str, str]) -> list[dict[str, str]]:
    """Table rows of the towers: source at its revision, licence, trained or frozen."""
    rows = []
    for part, tower in towers.items():
        weights = [p for name, p in model.named_parameters() if f".{part}." in f".{name}"]
        share = "trained" if any(p.requires_grad for p in weights) else "frozen"
        source = (model.config.tower_sources or {}).get(part)
        revision = f"/tree/{source['revision']}" if source else ""
        link = f"[{tower}]({ENDPOINT}/{tower}{revision})" if on_hub(tower) else f"`{Path(tower).name}`"
        rows.append({"part": part.replace("_", " "), "source": link, "licence": licence_of(tower), "share": share})
    return rows


def limits(task: str, media: str, report: dict[str, Any]) -> str:
    """Text about the intended use and the limits of the model."""
    metric = TASKS[task].main_metric
    blind = report.get(f"blind_{metric}")
    text_alone = f" From the text alone, without the {media}, its {metric} is {blind}." if blind else ""
    return (
        f"Meant for {TASKS[task].use} {media} like those it was trained on.{text_alone} It was evaluated on "
        f"{report.get('evaluated_rows', report.get('rows'))} {report.get('evaluated_on', 'validation')} rows of the "
        "same data only: its quality on other sources, languages or groups of people is not known, and it has the "
        "biases of its data and of its towers. Its output may be wrong; do not use it for decisions about people. The "
        "licences of its towers and data apply to it too."
    )


def example_cells(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """A cell for each of the first columns of a table: a mean number, a category."""
    return {
        column["name"]: column["values"][0] if column["kind"] == "category" else float(f"{column['mean']:.3g}")
        for column in columns[:LISTED_COLUMNS]
    }


def write_card(
    output: Path, model: PreTrainedModel, report: dict[str, Any], settings: dict[str, Any], argv: Sequence[str]
) -> None:
    """Write README.md: towers, data, results, and code that runs unchanged."""
    task = TASKS[settings["task"]]
    audio = model.config.audio_config is not None
    modalities, media = ("image, text and audio", "images and audio") if audio else ("image and text", "images")
    modalities += " with a table" if model.config.table_columns else ""
    fusion = ["gated cross-attention"] if model.config.cross_attention else []
    fusion += [f"{model.config.late_fusion} late fusion"] if model.config.late_fusion else []
    towers = towers_of(model.config, settings)
    origin = " + ".join(towers.values()) if settings["model"] is None else f"trained further from {settings['model']}"
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    texts = split_names((model.config.columns or {}).get("text", ""))
    blind = f"`blind_{task.main_metric}` is `{task.main_metric}` without the {media}"
    card = ModelCard.from_template(
        metadata(output.name, task.name, report, settings, list(towers.values())),
        str(TEMPLATE),
        title=output.name,
        summary=f"A {task.name} model over {modalities} by modeling_mm {__version__}: {origin},\n"
        f"joined by {' and '.join(fusion)}; {millions:.1f} million parameters, {trained:.1f} of them trained.",
        towers=tower_rows(model, towers),
        code=usage(task.name, (output / "adapter_config.json").is_file()),
        text=joined_text(dict.fromkeys(texts, "...")) if len(texts) > 1 else "",
        table=example_cells(model.config.table_columns or []),
        limits_heading=LIMITS_HEADING,
        limits=limits(task.name, media, report),
        figures={name: value for name, value in report.items() if name not in ("output_dir", "baselines")},
        scores=f"{task.scores}." if task.embeds else f"{task.scores};\n{blind}.",
        has_samples=not task.embeds,
        rows=report["train_rows"],
        source=settings["dataset"] or settings["train_file"],
        seconds=report["train_seconds"],
        hardware=hardware(),
        search=settings.get("search_summary"),
        command=f"modeling-mm train {shlex.join(without_token(argv))}",
    )
    (output / "README.md").write_text(f"{card}\n", encoding="utf-8")


def card_of(folder: Path, repo_id: str, task: str) -> str:
    """The card of a trained folder for its repository, with code that loads the model from there.

    A folder without a card gets a short one.
    """
    path, adapter = folder / "README.md", is_adapter(str(folder))
    if path.is_file():
        card = path.read_text(encoding="utf-8").replace(usage(task, adapter), usage(task, adapter, repo_id))
        return card.replace(SOURCE.format("."), SOURCE.format(repo_id))
    summary = f"A {task} model by modeling_mm {__version__}. Its data, results and limits were not recorded."
    code = usage(task, adapter, repo_id)
    card = ModelCard.from_template(card_data(task), str(TEMPLATE), title=repo_id, summary=summary, code=code)
    return f"{card}\n"


SOURCE = 'source = "{}"'


def usage(task: str, adapter: bool, source: str = ".") -> str:
    """Python code that loads a model of this task and runs it on an image.

    An adapter's base is in a sub-folder of its training folder, and beside the adapter in a repository.
    """
    auto = TASKS[task].auto_class
    has_base_folder = adapter and source == "."
    base = "source" if not has_base_folder else 'f"{source}/base"'
    lines = (
        ["import peft  # noqa: F401, from_pretrained finds the adapter by it"]
        if adapter and not has_base_folder
        else []
    )
    lines += ["from peft import PeftModel"] if has_base_folder else []
    lines += ["from PIL import Image", f"from transformers import {', '.join(sorted([auto, 'AutoProcessor']))}", ""]
    lines += [SOURCE.format(source)]
    lines += [f"model = {auto}.from_pretrained({base}, trust_remote_code=True)  # the code beside the weights"]
    lines += ["model = PeftModel.from_pretrained(model, source)"] if has_base_folder else []
    lines += ["processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)"]
    lines += ['image = Image.new("RGB", (224, 224), "red")  # or Image.open("yours.jpg")']
    return "\n".join([*lines, TASKS[task].example])
