# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""How well texts find images and images find texts, in chunks, so that no matrix of all pairs is held.

Recall@k is the share of queries with a true candidate among the first k, the median rank that of the first true one,
mAP the mean over queries of average precision. A wrong candidate that scores the same as a true one comes before it.

Shapes: B texts, I images, Q queries, K candidates, E embedding width, k candidates that were ranked again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import EvalPrediction, PreTrainedModel, Trainer

from ..data.collator import RetrievalCollator
from ..data.dataset import MMDataset
from ..data.media import MediaRef
from ..model.losses_mm import Pairs, true_candidates
from ..model.media_mm import MEDIA
from .calibration import fit_rerank_weight

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
class RetrievalEmbeddings:
    """Texts (B, E) and distinct images (I, E) of a data set.

    first_rows: (I,) the first row that shows each image.
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


def distinct_embeddings(texts: np.ndarray, media: np.ndarray, keys: np.ndarray) -> RetrievalEmbeddings:
    """The gallery of rows: embeddings (B, E) of each one's text and image, and the keys (B, 2) of both."""
    _, first = np.unique(keys[:, 1], return_index=True)
    first.sort()
    text_keys, own = torch.tensor(keys[:, 0]), torch.tensor(keys[:, 1])
    pairs = Pairs(text_keys, own[first], own)
    return RetrievalEmbeddings(
        torch.tensor(texts).float(), torch.tensor(media[first]).float(), pairs, torch.tensor(first)
    )


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


def retrieval_scores(of: RetrievalEmbeddings, reranked: dict[str, Reranked] | None = None) -> dict[str, float]:
    """Scores both ways; `reranked` by their direction, "text_to_image" and "image_to_text"."""
    reranked, keys = reranked or {}, of.keys()
    ways = {"text_to_image": (of.texts, of.media), "image_to_text": (of.media, of.texts)}
    scores = {way: directed_scores(*those, keys[way], reranked.get(way)) for way, those in ways.items()}
    return {f"{way}_{name}": value for way, own in scores.items() for name, value in own.items()}


def compute_retrieval_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for the Trainer, from the embeddings and keys that `RetrievalTrainer` predicts."""
    texts, media = prediction.predictions
    return retrieval_scores(distinct_embeddings(texts, media, prediction.label_ids))


WAYS = ("text_to_image", "image_to_text")
CANDIDATES = 20  # per query, that the matching head is calibrated on unless --rerank says


def embed_all(trainer: Trainer, dataset: MMDataset, k: int) -> tuple[float, RetrievalEmbeddings, dict[str, Reranked]]:
    """The loss, the embeddings of all rows, and with `k` each one's best k candidates, looked at again."""
    predicted = trainer.predict(dataset, metric_key_prefix="test")
    texts, media = predicted.predictions
    of, reranked = distinct_embeddings(texts, media, predicted.label_ids), dict[str, Reranked]()
    if k:
        options = (trainer.data_collator, k, trainer.args.per_device_eval_batch_size)
        reranked = rerank(trainer.head().eval(), of, dataset, *options)
    return predicted.metrics["test_loss"], of, reranked


def evaluate_retrieval(trainer: Trainer, dataset: MMDataset, rerank: int, output: Path) -> dict[str, Any]:
    """Scores of all rows both ways, with `rerank` also those of the best k ranked again; writes predictions.jsonl."""
    loss, of, reranked = embed_all(trainer, dataset, rerank)
    scores: dict[str, float] = {"loss": loss, **retrieval_scores(of)}
    if reranked:
        scores |= {f"reranked_{name}": value for name, value in retrieval_scores(of, reranked).items()}
    if trainer.is_world_process_zero():
        write_found(of, dataset, reranked, output / "predictions.jsonl")
    return {
        **{name: round(value, 6) for name, value in scores.items()},
        "rows": len(dataset),
        "pictures": len(of.media),
    }


