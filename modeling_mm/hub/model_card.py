# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The model card: what training knows of the model it leaves, in words and in metadata that the Hub reads.

`write_card` makes it where the model was trained; `card_of` points its code to the repository that it goes to.
"""

import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData, model_info
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever it uses
from transformers import PreTrainedConfig, PreTrainedModel

from ..checkpoint import is_adapter
from ..evaluation.metrics import MAIN
from ..version import __version__

SCORES = {
    "generation": "`accuracy` is the share of rows whose answer equals the truth",
    "classification": "`accuracy` is the share of rows whose label equals the truth",
    "multilabel": "`micro_f1` and `macro_f1` count a label from a probability of one half, `map` is the mean over "
    "labels of average precision",
    "regression": "`mae` and `rmse` are in the label's unit",
    "matching": "`accuracy` is the share of pairs told right, half of which have the text of another row",
    "retrieval": "`r1` is the share of queries with a true candidate in first place, `map` the mean average precision",
}
USES = {
    "generation": "answering questions about",
    "classification": "choosing one of its labels for",
    "multilabel": "telling which of its labels hold for",
    "regression": "estimating its numbers for",
    "matching": "telling whether a text belongs to",
    "retrieval": "finding by text, or finding texts for,",
}
PIPELINE_TAGS = {"generation": "image-text-to-text", "retrieval": "zero-shot-image-classification"}
TAGS = ["modeling_mm", "multimodal", "cross-attention"]
LIBRARIES = {"retrieval": ["sentence-transformers"]}  # that open the folder too
NO_SCORES = ("train_seconds", "train_rows", "evaluated_rows", "skipped_rows", "rows", "pictures")
TOWERS = ("vision_tower", "audio_tower", "text_model")


def without_token(argv: Sequence[str]) -> list[str]:
    """The command line for all to read: a token given on it is left out."""
    secret = ("--hub_token", "--push_to_hub_token")
    pairs = zip(["", *argv], argv, strict=False)
    return [word for before, word in pairs if before not in secret and word.partition("=")[0] not in secret]


def on_hub(tower: str) -> bool:
    """Whether a tower is a Hub id: no folder, and not made from nothing."""
    return not tower.startswith("scratch") and not Path(tower).exists()


def licence_of(tower: str) -> str:
    """The licence that a tower's own card states, where the Hub can be asked."""
    if not on_hub(tower):
        return "-"
    try:
        data = model_info(tower, timeout=10).card_data
    except (OSError, HTTPError):
        return "see its card"
    return (data and data.license) or "not stated"


def hardware() -> str:
    """What the model was trained on."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = torch.distributed.get_world_size() if together else 1
    if torch.cuda.is_available():
        return f"{processes if together else torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {processes} process{'es' if processes > 1 else ''}"


def towers_of(config: PreTrainedConfig, settings: dict[str, Any]) -> dict[str, str]:
    """Where each tower comes from: as this training was told, or as the model that it went on from remembers."""
    known = {part: source["id"] for part, source in (config.tower_sources or {}).items()}
    return {part: tower for part in TOWERS if (tower := settings[part] or known.get(part))}


def metadata(
    name: str, task: str, report: dict[str, Any], settings: dict[str, Any], towers: list[str]
) -> ModelCardData:
    """The front matter: what the Hub sorts models by, and every score with the rows that it is of."""
    tag = PIPELINE_TAGS.get(task, "text-classification")
    own_data = settings["dataset"] is None
    data = Path(settings["train_file"]).name if own_data else settings["dataset"]
    test = Path(settings["test_file"]).name if settings["test_file"] else data
    scores = {k: v for k, v in report.items() if isinstance(v, (int, float)) and k not in NO_SCORES and v == v}
    results = [
        EvalResult(
            task_type=tag,
            dataset_type="private" if own_data else data,
            dataset_name=test,
            dataset_split=report.get("evaluated_on"),
            metric_type=score,
            metric_value=value,
        )
        for score, value in scores.items()
    ]
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=tag,
        tags=[*TAGS, *LIBRARIES.get(task, [])],
        base_model=[tower for tower in towers if on_hub(tower)] or None,
        eval_results=results or None,
    )


def towers_table(model: PreTrainedModel, towers: dict[str, str]) -> str:
    """Each tower with its revision, its licence and whether its weights were trained."""
    lines = ["| tower | from | licence | its weights |", "| --- | --- | --- | --- |"]
    for part, tower in towers.items():
        own = [p for name, p in model.named_parameters() if f".{part}." in f".{name}"]
        share = "trained" if any(p.requires_grad for p in own) else "frozen"
        source = (model.config.tower_sources or {}).get(part)
        revision = f"/tree/{source['revision']}" if source else ""
        where = f"[{tower}]({ENDPOINT}/{tower}{revision})" if on_hub(tower) else f"`{Path(tower).name}`"
        lines.append(f"| {part.replace('_', ' ')} | {where} | {licence_of(tower)} | {share} |")
    return "\n".join(lines) if towers else ""


def limits(task: str, media: str, report: dict[str, Any]) -> str:
    """Intended use, and what is not known of the model."""
    blind = report.get(f"blind_{MAIN[task]}")
    seen = f" With the {media} left out it still reaches {blind}: so much the text alone tells." if blind else ""
    return (
        f"Meant for {USES[task]} {media} like those it was trained on.{seen} It was measured on "
        f"{report.get('evaluated_rows', report.get('rows'))} {report.get('evaluated_on', 'validation')} rows of the "
        "same data and on nothing else: how it does on other sources, languages or groups of people is not known, and "
        "it has the biases of its data and of its towers. Its output is a guess, not a fact; do not let it decide "
        "about people. The licences of towers and data hold for it too."
    )


def write_card(
    output: Path, model: PreTrainedModel, report: dict[str, Any], settings: dict[str, Any], argv: Sequence[str]
) -> None:
    """README.md with what was trained on what, the figures, and code that runs as it is."""
    task = settings["task"]
    figures = "\n".join(f"| {name} | {value} |" for name, value in report.items() if name != "output_dir")
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    hears = model.config.audio_config is not None
    modalities, media = ("image, text and sound", "pictures and sounds") if hears else ("image and text", "pictures")
    explained, samples = f"{SCORES[task]}.", ""
    if task != "retrieval":
        explained = f"{SCORES[task]};\n`blind_{MAIN[task]}` is `{MAIN[task]}` with the {media} left out."
        samples = "![samples](samples.png)"
    ways = ["gated cross-attention"] if model.config.cross_attention else []
    ways += [f"{model.config.late_fusion} late fusion"] if model.config.late_fusion else []
    towers = towers_of(model.config, settings)
    origin = " + ".join(towers.values()) if settings["model"] is None else f"trained on from {settings['model']}"
    card = f"""---
{metadata(output.name, task, report, settings, list(towers.values())).to_yaml()}
---

