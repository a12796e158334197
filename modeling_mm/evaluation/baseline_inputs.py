# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Inputs of the simple baselines: one vector per row and modality, from a model's towers, TF-IDF or the table.

- images, audio and video: the mean of the tower's states before the projector, and the tower's class token or pooled
  output; the mean over a row's items. Each distinct medium is encoded once, or read from the feature cache.
- text: TF-IDF of words and characters, and the mean state of an encoder that sees no media
- numbers and categories: as they are for gradient boosting; standardised and one-hot for a regression

Shapes: R rows, F features, I items, P states, V tower width.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.collator import MMCollator
from ..data.dataset import MMDataset
from ..data.media import MediaRef
from ..data.rows import Row
from ..model.media_mm import MODALITIES
from ..model.pooling_mm import masked_mean
from ..model.towers_mm import has_class_token
from .baselines import Inputs, Parts

TOKEN = r"(?u)\w+|[^\w\s]"  # a word, or a sign such as +
MOST_WORDS = 20_000
MOST_CATEGORIES = 254  # gradient boosting takes no more; rare ones share a code


def sampled(dataset: MMDataset, most: int, seed: int) -> MMDataset:
    """The dataset, or at most `most` of its rows drawn by seed, in their order."""
    if len(dataset) <= most:
        return dataset
    chosen = np.random.default_rng(seed).choice(dataset.kept, most, replace=False)
    return dataset.subset(sorted(chosen.tolist()))


class MediaVectors:
    """Vectors (V,) of media by modality, description and key, from the towers of a model.

    Args:
        model: the `MMModel`. collator: prepares the media, or reads their features from the cache.
        trained: the attributes of towers that training changed, for the descriptions.
    """

    def __init__(self, model: PreTrainedModel, collator: MMCollator, trained: Collection[str]):
        self.model, self.collator, self.trained = model, replace(collator, augmentation=None, blind=False), trained
        self.vectors: dict[str, dict[str, dict[str, np.ndarray]]] = {name: {} for name in MODALITIES}
        self.seen: dict[str, set[str]] = {name: set() for name in MODALITIES}

    def add(self, rows: Sequence[Row]) -> None:
        """Encode the media of these rows that were not encoded before."""
        for name, known in self.vectors.items():
            new = {item.key: item for row in rows for item in row.media[name] if item.key not in self.seen[name]}
            self.seen[name] |= new.keys()
            if new:
                for description, states in self.encode(name, list(new.values())).items():
                    known.setdefault(description, {}).update(zip(new, states.float().cpu().numpy(), strict=True))

    @torch.no_grad()
    def encode(self, name: str, items: list[MediaRef]) -> dict[str, torch.Tensor]:
        """Vectors (I, V) of distinct media of one modality, by description."""
        modality, model = MODALITIES[name], self.model
        if name == "image":
            batch = self.collator.flat_images([Row(0, [item], "") for item in items])
        elif name == "audio":
            batch = self.collator.flat_audio([[item] for item in items])
        else:
            batch = self.collator.processor.flat_videos([[item.source] for item in items])
        batch = {key: value.to(model.device) for key, value in batch.items() if key != modality.index}
        tower = f"{'trained ' if modality.tower in self.trained else ''}{modality.tower.replace('_', ' ')}"
        mean = f"the {tower}'s mean state"
        if name == "audio":
            output = model.get_audio_features(**batch, return_dict=True)
            return {mean: masked_mean(output.pooler_output, output.attention_mask)}
        if name == "video":
            output, mask = model.get_video_features(**batch, return_dict=True), batch.get("video_mask")
            states = output.pooler_output
            if mask is not None:
                mask = mask.repeat_interleave(states.shape[1] // mask.shape[1], dim=1)
            return {mean: masked_mean(states, mask)}
        output = model.get_image_features(**batch, return_dict=True)
        vectors = {mean: masked_mean(output.pooler_output, batch.get("pixel_attention_mask"))}
        if has_class_token(model.vision_tower):
            vectors[f"the {tower}'s class token"] = output.pooler_output[:, 0]
        elif output.pooled is not None:
            vectors[f"the {tower}'s pooled output"] = output.pooled.flatten(1)
        return vectors

    def inputs(self, name: str, keys: Parts) -> Inputs | None:
        """The inputs of one modality, from the keys of each row's items; None if no row has any."""
        present = Parts(*(np.array([bool(row) for row in part], dtype=bool) for part in keys))
        if not any(part.any() for part in present):
            return None
        features = {}
        for description, vectors in self.vectors[name].items():
            nothing = np.zeros_like(next(iter(vectors.values())))
            features[description] = Parts(*(
                np.stack([np.mean([vectors[key] for key in row], axis=0) if row else nothing for row in part])
                for part in keys
            ))  # fmt: skip
        return Inputs(name, present, features)


@torch.no_grad()
def mean_states(model: PreTrainedModel, collator: MMCollator, texts: Parts, size: int, quiet: bool) -> Parts:
    """Mean states (R, D) of a text backbone that sees no media, each distinct text encoded once."""
    tokenizer = collator.processor.tokenizer
    distinct = sorted({text for part in texts for text in part}, key=len)
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    longest = min(collator.max_length, tokenizer.model_max_length)
    vectors: dict[str, np.ndarray] = {}
    for start in tqdm(range(0, len(distinct), size), desc="Encoding texts for baselines", disable=quiet):
        chunk = distinct[start : start + size]
        tokens = tokenizer(chunk, max_length=longest, **options).to(model.device)
        states = model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        vectors.update(zip(chunk, masked_mean(states, tokens["attention_mask"]).float().cpu().numpy(), strict=True))
    return Parts(*(np.stack([vectors[text] for text in part]) for part in texts))


def text_inputs(
    model: PreTrainedModel, collator: MMCollator, rows: Parts, size: int, trained: bool, quiet: bool
) -> Inputs | None:
    """The inputs of the texts without markers; None if no row has a text."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    texts = Parts(*([collator.processor.without_markers(row.text).strip() for row in part] for part in rows))
    present = Parts(*(np.array([bool(text) for text in part], dtype=bool) for part in texts))
    if not any(part.any() for part in present):
        return None
    features = {}
    if any(texts.train):
        vectorizer = make_union(
            TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN, sublinear_tf=True, max_features=MOST_WORDS),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=MOST_WORDS),
        ).fit([text for text in texts.train if text])
        features["TF-IDF of words and characters"] = Parts(*(vectorizer.transform(part) for part in texts))
    if not model.config.is_text_decoder:
        backbone = f"the {'trained ' if trained else ''}text encoder's mean state"
        features[backbone] = mean_states(model, collator, texts, size, quiet)
    return Inputs("text", present, features)


def table_inputs(tables: Parts) -> Inputs | None:
    """The inputs of numbers and categories, a dict per row from column to value, without missing ones or with None.

    A column whose training values are all numbers is one of numbers. None if no training row has a value.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    known: dict[str, list[Any]] = {}
    for row in tables.train:
        for name, value in row.items():
            known.setdefault(name, []).extend([] if value is None else [value])
    columns = {name: {isinstance(value, (int, float)) for value in values} for name, values in known.items() if values}
    if not columns:
        return None
    numbers = [name for name, are_numbers in columns.items() if are_numbers == {True}]
    categories = [name for name in columns if name not in numbers]
    present = Parts(*(
        np.array([any(row.get(name) is not None for name in columns) for row in part], dtype=bool) for part in tables
    ))  # fmt: skip

    def cells(part: Iterable[dict[str, Any]], names: list[str], kind: Any, missing: Any) -> np.ndarray:
        filled = [[missing if row.get(name) is None else kind(row[name]) for name in names] for row in part]
        return np.array(filled, dtype=object if kind is str else float).reshape(len(filled), len(names))

    raw = Parts(*(cells(part, numbers, float, np.nan) for part in tables))
    words = Parts(*(cells(part, categories, str, None) for part in tables))
    boosted, regressed = list(raw), list(raw)
    if numbers:
        impute = SimpleImputer(add_indicator=True).fit(raw.train)
        regressed = [impute.transform(part) for part in raw]
    if categories:
        options = {"handle_unknown": "use_encoded_value", "unknown_value": np.nan, "max_categories": MOST_CATEGORIES}
        codes = OrdinalEncoder(**options).fit(words.train)
        hot = make_pipeline(
            SimpleImputer(missing_values=None, strategy="constant", fill_value="missing"),
            OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MOST_CATEGORIES, sparse_output=False),
        ).fit(words.train)
        boosted = [np.hstack([part, codes.transform(word)]) for part, word in zip(boosted, words, strict=True)]
        regressed = [np.hstack([part, hot.transform(word)]) for part, word in zip(regressed, words, strict=True)]
    marks = np.array([False] * len(numbers) + [True] * len(categories))
    features = {"standardised numbers and one-hot categories": Parts(*regressed)}
    return Inputs("table", present, features, Parts(*boosted), marks if categories else None)


