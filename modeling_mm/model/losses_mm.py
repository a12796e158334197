# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Contrastive losses between texts and media, on one process or several, without the full matrix of pairs in memory.

- A text and an image are a positive pair if they share a row of the batch, or if an equal text shares a row with an
  equal image. Content keys tell which texts and images are equal, so that a batch may be split anywhere.
- `infonce` (van den Oord et al. 2018; Radford et al. 2021): softmax over all candidates, both ways; several positives
  share the target evenly. `sigmoid` (Zhai et al. 2023): a binary loss for each pair.
- Logits are computed for one chunk of queries at a time, and again in the backward pass.
- Each process compares its own queries with the candidates of all processes, and gradients flow back to the process
  of each candidate. The mean over processes is the loss of the whole batch, in value and in gradient.

Shapes: B texts, I media, Q queries, K candidates, R pairs of a text and a medium in one row, E embedding width.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # queries whose logits are in memory at a time
NO_MEDIUM = -1  # no key is negative


@dataclass
class Pairs:
    """The positive pairs of a batch, by content keys: integers from 0, equal for equal content.

    texts: (B,) keys of the texts. media: (I,) keys of the media. media_of_texts: (B,) key of the medium in each text's
    row, `NO_MEDIUM` if it has none.
    """

    texts: torch.Tensor
    media: torch.Tensor
    media_of_texts: torch.Tensor

    def true_pairs(self) -> torch.Tensor:
        """(B, I) bool, True for positive pairs; only for batches whose matrix of pairs fits into memory."""
        return true_candidates(self.texts, self.media, self.texts, self.media_of_texts)


