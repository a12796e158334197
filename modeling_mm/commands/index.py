# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm index`: a LanceDB table with embeddings of the images of a folder or a table.

modeling-mm index --model DIR --images images/ --index runs/gallery

It can be run again at any time, also after it was killed: only new and changed images are embedded.
"""

from collections.abc import Sequence
from typing import Any

from ..search.ann import build_ann
from ..search.builder import add_images, open_inputs, remove
from ..search.gallery import Gallery, only_writer
from .arguments import MMParser
from .verbs import IndexArguments


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the verb; returns its results."""
    (args,) = MMParser(IndexArguments, prog="modeling-mm index").parse(argv)
    result: dict[str, Any] = {"index": args.index}
    inputs = None
    if args.images:
        source = (args.index, args.images, args.model, args.image_column, args.id_column)
        inputs = open_inputs(*source, args.device)
    if inputs is None:
        Gallery.open(args.index)  # errors come before a folder is made
    with only_writer(args.index):
        if inputs is not None:
            sizes = (args.batch_size, args.commit_rows, args.num_workers)
            result |= add_images(args.index, *inputs, args.prune, *sizes)
        gallery = Gallery.open(args.index)
        if args.remove:
            result["removed"] = remove(gallery, args.remove)
        if args.ann:
            result["ann"] = build_ann(gallery, args.ann_recall)
        return {**result, "rows": len(gallery)}
