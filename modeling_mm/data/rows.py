# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Rows: reading the cells, and checking all but the contents of the media.

Paths in a file are relative to it; an empty cell is a missing modality; several images, audio clips or videos are a
list, or paths joined by `;` in a CSV cell. Images in the column of videos are the frames of one video.

A table in memory (`dataset.py`) and a stream of shards (`stream.py`) both read their rows here.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..model.media_mm import MODALITIES, TABLE
from ..model.processing_mm import MMProcessor
from ..model.table_mm import read_category, read_number
from ..model.video_mm import is_video
from ..tasks import TASKS
from .cells import formed_numbers
from .conversations import Turn, read_conversation, transcript
from .media import BadRow, MediaRef
from .targets import label_columns, read_answers, read_target, target_complaint
from .web_images import WebImages, is_web_address


@dataclass(frozen=True)
class Columns:
    """Names of the columns, "" for one that is missing. `target` is the answer, the label or numbers (`a,b`), or None;
    rows with equal values of `concept` match each other. `numbers` and `categories` form the table of a row, whose
    numbers are written with the mark `decimal`, or in the form (see `cells.py`) that `forms` has for their column. The
    media of several columns (`a,b`) are joined, and so are their texts, a line `name: text` each. `conversation` holds
    turns, see `conversations.py`, in place of text and target."""

    image: str = "image"
    text: str = "text"
    target: str | None = None
    audio: str = ""
    video: str = ""
    concept: str = ""
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    decimal: str = "."
    forms: Mapping[str, str] = field(default_factory=dict)
    conversation: str = ""

    @property
    def table(self) -> tuple[str, ...]:
        """The columns of numbers and of categories."""
        return (*self.numbers, *self.categories)


@dataclass
class Row:
    """One example: its images, text, audio clips, videos, table and target.

    `images`, `audio` and `videos` hold a `MediaRef` each; a source given in place of one is wrapped. `number` counts
    from 1 within the source. `opened` holds images, by their keys, that a check has decoded already. `table` holds
    numbers and texts by their column, and no missing cells. A conversation has `turns`, and their words as its text.
    `answers` holds those of several people, if the row has more than its target.
    """

    number: int
    images: list[MediaRef]
    text: str
    target: Any = None
    audio: list[MediaRef] = field(default_factory=list)
    videos: list[MediaRef] = field(default_factory=list)
    opened: dict[str, Image.Image] = field(default_factory=dict)
    concept: str | None = None
    table: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    @property
    def references(self) -> list[str]:
        """The right answers: all of them, or the target."""
        return self.answers or [str(self.target)]

    def __post_init__(self):
        for modality in MODALITIES.values():
            items = getattr(self, modality.argument)
            refs = [item if isinstance(item, MediaRef) else MediaRef(item) for item in items]
            setattr(self, modality.argument, refs)

    @property
    def media(self) -> dict[str, list[MediaRef]]:
        """Images, audio clips and videos by the name of their modality."""
        return {name: getattr(self, modality.argument) for name, modality in MODALITIES.items()}


def undecoded(feature: Any) -> Any:
    """A column's feature with its images, audio clips and videos, alone or in lists, left encoded."""
    if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video)):
        return type(feature)(decode=False)
    return datasets.List(undecoded(feature.feature)) if isinstance(feature, datasets.List) else feature


