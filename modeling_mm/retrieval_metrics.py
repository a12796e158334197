# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""How well texts find pictures and pictures find texts, in chunks, so that no matrix of all pairs is held.

Recall@k is the share of queries with a true candidate among the first k, the median rank that of the first true one,
mAP the mean over queries of average precision. A wrong candidate that scores the same as a true one comes before it.

Shapes: B texts, I pictures, Q queries, K candidates, E embedding width, k candidates that were ranked again.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from transformers import EvalPrediction

from .losses_mm import Pairs, true_candidates

CHUNK = 256  # queries whose scores are held at a time
Keys: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Reranked:
    """Candidates that were looked at again: top, their indices (Q, k), and (Q, k) the logit of the similarity and the
    log-odds of a match, which rank them together, the odds by their weight."""

    top: torch.Tensor
    similar: torch.Tensor
    odds: torch.Tensor
    weight: float = 1.0

    @property
    def scores(self) -> torch.Tensor:
        return self.similar + self.weight * self.odds


@dataclass
class Gallery:
    """Texts (B, E) and distinct pictures (I, E) of a data set.

    first_rows: (I,) the first row that shows each picture.
    """

    texts: torch.Tensor
    media: torch.Tensor
    pairs: Pairs
    first_rows: torch.Tensor

    def keys(self) -> dict[str, Keys]:
        """What `true_candidates` needs, both ways."""
        pairs = self.pairs
        return {
            "text_to_image": (pairs.texts, pairs.media, pairs.texts, pairs.own),
            "image_to_text": (pairs.media, pairs.texts, pairs.own, pairs.texts),
        }


def gallery(texts: np.ndarray, media: np.ndarray, keys: np.ndarray) -> Gallery:
    """The gallery of rows: embeddings (B, E) of each one's text and picture, and the keys (B, 2) of both."""
    _, first = np.unique(keys[:, 1], return_index=True)
    first.sort()
    text_keys, own = torch.tensor(keys[:, 0]), torch.tensor(keys[:, 1])
    pairs = Pairs(text_keys, own[first], own)
    return Gallery(torch.tensor(texts).float(), torch.tensor(media[first]).float(), pairs, torch.tensor(first))


def directed_scores(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    keys: Keys,
    reranked: Reranked | None = None,
    chunk: int = CHUNK,
) -> dict[str, float]:
    """Recall, median rank and mAP of queries (Q, E) among candidates (K, E); `keys` as for `true_candidates`."""
    ranks, precisions = [], []
    place = torch.arange(1, len(candidates) + 1)
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        scores = queries[rows] @ candidates.T
        if reranked is not None:
            scores = with_top_first(scores, reranked.top[rows], reranked.scores[rows])
        true = true_candidates(keys[0][rows], *keys[1:])
        order = true.int().argsort(dim=1, stable=True)  # the wrong ones first, where scores are equal
        order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
        hits = true.gather(1, order)
        some = hits.any(dim=1)
        hits = hits[some].float()
        ranks.append(hits.argmax(dim=1) + 1)
        precisions.append((hits * hits.cumsum(dim=1) / place).sum(dim=1) / hits.sum(dim=1))
    rank, precision = torch.cat(ranks).float(), torch.cat(precisions)
    recalls = {f"r{k}": (rank <= k).float().mean().item() for k in (1, 5, 10)}
    return {**recalls, "median_rank": rank.quantile(0.5).item(), "map": precision.mean().item()}


def true_among(keys: Keys, top: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """(Q, k) bool, which of the `top` candidates (Q, k) are true for their query."""
    return torch.cat([
        true_candidates(queries, *keys[1:]).gather(1, own)
        for queries, own in zip(keys[0].split(chunk), top.split(chunk), strict=True)
    ])  # fmt: skip


def with_top_first(scores: torch.Tensor, top: torch.Tensor, again: torch.Tensor) -> torch.Tensor:
    """Scores (Q, K) in which the `top` candidates (Q, k) stand above all others, in the order of `again` (Q, k)."""
    above = scores.amax(dim=1, keepdim=True) + 1 - again.amin(dim=1, keepdim=True)
    return scores.scatter(1, top, again + above)


def retrieval_scores(of: Gallery, reranked: dict[str, Reranked] | None = None) -> dict[str, float]:
    """Scores both ways; `reranked` by their direction, "text_to_image" and "image_to_text"."""
    reranked, keys = reranked or {}, of.keys()
    ways = {"text_to_image": (of.texts, of.media), "image_to_text": (of.media, of.texts)}
    scores = {way: directed_scores(*those, keys[way], reranked.get(way)) for way, those in ways.items()}
    return {f"{way}_{name}": value for way, own in scores.items() for name, value in own.items()}


def compute_retrieval_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for the Trainer, from the embeddings and keys that `RetrievalTrainer` predicts."""
    texts, media = prediction.predictions
    return retrieval_scores(gallery(texts, media, prediction.label_ids))
