# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm search`: the images of an index that are most similar to a text, an image, or both.

modeling-mm search --index runs/gallery --text "a red circle" --where "price < 10" --html found.html
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.media import BadRow, open_image
from ..report.html import write_page
from ..search.dual_encoder import DualEncoder
from ..search.gallery import Gallery
from .arguments import MMParser
from .verbs import SearchArguments


def query_vector(encoder: DualEncoder, text: str | None, image: str | None, image_weight: float) -> np.ndarray:
    """The normalised embedding (E,) of a text, of an image, or their weighted mean."""
    if not image:
        return encoder.embed_texts([text or ""])[0]
    embedding = encoder.embed_images([image])[0]
    if not text:
        return embedding
    mean = image_weight * embedding + (1 - image_weight) * encoder.embed_texts([text])[0]
    return mean / np.linalg.norm(mean)


def reranked(encoder: DualEncoder, text: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows sorted by the matching score of text and image; those whose images cannot be read come last."""
    readable, images = [], []
    for row in rows:
        try:
            images.append(open_image(row["image"], encoder.background))
        except BadRow:
            row["matching"] = None
            continue
        readable.append(row)
    for row, score in zip(readable, encoder.matching_scores(text, images), strict=True):
        row["matching"] = score
    return sorted(rows, key=lambda row: (row["matching"] is None, -(row["matching"] or 0.0)))


def as_hit(rank: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON: rounded scores, and further columns under `metadata`."""
    scores = {name: row.pop(name) for name in ("score", "matching") if name in row}
    rounded: dict[str, Any] = {name: None if score is None else round(score, 6) for name, score in scores.items()}
    source = {"id": row.pop("id"), "image": row.pop("image")}
    return {"rank": rank, **source, **rounded, "metadata": json.loads(json.dumps(row, default=str))}


def as_table(hits: Sequence[dict[str, Any]], width: int = 119) -> str:
    """Hits as a table for a terminal."""
    lines = ["rank   score  matching  id" if hits and "matching" in hits[0] else "rank   score  id"]
    for hit in hits:
        scores = [f"{hit['rank']:>4}", f"{hit['score']:>6.3f}"]
        if "matching" in hit:
            scores.append(f"{'-' if hit['matching'] is None else format(hit['matching'], '.3f'):>8}")
        metadata = " ".join(f"{name}={value}" for name, value in hit["metadata"].items() if value is not None)
        lines.append("  ".join([*scores, f"{hit['id']}  {metadata}".strip()]).replace("\n", " ")[:width])
    return "\n".join(lines if hits else ["no image matches --where"])


def search(args: SearchArguments) -> list[dict[str, Any]]:
    """The hits, best first.

    Raises:
        ValueError: the index is empty, or was made with another model.
    """
    gallery = Gallery.open(args.index)
    if not len(gallery):
        raise ValueError(f"the index '{args.index}' holds no images; add some with modeling-mm index --images")
    encoder = DualEncoder.load(args.model or gallery.made_by["model"], args.device)
    gallery.check(encoder.fingerprint())
    if args.rerank:
        encoder.check_matching()
    query = query_vector(encoder, args.text, args.image, args.image_weight)
    rows = gallery.nearest(query, args.rerank or args.top_k, args.where, args.exact)
    if args.rerank:
        rows = reranked(encoder, args.text or "", rows)
    return [as_hit(rank, row) for rank, row in enumerate(rows[: args.top_k], start=1)]


def main(argv: Sequence[str]) -> str:
    """Run the verb; returns the text to print."""
    (args,) = MMParser(SearchArguments, prog="modeling-mm search").parse(argv)
    hits = search(args)
    if args.html:
        write_page(Path(args.html), args.text, args.image, args.where, hits)
    return "\n".join(json.dumps(hit) for hit in hits) if args.json else as_table(hits)
