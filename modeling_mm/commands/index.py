# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm index`: the embeddings of a folder's or a table's pictures in a LanceDB table on disk.

modeling-mm index --model DIR --images pictures/ --index runs/gallery

Run it again at any time, after a kill too: what is there is not embedded again, files that changed are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..search.ann import build_ann
from ..search.builder import add_pictures, open_inputs, remove
from ..search.gallery import Gallery, only_writer
from .arguments import MMParser


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


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the verb; returns its results."""
    (args,) = MMParser(IndexArguments, prog="modeling-mm index").parse(argv)
    result: dict[str, Any] = {"index": args.index}
    inputs = None
    if args.images:
        source = (args.index, args.images, args.model, args.image_column, args.id_column)
        inputs = open_inputs(*source, args.device)
    if inputs is None:
        Gallery.open(args.index)  # what is wrong is said before a folder is made
    with only_writer(args.index):
        if inputs is not None:
            sizes = (args.batch_size, args.commit_rows, args.num_workers)
            result |= add_pictures(args.index, *inputs, args.prune, *sizes)
        gallery = Gallery.open(args.index)
        if args.remove:
            result["removed"] = remove(gallery, args.remove)
        if args.ann:
            result["ann"] = build_ann(gallery, args.ann_recall)
        return {**result, "rows": len(gallery)}
