# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Metrics of generated answers and of class predictions, over whole data sets."""

from collections.abc import Callable, Sequence

import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase


def normalize(answer: str) -> str:
    """Case and white space do not make an answer wrong."""
    return " ".join(answer.lower().split())


def accuracy(predictions: Sequence[str], truths: Sequence[str]) -> float:
    """Share of predictions that equal the truth after `normalize`."""
    return float(np.mean([normalize(p) == normalize(t) for p, t in zip(predictions, truths, strict=True)]))


def macro_f1(predictions: Sequence[str], truths: Sequence[str]) -> float:
    """F1 of each class that occurs, averaged without weights."""
    pairs = list(zip(predictions, truths, strict=True))
    scores = []
    for label in sorted({*predictions, *truths}):
        hits = sum(p == label == t for p, t in pairs)
        scores.append(2 * hits / (sum(p == label for p, _ in pairs) + sum(t == label for _, t in pairs)))
    return float(np.mean(scores))


def decode(token_ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts from (B, T) token ids, where -100 is padding."""
    kept = np.where(token_ids < 0, tokenizer.pad_token_id, token_ids)
    return [text.strip() for text in tokenizer.batch_decode(kept, skip_special_tokens=True)]


def predictions_as_text(
    predictions: np.ndarray, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None
) -> list[str]:
    """Answers from generated tokens, or class names from logits (B, classes) where `labels` are given."""
    if labels is None:
        return decode(predictions, tokenizer)
    return [labels[i] for i in predictions.argmax(axis=-1)]


def compute_metrics_for(
    tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` for the Trainer: accuracy, and macro F1 of a classification."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        texts = predictions_as_text(prediction.predictions, tokenizer, labels)
        if labels is None:
            return {"accuracy": accuracy(texts, decode(prediction.label_ids, tokenizer))}
        truths = [labels[i] for i in prediction.label_ids]
        return {"accuracy": accuracy(texts, truths), "macro_f1": macro_f1(texts, truths)}

    return compute
