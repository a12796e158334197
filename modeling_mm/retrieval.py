# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Retrieval in `modeling-mm train` and `evaluate`: its arguments, its batches, and its scores, with and without a
second look at the best candidates.

modeling-mm train --task retrieval --train_file t.csv --text_column caption --vision_tower scratch-tiny \
    --text_model scratch-tiny --output_dir runs/find
modeling-mm evaluate --model runs/find --test_file v.csv --text_column caption --rerank 20

Shapes: B texts, I distinct pictures, E embedding width, k candidates per query.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .calibration import fit_rerank_weight
from .collator import IGNORED, MMCollator, pad_right
from .data import MMDataset, Row
from .images import image_key
from .losses_mm import text_keys
from .media_mm import MEDIA
from .retrieval_metrics import Gallery, Reranked, gallery, retrieval_scores, true_among
from .retrieval_trainer import RetrievalTrainer

WAYS = ("text_to_image", "image_to_text")
CANDIDATES = 20  # per query, that the matching head is calibrated on unless --rerank says


@dataclass
class RetrievalArguments:
    """What --task retrieval learns; the other tasks have no use for these."""

    contrastive_loss: str = field(
        default="infonce", metadata={"help": "softmax over the batch, or each pair", "choices": ["infonce", "sigmoid"]}
    )
    contrastive_weight: float = 1.0
    matching_weight: float = field(default=1.0, metadata={"help": "of the head that ranks again; 0: none"})
    matching_rows: int | None = field(
        default=None, metadata={"help": "of a batch that this head learns from, at random; default: all"}
    )
    language_weight: float = field(default=0.0, metadata={"help": "of captioning, by a decoder; 0: none"})
    embedding_size: int | None = field(default=None, metadata={"help": "default: the text backbone's width, or 512"})
    image_pooling: str = field(default="mean", metadata={"help": "of states", "choices": ["mean", "first", "tower"]})
    text_pooling: str | None = field(
        default=None,
        metadata={"help": "default: first of an encoder, last of a decoder", "choices": ["first", "mean", "last"]},
    )
    contrastive_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "rows compared with each other, a multiple of the batch size (GradCache); batch norms that train, "
            "as those of scratch towers, still normalise by the batch size"
        },
    )
    rerank: int = field(default=0, metadata={"help": "also score the best k candidates ranked by the matching head"})

    def config(self) -> dict[str, Any]:
        """Fields of `MMConfig`."""
        fields = dict(vars(self))
        for name in ("contrastive_batch_size", "rerank"):
            del fields[name]
        return {**fields, "pooling": fields.pop("text_pooling")}


@dataclass
class RetrievalCollator(MMCollator):
    """Rows of a picture and its text to a batch; a picture in several rows is there once.

    Args:
        captions: also give each text as the answer to its picture, as `MMForConditionalGeneration` learns it.
    """

    captions: bool = False

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        whole = self.texts(rows)
        changed = rows if self.augmentation is None else self.augmentation.rows(rows, self.media_markers)
        said = whole if changed is rows else self.texts(changed)
        batch: dict[str, Any] = {**said, **self.flat_images(rows)}
        batch["image_keys"] = torch.zeros(int(batch["image_index"].max()) + 1, dtype=torch.long)
        for row, places in zip(rows, batch["image_index"], strict=True):
            batch["image_keys"][places[places >= 0]] = torch.tensor([content_key(image_key(i)) for i in row.images])
        if said is not whole or any(row.concept for row in rows):
            batch["text_keys"] = text_keys(**whole)
            for place, row in enumerate(rows):
                if row.concept:
                    batch["text_keys"][place] = content_key(f"concept {row.concept}")
        if self.captions:
            batch |= self.as_captions(rows)
        return {**batch, "return_loss": True}

    def texts(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (B, T), padded on the right, where padding can be left out."""
        tokenizer = self.processor.tokenizer
        longest = min(self.max_length, tokenizer.model_max_length)
        texts = [self.without_markers(row.text) for row in rows]
        options = {"padding": True, "padding_side": "right", "truncation": True, "max_length": longest}
        batch = tokenizer(texts, **options, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def as_captions(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """`caption_ids`, `caption_mask` and `labels` (B, T): the picture's marker, then the text and its end."""
        asked = [replace(row, text="", target=self.without_markers(row.text)) for row in rows]
        prompts, answers = self.prompts_and_answers(asked)
        room = [self.max_length - len(prompt) for prompt in prompts]
        answers = [
            answer if len(answer) <= own else [*answer[: own - 1], answer[-1]]
            for own, answer in zip(room, answers, strict=True)
        ]
        batch = self.pad([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)], "right")
        labels = pad_right([[IGNORED] * len(p) + answer for p, answer in zip(prompts, answers, strict=True)], IGNORED)
        return {"caption_ids": batch["input_ids"], "caption_mask": batch["attention_mask"], "labels": labels}


