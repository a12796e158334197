# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""An index for approximate nearest neighbours (ANN) over a gallery, chosen by its measured recall.

IVF_PQ is built first: it keeps one byte for sixteen numbers of a vector, so that millions fit in memory, and reranks
its candidates by their exact vectors. If its recall is too low, IVF_HNSW_SQ follows: a graph with one byte per number,
which takes many times longer to build.
"""

import logging
from typing import Any

import numpy as np

from .gallery import ANN, Gallery

logger = logging.getLogger(__name__)

FEWEST = 1000  # rows; fewer are too few to train an index on, and exact search takes milliseconds
NEIGHBOURS = 10
FILTERED = {"maximum_nprobes": 0}  # if a filter leaves too few rows of the nearest partitions, all others are searched
EFFORTS = {
    "IVF_PQ": [{"minimum_nprobes": probes, **FILTERED, "refine_factor": probes} for probes in (10, 20, 50, 100)],
    "IVF_HNSW_SQ": [{"minimum_nprobes": 4, **FILTERED, "ef": ef, "refine_factor": 2} for ef in (50, 150, 450)],
}


def build_ann(gallery: Gallery, min_recall: float = 0.95, sample: int = 100, seed: int = 0) -> dict[str, Any]:
    """Build the first kind of index, with the least effort, whose recall@10 is at least `min_recall`.

    Args:
        sample: number of rows whose neighbours are searched, exactly and by the index.

    Raises:
        ValueError: the gallery is small, or no kind reaches the recall; search then stays exact.
    """
    if len(gallery) < FEWEST:
        raise ValueError(
            f"--ann needs at least {FEWEST} images; '{gallery.index}' has {len(gallery)}; exact search is fast"
        )
    gallery.set_metadata(ANN, None)  # an index is not used until its recall is known
    queries = sampled(gallery, sample, seed)
    truths = [neighbours(gallery, row_id, query, exact=True) for row_id, query in queries.items()]
    best = 0.0
    for kind, efforts in EFFORTS.items():
        build(gallery, kind)
        for search_params in efforts:
            recall = recall_of(gallery, queries, truths, search_params)
            best = max(best, recall)
            logger.warning(
                f"{kind} {search_params}: recall@{NEIGHBOURS} {recall:.3f} against exact search, {len(queries)} rows"
            )
            if recall >= min_recall:
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
    raise ValueError(f"no ANN index reached a recall of {min_recall}, the best {best:.3f}; search stays exact")


def build(gallery: Gallery, kind: str) -> None:
    """Build an index of this kind, which replaces any other."""
    from lancedb.index import HnswSq, IvfPq

    configs = {"IVF_PQ": IvfPq, "IVF_HNSW_SQ": HnswSq}
    gallery.table.create_index("vector", config=configs[kind](distance_type="cosine"), replace=True)


def sampled(gallery: Gallery, count: int, seed: int) -> dict[str, np.ndarray]:
    """The embeddings of random rows by id."""
    offsets = np.random.default_rng(seed).choice(len(gallery), min(count, len(gallery)), replace=False)
    rows = gallery.table.take_offsets(offsets.tolist()).select(["id", "vector"]).to_arrow()
    return {row["id"]: np.asarray(row["vector"], np.float32) for row in rows.to_pylist()}


def neighbours(gallery: Gallery, row_id: str, query: np.ndarray, **options: Any) -> set[str]:
    """The ids of the rows nearest to a row, without the row itself, which any index finds."""
    found = [row["id"] for row in gallery.nearest(query, NEIGHBOURS + 1, **options)]
    return set([near for near in found if near != row_id][:NEIGHBOURS])


def recall_of(gallery: Gallery, queries: dict[str, np.ndarray], truths: list[set[str]], search_params: dict) -> float:
    """The mean share of true neighbours that the index finds."""
    found = [neighbours(gallery, row_id, query, search_params=search_params) for row_id, query in queries.items()]
    return float(np.mean([len(near & truth) / len(truth) for near, truth in zip(found, truths, strict=True)]))
