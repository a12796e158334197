# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A gallery: one LanceDB table of image embeddings on disk, with the columns of the images' rows.

- Every write is one commit of LanceDB, complete or absent, however the process ends; rows are written by id, so that
  writing them twice changes nothing.
- The model that made the table and the search parameters of its ANN index are metadata of the column `vector`.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from .dual_encoder import Fingerprint, explain_mismatch

try:
    import lancedb
except ImportError as error:
    raise ValueError("index and search need LanceDB: pip install 'modeling-mm[search]'") from error

TABLE = "pictures"
MADE_BY, ANN = "modeling_mm:made_by", "modeling_mm:ann"  # keys of the metadata
INDEX_COLUMNS = ["id", "image", "_source", "_stamp", "_details"]  # besides the vector; all others come from the rows
FILTER_IDS = 1000  # ids in one filter
LOCK_SECONDS = 10
OLD = timedelta(hours=1)  # age of versions that no search can still be reading


def is_local(index: str) -> bool:
    """True if an index is a folder, and not an address of object storage such as s3://bucket/images."""
    return "://" not in index


@contextlib.contextmanager
def only_writer(index: str) -> Iterator[None]:
    """Lock a local index against other writers; the lock ends with the process, even if it is killed.

    Raises:
        ValueError: another process is writing.
    """
    if not is_local(index):
        yield
        return
    Path(index).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(index) / ".lock", timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise ValueError(f"another process is writing to the index '{index}'; wait for it to end") from None


def quoted(values: Sequence[str]) -> str:
    """Strings as a list in SQL."""
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