def content_key(name: str) -> int:
    """A key from 0, equal on every process, of what makes two pictures the same."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def looked_at(trainer: RetrievalTrainer, dataset: MMDataset, k: int) -> tuple[float, Gallery, dict[str, Reranked]]:
    """The loss, the embeddings of all rows, and with `k` each one's best k candidates, looked at again."""
    predicted = trainer.predict(dataset, metric_key_prefix="test")
    texts, media = predicted.predictions
    of, reranked = gallery(texts, media, predicted.label_ids), dict[str, Reranked]()
    if k:
        options = (trainer.data_collator, k, trainer.args.per_device_eval_batch_size)
        reranked = rank_again(trainer.head().eval(), of, dataset, *options)
    return predicted.metrics["test_loss"], of, reranked


def evaluate_retrieval(trainer: RetrievalTrainer, dataset: MMDataset, rerank: int, output: Path) -> dict[str, Any]:
    """Scores of all rows both ways, with `rerank` also those of the best k ranked again; writes predictions.jsonl."""
    loss, of, reranked = looked_at(trainer, dataset, rerank)
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
def rank_again(
    model: PreTrainedModel, of: Gallery, dataset: MMDataset, collator: RetrievalCollator, k: int, batch_size: int
) -> dict[str, Reranked]:
    """The best k candidates of every text and picture, scored by the matching head beside their similarity.

    Each picture is encoded once, for all texts that want it or that it wants; nothing is kept but scores. The log-odds
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
            # texts that have this picture among their best, and this picture's own best texts
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


def rerank_weight(trainer: RetrievalTrainer, dataset: MMDataset, k: int) -> float:
    """How much the matching head's log-odds should count, by rows that it did not learn from.

    Raises:
        ValueError: the model has no matching head.
    """
    _, of, reranked = looked_at(trainer, dataset, k)
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
    """How much likelier it is that texts (n, T) match a picture, encoded (L, 2, K, S, E), than do not: (n,)."""
    media: dict[str, torch.Tensor] = {}
    rows = len(texts["input_ids"])
    if pixel_attention_mask is not None:  # (P,), which of the picture's slots are real
        index = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        media = {"pixel_attention_mask": pixel_attention_mask[None], "image_index": index}
    media["media_key_values"] = encoded[None].expand(rows, *[-1] * encoded.dim())
    logits = model.match(**texts, **media)
    return logits[:, 1] - logits[:, 0]


def write_found(of: Gallery, dataset: MMDataset, reranked: dict[str, Reranked], path: Path, count: int = 5) -> None:
    """One JSON line per row: its text, its picture, and the first pictures that the text finds."""
    top = best(of.texts, of.media, count)
    if again := reranked.get("text_to_image"):
        top = again.top.gather(1, again.scores.argsort(dim=1, descending=True))[:, :count]
    with path.open("w", encoding="utf-8") as file:
        for number, found in enumerate(top.tolist()):
            row, pictures = dataset[number], [dataset[int(of.first_rows[item])].images[0] for item in found]
            shown = {"row": row.number, "text": row.text, "truth": named(row.images[0])}
            file.write(json.dumps({**shown, "found": [named(picture) for picture in pictures]}) + "\n")


def named(image: str | bytes) -> str:
    """How a picture is called in a report."""
    return image if isinstance(image, str) else f"embedded {image_key(image)[:12]}"
