# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMStream: an endless stream of rows from shards, shuffled in blocks, whose position is a few integers.

- The readers are processes times workers. In each pass over the data, reader r of R takes every R-th shard of a new
  random order; after its last shard it begins the next pass, so that no process runs out before another.
- A reader permutes `shuffle_buffer` rows, yields them and reads the next ones (as MosaicML's Streaming does). Draws
  depend on the seed and on the beginning of the block, on no state: to resume, a reader reads one block again.
- Media stay encoded until their row is yielded. It is checked then, and carries its images decoded.
"""

import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import fsspec.asyn
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..model.audio_mm import MAX_SECONDS
from ..model.images_mm import BACKGROUND
from .dataset import MMDataset
from .media import BadRow, MediaCheck, open_image
from .rows import Columns, Row, RowReader, media_markers
from .shards import Shards
from .targets import encode_target
from .web_images import WebImages

logger = logging.getLogger(__name__)
FIRST_ROWS, FIRST_BYTES = 2_000, 2**26  # read before training, at most
LOGGED = 20  # bad rows that each reader names


class Position(NamedTuple):
    """The progress of a reader: `used` rows of the block that begins at `row` of the shard at `place` in its order,
    in this `epoch`. Bad rows are among the used ones; `skipped` counts those of all epochs."""

    reader: int
    epoch: int = 0
    place: int = 0
    row: int = 0
    used: int = 0
    skipped: int = 0


class Sample(NamedTuple):
    """The cells of a row, or the reason why they could not be read."""

    shard: int
    row: int
    cells: dict[str, Any] | BadRow


@dataclass
class StreamedRow(Row):
    """A row, with the position of its reader after it."""

    position: Position = Position(0)


@dataclass
class MMStream(IterableDataset):
    """An endless stream of the rows of shards.

    Args:
        shards: as `open_shards` gives them.
        columns: the columns' names.
        task, labels: as those of `MMDataset`.
        shuffle_buffer: rows that are permuted at a time; with 0 or 1 all rows keep their order.
        seed: of the order.
        skip: leave bad rows out and count them.
        markers: the processor's markers of media, by modality.
        max_seconds, num_frames: seconds of an audio clip and frames of a video that will be used.
        too_long: returns the reason why a row is too long, None if it is not.
        background: the colour behind transparent images.
        web: as that of `MMDataset`.
        known_rows: the number of rows in a pass, if known.
        process, processes: determine the part of the shards that is read here.
        batches, positions: the batches that this process has used before, and the positions of its readers.

    Raises:
        ValueError: a column is missing.
        BadRow: while reading, names shard and row; or a reader finds no good row in a whole pass.
    """

    shards: Shards
    columns: Columns
    task: str = "generation"
    labels: list[str] | None = None
    shuffle_buffer: int = 1000
    seed: int = 0
    skip: bool = False
    markers: Mapping[str, str] = field(default_factory=media_markers)
    max_seconds: float = MAX_SECONDS
    num_frames: int | None = None
    too_long: Callable[[Row], str | None] | None = None
    background: str = BACKGROUND
    web: WebImages | None = None
    known_rows: int | None = None
    process: int = 0
    processes: int = 1
    batches: int = 0
    positions: dict[int, Position] = field(default_factory=dict)

    def __post_init__(self):
        shards = self.shards
        self.reader = RowReader(shards.source, shards.folder, self.columns, self.task, shards.features, self.web)

    def __iter__(self) -> Iterator[StreamedRow]:
        worker, workers, number = get_worker_info(), 1, 0
        if worker is not None:
            workers, number = worker.num_workers, worker.id
            fsspec.asyn.reset_lock()  # the lock of a forked process may be held by a thread that it lacks
        self.shards = self.shards.enough_for(self.processes * workers)
        # a loader asks its workers in turn, beginning with the first, which therefore acts as the reader that is next
        reader = self.process * workers + (number + self.batches) % workers
        yield from self.rows(self.positions.get(reader, Position(reader)), self.processes * workers)

    def rows(self, at: Position, readers: int) -> Iterator[StreamedRow]:
        """The rows that a reader yields from a position on."""
        skipped, good = at.skipped, at.place + at.row + at.used
        while True:
            for begin, block in self.blocks(at, readers):
                again = at.used if begin[:4] == at[:4] else 0  # rows that were yielded before
                for used in range(1, len(block) + 1):
                    sample = block.pop()
                    if used <= again:
                        continue
                    try:
                        row = self.checked(sample)
                    except BadRow as error:
                        skipped += 1
                        self.note_bad_rows(sample, error, skipped)
                        continue
                    good += 1
                    yield StreamedRow(**vars(row), position=begin._replace(used=used, skipped=skipped))
            if good == 0:
                raise BadRow(f"reader {at.reader} of {readers} found no usable row in all its shards of {self.source}")
            at, good = Position(at.reader, at.epoch + 1), 0

    @property
    def source(self) -> str:
        return self.shards.source

    def blocks(self, at: Position, readers: int) -> Iterator[tuple[Position, list[Sample]]]:
        """The blocks of one epoch over a reader's shards, from the position of one on, last rows first. The consumer
        may empty a block, so that no other is held beside it."""
        order = self.order(at.epoch)[at.reader :: readers]
        begin, block = at, list[Sample]()
        for place in range(at.place, len(order)):
            first = at.row if place == at.place else 0
            for row, cells in enumerate(self.shards.read(order[place], first), first):
                if not block:
                    begin = Position(at.reader, at.epoch, place, row)
                block.append(Sample(order[place], row, cells))
                if len(block) >= self.shuffle_buffer:
                    yield begin, self.shuffle(block, begin)
                    block = []
        if block:
            yield begin, self.shuffle(block, begin)

    def order(self, epoch: int) -> list[int]:
        """All shards in the order of this epoch."""
        return self.permutation(len(self.shards), "shards", epoch)

    def shuffle(self, block: list[Sample], begin: Position) -> list[Sample]:
        """Permute a block in place and return it."""
        block[:] = [block[i] for i in reversed(self.permutation(len(block), *begin[:4]))]
        return block

    def permutation(self, count: int, *parts: Any) -> list[int]:
        """A permutation of `count` indices, drawn by the seed and these parts; the identity without shuffling."""
        if self.shuffle_buffer <= 1:
            return list(range(count))
        number = zlib.crc32(repr((self.seed, *parts)).encode())
        return torch.randperm(count, generator=torch.Generator().manual_seed(number)).tolist()

    def checked(self, sample: Sample) -> Row:
        """The row of a sample, its images decoded and its target encoded for the collator.

        Raises:
            BadRow: the row cannot be used.
        """
        if isinstance(sample.cells, BadRow):
            raise sample.cells
        number = 1 + sample.row * len(self.shards) + sample.shard  # no other row has it
        row = self.reader.row(dict(sample.cells), number)
        reason = self.reader.complaint(row, self.markers, self.labels) or self.media_complaint(row)
        if reason is None:
            row.opened = {image.key: open_image(image.source, self.background) for image in row.images}
        if reason is None and self.too_long is not None:
            reason = self.too_long(row)
        if reason is not None:
            raise BadRow(reason)
        if row.target is not None:
            row.target = encode_target(self.task, row.target, self.labels)
        return row

    def media_complaint(self, row: Row) -> str | None:
        """The reason why a row's audio clips and videos cannot be used; None if they can."""
        media = {name: items for name, items in row.media.items() if name != "image"}
        if not any(media.values()):
            return None
        with ThreadPoolExecutor(1) as pool:
            check = MediaCheck(pool, self.max_seconds, self.num_frames)
            check.look(media)
        return check.complaint(media)

    def note_bad_rows(self, sample: Sample, error: BadRow, count: int) -> None:
        """Log why a bad row is skipped, if it is one of the first.

        Raises:
            BadRow: unless `skip`.
        """
        reason = f"{self.shards.name(sample.shard)}, row {sample.row + 1}: {error}"
        if not self.skip:
            raise BadRow(reason) from None
        if count <= LOGGED:
            logger.warning(f"skipped: {reason}" + ("; further bad rows will not be named" if count == LOGGED else ""))

    def first_rows(self) -> MMDataset:
        """The first good rows in the order of the shards, for what must be known before training.

        Raises:
            BadRow: a row is bad, unless `skip`; or all are.
        """
        kept: list[dict[str, Any]] = []
        size, reason = 0, "it has no rows"
        samples = (Sample(s, i, cells) for s in range(len(self.shards)) for i, cells in enumerate(self.shards.read(s)))
        for sample in samples:
            try:
                row = self.checked(sample)
            except BadRow as error:
                reason = str(error)
                self.note_bad_rows(sample, error, LOGGED + 1)
                continue
            kept.append(sample.cells)  # type: ignore[arg-type]  # not bad
            size += sum(len(m.source) for items in row.media.values() for m in items if isinstance(m.source, bytes))
            if len(kept) == FIRST_ROWS or size > FIRST_BYTES:
                break
        if not kept:
            raise BadRow(f"'{self.source}' holds no usable rows: {reason}")
        table = datasets.Dataset.from_list(kept, features=datasets.Features(self.shards.features))
        return MMDataset(
            self.source, table, self.shards.folder, self.columns, self.labels, task=self.task, web=self.web
        )
