# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Contrastive losses between texts and media that never hold the matrix of all pairs, on one process or several.

- A pair is true where a text and an image stand in one row, or where the same text does so elsewhere in the batch.
  Which texts and images are the same is told by keys, so that a batch may be cut anywhere.
- `infonce` (van den Oord et al. 2018; Radford et al. 2021): softmax over all candidates, both ways; several true ones
  share the target evenly. `sigmoid` (Zhai et al. 2023): each pair for itself.
- Logits are computed for some queries at a time and again in the backward pass.
- Across processes each one takes its own queries against the candidates of all, and gradients flow back to where a
  candidate came from. The mean over processes is the loss of the whole batch, in value and in gradient.

Shapes: B texts, I media, Q queries, K candidates, R pairs that stand in a row, E embedding width.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # queries whose logits are held at a time
NO_MEDIUM = -1  # no key is negative


@dataclass
class Pairs:
    """What belongs together, by content keys: integers from 0, equal where the content is.

    texts: (B,) the texts' keys. media: (I,) the media's keys. own: (B,) the key of each text's own medium,
    `NO_MEDIUM` where it has none.
    """

    texts: torch.Tensor
    media: torch.Tensor
    own: torch.Tensor

    def true_pairs(self) -> torch.Tensor:
        """(B, I) bool; for batches whose pairs all fit."""
        return true_candidates(self.texts, self.media, self.texts, self.own)


def text_keys(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """A content key (B,) for each row of tokens (B, T), whatever padding surrounds them."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    # products wrap around at 64 bits, which is what hashes do
    mixed = (input_ids + 1) * 0x9E3779B97F4A7C1 + mask.cumsum(dim=1) * 0x632BE59BD9B4E01
    for factor in (0x3F58476D1CE4E5B9, 0x14D049BB133111EB):
        mixed = (mixed ^ (mixed >> 29)) * factor
    return ((mixed ^ (mixed >> 32)) * mask).sum(dim=1) & (2**63 - 1)


def local_keys(rows: torch.Tensor) -> torch.Tensor:
    """Keys (n,) of rows of which nothing is known, so that they count as different here and on other processes."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return torch.arange(len(rows), device=rows.device) + (rank << 40)


def true_candidates(
    queries: torch.Tensor, candidates: torch.Tensor, pair_queries: torch.Tensor, pair_candidates: torch.Tensor
) -> torch.Tensor:
    """(Q, K) bool, which candidates are true for each query, from keys (Q,), (K,) and those of the R pairs (R,)."""
    _, place = torch.unique(torch.cat([candidates, pair_candidates]), return_inverse=True)
    own, paired = place.split([len(candidates), len(pair_candidates)])
    in_pair = (queries[:, None] == pair_queries).float()  # (Q, R)
    return in_pair.new_zeros(len(queries), len(place)).index_add_(1, paired, in_pair)[:, own] > 0


def softmax_term(logits: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed over queries that have a true candidate, the cross-entropy to an even share for each; and how many."""
    count = true.sum(dim=1)
    target = (logits * true).sum(dim=1) / count.clamp(min=1)
    losses = logits.logsumexp(dim=1) - target
    return torch.where(count > 0, losses, 0).sum(), (count > 0).sum()


def sigmoid_term(logits: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy of all pairs, summed; and the number of queries."""
    losses = -functional.logsigmoid(torch.where(true, logits, -logits))
    return losses.sum(), torch.tensor(len(logits), device=true.device)


def one_way_loss(term, queries, candidates, keys, scale, bias, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`term` over all queries (Q, E) against all candidates (K, E), `chunk` queries at a time.

    `keys` are the four arguments of `true_candidates`.
    """
    query_keys, *others = keys

    def part(some: torch.Tensor, own: torch.Tensor, candidates: torch.Tensor, scale: torch.Tensor, bias):
        logits = scale * some @ candidates.T
        return term(logits if bias is None else logits + bias, true_candidates(own, *others))

    if len(queries) <= chunk:
        return part(queries, query_keys, candidates, scale, bias)
    loss, count = torch.zeros((), device=queries.device), torch.zeros((), dtype=torch.long, device=queries.device)
    for some, own in zip(queries.split(chunk), query_keys.split(chunk), strict=True):
        more = checkpoint(part, some, own, candidates, scale, bias, use_reentrant=False, preserve_rng_state=False)
        loss, count = loss + more[0], count + more[1]
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
    """The loss of normalised embeddings, of texts (B, E) and of media (I, E).

    Args:
        kind: "infonce" or "sigmoid".
        scale, bias: the inverse temperature, and what is added to every logit (sigmoid).
        across: take the candidates of all processes; each must call this.
        chunk: queries whose logits are held at a time.
    """
    texts, media, scale = texts.float(), media.float(), scale.float()
    all_texts, all_media, everything = texts, media, pairs
    if across:
        all_texts, all_media = gather_rows(texts), gather_rows(media)
        everything = Pairs(*(gather_rows(keys) for keys in (pairs.texts, pairs.media, pairs.own)))
    text_side = (pairs.texts, everything.media, everything.texts, everything.own)
    if kind == "sigmoid":
        terms = [one_way_loss(sigmoid_term, texts, all_media, text_side, scale, bias, chunk)]
    else:
        media_side = (pairs.media, everything.texts, everything.own, everything.texts)
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
    """Rows of all processes, in their order; each gets back the sum of all processes' gradients for its own."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.counts = counts
        widest = rows.new_zeros(max(counts), *rows.shape[1:])
        widest[: len(rows)] = rows
        received = [torch.empty_like(widest) for _ in counts]
        dist.all_gather(received, widest)
        return torch.cat([own[:count] for own, count in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[dist.get_rank()], None


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """(n, ...) of each process to (sum of all n, ...), with gradient; processes may differ in n."""
    counts = [torch.empty(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    return GatheredRows.apply(rows, [int(count) for count in counts])


def with_absent_modalities(
    compared: dict[str, torch.Tensor], pairs: dict[str, Pairs]
) -> tuple[dict[str, torch.Tensor], dict[str, Pairs]]:
    """Embeddings and pairs by modality, and none of a modality that only other processes have.

    Each process takes part in every exchange, of gradients too, which is why nothing is a slice of the texts.
    """
    texts, keys = compared["text"], next(iter(pairs.values())).texts
    names = ("image", "audio")
    held = torch.tensor([name in pairs for name in names], dtype=torch.long, device=texts.device)
    dist.all_reduce(held)
    absent = Pairs(keys, keys[:0], torch.full_like(keys, NO_MEDIUM))
    of_any = [name for name, processes in zip(names, held.tolist(), strict=True) if processes]
    compared = {**compared, **{name: texts[:0] for name in of_any if name not in pairs}}
    return compared, {name: pairs.get(name, absent) for name in of_any}


def hard_negatives(logits: torch.Tensor, true: torch.Tensor, sample: bool) -> torch.Tensor:
    """For each query (Q,) the index of a wrong candidate, the likelier the more similar; -1 where all are right.

    Args:
        logits: (Q, K) similarities. true: (Q, K) bool, which candidates are right.
        sample: draw one; otherwise the most similar.
    """
    wrong = logits.masked_fill(true, -torch.inf)
    some = ~true.all(dim=1)
    if sample:
        shares = torch.where(some[:, None], wrong, 0.0).softmax(dim=1)
        chosen = torch.multinomial(shares, 1)[:, 0]
    else:
        chosen = wrong.argmax(dim=1)
    return torch.where(some, chosen, -1)


__all__ = ["Pairs", "contrastive_loss", "hard_negatives", "text_keys", "with_absent_modalities"]
