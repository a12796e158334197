# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Retrieval metrics, from text to image and from image to text, in chunks, so that no matrix of all pairs is held.

Recall@k is the share of queries with a true candidate among the first k, the median rank that of the first true one,
mAP the mean over queries of average precision. A wrong candidate that scores the same as a true one comes before it.

Shapes: B texts, I images, Q queries, K candidates, E embedding width, k reranked candidates.
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
    """Reranked candidates: their indices `top`, their similarity logits and their log-odds of a match, each (Q, k)."""

    top: torch.Tensor
    similar: torch.Tensor
    odds: torch.Tensor
    weight: float = 1.0

    @property
    def scores(self) -> torch.Tensor:
        """Reranking scores (Q, k), as those of the model's `ranking_scores`."""
        return self.similar + self.weight * self.odds


@dataclass
class RetrievalEmbeddings:
    """Texts (B, E) and distinct images (I, E) of a dataset.

    first_rows: (I,) the first row with each image.
    """

    texts: torch.Tensor
    media: torch.Tensor
    pairs: Pairs
    first_rows: torch.Tensor

    def keys(self) -> dict[str, Keys]:
        """The arguments of `true_candidates` for both directions."""
        pairs = self.pairs
        return {
            "text_to_image": (pairs.texts, pairs.media, pairs.texts, pairs.media_of_texts),
            "image_to_text": (pairs.media, pairs.texts, pairs.media_of_texts, pairs.texts),
        }


def distinct_embeddings(texts: np.ndarray, media: np.ndarray, keys: np.ndarray) -> RetrievalEmbeddings:
    """The texts and distinct images of rows, from each row's embeddings (B, E) and keys (B, 2) of text and image."""
    _, first = np.unique(keys[:, 1], return_index=True)
    first.sort()
    text_keys, image_keys = torch.tensor(keys[:, 0]), torch.tensor(keys[:, 1])
    pairs = Pairs(text_keys, image_keys[first], image_keys)
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
        order = true.int().argsort(dim=1, stable=True)  # wrong candidates first among equal scores
        order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
        hits = true.gather(1, order)
        hits = hits[hits.any(dim=1)].float()
        ranks.append(hits.argmax(dim=1) + 1)
        precisions.append((hits * hits.cumsum(dim=1) / place).sum(dim=1) / hits.sum(dim=1))
    rank, precision = torch.cat(ranks).float(), torch.cat(precisions)
    recalls = {f"r{k}": (rank <= k).float().mean().item() for k in (1, 5, 10)}
    return {**recalls, "median_rank": rank.quantile(0.5).item(), "map": precision.mean().item()}