def as_text(cell: Any, feature: Any, column: str) -> Any:
    """The text of a cell whose Python value would print differently: a decimal, a 32-bit number, bytes.

    Other cells are returned as they are.

    Raises:
        BadRow: the bytes are not UTF-8.
    """
    if isinstance(cell, list):
        inner = feature.feature if isinstance(feature, datasets.List) else None
        return [as_text(part, inner, column) for part in cell]
    if isinstance(cell, Decimal):
        return f"{cell:f}"
    if isinstance(cell, float) and getattr(feature, "dtype", None) in ("float32", "float16"):
        return str(np.dtype(feature.dtype).type(cell))
    if isinstance(cell, bytes):
        try:
            return cell.decode("utf-8")
        except UnicodeDecodeError:
            raise BadRow(f"'{column}' holds bytes that are not UTF-8 text; expected text") from None
    return cell


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of one source.

    Args:
        source: the file or name of the dataset, for messages.
        folder: the folder that relative paths start from.
        columns: the columns' names.
        task: determines what the targets are, see `targets.py`.
        features: the columns' features by name.
        web: downloads images of conversations that are on the web; without it they are refused.

    Raises:
        ValueError: a column is missing.
    """

    source: str
    folder: Path
    columns: Columns
    task: str
    features: Mapping[str, Any]
    web: WebImages | None = None

    def __post_init__(self):
        names, columns = list(self.features), self.columns
        targets = label_columns(self.task, columns.target)
        if columns.conversation:
            self.check_conversation()
            return
        required = [*targets, *self.names["audio"], *self.names["video"], columns.concept, *columns.table]
        media = {*self.names["image"], *self.names["audio"], *self.names["video"]}
        others = set(names) - {*media, *targets, *columns.table}
        # one of the other columns may be the image, or there is nothing but the image
        if others - {*self.names["text"]} or not (columns.audio or columns.video or columns.table):
            required += self.names["image"]
        if others:
            required += self.names["text"]
        for name in filter(None, required):
            if name not in names:
                raise ValueError(
                    f"'{self.source}' has no column '{name}'; it has {', '.join(names)} (name the right one with "
                    "--image_column, --text_column, --audio_column, --video_column, --label_column, "
                    "--concept_column, --number_columns or --category_columns; "
                    '"" if there is no image, text, audio or video)'
                )
        if twice := {*targets, *media, *self.names["text"]} & set(columns.table):
            raise ValueError(f"the column '{min(twice)}' is a number or a category, and has another use too")
        if twice := set(columns.numbers) & set(columns.categories):
            raise ValueError(f"the column '{min(twice)}' is named as a number and as a category; expected one of them")

    def check_conversation(self) -> None:
        """Refuse a table without the column of conversations, or a task that has no use for it.

        Raises:
            ValueError: names the column.
        """
        media = [name for names in (self.names[modality] for modality in MODALITIES) for name in names]
        for name in (*split_names(self.columns.conversation), *media, *self.columns.table):
            if name not in self.features:
                raise ValueError(
                    f"'{self.source}' has no column '{name}'; it has {', '.join(self.features)} (name the right one "
                    "with --conversation_column, --image_column, --audio_column or --video_column)"
                )
        if not TASKS[self.task].generates:
            raise ValueError(f"conversations are for --task generation; --task {self.task} takes a text and a label")

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """The columns of each modality; a name that the table has is one column, whatever commas it holds."""
        joined = {name: getattr(self.columns, name) for name in ("text", *MODALITIES)}
        return {name: [text] if text in self.features else split_names(text) for name, text in joined.items()}

    def text(self, cells: Mapping[str, Any]) -> str:
        """The text of a row: the cell, or a line for each of several columns whose cell is not empty.

        Raises:
            BadRow: a cell holds a list or structure.
        """
        texts = {name: cells.get(name) for name in self.names["text"]}
        for name, text in texts.items():
            if isinstance(text, (list, dict)):
                raise BadRow(f"'{name}' holds a list or structure; expected one plain value")
        return joined_text({name: "" if text is None else str(text) for name, text in texts.items()})

    def row(self, cells: dict[str, Any], number: int) -> Row:
        """A row from its cells, its target not yet encoded; nothing is opened yet.

        Raises:
            BadRow: a cell has an unexpected type.
        """
        if self.columns.conversation:
            return self.conversation(cells, number)
        text_like = (*self.names["text"], self.columns.concept, *label_columns(self.task, self.columns.target))
        text_like = (*text_like, *self.columns.categories)
        cells |= {name: as_text(cells[name], self.features[name], name) for name in text_like if name in cells}
        text, target, answers = self.text(cells), None, list[str]()
        generates = TASKS[self.task].generates
        for name in (*label_columns(self.task, self.columns.target), *self.columns.categories):
            feature, cell = self.features[name], cells[name]
            if isinstance(feature, datasets.ClassLabel) and cell is not None:
                cells[name] = feature.int2str(cell) if cell >= 0 else None  # -1 stands for unlabelled
        if self.columns.target is not None:
            target = read_target(self.task, self.columns.target, cells)
            answers = read_answers(cells.get(self.columns.target), self.columns.target) if generates else []
        images, audio, videos = self.media_of(cells).values()
        concept = None if cells.get(self.columns.concept) in (None, "") else str(cells[self.columns.concept])
        table = self.table_cells(cells)
        return Row(number, images, text, target, audio, videos, concept=concept, table=table, answers=answers)

    def media_of(self, cells: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The images, audio clips and videos of a row, by modality.

        Raises:
            BadRow: a cell has an unexpected type.
        """
        media = {name: [self.media(cells.get(c), c) for c in self.names[name]] for name in MODALITIES}
        # images in a column of videos are the frames of one video
        media["video"] = [[items] if items and is_video(items) else items for items in media["video"]]
        return {name: [item for items in lists for item in items] for name, lists in media.items()}

    def conversation(self, cells: Mapping[str, Any], number: int) -> Row:
        """A row of turns from its cells; nothing is opened yet.

        Raises:
            BadRow: names the turn and what was expected, or as for `media_of`.
        """

        def source(modality: str, place: Any) -> Any:
            if is_web_address(place) and self.web is None:
                raise BadRow(f"a part has the web address '{place:.60}'; expected a file, or give --fetch_images true")
            if is_web_address(place) and self.web is not None:
                return self.web.path(place)
            found = self.media(place, self.columns.conversation)
            if len(found) != 1:
                raise BadRow(f"a part names {len(found)} {MODALITIES[modality].items}; expected one")
            return found[0]

        turns = [(name, cells[name]) for name in split_names(self.columns.conversation)]
        read, media = read_conversation(turns, self.media_of(cells), source)
        table = self.table_cells(cells)
        images, audio, videos = media.values()
        return Row(number, images, transcript(read), None, audio, videos, table=table, turns=read)

    def table_cells(self, cells: Mapping[str, Any]) -> dict[str, float | str]:
        """The numbers and categories of a row, without missing cells.

        Raises:
            BadRow: names the column and the value that is no number, or no plain value.
        """
        columns = self.columns
        try:
            numbers = formed_numbers({name: cells[name] for name in columns.numbers}, columns.forms)
            read: dict[str, Any] = {n: read_number(cell, n, columns.decimal) for n, cell in numbers.items()}
            read |= {name: read_category(cells[name], name) for name in columns.categories}
        except ValueError as error:
            raise BadRow(str(error)) from None
        return {name: cell for name, cell in read.items() if cell is not None}

    def media(self, cell: Any, column: str) -> list[Any]:
        """The images, audio clips or videos that a cell names or embeds.

        Raises:
            BadRow: the cell has an unexpected type.
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
            nouns = {"audio": "an audio clip", "video": "a video"}
            kind = next((noun for name, noun in nouns.items() if column in self.names[name]), "an image")
            raise BadRow(f"'{column}' holds {cell!r:.60}; expected a path, {kind} or a list of them")
        if column in self.names["video"] and any(isinstance(part, list) for part in cell):  # each a list of frames
            return [self.media(part, column) for part in cell]
        return [medium for part in cell for medium in self.media(part, column)]

    def complaint(self, row: Row, markers: Mapping[str, str], labels: Sequence[str] | None) -> str | None:
        """The reason why a row cannot be used, apart from the contents of its media; None if it can.

        Args:
            markers: the marker of each modality beside the text, by its name.
            labels: the known labels; None before training.
        """
        columns = self.columns
        if row.turns:
            used = [marker for name, marker in markers.items() if name == "image" or getattr(columns, name)]
            return next((stray_marker(row, marker) for marker in used if marker in row.text), None)
        if not (row.text.strip() or row.table or any(row.media.values())):
            names = [columns.image, columns.text, columns.audio, columns.video]
            names = [f"'{name}'" for name in names if name in self.features]
            names += ["the table of numbers and categories"] if columns.table else []
            if len(names) == 1:
                return f"{names[0]} is empty"
            if len(names) > 2:
                return f"{', '.join(names[:-1])} and {names[-1]} are all empty; expected at least one"
            return f"{' and '.join(names)} are both empty; expected at least one of them"
        for name, items in row.media.items():
            count = row.text.count(markers[name]) if name == "image" or getattr(columns, name) else 0
            if count and count != len(items):
                media = f"{len(items)} {MODALITIES[name].items}"
                return f"the text has {count} '{markers[name]}' markers but the row has {media}"
        if TASKS[self.task].needs_image_and_text:
            missing = columns.text if row.images else columns.image
            return None if row.images and row.text else f"'{missing}' is empty; {self.task} needs an image and a text"
        if columns.target is None:
            return None
        return target_complaint(columns.target, row.target, labels)


def stray_marker(row: Row, marker: str) -> str:
    """The complaint about words that equal the marker of a medium."""
    number = next((i for i, turn in enumerate(row.turns, 1) if marker in turn.text), 0)
    return f"turn {number} contains '{marker}', which the model reads as a medium; expected a medium or other words"


def split_names(text: str) -> list[str]:
    """The names of several columns, separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def joined_text(texts: Mapping[str, str]) -> str:
    """The text of a row from those of its columns: the only one, or a line `name: text` for each that is not empty."""
    if len(texts) < 2:
        return "".join(texts.values())
    return "\n".join(f"{name}: {text}" for name, text in texts.items() if text.strip())


