# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The embeddings of a folder's or a table's images in a LanceDB table on disk, brought up to date.

Images in the index are not embedded again, not even after a kill; files that changed are.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers.feature_extraction_utils import BatchFeature

from ..data.media import BadRow
from .dual_encoder import DualEncoder
from .gallery import Gallery, is_local
from .images import ImageRows, read_images

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 30  # of work are lost at most if the process is killed
COMPACT_AFTER = 100  # commits; each adds a small file
LISTED = 20  # skipped images in the result; the file lists all


@dataclass
class Plan:
    """Positions of rows to embed and to rewrite, and ids of rows to prune."""

    embed: list[int] = field(default_factory=list)
    rewrite: list[int] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)


def make_plan(rows: ImageRows, known: dict[str, dict[str, str]]) -> Plan:
    """Plan to embed new and changed images; if only the row or the path changed, the embedding is kept.

    Raises:
        ValueError: an id stands for another image that still exists.
    """
    plan = Plan()
    for position, row_id in enumerate(rows.ids):
        old, path = known.get(row_id), rows.paths[position]
        if old and old["image"] != path and Path(old["image"]).exists() and not Path(path).samefile(old["image"]):
            raise ValueError(
                f"the id '{row_id}' stands for '{old['image']}' in the index, so '{path}' cannot have it too; give "
                "ids with --id_column, or another --index"
            )
        if old is None or old["_stamp"] != rows.stamps[position]:
            plan.embed.append(position)
        elif old["_details"] != rows.details[position]:
            plan.rewrite.append(position)
    listed = set(rows.ids)
    plan.pruned = [row_id for row_id, old in known.items() if old["_source"] == rows.source and row_id not in listed]
    return plan


class Writer:
    """Writes rows of `rows` to the gallery, which it compacts from time to time."""

    def __init__(self, gallery: Gallery, rows: ImageRows):
        self.gallery, self.rows, self.commits = gallery, rows, 0
        self.metadata = gallery.fit_columns(rows.metadata, len(rows))

    def write(self, positions: Sequence[int], vectors: np.ndarray) -> None:
        """Write rows and their embeddings (B, E) in one commit."""
        rows = self.rows
        columns = {"id": rows.ids, "image": rows.paths, "_stamp": rows.stamps, "_details": rows.details}
        fixed = {name: [values[i] for i in positions] for name, values in columns.items()}
        fixed["_source"] = [rows.source] * len(positions)
        self.gallery.put(fixed, vectors, {name: column.take(positions) for name, column in self.metadata.items()})
        self.commits += 1
        if self.commits % COMPACT_AFTER == 0:
            self.gallery.compact()


def read_batches(encoder: DualEncoder, paths: Sequence[str], batch_size: int, threads: int) -> Iterator[list[Any]]:
    """Batches of prepared images, or a BadRow for an unreadable one; the next batch is read while one is used."""

    def read(path: str) -> BatchFeature | BadRow:
        try:
            return encoder.prepare(path)
        except BadRow as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(paths), batch_size)
        batches = ([pool.submit(read, path) for path in paths[start : start + batch_size]] for start in starts)
        ahead = next(batches, [])
        while ahead:
            batch, ahead = ahead, next(batches, [])
            yield [future.result() for future in batch]