# {output.name}

A {task} model over {modalities} by modeling_mm {__version__}: {origin},
joined by {" and ".join(ways)}; {parameters / 1e6:.1f} million parameters, {trained / 1e6:.1f} of them trained.

{towers_table(model, towers)}

## Use

```python
{usage(task, (output / "adapter_config.json").is_file())}
```

## Intended use and limits

{limits(task, media, report)}

## Results

Of the command below.

| | |
| --- | --- |
{figures}

{explained}

![loss and accuracy](curves.png)
{samples}

## Training

On {report["train_rows"]} rows of {settings["dataset"] or settings["train_file"]}, in {report["train_seconds"]} seconds
on {hardware()}.

```
modeling-mm train {shlex.join(without_token(argv))}
```
"""
    (output / "README.md").write_text(card, encoding="utf-8")


def card_of(folder: Path, repo_id: str, task: str) -> str:
    """The card of a trained folder for the repository it goes to: its code opens it from there.

    A folder without a card gets a short one.
    """
    path, adapter = folder / "README.md", is_adapter(str(folder))
    if path.is_file():
        card = path.read_text(encoding="utf-8").replace(usage(task, adapter), usage(task, adapter, repo_id))
        return card.replace(SOURCE.format("."), SOURCE.format(repo_id))
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS.get(task, "text-classification"),
        tags=[*TAGS, *LIBRARIES.get(task, [])],
    )
    what = f"A {task} model by modeling_mm {__version__}. Nothing is recorded of its data, figures and limits."
    code = usage(task, adapter, repo_id)
    return f"---\n{data.to_yaml()}\n---\n\n# {repo_id}\n\n{what}\n\n```python\n{code}\n```\n"


SOURCE = 'source = "{}"'

GENERATION = """inputs = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what is it?"}]}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])"""

CLASSIFY = """inputs = processor(images=picture, text="<image>what is it?", return_tensors="pt")
"""
SAY = {
    "multilabel": "print([model.config.id2label[i] for i, x in enumerate(model(**inputs).logits[0]) if x > 0])",
    "regression": "print(model(**inputs).logits[0].tolist())",
}
BEST = "print(model.config.id2label[model(**inputs).logits.argmax().item()])"

RETRIEVAL = """pixels = processor(images=[picture], return_tensors="pt")["pixel_values"]
texts = processor(text=["a red square", "a dog"], padding=True, return_tensors="pt")
pictures = model.get_image_features(pixels).pooler_output
print(model.get_text_features(**texts).pooler_output @ pictures.T)"""

AUTO_CLASSES = {"generation": "AutoModelForImageTextToText", "retrieval": "AutoModelForZeroShotImageClassification"}


def usage(task: str, adapter: bool, source: str = ".") -> str:
    """Python that opens a model of this task and asks it about a picture.

    An adapter's base lies in a sub-folder where it was trained, and beside the adapter in a repository.
    """
    auto = AUTO_CLASSES.get(task, "AutoModelForSequenceClassification")
    apart = adapter and source == "."
    opened = "source" if not apart else 'f"{source}/base"'
    lines = ["import peft  # noqa: F401, from_pretrained finds the adapter by it"] if adapter and not apart else []
    lines += ["from peft import PeftModel"] if apart else []
    lines += ["from PIL import Image", f"from transformers import {', '.join(sorted([auto, 'AutoProcessor']))}", ""]
    lines += [SOURCE.format(source)]
    lines += [f"model = {auto}.from_pretrained({opened}, trust_remote_code=True)  # the code beside the weights"]
    lines += ["model = PeftModel.from_pretrained(model, source)"] if apart else []
    lines += ["processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)"]
    lines += ['picture = Image.new("RGB", (224, 224), "red")  # or Image.open("yours.jpg")']
    asked = {"generation": GENERATION, "retrieval": RETRIEVAL}.get(task, CLASSIFY + SAY.get(task, BEST))
    return "\n".join([*lines, asked])
