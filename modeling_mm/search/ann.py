# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""An index for approximate nearest neighbours (ANN) over a gallery, chosen by its measured recall.

IVF_PQ is built first: it keeps one byte for sixteen numbers of a vector, so that millions fit in memory, and compares
the candidates it finds again with their exact vectors. Where it misses too much, IVF_HNSW_SQ follows: a graph with a
byte per number, which takes many times longer to build.
"""

import logging
from typing import Any

import numpy as np

from .gallery import ANN, Gallery

logger = logging.getLogger(__name__)

FEWEST = 1000  # rows; below, there is nothing to train an index on, and exact search takes milliseconds
NEIGHBOURS = 10
FILTERED = {"maximum_nprobes": 0}  # where a filter leaves too few rows of the nearest parts, all others are searched
EFFORTS = {
    "IVF_PQ": [{"minimum_nprobes": parts, **FILTERED, "refine_factor": parts} for parts in (10, 20, 50, 100)],
    "IVF_HNSW_SQ": [{"minimum_nprobes": 4, **FILTERED, "ef": ef, "refine_factor": 2} for ef in (50, 150, 450)],
}


def build_ann(gallery: Gallery, wanted: float = 0.95, sample: int = 100, seed: int = 0) -> dict[str, Any]:
    """Build the first kind of index, and take the least effort, whose recall@10 reaches `wanted`.

    Args:
        sample: rows whose neighbours are looked for, exactly and by the index.

    Raises:
        ValueError: the gallery is small, or no kind reaches the recall; exact search then stays.
    """
    if len(gallery) < FEWEST:
        raise ValueError(
            f"--ann needs at least {FEWEST} images; '{gallery.index}' has {len(gallery)}, searched at once"
        )
    gallery.set_metadata(ANN, None)  # until its recall is known, an index is not used
    queries = sampled(gallery, sample, seed)
    truths = [neighbours(gallery, own, query, exact=True) for own, query in queries.items()]
    best = 0.0
    for kind, efforts in EFFORTS.items():
        build(gallery, kind)
        for search_params in efforts:
            recall = recall_of(gallery, queries, truths, search_params)
            best = max(best, recall)
            logger.warning(
                f"{kind} {search_params}: recall@{NEIGHBOURS} {recall:.3f} against exact search, {len(queries)} rows"
            )
            if recall >= wanted:
                found = {
                    "kind": kind,
                    "effort": search_params,
                    "recall_at_10": round(recall, 4),
                    "sampled_rows": len(queries),
                }
                gallery.set_metadata(ANN, found)
                return found
    for index in gallery.table.list_indices():
        gallery.table.drop_index(index.name)
    raise ValueError(f"no ANN index reached a recall of {wanted}, the best {best:.3f}; search stays exact")


def build(gallery: Gallery, kind: str) -> None:
    """Build an index of this kind in the place of any other."""
    from lancedb.index import HnswSq, IvfPq

    configs = {"IVF_PQ": IvfPq, "IVF_HNSW_SQ": HnswSq}
    gallery.table.create_index("vector", config=configs[kind](distance_type="cosine"), replace=True)


def sampled(gallery: Gallery, count: int, seed: int) -> dict[str, np.ndarray]:
    """The embeddings of some rows, spread at random, by id."""
    offsets = np.random.default_rng(seed).choice(len(gallery), min(count, len(gallery)), replace=False)
    rows = gallery.table.take_offsets(offsets.tolist()).select(["id", "vector"]).to_arrow()
    return {row["id"]: np.asarray(row["vector"], np.float32) for row in rows.to_pylist()}


def neighbours(gallery: Gallery, own: str, query: np.ndarray, **how: Any) -> set[str]:
    """The ids nearest to a row, without itself, which any index finds."""
    found = [row["id"] for row in gallery.nearest(query, NEIGHBOURS + 1, **how)]
    return set([near for near in found if near != own][:NEIGHBOURS])


def recall_of(gallery: Gallery, queries: dict[str, np.ndarray], truths: list[set[str]], search_params: dict) -> float:
    """The share of the true neighbours that the index finds."""
    found = [neighbours(gallery, own, query, search_params=search_params) for own, query in queries.items()]
    return float(np.mean([len(near & truth) / len(truth) for near, truth in zip(found, truths, strict=True)]))
