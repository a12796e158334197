# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A program that loads a repository as users do who have not installed this package.

`verification` runs this file's text in a separate process. The package cannot be imported there, so that every class
comes from the code beside the weights. `verification` makes the sample and runs the trained model by the same code.
"""

import importlib.abc
import json
import sys
from typing import Any


class Absent(importlib.abc.MetaPathFinder):
    """Import finder that refuses this package."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "modeling_mm":
            raise ImportError(f"{name} is not installed here")


def outputs(model: Any, processor: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """The processor's tensors for a sample, and the model's logits for them."""
    import numpy as np
    import torch
    from PIL import Image

    media: dict[str, Any] = {"images": Image.open(sample["images"])}
    if "audio" in sample:
        media["audio"] = (np.load(sample["audio"]), sample["sampling_rate"])
    if "videos" in sample:
        media["videos"] = [Image.open(sample["videos"])] * 2
    inputs = processor(text=sample["text"], return_tensors="pt", **media)
    with torch.no_grad():
        output = model(**inputs)
    logits = output["logits_per_image" if "logits_per_image" in output else "logits"]
    return {**{f"input {name}": value for name, value in inputs.items()}, "logits": logits}


def main(task_file: str) -> None:
    """Load the repository named in the task and write its outputs for the sample."""
    sys.meta_path.insert(0, Absent())
    import torch
    import transformers
    from safetensors.torch import save_file

    with open(task_file, encoding="utf-8") as file:
        task = json.load(file)
    torch.set_num_threads(task["threads"])
    options = {"revision": task["revision"], "trust_remote_code": True}
    model = getattr(transformers, task["auto_class"]).from_pretrained(task["source"], **options)
    processor = transformers.AutoProcessor.from_pretrained(task["source"], **options)
    found = outputs(model.eval(), processor, task["sample"])
    save_file({name: value.contiguous() for name, value in found.items()}, task["found"])


if __name__ == "__main__":
    main(sys.argv[1])
