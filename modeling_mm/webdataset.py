# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""WebDataset's members of text stay bytes until their row is read, so that a broken one is one bad row.

`datasets` would decode them while it reads the archive, and end with the first that is broken.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import datasets
import pyarrow
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from .images import BadRow

TEXTUAL = ("txt", "text", "transcript", "cls", "cls2", "index", "inx", "id", "json")
LOOKED_AT = 5  # rows that tell what a member holds, as many as `datasets` takes


class Members(WebDataset):
    """The rows of tar files, their members of text as bytes."""

    DECODERS = {name: decode for name, decode in WebDataset.DECODERS.items() if name not in TEXTUAL}


def open_members(files: Sequence[str]) -> tuple[datasets.IterableDataset, datasets.Features]:
    """The rows of tar files, and what their cells hold once `decoded`.

    Raises:
        BadRow: none of the first rows can be read.
    """
    table = Members(data_files=list(files)).as_streaming_dataset(split="train")
    rows, reason = [], "there are none"
    for cells in itertools.islice(table.decode(False), LOOKED_AT):
        try:
            rows.append(decoded(cells))
        except BadRow as error:
            reason = str(error)
    if not rows:
        raise BadRow(f"none of the first rows can be read: {reason}")
    own = [{name: cell for name, cell in row.items() if is_textual(name)} for row in rows]
    schema = pyarrow.concat_tables([pyarrow.Table.from_pylist([row]) for row in own], promote_options="default").schema
    return table, datasets.Features({**table.features, **datasets.Features.from_arrow_schema(schema)})


def is_textual(name: str) -> bool:
    return name.rpartition(".")[2].lower() in TEXTUAL


def decoded(cells: dict[str, Any], features: datasets.Features | None = None) -> dict[str, Any]:
    """A row with its members of text decoded, and as these features have them.

    Raises:
        BadRow: names the member that cannot be.
    """
    made = dict(cells)
    for name, cell in cells.items():
        if is_textual(name) and cell is not None:
            try:
                made[name] = WebDataset.DECODERS[name.rpartition(".")[2].lower()](cell)
                if features is not None:
                    made[name] = datasets.Features({name: features[name]}).encode_example({name: made[name]})[name]
            except (ValueError, TypeError, AttributeError) as error:
                raise BadRow(f"its '{name}' is broken: {' '.join(str(error).split())}") from None
    return made