@torch.no_grad()
def rerank(
    model: PreTrainedModel,
    of: RetrievalEmbeddings,
    dataset: MMDataset,
    collator: RetrievalCollator,
    k: int,
    batch_size: int,
) -> dict[str, Reranked]:
    """The best k candidates of every text and image, scored by the matching head beside their similarity.

    Each image is encoded once, for all texts that want it or that it wants; nothing is kept but scores. The log-odds
    of a match are added to the logit of the similarity, as BLIP does (Li et al. 2022).

    Raises:
        ValueError: the model has no matching head.
    """
    if model.matching_head is None:
        raise ValueError("--rerank and --calibrate need a matching head; train with a --matching_weight above 0")
    tops = [best(of.texts, of.media, k), best(of.media, of.texts, k)]
    scores = [torch.zeros(*top.shape, 2) for top in tops]  # similarity and log-odds
    for start in tqdm(range(0, len(of.media), batch_size), desc="Ranking again"):
        items = range(start, min(start + batch_size, len(of.media)))
        batch = collator([dataset[int(of.first_rows[item])] for item in items])
        media = {name: value.to(model.device) for name, value in batch.items() if name in MEDIA}
        encoded, patches = model.encode_media(**media), media.get("pixel_attention_mask")
        for place, item in enumerate(items):
            # texts that have this image among their best, and this image's own best texts
            rows, columns = (tops[0] == item).nonzero(as_tuple=True)
            texts, inverse = torch.unique(torch.cat([rows, tops[1][item]]), return_inverse=True)
            said = []
            for some in texts.split(batch_size):
                tokens = collator.texts([dataset[int(row)] for row in some])
                tokens = {name: value.to(model.device) for name, value in tokens.items()}
                said.append(log_odds(model, tokens, encoded[place], None if patches is None else patches[place]))
            similar = model.similarities(of.texts[texts].to(model.device), of.media[item : item + 1].to(model.device))
            found = torch.stack([similar[:, 0], torch.cat(said)], dim=1).float().cpu()[inverse]
            scores[0][rows, columns], scores[1][item] = found[: len(rows)], found[len(rows) :]
    weight = model.config.rerank_weight
    return {
        way: Reranked(top, own[..., 0], own[..., 1], weight) for way, top, own in zip(WAYS, tops, scores, strict=True)
    }


def rerank_weight(trainer: Trainer, dataset: MMDataset, k: int) -> float:
    """How much the matching head's log-odds should count, by rows that it did not learn from.

    Raises:
        ValueError: the model has no matching head.
    """
    _, of, reranked = embed_all(trainer, dataset, k)
    parts = [(own.similar, own.odds, true_among(of.keys()[way], own.top)) for way, own in reranked.items()]
    return fit_rerank_weight(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def best(queries: torch.Tensor, candidates: torch.Tensor, k: int, chunk: int = 256) -> torch.Tensor:
    """(Q, k) the most similar candidates (K, E) of each query (Q, E)."""
    k = min(k, len(candidates))
    return torch.cat([(some @ candidates.T).topk(k, dim=1).indices for some in queries.split(chunk)])


def log_odds(
    model: PreTrainedModel,
    texts: dict[str, torch.Tensor],
    encoded: torch.Tensor,
    pixel_attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """How much likelier it is that texts (n, T) match an image, encoded (L, 2, K, S, E), than do not: (n,)."""
    media: dict[str, torch.Tensor] = {}
    rows = len(texts["input_ids"])
    if pixel_attention_mask is not None:  # (P,), which of the image's slots are real
        index = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        media = {"pixel_attention_mask": pixel_attention_mask[None], "image_index": index}
    media["media_key_values"] = encoded[None].expand(rows, *[-1] * encoded.dim())
    logits = model.match(**texts, **media)
    return logits[:, 1] - logits[:, 0]


def write_found(
    of: RetrievalEmbeddings, dataset: MMDataset, reranked: dict[str, Reranked], path: Path, count: int = 5
) -> None:
    """One JSON line per row: its text, its image, and the first images that the text finds."""
    top = best(of.texts, of.media, count)
    if again := reranked.get("text_to_image"):
        top = again.top.gather(1, again.scores.argsort(dim=1, descending=True))[:, :count]
    with path.open("w", encoding="utf-8") as file:
        for number, found in enumerate(top.tolist()):
            row, pictures = dataset[number], [dataset[int(of.first_rows[item])].images[0] for item in found]
            shown = {"row": row.number, "text": row.text, "truth": named(row.images[0])}
            file.write(json.dumps({**shown, "found": [named(picture) for picture in pictures]}) + "\n")


def named(image: MediaRef) -> str:
    """How an image is called in a report."""
    return f"embedded {image.key[:12]}" if image.path is None else image.path