class Gallery:
    """The table of an index.

    Args:
        index: its folder or address, for messages.
        table: the open table.
    """

    def __init__(self, index: str, table: Any):
        self.index, self.table = index, table

    @classmethod
    def find(cls, index: str) -> "Gallery | None":
        """The gallery of an index; None if there is none, or if a process was killed before its first commit.

        Raises:
            ValueError: the table was not made by this command.
        """
        if is_local(index) and not Path(index).is_dir():
            return None  # connecting would make the folder
        try:
            table = lancedb.connect(index).open_table(TABLE)
        except ValueError as error:
            if "not found" in str(error):
                return None
            raise
        if "vector" not in table.schema.names or MADE_BY.encode() not in (table.schema.field("vector").metadata or {}):
            raise ValueError(f"the table '{TABLE}' in '{index}' does not say which model made it; expected an index")
        return cls(index, table)

    @classmethod
    def open(cls, index: str) -> "Gallery":
        """The gallery of an index that must exist.

        Raises:
            ValueError: there is no index.
        """
        gallery = cls.find(index)
        if gallery is None:
            raise ValueError(f"'{index}' is no index; fill one with modeling-mm index --images")
        return gallery

    @classmethod
    def create(cls, index: str, made_by: Fingerprint, metadata: dict[str, pa.ChunkedArray]) -> "Gallery":
        """A new gallery without rows, with columns for the images' metadata."""
        kind, made = pa.list_(pa.float32(), made_by["width"]), {MADE_BY: json.dumps(made_by)}
        fixed = [pa.field(name, pa.string(), nullable=name != "id") for name in INDEX_COLUMNS]
        others = [pa.field(name, column.type) for name, column in metadata.items()]
        schema = pa.schema([*fixed, pa.field("vector", kind, metadata=made), *others])
        return cls(index, lancedb.connect(index).create_table(TABLE, schema=schema))

    def __len__(self) -> int:
        return self.table.count_rows()

    def get_metadata(self, key: str) -> Any:
        """Metadata of the column `vector`; None if there is none under this key."""
        found = (self.table.schema.field("vector").metadata or {}).get(key.encode())
        return None if found is None else json.loads(found)

    def set_metadata(self, key: str, value: Any) -> None:
        """Write `value` to the metadata of the column `vector`; None deletes it."""
        text = None if value is None else json.dumps(value)
        self.table.update_field_metadata({"path": "vector", "metadata": {key: text}})

    @property
    def made_by(self) -> Fingerprint:
        """The fingerprint of the model that made the embeddings."""
        return self.get_metadata(MADE_BY)

    @property
    def metadata_columns(self) -> list[str]:
        """The names of the columns that come from the images' rows."""
        return [name for name in self.table.schema.names if name not in (*INDEX_COLUMNS, "vector")]

    def check(self, fingerprint: Fingerprint) -> None:
        """Check that a model's embeddings can be compared with those of the gallery.

        Raises:
            ValueError: names the difference.
        """
        if difference := explain_mismatch(self.made_by, fingerprint):
            raise ValueError(
                f"the index '{self.index}' was made by '{self.made_by['model']}', which differs from "
                f"'{fingerprint['model']}': {difference}; give the model that made it, or index into another folder"
            )

    def fit_columns(self, metadata: dict[str, pa.ChunkedArray], rows: int) -> dict[str, pa.Array]:
        """The metadata of `rows` rows with the table's columns and types; the table gains columns that it lacks.

        Raises:
            ValueError: a column has another type than the table's column of this name.
        """
        names = set(self.table.schema.names)
        if new := [pa.field(name, column.type) for name, column in metadata.items() if name not in names]:
            self.table.add_columns(new)
        columns = dict[str, pa.Array]()
        for name in self.metadata_columns:
            kind = self.table.schema.field(name).type
            try:
                columns[name] = metadata[name].cast(kind) if name in metadata else pa.nulls(rows, kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise ValueError(
                    f"column '{name}' holds {metadata[name].type}, but in the index '{self.index}' it is {kind}"
                ) from None
        return columns

    def known(self) -> dict[str, dict[str, str]]:
        """The index columns of every row, by id."""
        return {row["id"]: row for row in self.table.search().select(INDEX_COLUMNS).to_arrow().to_pylist()}

    def put(self, fixed: dict[str, list[str]], vectors: np.ndarray, metadata: dict[str, pa.Array]) -> None:
        """Write rows in one commit; they replace those with the same ids.

        Args:
            fixed: the index columns.
            vectors: (B, E).
            metadata: the columns of the images' rows.
        """
        kind = pa.float32()
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), kind), vectors.shape[1])
        table = pa.table({**fixed, "vector": column, **metadata})
        writer = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        writer.execute(table.select(self.table.schema.names))

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """The embeddings (B, E) of rows of the gallery by id."""
        found: dict[str, np.ndarray] = {}
        for start in range(0, len(ids), FILTER_IDS):
            rows = (
                self.table.search()
                .where(f"id IN ({quoted(ids[start : start + FILTER_IDS])})")
                .select(["id", "vector"])
            )
            rows = rows.to_arrow()
            vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
            found.update(zip(rows["id"].to_pylist(), vectors, strict=True))
        return np.stack([found[row_id] for row_id in ids])

    def remove(self, ids: Sequence[str]) -> None:
        """Delete rows by id."""
        for start in range(0, len(ids), FILTER_IDS):
            self.table.delete(f"id IN ({quoted(ids[start : start + FILTER_IDS])})")

    def compact(self) -> None:
        """Join small files, add new rows to the ANN index, and delete old versions that no search reads any more."""
        self.table.optimize(cleanup_older_than=OLD)

    def nearest(
        self,
        query: np.ndarray,
        count: int,
        where: str | None = None,
        exact: bool = False,
        search_params: dict | None = None,
    ) -> list[dict[str, Any]]:
        """The rows most similar to a query (E,), each with its cosine as `score`.

        Args:
            where: an SQL condition on the columns that rows must fulfil.
            exact: compare with every row, even if there is an ANN index.
            search_params: parameters of the ANN search; default: those chosen when the index was built.

        Raises:
            ValueError: the condition cannot be used.
        """
        columns = ["id", "image", *self.metadata_columns, "_distance"]
        search = self.table.search(query, vector_column_name="vector").distance_type("cosine").limit(count)
        search = search.select(columns)
        if search_params is None and (ann := self.get_metadata(ANN)):
            search_params = ann["effort"]
        if exact or search_params is None:
            search = search.bypass_vector_index()
        else:
            for name, value in search_params.items():
                search = getattr(search, name)(value)
        try:
            rows = (search.where(where) if where else search).to_list()
        except (ValueError, RuntimeError) as error:
            if where is None:
                raise
            reason, names = str(error).strip().splitlines()[0], ", ".join(columns[:-1])
            raise ValueError(f'the filter "{where}" cannot be used: {reason} (the columns are {names})') from None
        return [{"score": 1 - row.pop("_distance"), **row} for row in rows]
