# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Shards: a dataset in many Parquet or tar (WebDataset) files, on a disk or behind a URL, read one file at a time.

fsspec finds the files and `datasets` reads them, both lazily: nothing is downloaded before it is needed.
"""

import itertools
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
import pyarrow.parquet
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from .media import BadRow
from .rows import undecoded
from .text_files import as_written, parse_json

ENDINGS = (".parquet", ".tar")
AT_ONCE = 64  # rows of a Parquet file that become Python objects together
MEDIUM = {"bytes", "path"}  # fields of a structure that is an image, audio clip or video
# errors of broken files; a network that is down raises others, which stop the training
BROKEN = (tarfile.TarError, ValueError, EOFError)


@dataclass(frozen=True)
class Shards:
    """The shards of a source.

    Args:
        source: the name of the dataset, for messages.
        table: the rows as `datasets` streams them, media left encoded.
        kinds: the columns' features.
        folder: the folder that relative paths in cells start from.
        files: one for each shard; empty if only `datasets` knows them.
    """

    source: str
    table: datasets.IterableDataset
    kinds: datasets.Features
    folder: Path = Path()
    files: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.table.num_shards

    def name(self, shard: int) -> str:
        """The name of a shard in messages."""
        return self.files[shard] if self.files else f"{self.source}, shard {shard + 1} of {len(self)}"

    @property
    def features(self) -> dict[str, Any]:
        """The columns' features; parts of a structure, such as WebDataset's `json`, are columns `json.part`."""
        flat: dict[str, Any] = {}
        for name, feature in self.kinds.items():
            inner = is_structure(feature)
            flat |= {f"{name}.{part}": value for part, value in feature.items()} if inner else {name: feature}
        return flat

    def read(self, shard: int, start: int = 0) -> Iterator[dict[str, Any] | BadRow]:
        """The cells of a shard's rows from row `start` on; if the file breaks off, the last item is the reason."""
        # `iter` of one shard does not ask which worker it is in: shards were dealt to readers before
        at_once = 1 if self.in_tar else AT_ONCE  # in a tar file, the rows before a break are kept
        rows = self.table.shard(num_shards=len(self), index=shard).iter(at_once)
        number = 0
        try:
            for batch in rows:
                count = len(next(iter(batch.values())))
                for place in range(max(0, start - number), count):
                    yield self.flat({name: cells[place] for name, cells in batch.items()})
                number += count
        except (OSError, *BROKEN) as error:
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                raise  # of the network or the disk; Arrow raises a bare one for broken pages
            reason = " ".join(str(error).split()) or type(error).__name__
            yield BadRow(f"the rest of the file cannot be read: {reason}")

    @property
    def in_tar(self) -> bool:
        return bool(self.files) and suffix(self.files[0]) == ".tar"

    def flat(self, cells: dict[str, Any]) -> dict[str, Any] | BadRow:
        """The cells by the names of `features`, or the reason why one is bad."""
        flat: dict[str, Any] = {}
        if self.in_tar:
            try:
                cells = decoded(cells, self.kinds)
            except BadRow as error:
                return error
        for name, feature in self.kinds.items():
            if is_structure(feature):
                flat |= {f"{name}.{part}": (cells.get(name) or {}).get(part) for part in feature}
            else:
                flat[name] = cells.get(name)
        return flat

    def enough_for(self, readers: int) -> "Shards":
        """These shards, or smaller ones (row groups of Parquet files): at least one for each reader.

        Raises:
            ValueError: there are fewer shards.
        """
        if len(self) >= readers:
            return self
        table = self.table.reshard() if hasattr(self.table, "reshard") else self.table  # not in older `datasets`
        if table.num_shards < readers:
            raise ValueError(
                f"'{self.source}' has {table.num_shards} shards for {readers} readers (processes times "
                "--dataloader_num_workers); expected at least one for each"
            )
        return replace(self, table=table, files=[])

    @property
    def is_local(self) -> bool:
        return bool(self.files) and "://" not in self.files[0]

    def count_rows(self) -> int | None:
        """The number of rows, from the footers of Parquet files; None if unknown."""
        if not self.files or suffix(self.files[0]) != ".parquet":
            return None
        count = 0
        for name in self.files:
            with fsspec.open(name, "rb") as file:
                try:
                    count += pyarrow.parquet.ParquetFile(file).metadata.num_rows
                except pyarrow.ArrowInvalid:
                    return None
        return count

    def whole_table(self) -> datasets.Dataset:
        """All rows in memory, as `read_table` gives those of a file.

        Raises:
            BadRow: a file is broken, or there are no rows.
        """
        rows = []
        for shard in range(len(self)):
            for cells in self.read(shard):
                if isinstance(cells, BadRow):
                    raise BadRow(f"{self.name(shard)}: {cells}")
                rows.append(cells)
        if not rows:
            raise BadRow(f"'{self.source}' holds no rows; expected at least one")
        return datasets.Dataset.from_list(rows, features=datasets.Features(self.features))


def is_structure(feature: Any) -> bool:
    """True if a column holds named parts, other than the two of a medium."""
    return isinstance(feature, dict) and set(feature) != MEDIUM


