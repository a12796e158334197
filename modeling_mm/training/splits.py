# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The training, validation and test rows of a run, read and checked before training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ..checkpoint import BASE, read_config
from ..data.dataset import MMDataset
from ..data.rows import Columns, media_markers
from ..data.shards import is_shards, open_shards
from ..data.stream import MMStream
from ..data.table_columns import names_by_kind
from ..data.tables import read_table
from ..data.targets import known_names
from ..data.web_images import WebImages
from ..model.audio_mm import MAX_SECONDS
from ..model.processing_mm import MMProcessor
from ..tasks import TASKS
from .arguments import DataArguments, ModelArguments, words
from .columns import FEW, refuse_unique


@dataclass
class Splits:
    """The datasets of a run; `test` may be absent. With a `stream`, the model trains on it and `train` holds its first
    rows."""

    train: MMDataset
    validation: MMDataset
    test: MMDataset | None = None
    stream: MMStream | None = None
    longest_clip: float = 0.0  # seconds of the longest audio clip in any of them

    def bad_rows(self) -> list[dict[str, Any]]:
        """The bad rows of the tables; a stream counts its own."""
        tables = (None if self.stream else self.train, self.validation, self.test)
        return [bad for split in tables if split for bad in split.bad_rows]


def known_labels(source: str | None, task: str) -> list[str] | None:
    """The labels of the model to continue from, in the order of its classifier; None without one."""
    if source is None or not TASKS[task].has_labels:
        return None
    config = read_config(source if not Path(source, BASE).is_dir() else str(Path(source, BASE)))
    return [config.id2label[i] for i in range(config.num_labels)]


def known_processor(source: str | None) -> MMProcessor | None:
    """The processor of the model to continue from; None without one."""
    if source is None:
        return None
    folder = Path(source, BASE)
    return MMProcessor.from_pretrained(str(folder) if folder.is_dir() else source)


def num_video_frames(args: ModelArguments) -> int | None:
    """Frames per video: `--num_frames`, or else those of the model to continue from; None if it takes no video."""
    if args.num_frames is not None or args.model is None:
        return args.num_frames
    return read_config(args.model if not Path(args.model, BASE).is_dir() else str(Path(args.model, BASE))).num_frames


def table_names(
    data: DataArguments, table: Sequence[dict[str, Any]] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The number and the category columns: those of the flags, or of the `table` of the model to continue from.

    Raises:
        ValueError: the flags name columns that the model does not have.
    """
    numbers, categories = words(data.number_columns), words(data.category_columns)
    if table is None:
        return numbers, categories
    flags, (numbers, categories) = {*numbers, *categories}, names_by_kind(table)
    if flags - {*numbers, *categories}:
        known = ", ".join((*numbers, *categories)) or "none"
        raise ValueError(
            f"--number_columns and --category_columns name {', '.join(sorted(flags))}, but the columns of --model, "
            f"{known}, cannot be changed; leave these flags out"
        )
    return numbers, categories


def load_splits(
    data: DataArguments,
    seed: int,
    labels: list[str] | None = None,
    num_frames: int | None = None,
    markers: Mapping[str, str] | None = None,
    table: Sequence[dict[str, Any]] | None = None,
) -> Splits:
    """Read and check all rows; `labels`, `markers` and `table` columns are those of the model to continue from.

    Raises:
        ValueError: no source or two of them, a missing column, a bad row.
    """
    if (data.train_file is None) == (data.dataset is None):
        raise ValueError("give either --train_file or --dataset")
    target = None if data.conversation_column else data.label_column or TASKS[data.task].label_column
    numbers, categories = table_names(data, table)
    media = (data.audio_column, data.video_column, data.concept_column)
    names = (data.image_column, data.text_column, target, *media)
    more = (numbers, categories, data.decimal, data.number_forms, data.conversation_column or "")
    columns = Columns(*names, *more)  # type: ignore[arg-type]  # set
    skip = data.on_bad_row == "skip"
    web = WebImages(tuple(data.fetch_hosts)) if data.fetch_images else None

    def read(source: str, split: str, labels: list[str] | None) -> MMDataset:
        if data.streaming and is_shards(source):
            shards = open_shards(source)
            table, folder = shards.whole_table(), shards.folder
        else:
            table, folder = read_table(source, split)
        dataset = MMDataset(source, table, folder, columns, labels, task=data.task, web=web)
        dataset.check(skip, markers, data.max_seconds or MAX_SECONDS, num_frames)
        longest.append(dataset.longest_clip)
        return dataset

    longest: list[float] = []
    stream, held_out = None, None
    if data.streaming:
        stream = open_stream(data, columns, seed, labels, num_frames, markers or media_markers(), web)
        train = stream.first_rows()
        held_out = read(str(data.validation_file), "validation", labels)
        if labels is None:
            stream.labels = train.labels = held_out.labels = names_of_stream(stream, train, held_out)
    else:
        train = read(data.train_file or str(data.dataset), "train", labels)
        if labels is None:
            train.labels = known_names(data.task, train.targets(), columns.target, train.source)
            if len(train.labels or []) > FEW:
                refuse_unique(data.task, train.source, str(columns.target), train.targets())
    test = None
    if data.test_file is not None:
        test = read(data.test_file, "test", train.labels)
    elif data.test_split is not None and data.dataset is None:
        raise ValueError("--test_split names a split of --dataset; for a file give --test_file")
    elif data.test_split is not None:
        test = read(train.source, data.test_split, train.labels)
    if held_out is not None:
        return Splits(train, held_out, test, stream)
    if data.validation_file is not None:
        validation = read(data.validation_file, "validation", train.labels)
        return Splits(train, validation, test, longest_clip=max(longest))
    bad_rows = train.bad_rows
    rest, held = train.hold_out(data.validation_share, seed)
    rest.bad_rows = bad_rows
    return Splits(rest, held, test, longest_clip=max(longest))


def open_stream(
    data: DataArguments,
    columns: Columns,
    seed: int,
    labels: list[str] | None,
    num_frames: int | None,
    markers: Mapping[str, str],
    web: WebImages | None,
) -> MMStream:
    """The stream of training rows, opened but not yet read."""
    shards = open_shards(data.train_file) if data.train_file is not None else open_shards(str(data.dataset), "train")
    rows = shards.count_rows() if shards.is_local else None
    limits = {"max_seconds": data.max_seconds or MAX_SECONDS, "num_frames": num_frames, "markers": markers, "web": web}
    options: dict[str, Any] = {"seed": seed, "skip": data.on_bad_row == "skip", "known_rows": rows, **limits}
    return MMStream(shards, columns, data.task, labels, data.shuffle_buffer, **options)


def names_of_stream(stream: MMStream, first: MMDataset, validation: MMDataset) -> list[str] | None:
    """Label names of a stream: declared by its column, else found in its first rows and the validation rows."""
    column = stream.columns.target
    feature = stream.reader.features.get(column) if column else None
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    return known_names(stream.task, [*first.targets(), *validation.targets()], column, stream.source)
