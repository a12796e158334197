# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The model card that training leaves in the output folder."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from .metrics import MAIN
from .version import __version__

SCORES = {
    "generation": "`accuracy` is the share of rows whose answer equals the truth",
    "classification": "`accuracy` is the share of rows whose label equals the truth",
    "multilabel": "`micro_f1` and `macro_f1` count a label from a probability of one half, `map` is the mean over "
    "labels of average precision",
    "regression": "`mae` and `rmse` are in the label's unit",
    "matching": "`accuracy` is the share of pairs told right, half of which have the text of another row",
    "retrieval": "`r1` is the share of queries with a true candidate in first place, `map` the mean average precision",
}

PIPELINE_TAGS = {"generation": "image-text-to-text", "retrieval": "zero-shot-image-classification"}
LIBRARIES = {"retrieval": ["sentence-transformers"]}  # that open the folder too

ASK = """import modeling_mm  # or pass trust_remote_code=True and do without the package
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")
question = [{"role": "user", "content": [{"type": "image", "url": "picture.png"}, {"type": "text", "text": "..."}]}]
inputs = processor.apply_chat_template(
    question, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])"""

# An adapter, over the composed model in its sub-folder
ADAPTED = r"""from peft import PeftModel

model = PeftModel.from_pretrained(\1.from_pretrained("./base"), ".")"""

CLASSIFY = """import modeling_mm  # or pass trust_remote_code=True and do without the package
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoProcessor

model = AutoModelForSequenceClassification.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")
inputs = processor(images=Image.open("picture.png"), text="<image>...", return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax().item()])"""
FIND = """import modeling_mm  # or pass trust_remote_code=True and do without the package
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

model = AutoModelForZeroShotImageClassification.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")
pictures = processor(images=[Image.open("picture.png")], return_tensors="pt")
texts = processor(text=["...", "..."], padding=True, return_tensors="pt")
pictures = model.get_image_features(pictures["pixel_values"]).pooler_output
print(model.get_text_features(**texts).pooler_output @ pictures.T)"""
SAY = {  # in place of the last line above
    "multilabel": "print([model.config.id2label[i] for i, x in enumerate(model(**inputs).logits[0]) if x > 0])",
    "regression": "print(model(**inputs).logits[0].tolist())",
}


def without_token(argv: Sequence[str]) -> list[str]:
    """The command line for all to read: a token given on it is left out."""
    secret = ("--hub_token", "--push_to_hub_token")
    pairs = zip(["", *argv], argv, strict=False)
    return [word for before, word in pairs if before not in secret and word.partition("=")[0] not in secret]


def write_card(
    output: Path, model: PreTrainedModel, report: dict[str, Any], settings: dict[str, Any], argv: Sequence[str]
) -> None:
    """README.md with what was trained on what, the figures, and code that runs as it is."""
    task = settings["task"]
    towers = [settings[name] for name in ("vision_tower", "audio_tower", "text_model") if settings[name]]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS.get(task, "text-classification"),
        tags=["modeling_mm", "multimodal", "cross-attention", *LIBRARIES.get(task, [])],
        base_model=[tower for tower in towers if not tower.startswith("scratch") and not Path(tower).exists()] or None,
    )
    figures = "\n".join(f"| {name} | {value} |" for name, value in report.items() if name != "output_dir")
    parameters = sum(p.numel() for p in model.parameters())
    code = {"generation": ASK, "retrieval": FIND}.get(task, CLASSIFY)
    hears = model.config.audio_config is not None
    modalities, media = ("image, text and sound", "pictures and sounds") if hears else ("image and text", "pictures")
    explained, samples = f"{SCORES[task]}.", ""
    if task != "retrieval":
        explained = f"{SCORES[task]};\n`blind_{MAIN[task]}` is `{MAIN[task]}` with the {media} left out."
        samples = "![samples](samples.png)"
    if task in SAY:
        code = "\n".join([*code.splitlines()[:-1], SAY[task]])
    if (output / "adapter_config.json").is_file():
        code = re.sub(r"model = (\w+)\.from_pretrained\(\".\"\)", ADAPTED, code)
    ways = ["gated cross-attention"] if model.config.cross_attention else []
    ways += [f"{model.config.late_fusion} late fusion"] if model.config.late_fusion else []
    card = f"""---
{data.to_yaml()}
---

# {output.name}

A {task} model over {modalities} by modeling_mm {__version__}: {" + ".join(towers) or settings["model"]},
joined by {" and ".join(ways)}; {parameters / 1e6:.1f} million parameters. Trained on
{settings["dataset"] or settings["train_file"]}.

| | |
| --- | --- |
{figures}

{explained}

![loss and accuracy](curves.png)
{samples}

## Use

```python
{code}
```

## Made with

```
modeling-mm train {shlex.join(without_token(argv))}
```
"""
    (output / "README.md").write_text(card, encoding="utf-8")
