# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""StreamLoader: batches of a stream, and the position after those that were used.

Workers prefetch, so each batch carries the position of its reader; only batches taken from the loader count. A
checkpoint holds the position as `stream_{process}.json`.
"""

import gc
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.utils.data import DataLoader

from .collator import MMCollator
from .media import BadRow
from .stream import MMStream, Position, StreamedRow

POSITION = "stream_position"


@dataclass
class StreamCollator:
    """A collator whose batches carry the position of their last row."""

    collator: Callable[[list[Any]], dict[str, Any]]

    def __call__(self, rows: list[StreamedRow]) -> dict[str, Any]:
        if isinstance(self.collator, MMCollator) and self.collator.augmentation is not None:
            # a new tensor: workers share the memory of the old one and may be in different epochs
            self.collator.augmentation.epoch = torch.tensor(rows[0].position.epoch)
        return {**self.collator(rows), POSITION: torch.tensor(rows[-1].position)}


def freeze_inherited(worker: int) -> None:
    """Exempt the objects that a worker shares with its parent from garbage collection.

    A full collection writes to each of them, so that a forked worker would get a copy of all, about 110 MB.
    """
    gc.freeze()


class StreamLoader(DataLoader):
    """A `DataLoader` of one process's part of a stream.

    Args:
        stream: this process's part, see `MMStream`.
        batch_size, collator: as those of a `DataLoader`.
        options: further arguments of a `DataLoader`.

    Raises:
        ValueError: there are more readers than shards.
        BadRow: while iterating, names shard and row.
    """

    def __init__(self, stream: MMStream, batch_size: int, collator: Callable, **options: Any):
        generator = torch.Generator()  # leaves the global random state alone
        options = {"worker_init_fn": freeze_inherited if options.get("num_workers") else None, **options}
        super().__init__(stream, batch_size, collate_fn=StreamCollator(collator), generator=generator, **options)
        self.stream, self.rows = stream, batch_size
        stream.shards = stream.shards.enough_for(stream.processes * max(1, self.num_workers))
        self.positions, self.batches, self.before, self.started = dict(stream.positions), stream.batches, 0, 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        self.started, self.before, reason = time.perf_counter(), self.batches, ""
        try:
            for batch in super().__iter__():
                position = Position(*batch.pop(POSITION).tolist())
                self.positions[position.reader] = position
                self.batches += 1
                yield batch
        except BadRow as error:  # from a worker, the sentence stands below its traceback
            reason = str(error).rpartition("BadRow: ")[2].strip()
        raise BadRow(reason)  # here, so that it does not keep the workers alive

    @property
    def skipped(self) -> int:
        """Bad rows among those that were used, in this process."""
        return sum(position.skipped for position in self.positions.values())

    def rows_per_second(self) -> float:
        """Rows per second of all processes, since the iteration began."""
        rows = (self.batches - self.before) * self.rows * self.stream.processes
        return round(rows / max(1e-9, time.perf_counter() - self.started), 1)

    def made_for(self) -> dict[str, int]:
        """The settings that must be the same when a run is resumed."""
        stream = self.stream
        names = [PurePosixPath(stream.shards.name(shard)).name for shard in range(len(stream.shards))]
        return {
            "processes": stream.processes,
            "workers": max(1, self.num_workers),
            "shards": len(names),
            "digest of their names": zlib.crc32("\n".join(names).encode()),
            "seed": stream.seed,
            "shuffle_buffer": stream.shuffle_buffer,
        }

    def save(self, folder: str | Path) -> None:
        """Write the position of this process."""
        state = {**self.made_for(), "batches": self.batches, "positions": list(self.positions.values())}
        (Path(folder) / f"stream_{self.stream.process}.json").write_text(json.dumps(state), encoding="utf-8")

    def resume(self, folder: str | Path) -> None:
        """Resume from the position in a checkpoint.

        Raises:
            ValueError: the checkpoint is of a run with other settings, or of one that does not stream.
        """
        path = Path(folder) / f"stream_{self.stream.process}.json"
        if not path.is_file():
            raise ValueError(f"there is no '{path}'; expected a checkpoint of a run that streams in as many processes")
        state = json.loads(path.read_text(encoding="utf-8"))
        for name, value in self.made_for().items():
            if state[name] != value:
                raise ValueError(
                    f"'{path}' was written with {name} {state[name]}; this run has {value}, expected the same"
                )
        self.batches = self.stream.batches = state["batches"]
        self.positions = {position[0]: Position(*position) for position in state["positions"]}
        self.stream.positions = dict(self.positions)