def baseline_inputs(
    model: PreTrainedModel,
    collator: MMCollator,
    datasets: Parts,
    size: int,
    trained: Collection[str] = (),
    quiet: bool = False,
) -> tuple[list[Inputs], Parts]:
    """The inputs of all modalities that the rows have, and the targets of the rows as lists.

    Args:
        model: the `MMModel` with the towers; set to evaluation.
        collator: that of evaluation. datasets: training, validation and evaluated rows.
        size: media and texts that are encoded at a time.
        trained: attributes of towers that training changed, for the descriptions.
        quiet: show no progress bar.
    """
    model.eval()
    media, total = MediaVectors(model, collator, trained), sum(map(len, datasets))
    keys = {name: Parts([], [], []) for name in MODALITIES}
    kept, targets, tables = (Parts([], [], []) for _ in range(3))
    with tqdm(total=total, desc="Encoding media for baselines", disable=quiet) as bar:
        for part, dataset in enumerate(datasets):
            for start in range(0, len(dataset), size):
                rows = [dataset[index] for index in range(start, min(start + size, len(dataset)))]
                media.add(rows)
                for name in MODALITIES:
                    keys[name][part].extend([item.key for item in row.media[name]] for row in rows)
                targets[part].extend(row.target for row in rows)
                tables[part].extend(row.table for row in rows)
                kept[part].extend(replace(row, images=[], audio=[], videos=[], opened={}) for row in rows)
                bar.update(len(rows))
    found = [media.inputs(name, keys[name]) for name in MODALITIES]
    found += [text_inputs(model, collator, kept, size, "text_model" in trained, quiet), table_inputs(tables)]
    return [inputs for inputs in found if inputs is not None], targets
