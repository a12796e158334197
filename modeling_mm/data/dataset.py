# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Rows of image, text, audio and video from a table, checked before any work is done.

- Every row is checked first, each distinct medium opened and decoded once: bad input gets one sentence that names
  the file, the row and what was expected.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm

from ..model.audio_mm import MAX_SECONDS
from ..model.media_mm import MODALITIES
from ..tasks import TASKS
from .media import BadRow, MediaCheck
from .rows import Columns, Row, RowReader, media_markers, undecoded, with_turns
from .targets import encode_target
from .web_images import WebImages

logger = logging.getLogger(__name__)
CHUNK = 512  # rows that are checked at a time
KEPT_CELLS = 2_000_000  # of rows without texts and media that are read once, and not in each epoch; about 200 MB
FEW = 5  # a warning names classes with fewer rows


@dataclass
class MMDataset(torch.utils.data.Dataset):
    """Rows of a table that passed `check`, in order.

    Args:
        source: the file or name of the dataset, for messages.
        table, folder: as `tables.read_table` returns them.
        columns: the columns' names.
        labels: the class names; targets of a classification become class ids. None: targets are text.
        task: determines what the targets are, see `targets.py`; default: classification if there are labels.
        web: downloads images that are on the web, see `RowReader`.

    Raises:
        ValueError: a column is missing.
    """

    source: str
    table: datasets.Dataset
    folder: Path
    columns: Columns
    labels: list[str] | None = None
    kept: list[int] = None  # type: ignore[assignment]  # all rows
    bad_rows: list[dict[str, Any]] = field(default_factory=list)
    task: str = ""
    web: WebImages | None = None
    cut: dict[int, int] = field(default_factory=dict)  # turns that are kept of conversations which are too long
    longest_clip: float = 0.0  # seconds of the longest audio clip that `check` opened

    def __post_init__(self):
        self.task = self.task or ("generation" if self.labels is None else "classification")
        self.reader = RowReader(self.source, self.folder, self.columns, self.task, self.table.features, self.web)
        for name, feature in self.table.features.items():
            if undecoded(feature) != feature:
                self.table = self.table.cast_column(name, undecoded(feature))
        if self.kept is None:
            self.kept = list(range(len(self.table)))
        self.read_rows: dict[int, Row] = {}

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Row:
        row = self.row(self.kept[index])
        if row.target is not None:
            row.target = encode_target(self.task, row.target, self.labels)
        return row

    def row(self, number: int) -> Row:
        """Row `number` (from 0) of the table, its target not yet encoded; nothing is opened yet."""
        if number in self.read_rows:
            return copy(self.read_rows[number])
        row = self.reader.row(self.table[number], number + 1)
        if number in self.cut:
            row = with_turns(row, row.turns[: self.cut[number]])
        if self.is_table_only and len(self.read_rows) * len(self.columns.table) < KEPT_CELLS:
            self.read_rows[number] = copy(row)
        return row

    @cached_property
    def is_table_only(self) -> bool:
        """True if rows are numbers and categories alone; no column holds texts or media."""
        named = {name for names in self.reader.names.values() for name in names}
        return bool(self.columns.table) and not named & set(self.table.column_names)

    def check(
        self,
        skip: bool = False,
        markers: Mapping[str, str] | None = None,
        max_seconds: float = MAX_SECONDS,
        num_frames: int | None = None,
    ) -> "MMDataset":
        """Check every row before any work is done, with a progress bar; returns the dataset of the good rows.

        A warning counts silent audio clips, and those a little longer than `max_seconds`, which will be cut.

        Args:
            skip: leave bad rows out, where the first would raise an error.
            markers: the markers of the processor that will prepare the rows, by modality (see
                `rows.media_markers`); default: those of a new processor.
            num_frames: the frames that will be sampled from each video; None: rows with a video are bad.

        Raises:
            BadRow: names source and row of the first bad row, unless `skip`; or no row is left.
            ValueError: there is audio or video, and the libraries that read it are not installed.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(self), desc=f"Checking {self.source}") as bar:
            media = MediaCheck(pool, max_seconds, num_frames)
            markers = markers or media_markers()
            for start in range(0, len(self), CHUNK):  # in parts, so that embedded media do not fill the memory
                numbers = self.kept[start : start + CHUNK]
                self.note_bad_rows(self.complaints(numbers, markers, media), skip)
                bar.update(len(numbers))
        self.longest_clip = max(media.seconds, default=0.0)
        for remark in media.remarks():
            logger.warning(f"{self.source}: {remark}")
        return self.without_bad_rows()

    def complaints(self, numbers: list[int], markers: Mapping[str, str], media: MediaCheck) -> dict[int, str]:
        """The reasons why rows cannot be used, by the numbers of these rows; `markers` are by modality."""
        rows, reasons = {}, {}
        for number in numbers:
            try:
                rows[number] = self.row(number)
                reasons[number] = self.reader.complaint(rows[number], markers, self.labels)
            except BadRow as error:
                reasons[number] = str(error)
        media.look({name: [item for row in rows.values() for item in row.media[name]] for name in MODALITIES})
        for number, row in rows.items():
            reasons[number] = reasons[number] or media.complaint(row.media)
        return {number: reason for number, reason in reasons.items() if reason is not None}

    def note_bad_rows(self, reasons: dict[int, str], skip: bool) -> None:
        """Add bad rows to the list of skipped ones.

        Raises:
            BadRow: names source and row of the first, unless `skip`.
        """
        for number, reason in sorted(reasons.items()):
            if not skip:
                raise BadRow(f"{self.source}, row {number + 1}: {reason}")
            self.bad_rows.append({"source": self.source, "row": number + 1, "reason": reason})

    def without_bad_rows(self) -> "MMDataset":
        """This dataset without the bad rows that were noted.

        Raises:
            BadRow: no row is left.
        """
        left_out = {bad["row"] - 1 for bad in self.bad_rows}
        self.kept = [number for number in self.kept if number not in left_out]
        if not self.kept:
            raise BadRow(f"'{self.source}' holds no usable rows: {self.bad_rows[0]['reason']}")
        return self

    def hold_out(self, share: float, seed: int) -> tuple["MMDataset", "MMDataset"]:
        """Split off a share of the rows at random; rows about the same image or of the same concept stay together.

        Raises:
            ValueError: all rows are about one image, or the share is not between 0 and 1.
        """
        groups = self.groups(by_concept=True)
        if len(groups) < 2:
            raise ValueError(
                f"all rows of '{self.source}' are about one image, so none can be held out; give --validation_file"
            )
        if not 0 < share < 1:
            raise ValueError(f"the validation share is {share}; expected a number between 0 and 1")
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
        count = min(len(groups) - 1, max(1, round(share * len(groups))))
        chosen = self.choose_groups([groups[g] for g in order], count)
        held = sorted(self.kept[i] for group in chosen for i in group)
        rest = sorted(set(self.kept) - set(held))
        return self.subset(rest), self.subset(held)

    def choose_groups(self, groups: list[list[int]], count: int) -> list[list[int]]:
        """The first `count` groups whose removal leaves every class with rows; fewer if there are not so many."""
        if not TASKS[self.task].has_classes:
            return groups[:count]
        targets = self.targets()
        classes = [set(target) if isinstance(target, list) else {target} for target in targets]
        left = Counter(name for names in classes for name in names)
        if few := sorted(str(name) for name, rows in left.items() if rows < FEW):
            logger.warning(f"{self.source}: {len(few)} classes have fewer than {FEW} rows: {', '.join(few[:LISTED])}")
        chosen: list[list[int]] = []
        for group in groups:
            rows = Counter(name for i in group for name in classes[i])
            if len(chosen) < count and all(left[name] > number for name, number in rows.items()):
                chosen.append(group)
                left -= rows
        return chosen or groups[:1]

    def targets(self) -> list[Any]:
        """The targets of all kept rows, not encoded; nothing is opened."""
        return [self.row(number).target for number in self.kept]

    def present_media(self) -> set[str]:
        """The modalities beside the text that rows have; reading ends with the last of those that have a column."""
        columns, found = set(self.table.column_names), set[str]()
        named = {name for name in MODALITIES if columns & set(self.reader.names[name])}
        for number in self.kept:
            if found == named:
                break
            found |= {name for name, items in self.row(number).media.items() if items}
        return found

    def subset(self, kept: list[int]) -> "MMDataset":
        """The same table with other rows kept."""
        return MMDataset(
            *(self.source, self.table, self.folder, self.columns, self.labels, kept),
            task=self.task, web=self.web, cut=self.cut,
        )  # fmt: skip

    def groups(self, by_concept: bool = False) -> list[list[int]]:
        """Indices of the rows grouped by their first image, else video, else audio clip.

        A row without media is a group by itself. With `by_concept`, rows that have a concept are grouped by it.
        """
        groups: dict[str, list[int]] = {}
        for index, number in enumerate(self.kept):
            row = self.row(number)
            media = row.images or row.videos or row.audio
            name = media[0].key if media else f"row {number}"
            groups.setdefault(row.concept if by_concept and row.concept else name, []).append(index)
        return list(groups.values())


LISTED = 20  # bad rows that a warning lists; the file has all


def write_bad_rows(bad_rows: list[dict[str, Any]], output: Path) -> None:
    """Write source, row and reason of each skipped row to bad_rows.jsonl, and warn; no file if there is none."""
    path = output / "bad_rows.jsonl"
    path.unlink(missing_ok=True)
    if bad_rows:
        path.write_text("".join(json.dumps(bad) + "\n" for bad in bad_rows), encoding="utf-8")
        counts = ", ".join(f"{count} of {name}" for name, count in Counter(bad["source"] for bad in bad_rows).items())
        listed = [f"  {bad['source']}, row {bad['row']}: {bad['reason']}" for bad in bad_rows[:LISTED]]
        more = [f"  and {len(bad_rows) - LISTED} more"] if len(bad_rows) > LISTED else []
        heading = f"{len(bad_rows)} bad rows were skipped ({counts}); they are listed in {path}"
        logger.warning("\n".join([heading, *listed, *more]))