def media_markers(processor: MMProcessor | None = None) -> dict[str, str]:
    """The marker of each modality beside the text, by its name; the default markers if there is no processor."""
    names = {name: modality.marker for name, modality in MODALITIES.items()}
    if processor is not None:
        return {name: getattr(processor, marker) for name, marker in names.items()}
    defaults = signature(MMProcessor.__init__).parameters
    return {name: defaults[marker].default for name, marker in names.items()}


def present_modalities(row: Row, markers: Mapping[str, str]) -> list[str]:
    """The modalities that a row has; a text that consists of markers does not count.

    Args:
        markers: the marker of each modality beside the text, by its name.
    """
    text = without(row, markers, markers).text
    media = [name for name, items in row.media.items() if items]
    return [*(["text"] if text.strip() else []), *media, *([TABLE] if row.table else [])]


def without(row: Row, left_out: Collection[str], markers: Mapping[str, str]) -> Row:
    """The row with the cells of these modalities emptied; their markers are removed from the text."""
    changed: dict[str, Any] = {"text": row.text}
    if TABLE in left_out:
        changed["table"] = {}
    for modality in set(left_out) - {"text", TABLE}:
        changed[MODALITIES[modality].argument] = []
        changed["text"] = changed["text"].replace(markers[modality], "")
    if "text" in left_out:
        changed["text"] = ""
    answer = len(row.turns) - 1  # stays, as a target does
    turns = [turn.without(set(left_out) - ({"text"} if i == answer else set())) for i, turn in enumerate(row.turns)]
    return replace(row, turns=turns, **changed)


def with_turns(row: Row, turns: Sequence[Turn]) -> Row:
    """The row with its first turns and their media only."""
    counts = {name: sum(turn.count(name) for turn in turns) for name in MODALITIES}
    media: dict[str, Any] = {m.argument: row.media[name][: counts[name]] for name, m in MODALITIES.items()}
    return replace(row, turns=list(turns), **media)
