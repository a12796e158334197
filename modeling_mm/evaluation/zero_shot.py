# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Zero-shot classification in `modeling-mm evaluate`: a retrieval model classifies images by the names of classes.

Each name is put into templates. A class is the normalised mean of their embeddings (Radford et al. 2021, "CLIP"), and
an image is of the class that it is most similar to.

modeling-mm evaluate --model runs/find --test_file t.csv --label_column label \
    --prompt_templates "a photo of a {}" "a drawing of a {}"

Shapes: R rows, C classes, E embedding width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import top_k_accuracy_score
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import BatchFeature

from ..data.collator import RetrievalCollator
from ..data.dataset import MMDataset
from ..data.rows import Columns, Row
from ..data.tables import read_table
from ..data.targets import known_names
from .metrics import head_metrics
from .predictions import Evaluation, rounded

TEMPLATE = "a photo of a {}"
TOP = 5


def check_templates(templates: Sequence[str]) -> None:
    """Check that every template has a place for a class's name.

    Raises:
        ValueError: names the template without one.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"--prompt_templates has '{template}'; expected a sentence with {{}} for a class's name")


def labelled_images(source: str, split: str, image_column: str, label_column: str, skip: bool) -> MMDataset:
    """Rows of an image and its class, each checked; the classes are the labels that occur.

    Raises:
        ValueError: a missing column, a bad row, fewer than two classes.
    """
    table, folder = read_table(source, split)
    dataset = MMDataset(source, table, folder, Columns(image_column, "", label_column), task="classification")
    dataset = dataset.check(skip)
    dataset.labels = known_names("classification", dataset.targets(), label_column, source)
    return dataset


@torch.no_grad()
def class_embeddings(
    model: PreTrainedModel, collator: RetrievalCollator, names: Sequence[str], templates: Sequence[str], size: int
) -> torch.Tensor:
    """Normalised embeddings (C, E) of classes; `size` sentences are embedded at a time."""
    rows = [Row(0, [], template.replace("{}", name)) for name in names for template in templates]
    embeds = []
    for start in range(0, len(rows), size):
        tokens = BatchFeature(collator.texts(rows[start : start + size])).to(model.device)
        embeds.append(model.get_text_features(**tokens).pooler_output)
    return functional.normalize(torch.cat(embeds).view(len(names), len(templates), -1).mean(dim=1), dim=-1)


@torch.no_grad()
def evaluate_zero_shot(
    model: PreTrainedModel, collator: RetrievalCollator, dataset: MMDataset, templates: Sequence[str], size: int
) -> Evaluation:
    """Compare each row's first image with every class, `size` rows at a time; the logits are (R, C)."""
    names = dataset.labels or []
    classes = class_embeddings(model, collator, names, templates, size)
    logits: list[np.ndarray] = []
    truths: list[int] = []
    for start in tqdm(range(0, len(dataset), size), desc="Zero-shot"):
        rows = [dataset[index] for index in range(start, min(start + size, len(dataset)))]
        images = [row_images[:1] for row_images in collator.open_images(rows)]
        batch = BatchFeature(collator.processor.flat_images(images)).to(model.device)
        embeds = model.get_image_features(**batch).pooler_output
        logits += model.similarities(embeds, classes).double().cpu().numpy().tolist()
        truths += [row.target for row in rows]
    scores, label_ids = np.array(logits), np.array(truths)
    metrics = head_metrics("classification", scores, label_ids)
    metrics[f"top{TOP}_accuracy"] = float("nan")  # meaningless for no more than five classes
    if len(names) > TOP:
        metrics[f"top{TOP}_accuracy"] = float(
            top_k_accuracy_score(label_ids, scores, k=TOP, labels=np.arange(len(names)))
        )
    predictions = [names[place] for place in scores.argmax(axis=1)]
    return Evaluation(rounded(metrics), predictions, [names[truth] for truth in truths], scores, label_ids)
