# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Rows of image and text from files or data sets, checked before any work is done.

- CSV, TSV, JSONL, Parquet, an image folder, any name the `datasets` library knows, and `easy-vqa` (the PyPI package).
- Paths in a file are relative to it; an empty cell is a missing modality; several images are a list, or paths joined
  by `;` in a CSV cell.
- Every row is looked at first, each distinct picture opened and decoded once: bad input is one sentence that names
  file, row and what was expected.
"""

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import Sampler
from tqdm.auto import tqdm

from .images import BadRow, image_complaint, image_key
from .targets import encode_target, label_columns, read_target, target_complaint

CHUNK = 512  # rows that are checked at a time
FILE_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Columns:
    """Which column holds what; `target` is the answer or the label (`a,b`: two numbers), None for rows without one."""

    image: str = "image"
    text: str = "text"
    target: str | None = None


@dataclass
class Row:
    """One example: `images` are paths or encoded bytes, `number` counts from 1 within the source."""

    number: int
    images: list[str | bytes]
    text: str
    target: Any = None


def read_table(source: str, split: str = "train") -> tuple[datasets.Dataset, Path]:
    """A table from a file, folder or name, and the folder that relative paths in it start from.

    Raises:
        ValueError: it cannot be found or read, or holds no rows.
    """
    path = Path(source)
    try:
        if source == "easy-vqa":
            return read_easy_vqa(split), Path()
        if path.suffix.lower() in FILE_READERS:
            if not path.is_file():
                raise ValueError(f"the file '{source}' does not exist")
            table = read_file(path)
        elif path.is_dir():
            return read_folder(path, split)
        else:
            table = datasets.load_dataset(source, split=split)
    except DatasetGenerationError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"'{source}' cannot be read as a table: {reason}") from error
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"'{source}' is neither a file, a folder nor a known data set: {reason}") from error
    if len(table) == 0:
        raise ValueError(f"'{source}' holds no rows; expected at least one")
    return table, path.parent


def read_folder(path: Path, split: str) -> tuple[datasets.Dataset, Path]:
    """An image folder, with metadata or one folder per class; `split` matters where it holds several.

    Raises:
        ValueError: it holds several splits, and not this one.
    """
    for folder in (path / split, path):
        if (folder / "metadata.csv").is_file():  # read by `imagefolder`, 007 would become 7.0 and None be missing
            table = read_file(folder / "metadata.csv")
            return table.rename_column("file_name", "image") if "file_name" in table.column_names else table, folder
    splits = datasets.load_dataset("imagefolder", data_dir=str(path))
    if split not in splits and len(splits) > 1:
        raise ValueError(f"'{path}' has the splits {', '.join(splits)}, not '{split}'")
    return splits[split] if split in splits else next(iter(splits.values())), path


def undecoded(feature: Any) -> Any:
    """A column's feature with its pictures, alone or in lists, left encoded."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    return datasets.List(undecoded(feature.feature)) if isinstance(feature, datasets.List) else feature


