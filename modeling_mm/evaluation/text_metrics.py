# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Metrics of generated answers against one or several references: those of the VQA, DocVQA and captioning benchmarks.

Kept libraries compute them (the extra `text_metrics`), except for VQA accuracy, which no library has by itself.
"""

import importlib
import re
from collections.abc import Callable, Sequence

import numpy as np

ARTICLES = {"a", "an", "the"}
NUMBERS = "none zero one two three four five six seven eight nine ten".split()
DIGITS = {word: str(max(0, place - 1)) for place, word in enumerate(NUMBERS)}
ANLS_THRESHOLD = 0.5  # below which a similarity counts as none (Biten et al. 2019)

References = Sequence[Sequence[str]]


def library(name: str) -> object:
    """A module of the extra.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ValueError(
            f"--answer_metrics needs the package {package}: pip install 'modeling_mm[text_metrics]'"
        ) from None


def normalized_answer(text: str) -> str:
    """An answer as the VQA benchmark compares it: lower case, digits, without articles and punctuation."""
    text = re.sub(r"(?<=\d),(?=\d)|\.(?!\d)|'", "", text.lower())
    words = re.sub(r"[^\w\s.:]", " ", text).split()
    return " ".join(DIGITS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(predictions: Sequence[str], references: References) -> float:
    """VQA accuracy (Antol et al. 2015): an answer that three of ten people gave is right, the mean over nine of ten.

    With fewer references than three, one that is equal makes an answer right.
    """
    scores = []
    for prediction, answers in zip(predictions, references, strict=True):
        equal = [normalized_answer(answer) == normalized_answer(prediction) for answer in answers]
        if len(equal) < 3:
            scores.append(float(any(equal)))
            continue
        others = [sum(equal) - same for same in equal]
        scores.append(float(np.mean([min(1.0, count / 3) for count in others])))
    return float(np.mean(scores))


def anls(predictions: Sequence[str], references: References) -> float:
    """Average normalised Levenshtein similarity to the nearest reference, 0 below a threshold."""
    similarity = library("rapidfuzz.distance").Levenshtein.normalized_similarity  # type: ignore[attr-defined]

    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    best = [
        max(similarity(plain(prediction), plain(answer)) for answer in answers)
        for prediction, answers in zip(predictions, references, strict=True)
    ]
    return float(np.mean([score if score >= ANLS_THRESHOLD else 0.0 for score in best]))


def bleu(predictions: Sequence[str], references: References) -> float:
    """Corpus BLEU by sacreBLEU, from 0 to 1; a row with fewer references than others has its first repeated."""
    most = max(map(len, references))
    filled = [[*answers, *[answers[0]] * (most - len(answers))] for answers in references]
    score = library("sacrebleu").corpus_bleu(list(predictions), [list(column) for column in zip(*filled, strict=True)])  # type: ignore[attr-defined]
    return float(score.score) / 100


def rouge_l(predictions: Sequence[str], references: References) -> float:
    """ROUGE-L, the F1 with the nearest reference, by Google's rouge-score."""
    scorer = library("rouge_score.rouge_scorer").RougeScorer(["rougeL"])  # type: ignore[attr-defined]
    pairs = zip(predictions, references, strict=True)
    return float(np.mean([scorer.score_multi(answers, text)["rougeL"].fmeasure for text, answers in pairs]))


def cider(predictions: Sequence[str], references: References) -> float:
    """CIDEr-D by pycocoevalcap, of words in lower case without punctuation, in place of its Java tokenizer."""

    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    truths = {i: [words(answer) for answer in answers] for i, answers in enumerate(references)}
    found = {i: [words(text)] for i, text in enumerate(predictions)}
    return float(library("pycocoevalcap.cider.cider").Cider().compute_score(truths, found)[0])  # type: ignore[attr-defined]


SCORES: dict[str, Callable[[Sequence[str], References], float]] = {
    "vqa_accuracy": vqa_accuracy,
    "anls": anls,
    "bleu": bleu,
    "rouge_l": rouge_l,
    "cider": cider,
}


def text_metrics(names: Sequence[str], predictions: Sequence[str], references: References) -> dict[str, float]:
    """These metrics by name.

    Raises:
        ValueError: a name is unknown, or its library is missing.
    """
    for name in names:
        if name not in SCORES:
            raise ValueError(f"--answer_metrics names '{name}'; expected {', '.join(SCORES)}")
    return {name: round(SCORES[name](predictions, references), 6) for name in names}