def embed(
    encoder: DualEncoder,
    writer: Writer,
    positions: Sequence[int],
    batch_size: int = 32,
    commit_rows: int = 1024,
    num_workers: int = 4,
) -> list[dict[str, str]]:
    """Embed the rows at these positions and write them; returns the unreadable images with the reasons."""
    rows, skipped = writer.rows, list[dict[str, str]]()
    held: list[int] = []
    vectors: list[np.ndarray] = []
    last = time.monotonic()
    batches = read_batches(encoder, [rows.paths[i] for i in positions], batch_size, num_workers)
    with tqdm(total=len(positions), unit="image", desc="embedding") as bar:
        for number, batch in enumerate(batches):
            readable = []
            for position, prepared in zip(positions[number * batch_size :][: len(batch)], batch, strict=True):
                if isinstance(prepared, BadRow):
                    image = {"id": rows.ids[position], "image": rows.paths[position]}
                    skipped.append({**image, "reason": str(prepared)})
                else:
                    held.append(position)
                    readable.append(prepared)
            if readable:
                vectors.append(encoder.embed_prepared(readable))
            if held and (len(held) >= commit_rows or time.monotonic() - last > COMMIT_SECONDS):
                writer.write(held, np.concatenate(vectors))
                held, vectors, last = [], [], time.monotonic()
            bar.update(len(batch))
    if held:
        writer.write(held, np.concatenate(vectors))
    return skipped


def open_inputs(
    index: str, images: str, model: str | None, image_column: str, id_column: str | None, device: str | None
) -> tuple[ImageRows, DualEncoder]:
    """The images and the encoder, opened before anything is written.

    Raises:
        ValueError: there are no images, or no model is known.
    """
    gallery = Gallery.find(index)
    source = model or (None if gallery is None else gallery.made_by["model"])
    if source is None:
        raise ValueError(f"'{index}' is no index yet; give the --model that should make it")
    rows = read_images(images, image_column, id_column).stamped()
    return rows, DualEncoder.load(source, device)


def add_images(
    index: str,
    rows: ImageRows,
    encoder: DualEncoder,
    prune: bool = False,
    batch_size: int = 32,
    commit_rows: int = 1024,
    num_workers: int = 4,
) -> dict[str, Any]:
    """Bring the index up to date with `--images`; returns counts of what was done.

    Raises:
        ValueError: another model made the index.
    """
    made_by = encoder.fingerprint()
    gallery = Gallery.find(index)
    if gallery is None:
        gallery = Gallery.create(index, made_by, rows.metadata)
    gallery.check(made_by)
    plan, before = make_plan(rows, gallery.known()), len(gallery)
    writer = Writer(gallery, rows)
    for start in range(0, len(plan.rewrite), commit_rows):
        positions = plan.rewrite[start : start + commit_rows]
        writer.write(positions, gallery.vectors([rows.ids[i] for i in positions]))
    unreadable = embed(encoder, writer, plan.embed, batch_size, commit_rows, num_workers)
    added = len(gallery) - before
    pruned = list[str]()
    if prune:
        known = gallery.known()
        pruned = [*plan.pruned, *(row["id"] for row in unreadable if row["id"] in known)]
        gallery.remove(pruned)
    if writer.commits or pruned:
        gallery.compact()
    skipped = rows.skipped + unreadable
    done = {"added": added, "embedded": len(plan.embed) - len(unreadable), "rewritten": len(plan.rewrite)}
    return {**done, "pruned": len(pruned), **skipped_results(skipped, index)}


def skipped_results(skipped: list[dict[str, str]], index: str) -> dict[str, Any]:
    """The count and the first of the skipped images; skipped.jsonl in a local index lists all of them."""
    results: dict[str, Any] = {"skipped": len(skipped), "skipped_pictures": skipped[:LISTED]}
    if not is_local(index):
        return results
    path = Path(index) / "skipped.jsonl"
    path.unlink(missing_ok=True)
    if skipped:
        path.write_text("".join(json.dumps(image) + "\n" for image in skipped), encoding="utf-8")
        logger.warning(f"{len(skipped)} images were skipped; they are listed in {path}")
        results["skipped_file"] = str(path)
    return results


def remove(gallery: Gallery, ids: Sequence[str]) -> int:
    """Remove rows by id.

    Raises:
        ValueError: an id is not in the index; then no row is removed.
    """
    known = gallery.known()
    if missing := [row_id for row_id in ids if row_id not in known]:
        raise ValueError(f"the index '{gallery.index}' has no row with the id '{missing[0]}'; nothing was removed")
    gallery.remove(list(dict.fromkeys(ids)))
    return len(set(ids))
