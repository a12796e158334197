# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm index`: the embeddings of a folder's or a table's pictures in a LanceDB table on disk.

modeling-mm index --model DIR --images pictures/ --index runs/gallery

Run it again at any time, after a kill too: what is there is not embedded again, files that changed are.
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

from .ann import build_ann
from .arguments import MMParser
from .dual_encoder import DualEncoder
from .gallery import Gallery, is_local, only_writer
from .images import BadRow, open_image
from .picture_rows import PictureRows, read_pictures

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 30  # of work, at most, are lost with a kill
TIDY_AFTER = 100  # commits; each adds a small file
SHOWN = 20  # skipped pictures in the result; the file lists all


@dataclass
class IndexArguments:
    """Which pictures go into which index."""

    index: str = field(metadata={"help": "folder of the index, made where it is missing (or s3://bucket/path)"})
    model: str | None = field(
        default=None, metadata={"help": "folder or Hub id; default: the one that made the index"}
    )
    images: str | None = field(default=None, metadata={"help": "folder, or CSV, TSV, JSONL or Parquet file"})
    image_column: str = field(default="image", metadata={"help": "column of a file with the pictures' paths"})
    id_column: str | None = field(
        default=None,
        metadata={"help": "column with ids; default: id where the file has one, else the pictures' paths"},
    )
    prune: bool = field(
        default=False, metadata={"help": "remove what came from --images earlier and is not there, or unreadable, now"}
    )
    remove: list[str] = field(default_factory=list, metadata={"help": "ids to remove"})
    ann: bool = field(default=False, metadata={"help": "build an approximate index, for millions of pictures"})
    ann_recall: float = field(default=0.95, metadata={"help": "recall@10 against exact search that --ann must reach"})
    batch_size: int = 32
    commit_rows: int = field(default=1024, metadata={"help": "pictures written at once, if 30 s do not pass before"})
    num_workers: int = field(default=4, metadata={"help": "threads that read pictures"})
    device: str | None = field(default=None, metadata={"help": "default: a GPU where there is one"})

    def __post_init__(self):
        if not (self.images or self.remove or self.ann):
            raise ValueError("there is nothing to do; give --images, --remove or --ann")
        if self.prune and not self.images:
            raise ValueError("--prune removes what --images no longer has; give --images too")
        for name in ("batch_size", "commit_rows", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 < self.ann_recall <= 1:
            raise ValueError(f"--ann_recall is {self.ann_recall}; expected more than 0 and at most 1")


@dataclass
class Plan:
    """Positions of rows by what they need, and the ids of rows to prune."""

    embed: list[int] = field(default_factory=list)
    rewrite: list[int] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)


def make_plan(rows: PictureRows, known: dict[str, dict[str, str]]) -> Plan:
    """New and changed pictures are embedded; where only the row changed, or the path, the embedding is kept.

    Raises:
        ValueError: an id stands for another picture that still exists.
    """
    plan = Plan()
    for position, own in enumerate(rows.ids):
        old, path = known.get(own), rows.paths[position]
        if old and old["image"] != path and Path(old["image"]).exists() and not Path(path).samefile(old["image"]):
            raise ValueError(
                f"the id '{own}' stands for '{old['image']}' in the index, so '{path}' cannot have it too; give "
                "ids with --id_column, or another --index"
            )
        if old is None or old["_stamp"] != rows.stamps[position]:
            plan.embed.append(position)
        elif old["_details"] != rows.details[position]:
            plan.rewrite.append(position)
    listed = set(rows.ids)
    plan.pruned = [own for own, old in known.items() if old["_source"] == rows.source and own not in listed]
    return plan


class Writer:
    """Writes rows of `rows` to the gallery, and tidies up now and then."""

    def __init__(self, gallery: Gallery, rows: PictureRows):
        self.gallery, self.rows, self.commits = gallery, rows, 0
        self.metadata = gallery.fit_columns(rows.metadata, len(rows))

    def write(self, positions: Sequence[int], vectors: np.ndarray) -> None:
        """One commit of rows and their embeddings (B, E)."""
        rows = self.rows
        columns = {"id": rows.ids, "image": rows.paths, "_stamp": rows.stamps, "_details": rows.details}
        own = {name: [values[i] for i in positions] for name, values in columns.items()}
        own["_source"] = [rows.source] * len(positions)
        self.gallery.put(own, vectors, {name: column.take(positions) for name, column in self.metadata.items()})
        self.commits += 1
        if self.commits % TIDY_AFTER == 0:
            self.gallery.tidy()