def read_file(path: Path) -> datasets.Dataset:
    """One CSV, TSV, JSONL or Parquet file; CSV cells stay strings, and only an empty one counts as missing.

    Raises:
        ValueError: the file is empty.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"'{path}' holds no rows; expected at least one")
    reader = FILE_READERS[path.suffix.lower()]
    options: dict[str, Any] = {}
    if reader == "csv":
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                names = next(csv.reader(file, delimiter=separator))
            except UnicodeDecodeError as error:
                raise ValueError(f"'{path}' cannot be read as a table; expected UTF-8 text: {error}") from None
        strings = datasets.Features({name: datasets.Value("string") for name in names})
        options = {"sep": separator, "features": strings, "keep_default_na": False, "na_values": [""]}
    log = logging.getLogger("datasets.packaged_modules")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it would log the traceback of what we say in one sentence
    try:
        return datasets.load_dataset(reader, data_files=str(path), split="train", **options)
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"'{path}' holds no rows; expected at least one") from None
        raise
    finally:
        log.setLevel(level)


def read_easy_vqa(split: str) -> datasets.Dataset:
    """The easy-VQA questions (Zhou 2019) of the installed PyPI package: split `train` or `test`.

    Raises:
        ValueError: the package is not installed, or another split is asked for.
    """
    try:
        import easy_vqa
    except ImportError:
        raise ValueError("the data set 'easy-vqa' needs the package: pip install easy-vqa") from None
    if split not in ("train", "test"):
        raise ValueError(f"'easy-vqa' has the splits 'train' and 'test', not '{split}'")
    questions, images = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }[split]
    texts, answers, image_ids = questions()
    paths = images()
    return datasets.Dataset.from_dict({"image": [paths[i] for i in image_ids], "text": texts, "answer": answers})


@dataclass
class MMDataset(torch.utils.data.Dataset):
    """Rows of a table that passed `check`, in order.

    Args:
        source: the file or name it was read from, for messages.
        table, folder: as `read_table` returns them.
        columns: which column holds what.
        labels: the class names; rows of a classification become class ids. None: targets are text.
        task: what the targets are, see `targets.py`; by default of a classification where labels are given.

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

    def __post_init__(self):
        self.task = self.task or ("generation" if self.labels is None else "classification")
        names = self.table.column_names
        wanted = label_columns(self.task, self.columns.target)
        targets = set(wanted)
        wanted.append(self.columns.image)
        if set(names) - {self.columns.image} - targets:  # something else that may be the text
            wanted.append(self.columns.text)
        for name in filter(None, wanted):
            if name not in names:
                raise ValueError(
                    f"'{self.source}' has no column '{name}'; it has {', '.join(names)} (name the right one with "
                    '--image_column, --text_column or --label_column; "" where there is no picture or text)'
                )
        for name, feature in self.table.features.items():
            if undecoded(feature) != feature:
                self.table = self.table.cast_column(name, undecoded(feature))
        if self.kept is None:
            self.kept = list(range(len(self.table)))

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Row:
        row = self.row(self.kept[index])
        if row.target is not None:
            row.target = encode_target(self.task, row.target, self.labels)
        return row

    def row(self, number: int) -> Row:
        """Row `number` (from 0) of the table, with its target as it stands there; nothing is opened yet."""
        cells = self.table[number]
        text, target = cells.get(self.columns.text), None
        if isinstance(text, (list, dict)):
            raise BadRow(f"'{self.columns.text}' holds a list or structure; expected one plain value")
        for name in label_columns(self.task, self.columns.target):
            feature, cell = self.table.features[name], cells[name]
            if isinstance(feature, datasets.ClassLabel) and cell is not None:
                cells[name] = feature.int2str(cell) if cell >= 0 else None  # -1 stands for unlabelled
        if self.columns.target is not None:
            target = read_target(self.task, self.columns.target, cells)
        return Row(number + 1, self.images(cells.get(self.columns.image)), "" if text is None else str(text), target)

    def images(self, cell: Any) -> list[str | bytes]:
        """The pictures that an image cell names or holds.

        Raises:
            BadRow: it is of another kind.
        """
        if cell is None or cell == "":
            return []
        if isinstance(cell, str):
            return [os.path.join(self.folder, part.strip()) for part in cell.split(";") if part.strip()]
        if isinstance(cell, bytes):
            return [cell]
        if isinstance(cell, dict) and "path" in cell:
            return [cell["bytes"] if cell.get("bytes") is not None else os.path.join(self.folder, cell["path"])]
        if not isinstance(cell, list):
            raise BadRow(f"'{self.columns.image}' holds {cell!r:.60}; expected a path, a picture or a list of them")
        return [image for part in cell for image in self.images(part)]

    def check(self, skip: bool = False, image_token: str = "<image>") -> "MMDataset":
        """Look at every row before any work is done, with progress; bad rows stop it or, with `skip`, are left out.

        Raises:
            BadRow: names source and row, when not skipping; or no row is left.
        """
        opened: dict[str, str | None] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(self), desc=f"Checking {self.source}") as bar:
            for start in range(0, len(self), CHUNK):  # in parts, so that embedded pictures do not fill the memory
                numbers = self.kept[start : start + CHUNK]
                self.note(self.complaints(numbers, image_token, opened, pool), skip)
                bar.update(len(numbers))
        return self.without_bad_rows()

    def complaints(
        self, numbers: list[int], image_token: str, opened: dict[str, str | None], pool: Executor
    ) -> dict[int, str]:
        """What is wrong with the bad ones among these rows; pictures in `opened` were looked at before."""
        rows, reasons = {}, {}
        for number in numbers:
            try:
                rows[number] = self.row(number)
                reasons[number] = self.complaint(rows[number], image_token)
            except BadRow as error:
                reasons[number] = str(error)
        new = {image_key(image): image for row in rows.values() for image in row.images}
        new = {key: image for key, image in new.items() if key not in opened}
        opened.update(zip(new, pool.map(image_complaint, new.values()), strict=True))
        for number, row in rows.items():
            reasons[number] = reasons[number] or next(filter(None, (opened[image_key(i)] for i in row.images)), None)
        return {number: reason for number, reason in reasons.items() if reason is not None}

    def note(self, reasons: dict[int, str], skip: bool) -> None:
        """Keep bad rows for the list of what was skipped.

        Raises:
            BadRow: names source and row of the first, when not skipping.
        """
        for number, reason in sorted(reasons.items()):
            if not skip:
                raise BadRow(f"{self.source}, row {number + 1}: {reason}")
            self.bad_rows.append({"source": self.source, "row": number + 1, "reason": reason})

    def without_bad_rows(self) -> "MMDataset":
        """This data set with the rows that were noted left out.

        Raises:
            BadRow: none is left.
        """
        left_out = {bad["row"] - 1 for bad in self.bad_rows}
        self.kept = [number for number in self.kept if number not in left_out]
        if not self.kept:
            raise BadRow(f"'{self.source}' holds no usable rows: {self.bad_rows[0]['reason']}")
        return self

    def complaint(self, row: Row, image_token: str) -> str | None:
        """What is wrong with a row, its pictures' contents apart."""
        markers = row.text.count(image_token)
        if not row.images and not row.text:
            return f"'{self.columns.image}' and '{self.columns.text}' are both empty; expected at least one of them"
        if markers and markers != len(row.images):
            return f"the text has {markers} '{image_token}' markers but the row has {len(row.images)} images"
        if self.task == "matching":
            missing = self.columns.text if row.images else self.columns.image
            return None if row.images and row.text else f"'{missing}' is empty; matching needs a picture and a text"
        if self.columns.target is None:
            return None
        return target_complaint(self.columns.target, row.target, self.labels)

    def hold_out(self, share: float, seed: int) -> tuple["MMDataset", "MMDataset"]:
        """Split off a share of the rows at random; rows about one picture stay together.

        Raises:
            ValueError: all rows are about one picture, or the share is not between 0 and 1.
        """
        groups = self.groups()
        if len(groups) < 2:
            raise ValueError(
                f"all rows of '{self.source}' are about one picture, so none can be held out; give --validation_file"
            )
        if not 0 < share < 1:
            raise ValueError(f"the validation share is {share}; expected a number between 0 and 1")
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
        count = min(len(groups) - 1, max(1, round(share * len(groups))))
        held = sorted(self.kept[i] for g in order[:count] for i in groups[g])
        rest = sorted(self.kept[i] for g in order[count:] for i in groups[g])
        return self.subset(rest), self.subset(held)

    def targets(self) -> list[Any]:
        """The targets of all kept rows, as they stand in the table; nothing is opened."""
        return [self.row(number).target for number in self.kept]

    def subset(self, kept: list[int]) -> "MMDataset":
        """The same table with other rows kept."""
        return MMDataset(self.source, self.table, self.folder, self.columns, self.labels, kept, task=self.task)

    def groups(self) -> list[list[int]]:
        """Indices of rows with the same first picture, together; a row without a picture is a group of its own."""
        groups: dict[str, list[int]] = {}
        for index, number in enumerate(self.kept):
            images = self.row(number).images
            groups.setdefault(image_key(images[0]) if images else f"row {number}", []).append(index)
        return list(groups.values())


class ImageGroupSampler(Sampler[int]):
    """A new random order of pictures in each epoch, the rows about one picture side by side.

    With it a batch of B rows holds few distinct pictures, and the vision tower works once for each.
    """

    def __init__(self, groups: Sequence[Sequence[int]], seed: int):
        self.groups, self.seed, self.epoch = groups, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for g in torch.randperm(len(self.groups), generator=generator).tolist():
            yield from self.groups[g]