def true_among(keys: Keys, top: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """True (Q, k) for each of the `top` candidates (Q, k) that is true for its query."""
    return torch.cat([
        true_candidates(queries, *keys[1:]).gather(1, top_chunk)
        for queries, top_chunk in zip(keys[0].split(chunk), top.split(chunk), strict=True)
    ])  # fmt: skip


def with_top_first(scores: torch.Tensor, top: torch.Tensor, reranked: torch.Tensor) -> torch.Tensor:
    """Scores (Q, K) with the `top` candidates (Q, k) above all others, in the order of `reranked` (Q, k)."""
    above = scores.amax(dim=1, keepdim=True) + 1 - reranked.amin(dim=1, keepdim=True)
    return scores.scatter(1, top, reranked + above)


def retrieval_scores(embeddings: RetrievalEmbeddings, reranked: dict[str, Reranked] | None = None) -> dict[str, float]:
    """Scores in both directions; `reranked` is by direction, "text_to_image" and "image_to_text"."""
    reranked, keys, texts, media = reranked or {}, embeddings.keys(), embeddings.texts, embeddings.media
    pairs = zip(WAYS, ((texts, media), (media, texts)), strict=True)
    scores = {way: directed_scores(*sides, keys[way], reranked.get(way)) for way, sides in pairs}
    return {f"{way}_{name}": value for way, metrics in scores.items() for name, value in metrics.items()}


def compute_retrieval_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for the Trainer, from the embeddings and keys that `RetrievalTrainer` predicts."""
    texts, media = prediction.predictions
    return retrieval_scores(distinct_embeddings(texts, media, prediction.label_ids))


WAYS = ("text_to_image", "image_to_text")
CANDIDATES = 20  # per query, for the calibration of the matching head without --rerank


def embed_all(trainer: Trainer, dataset: MMDataset, k: int) -> tuple[float, RetrievalEmbeddings, dict[str, Reranked]]:
    """The loss, the embeddings of all rows, and with `k` the best k candidates of each, reranked."""
    predicted = trainer.predict(dataset, metric_key_prefix="test")
    texts, media = predicted.predictions
    embeddings, reranked = distinct_embeddings(texts, media, predicted.label_ids), dict[str, Reranked]()
    if k:
        options = (trainer.data_collator, k, trainer.args.per_device_eval_batch_size)
        reranked = rerank(trainer.head().eval(), embeddings, dataset, *options)
    return predicted.metrics["test_loss"], embeddings, reranked


def evaluate_retrieval(trainer: Trainer, dataset: MMDataset, rerank: int, output: Path) -> dict[str, Any]:
    """Scores of all rows in both directions, with `rerank` also reranked ones; writes predictions.jsonl."""
    loss, embeddings, reranked = embed_all(trainer, dataset, rerank)
    scores: dict[str, float] = {"loss": loss, **retrieval_scores(embeddings)}
    if reranked:
        scores |= {f"reranked_{name}": value for name, value in retrieval_scores(embeddings, reranked).items()}
    if trainer.is_world_process_zero():
        write_found(embeddings, dataset, reranked, output / "predictions.jsonl")
    return {
        **{name: round(value, 6) for name, value in scores.items()},
        "rows": len(dataset),
        "pictures": len(embeddings.media),
    }


@torch.no_grad()
def rerank(
    model: PreTrainedModel,
    embeddings: RetrievalEmbeddings,
    dataset: MMDataset,
    collator: RetrievalCollator,
    k: int,
    batch_size: int,
) -> dict[str, Reranked]:
    """The best k candidates of every text and image, scored by their similarity and by the matching head.

    Each image is encoded once, for all texts among whose candidates it is or that are among its own; only scores are
    kept. The log-odds of a match are added to the logit of the similarity, as in BLIP (Li et al. 2022).

    Raises:
        ValueError: the model has no matching head.
    """
    if model.matching_head is None:
        raise ValueError("--rerank and --calibrate need a matching head; train with a --matching_weight above 0")
    text_embeds, media_embeds = embeddings.texts, embeddings.media
    tops = [best(text_embeds, media_embeds, k), best(media_embeds, text_embeds, k)]
    scores = [torch.zeros(*top.shape, 2) for top in tops]  # similarity and log-odds
    for start in tqdm(range(0, len(media_embeds), batch_size), desc="Reranking"):
        items = range(start, min(start + batch_size, len(media_embeds)))
        batch = collator([dataset[int(embeddings.first_rows[item])] for item in items])
        media = {name: value.to(model.device) for name, value in batch.items() if name in MEDIA}
        encoded, patches = model.encode_media(**media), media.get("pixel_attention_mask")
        for place, item in enumerate(items):
            # texts that have this image among their best, and this image's own best texts
            rows, columns = (tops[0] == item).nonzero(as_tuple=True)
            texts, inverse = torch.unique(torch.cat([rows, tops[1][item]]), return_inverse=True)
            odds = []
            for text_rows in texts.split(batch_size):
                tokens = collator.texts([dataset[int(row)] for row in text_rows])
                tokens = {name: value.to(model.device) for name, value in tokens.items()}
                odds.append(log_odds(model, tokens, encoded[place], None if patches is None else patches[place]))
            sides = text_embeds[texts], media_embeds[item : item + 1]
            similar = model.similarities(*(side.to(model.device) for side in sides))
            pairs = torch.stack([similar[:, 0], torch.cat(odds)], dim=1).float().cpu()[inverse]
            scores[0][rows, columns], scores[1][item] = pairs[: len(rows)], pairs[len(rows) :]
    weight = model.config.rerank_weight
    found = zip(WAYS, tops, scores, strict=True)
    return {way: Reranked(top, parts[..., 0], parts[..., 1], weight) for way, top, parts in found}


def rerank_weight(trainer: Trainer, dataset: MMDataset, k: int) -> float:
    """The weight of the matching head's log-odds, fitted on rows that it was not trained on.

    Raises:
        ValueError: the model has no matching head.
    """
    _, embeddings, reranked = embed_all(trainer, dataset, k)
    keys = embeddings.keys()
    parts = [(found.similar, found.odds, true_among(keys[way], found.top)) for way, found in reranked.items()]
    return fit_rerank_weight(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def best(queries: torch.Tensor, candidates: torch.Tensor, k: int, chunk: int = 256) -> torch.Tensor:
    """Indices (Q, k) of the most similar candidates (K, E) of each query (Q, E)."""
    k = min(k, len(candidates))
    return torch.cat([(part @ candidates.T).topk(k, dim=1).indices for part in queries.split(chunk)])


def log_odds(
    model: PreTrainedModel,
    texts: dict[str, torch.Tensor],
    encoded: torch.Tensor,
    pixel_attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Log-odds (n,) that texts (n, T) match an image, encoded (L, 2, K, S, E)."""
    media: dict[str, torch.Tensor] = {}
    rows = len(texts["input_ids"])
    if pixel_attention_mask is not None:  # (P,), 1 for the image's real slots
        index = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        media = {"pixel_attention_mask": pixel_attention_mask[None], "image_index": index}
    media["media_key_values"] = encoded[None].expand(rows, *[-1] * encoded.dim())
    logits = model.match(**texts, **media)
    return logits[:, 1] - logits[:, 0]


def write_found(
    embeddings: RetrievalEmbeddings, dataset: MMDataset, reranked: dict[str, Reranked], path: Path, count: int = 5
) -> None:
    """Write one JSON line per row: its text, its image, and the first images that the text finds."""
    top = best(embeddings.texts, embeddings.media, count)
    if candidates := reranked.get("text_to_image"):
        top = candidates.top.gather(1, candidates.scores.argsort(dim=1, descending=True))[:, :count]
    with path.open("w", encoding="utf-8") as file:
        for number, found in enumerate(top.tolist()):
            row, images = dataset[number], [dataset[int(embeddings.first_rows[item])].images[0] for item in found]
            result = {"row": row.number, "text": row.text, "truth": display_name(row.images[0])}
            file.write(json.dumps({**result, "found": [display_name(image) for image in images]}) + "\n")


def display_name(image: MediaRef) -> str:
    """The name of an image in a report."""
    return f"embedded {image.key[:12]}" if image.path is None else image.path