def text_keys(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """A content key (B,) for each row of tokens (B, T), independent of padding."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    # products overflow at 64 bits on purpose, as in a hash
    mixed = (input_ids + 1) * 0x9E3779B97F4A7C1 + mask.cumsum(dim=1) * 0x632BE59BD9B4E01
    for factor in (0x3F58476D1CE4E5B9, 0x14D049BB133111EB):
        mixed = (mixed ^ (mixed >> 29)) * factor
    return ((mixed ^ (mixed >> 32)) * mask).sum(dim=1) & (2**63 - 1)


def local_keys(rows: torch.Tensor) -> torch.Tensor:
    """Keys (n,) that make rows without content keys differ from each other, here and on other processes."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return torch.arange(len(rows), device=rows.device) + (rank << 40)


def true_candidates(
    queries: torch.Tensor, candidates: torch.Tensor, pair_queries: torch.Tensor, pair_candidates: torch.Tensor
) -> torch.Tensor:
    """(Q, K) bool, True for positive pairs, from keys (Q,) and (K,) and the keys (R,) of pairs that share a row."""
    _, place = torch.unique(torch.cat([candidates, pair_candidates]), return_inverse=True)
    candidate_place, pair_place = place.split([len(candidates), len(pair_candidates)])
    in_pair = (queries[:, None] == pair_queries).float()  # (Q, R)
    return in_pair.new_zeros(len(queries), len(place)).index_add_(1, pair_place, in_pair)[:, candidate_place] > 0


def softmax_term(logits: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy to an even share for each positive, summed over queries with a positive; and their number."""
    count = true.sum(dim=1)
    target = (logits * true).sum(dim=1) / count.clamp(min=1)
    losses = logits.logsumexp(dim=1) - target
    return torch.where(count > 0, losses, 0).sum(), (count > 0).sum()


def sigmoid_term(logits: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy summed over all pairs; and the number of queries."""
    losses = -functional.logsigmoid(torch.where(true, logits, -logits))
    return losses.sum(), torch.tensor(len(logits), device=true.device)


def one_way_loss(term, queries, candidates, keys, scale, bias, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss `term` of all queries (Q, E) against all candidates (K, E), `chunk` queries at a time.

    `keys` are the four arguments of `true_candidates`.
    """
    query_keys, *pair_keys = keys

    def chunk_loss(queries: torch.Tensor, keys: torch.Tensor, candidates: torch.Tensor, scale: torch.Tensor, bias):
        logits = scale * queries @ candidates.T
        return term(logits if bias is None else logits + bias, true_candidates(keys, *pair_keys))

    if len(queries) <= chunk:
        return chunk_loss(queries, query_keys, candidates, scale, bias)
    loss, count = torch.zeros((), device=queries.device), torch.zeros((), dtype=torch.long, device=queries.device)
    options = {"use_reentrant": False, "preserve_rng_state": False}
    for chunk_queries, chunk_keys in zip(queries.split(chunk), query_keys.split(chunk), strict=True):
        terms = checkpoint(chunk_loss, chunk_queries, chunk_keys, candidates, scale, bias, **options)
        loss, count = loss + terms[0], count + terms[1]
    return loss, count


def contrastive_loss(
    kind: str,
    texts: torch.Tensor,
    media: torch.Tensor,
    pairs: Pairs,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    across: bool = False,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Contrastive loss of normalised embeddings of texts (B, E) and media (I, E).

    Args:
        kind: "infonce" or "sigmoid".
        scale, bias: the inverse temperature, and the bias of every logit (sigmoid).
        across: compare with the candidates of all processes; each process must make this call.
        chunk: number of queries whose logits are in memory at a time.
    """
    texts, media, scale = texts.float(), media.float(), scale.float()
    all_texts, all_media, all_pairs = texts, media, pairs
    if across:
        all_texts, all_media = gather_rows(texts), gather_rows(media)
        all_pairs = Pairs(*(gather_rows(keys) for keys in (pairs.texts, pairs.media, pairs.media_of_texts)))
    text_side = (pairs.texts, all_pairs.media, all_pairs.texts, all_pairs.media_of_texts)
    if kind == "sigmoid":
        terms = [one_way_loss(sigmoid_term, texts, all_media, text_side, scale, bias, chunk)]
    else:
        media_side = (pairs.media, all_pairs.texts, all_pairs.media_of_texts, all_pairs.texts)
        terms = [
            one_way_loss(softmax_term, texts, all_media, text_side, scale, bias, chunk),
            one_way_loss(softmax_term, media, all_texts, media_side, scale, bias, chunk),
        ]
    counts, processes = torch.stack([count for _, count in terms]), 1
    if across:
        processes = dist.get_world_size()
        dist.all_reduce(counts)
    means = [loss * processes / count.clamp(min=1) for (loss, _), count in zip(terms, counts, strict=True)]
    return torch.stack(means).mean()


class GatheredRows(torch.autograd.Function):
    """The rows of all processes, in rank order; each process gets back the summed gradients of its own rows."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(received, padded)
        return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[dist.get_rank()], None


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Gather (n, ...) of each process to (sum of all n, ...), with gradient; processes may differ in n."""
    counts = [torch.empty(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    return GatheredRows.apply(rows, [int(count) for count in counts])


def with_absent_modalities(
    compared: dict[str, torch.Tensor], pairs: dict[str, Pairs]
) -> tuple[dict[str, torch.Tensor], dict[str, Pairs]]:
    """Embeddings and pairs by modality, with empty ones for a modality that only other processes have.

    Each process takes part in every collective, of gradients too, so the empty embeddings are a slice of the texts'.
    """
    texts, keys = compared["text"], next(iter(pairs.values())).texts
    names = ("image", "audio")
    processes = torch.tensor([name in pairs for name in names], dtype=torch.long, device=texts.device)
    dist.all_reduce(processes)
    no_pairs = Pairs(keys, keys[:0], torch.full_like(keys, NO_MEDIUM))
    present = [name for name, count in zip(names, processes.tolist(), strict=True) if count]
    compared = {**compared, **{name: texts[:0] for name in present if name not in pairs}}
    return compared, {name: pairs.get(name, no_pairs) for name in present}


def hard_negatives(logits: torch.Tensor, true: torch.Tensor, sample: bool) -> torch.Tensor:
    """Index (Q,) of a hard negative for each query, -1 if all candidates are positives.

    Args:
        logits: (Q, K) similarities. true: (Q, K) bool, True for positives.
        sample: draw a negative with the softmax of the similarities; otherwise take the most similar one.
    """
    negatives = logits.masked_fill(true, -torch.inf)
    has_negative = ~true.all(dim=1)
    if sample:
        probabilities = torch.where(has_negative[:, None], negatives, 0.0).softmax(dim=1)
        hardest = torch.multinomial(probabilities, 1)[:, 0]
    else:
        hardest = negatives.argmax(dim=1)
    return torch.where(has_negative, hardest, -1)


__all__ = ["Pairs", "contrastive_loss", "hard_negatives", "text_keys", "with_absent_modalities"]