def open_shards(source: str, split: str | None = None) -> Shards:
    """The shards that a file, a glob, a folder or a URL names; with `split`, those of a dataset by its name.

    Raises:
        ValueError: there are no shards, they are of another kind, or cannot be read.
    """
    files = shard_files(source) if split is None else []
    try:
        if split is None:
            tar = suffix(files[0]) == ".tar"
            table, kinds = open_members(files) if tar else open_parquet(files)
        else:
            table = datasets.load_dataset(source, split=split, streaming=True)
            kinds = table.features
    except (OSError, DatasetNotFoundError, *BROKEN) as error:
        raise ValueError(f"'{source}' cannot be streamed: {str(error).strip().splitlines()[0]}") from error
    if not kinds:
        raise ValueError(f"'{source}' does not say which columns it has; expected Parquet or WebDataset shards")
    kinds = datasets.Features({name: undecoded(feature) for name, feature in kinds.items()})
    table = table.decode(False)
    local = bool(files) and "://" not in files[0]
    return Shards(source, table, kinds, Path(files[0]).parent if local else Path(), files)


def open_parquet(files: list[str]) -> tuple[datasets.IterableDataset, datasets.Features]:
    """The rows of Parquet files, and the columns' features."""
    table = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    return table, table.features


def is_shards(source: str) -> bool:
    """True if a source is one that `read_table` cannot read: a tar file, a glob or a URL."""
    return suffix(source) == ".tar" or "*" in source or "://" in source


def shard_files(source: str) -> list[str]:
    """The files of shards that a file, a glob, a folder or a URL names, sorted.

    Raises:
        ValueError: there are none, or they are not all Parquet or all tar.
    """
    try:
        system, path = url_to_fs(source)
        if "*" in path or "[" in path:
            found = system.glob(path)
        elif suffix(path) in ENDINGS and not (isinstance(system, LocalFileSystem) and system.isdir(path)):
            found = [path] if system.exists(path) else []
        else:
            found = [name for name in system.ls(path, detail=False) if suffix(name) in ENDINGS]
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(f"'{source}' cannot be streamed: {' '.join(str(error).split())}") from error
    if not found:
        raise ValueError(f"'{source}' names no shards; expected files that end in {' or '.join(ENDINGS)}")
    kinds = sorted({suffix(name) for name in found})
    if len(kinds) > 1 or kinds[0] not in ENDINGS:
        raise ValueError(f"'{source}' names {' and '.join(kinds)} files; --streaming reads .parquet or .tar shards")
    local = isinstance(system, LocalFileSystem)
    return sorted(map(str, found) if local else map(system.unstrip_protocol, found))


def suffix(name: str) -> str:
    """The suffix of a file's name in lower case; a URL's query, after `?`, is not part of the name."""
    return Path(name.split("?")[0]).suffix.lower()


TEXTUAL = ("txt", "text", "transcript", "cls", "cls2", "index", "inx", "id", "json")
LOOKED_AT = 5  # rows from which the members' features are inferred, as in `datasets`


class Members(WebDataset):
    """The rows of tar files, with textual members left as bytes."""

    DECODERS = {name: decode for name, decode in WebDataset.DECODERS.items() if name not in TEXTUAL}


def open_members(files: Sequence[str]) -> tuple[datasets.IterableDataset, datasets.Features]:
    """The rows of tar files, and the features of their cells once `decoded`.

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
    texts = [{name: cell for name, cell in row.items() if is_textual(name)} for row in rows]
    tables = [pyarrow.Table.from_pylist([row]) for row in texts]
    schema = pyarrow.concat_tables(tables, promote_options="default").schema
    return table, datasets.Features({**table.features, **datasets.Features.from_arrow_schema(schema)})


def is_textual(name: str) -> bool:
    """True if the member of this name holds text."""
    return name.rpartition(".")[2].lower() in TEXTUAL


def textual_decoder(name: str) -> Callable[[bytes], Any]:
    """The decoder of a member's bytes to text, or to structures of texts; 007 stays 007, and 1e5 1e5."""
    ending = name.rpartition(".")[2].lower()
    if ending == "json":
        return lambda cell: as_written(parse_json(cell.decode("utf-8-sig")))
    if ending in ("txt", "text", "transcript"):
        return lambda cell: cell.decode("utf-8")
    return lambda cell: cell.decode("utf-8").strip()  # a class or a number, without a last newline


def decoded(cells: dict[str, Any], features: datasets.Features | None = None) -> dict[str, Any]:
    """A row with its textual members decoded, and encoded by these features.

    Raises:
        BadRow: names the member that cannot be decoded.
    """
    made = dict(cells)
    for name, cell in cells.items():
        if is_textual(name) and cell is not None:
            try:
                made[name] = textual_decoder(name)(cell)
                if features is not None:
                    made[name] = datasets.Features({name: features[name]}).encode_example({name: made[name]})[name]
            except (ValueError, TypeError, AttributeError) as error:
                raise BadRow(f"its '{name}' is broken: {' '.join(str(error).split())}") from None
    return made