def read_ahead(encoder: DualEncoder, paths: Sequence[str], batch_size: int, threads: int) -> Iterator[list[Any]]:
    """Batches of what the model takes, or the BadRow that a picture gave; the next is read while one is used."""

    def read(path: str) -> BatchFeature | BadRow:
        try:
            return encoder.prepare(open_image(path))
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
    encoder: DualEncoder, writer: Writer, positions: Sequence[int], args: IndexArguments
) -> list[dict[str, str]]:
    """Embed the rows at these positions and write them; returns the pictures that cannot be read, with the reason."""
    rows, skipped = writer.rows, list[dict[str, str]]()
    held: list[int] = []
    vectors: list[np.ndarray] = []
    last = time.monotonic()
    batches = read_ahead(encoder, [rows.paths[i] for i in positions], args.batch_size, args.num_workers)
    with tqdm(total=len(positions), unit="picture", desc="embedding") as bar:
        for number, batch in enumerate(batches):
            own = positions[number * args.batch_size :][: len(batch)]
            readable = []
            for position, given in zip(own, batch, strict=True):
                if isinstance(given, BadRow):
                    picture = {"id": rows.ids[position], "image": rows.paths[position]}
                    skipped.append({**picture, "reason": str(given)})
                else:
                    held.append(position)
                    readable.append(given)
            if readable:
                vectors.append(encoder.embed_prepared(readable))
            if held and (len(held) >= args.commit_rows or time.monotonic() - last > COMMIT_SECONDS):
                writer.write(held, np.concatenate(vectors))
                held, vectors, last = [], [], time.monotonic()
            bar.update(len(batch))
    if held:
        writer.write(held, np.concatenate(vectors))
    return skipped


def open_inputs(args: IndexArguments, images: str) -> tuple[PictureRows, DualEncoder]:
    """The pictures and the model, before anything is written.

    Raises:
        ValueError: there are none.
    """
    gallery = Gallery.find(args.index)
    source = args.model or (None if gallery is None else gallery.made_by["model"])
    if source is None:
        raise ValueError(f"'{args.index}' is no index yet; give the --model that should make it")
    rows = read_pictures(images, args.image_column, args.id_column).stamped()
    return rows, DualEncoder.load(source, args.device)


def add_pictures(args: IndexArguments, rows: PictureRows, encoder: DualEncoder) -> dict[str, Any]:
    """Bring the index up to what `--images` holds now; returns what was done.

    Raises:
        ValueError: another model made the index.
    """
    made_by = encoder.fingerprint()
    gallery = Gallery.find(args.index)
    if gallery is None:
        gallery = Gallery.create(args.index, made_by, rows.metadata)
    gallery.check(made_by)
    plan, before = make_plan(rows, gallery.known()), len(gallery)
    writer = Writer(gallery, rows)
    for start in range(0, len(plan.rewrite), args.commit_rows):
        some = plan.rewrite[start : start + args.commit_rows]
        writer.write(some, gallery.vectors([rows.ids[i] for i in some]))
    unreadable = embed(encoder, writer, plan.embed, args)
    added = len(gallery) - before
    pruned = list[str]()
    if args.prune:
        known = gallery.known()
        pruned = [*plan.pruned, *(row["id"] for row in unreadable if row["id"] in known)]
        gallery.remove(pruned)
    if writer.commits or pruned:
        gallery.tidy()
    skipped = rows.skipped + unreadable
    done = {"added": added, "embedded": len(plan.embed) - len(unreadable), "rewritten": len(plan.rewrite)}
    return {**done, "pruned": len(pruned), **listed(skipped, args.index)}


def listed(skipped: list[dict[str, str]], index: str) -> dict[str, Any]:
    """What was skipped, for the result; all of it goes to skipped.jsonl in the index."""
    said: dict[str, Any] = {"skipped": len(skipped), "skipped_pictures": skipped[:SHOWN]}
    if not is_local(index):
        return said
    path = Path(index) / "skipped.jsonl"
    path.unlink(missing_ok=True)
    if skipped:
        path.write_text("".join(json.dumps(picture) + "\n" for picture in skipped), encoding="utf-8")
        logger.warning(f"{len(skipped)} pictures were skipped; they are listed in {path}")
        said["skipped_file"] = str(path)
    return said


def remove(gallery: Gallery, ids: Sequence[str]) -> int:
    """Remove rows by id.

    Raises:
        ValueError: an id is not there; then none is removed.
    """
    known = gallery.known()
    if missing := [own for own in ids if own not in known]:
        raise ValueError(f"the index '{gallery.index}' has no row with the id '{missing[0]}'; nothing was removed")
    gallery.remove(list(dict.fromkeys(ids)))
    return len(set(ids))


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the verb; returns its results."""
    (args,) = MMParser(IndexArguments, prog="modeling-mm index").parse(argv)
    result: dict[str, Any] = {"index": args.index}
    inputs = open_inputs(args, args.images) if args.images else None
    if inputs is None:
        Gallery.open(args.index)  # what is wrong is said before a folder is made
    with only_writer(args.index):
        if inputs is not None:
            result |= add_pictures(args, *inputs)
        gallery = Gallery.open(args.index)
        if args.remove:
            result["removed"] = remove(gallery, args.remove)
        if args.ann:
            result["ann"] = build_ann(gallery, args.ann_recall)
        return {**result, "rows": len(gallery)}
