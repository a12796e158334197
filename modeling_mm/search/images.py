# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The images that an index should hold: those of a folder, or those that the rows of a file name.

An image's id is the value of the file's id column, or else its path as the folder or the file has it. All other
columns are kept; numbers of JSON stay numbers, and CSV columns that hold only numbers become numbers, so that
`--where "price < 10"` compares numbers.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..data.tables import FILE_READERS, read_file

RESERVED = ("id", "image", "vector")  # columns of the index, like all names that start with _


@dataclass
class ImageRows:
    """Images by id and path, the other columns of their rows, and the images that were skipped.

    stamps: size and modification time of each file; details: a digest of each image's row in the index.
    """

    source: str
    ids: list[str]
    paths: list[str]
    metadata: dict[str, pa.ChunkedArray]
    stamps: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def stamped(self) -> "ImageRows":
        """The rows whose files exist, with their stamps and details; the others are listed as skipped."""
        kept, stamps, skipped = [], [], list(self.skipped)
        for position, path in enumerate(self.paths):
            try:
                status = os.stat(path)
            except OSError as error:
                reason = f"the image '{path}' does not exist" if isinstance(error, FileNotFoundError) else str(error)
                skipped.append({"id": self.ids[position], "image": path, "reason": reason})
                continue
            kept.append(position)
            stamps.append(f"{status.st_size}-{status.st_mtime_ns}")
        ids, paths = ([values[i] for i in kept] for values in (self.ids, self.paths))
        metadata = {name: column.take(pa.array(kept, pa.int64())) for name, column in self.metadata.items()}
        columns = pa.table(metadata).to_pylist() or [{}] * len(paths)  # a table without columns has no rows either
        details = [
            hashlib.sha256(json.dumps([self.source, path, row], default=str).encode()).hexdigest()[:16]
            for path, row in zip(paths, columns, strict=True)
        ]
        return ImageRows(self.source, ids, paths, metadata, stamps, details, skipped)


def read_images(source: str, image_column: str = "image", id_column: str | None = None) -> ImageRows:
    """The images of a folder, or of a CSV, TSV, JSONL or Parquet file.

    Raises:
        ValueError: there are no images, a column is missing, or two rows have the same id.
    """
    path = Path(source).resolve()
    if path.is_dir():
        return folder_images(path)
    if path.suffix.lower() not in FILE_READERS or not path.is_file():
        raise ValueError(f"'{source}' is neither a folder nor a {', '.join(FILE_READERS)} file that exists")
    text_columns = [name for name in ("id", image_column, id_column) if name]
    table = read_file(path, text_columns).with_format("arrow")[:].combine_chunks()
    ids_from = id_column or ("id" if "id" in table.column_names else image_column)
    for name in (image_column, ids_from):
        if name not in table.column_names:
            found = ", ".join(table.column_names)
            raise ValueError(f"'{source}' has no column '{name}'; it has {found} (see --image_column, --id_column)")
    cells, ids = table[image_column].to_pylist(), table[ids_from].to_pylist()
    if wrong := next((cell for cell in cells if cell is not None and not isinstance(cell, str)), None):
        raise ValueError(f"column '{image_column}' of '{source}' holds {type(wrong).__name__}; expected paths")
    check_unique(source, ids, ids_from)
    metadata = {name: table[name] for name in table.column_names if name not in (image_column, ids_from)}
    if reserved := [name for name in metadata if name in RESERVED or name.startswith("_")]:
        raise ValueError(f"'{source}' has a column '{reserved[0]}', a name that the index needs for itself; rename it")
    if FILE_READERS[path.suffix.lower()] == "csv":
        metadata = {name: with_numbers(column) for name, column in metadata.items()}
    kept = [
        row for row, (cell, row_id) in enumerate(zip(cells, ids, strict=True)) if cell and row_id not in (None, "")
    ]
    missing = sorted(set(range(len(cells))) - set(kept))
    skipped = [{"id": "", "image": "", "reason": f"row {row + 1} lacks an image or an id"} for row in missing]
    paths = [os.path.join(path.parent, cells[row]) for row in kept]
    chosen = {name: column.take(pa.array(kept, pa.int64())) for name, column in metadata.items()}
    return ImageRows(str(path), [str(ids[row]) for row in kept], paths, chosen, skipped=skipped)


def folder_images(folder: Path) -> ImageRows:
    """All images in a folder and its subfolders, found by their suffixes; hidden files are skipped.

    Raises:
        ValueError: there are no images.
    """
    known = set(ImageFolder.EXTENSIONS)
    files = [file for file in folder.rglob("*") if file.suffix.lower() in known and not file.name.startswith(".")]
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    if not names:
        raise ValueError(f"the folder '{folder}' holds no images")
    return ImageRows(str(folder), names, [str(folder / name) for name in names], {})


def check_unique(source: str, ids: Sequence[Any], column: str) -> None:
    """Check that no two rows have the same id.

    Raises:
        ValueError: names the first two that have.
    """
    first: dict[str, int] = {}
    for row, row_id in enumerate(ids):
        if row_id not in (None, "") and first.setdefault(str(row_id), row) != row:
            raise ValueError(
                f"rows {first[str(row_id)] + 1} and {row + 1} of '{source}' have the same id '{row_id}' in column "
                f"'{column}'; ids must differ (--id_column names the column with them)"
            )


def with_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of strings, as integers or floats if every cell is written as a number; 007 is a name."""
    if column.null_count == len(column):
        return column
    if pc.all(pc.match_substring_regex(column, r"^(-?[1-9]\d{0,17}|0)$")).as_py():
        return pc.cast(column, pa.int64())
    if pc.all(pc.match_substring_regex(column, r"^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$")).as_py():
        return pc.cast(column, pa.float64())
    return column
