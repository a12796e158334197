# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The kind of each column of a table, inferred from its cells and, where those leave it open, from its name.

- The content decides first: paths and embedded media, then numbers, dates and words, on a fixed random sample of rows.
- A column that has no kind beyond doubt is refused in a sentence that says how to settle it.
"""

import io
import os
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.videofolder.videofolder import VideoFolder
from PIL import Image

from ..model.table_mm import NUMBER
from .cells import (
    COMMA,
    FORMATS,
    PLAIN,
    POINT,
    cell_number,
    date_form,
    different_marks,
    is_missing,
    number_form,
)
from .rows import undecoded

MEDIA = ("image", "audio", "video")
KINDS = (*MEDIA, "text", "number", "category", "date", "label", "ignore")
FORCED = (*KINDS, "comma_number", "day_first", "month_first")  # also by `--columns`
SUFFIXES = {
    "video": {*VideoFolder.EXTENSIONS, ".webm", ".m4v", ".wmv", ".flv", ".mpg"},
    "image": set(ImageFolder.EXTENSIONS),
    "audio": set(AudioFolder.EXTENSIONS),
}  # the first that holds a suffix has it
SAMPLE, MEDIA_SAMPLE = 5_000, 20  # rows
CATEGORIES = 1_000  # different values, at most
MOST = 0.9  # share of the cells that determines a kind

TEXT_NAMES = {"text", "question", "caption", "prompt", "query", "sentence"}
WORDY_NAMES = {"title", "headline", "notes", "note", "comment", "comments", "description", "review", "summary", "body"}
WORDY_NAMES |= {"message", "content", "abstract", "keywords", "remarks"}
CODE_NAMES = {"type", "gender", "sex", "color", "colour", "breed", "code", "zip", "zipcode", "postcode", "postal"}
CODE_NAMES |= {"class", "pclass", "category", "cluster", "group", "region", "state", "district"}
ID_NAMES = {"id", "uuid", "guid", "index", "idx", "key", "ids"}
UNSPACED = re.compile(r"[぀-ヿ㐀-鿿가-힯฀-๿]")  # scripts without spaces between words


@dataclass(frozen=True)
class Column:
    """A column, its kind and the reason for it.

    Args:
        examples: two of its cells.
        missing: the share of rows without a value.
        form: the form of numbers and dates, see `cells.py`.
    """

    name: str
    kind: str
    why: str
    examples: tuple[str, ...] = ()
    missing: float = 0.0
    form: str = PLAIN


@dataclass(frozen=True)
class Cells:
    """A sample of a column.

    Args:
        source: the table, for messages.
        rows: the numbers of the sampled rows, in order.
        values: a cell for each row, text unless it is a medium, a date, a list or a structure; None if it is empty.
    """

    name: str
    source: str
    folder: Path
    total: int
    rows: list[int]
    values: list[Any]

    @property
    def filled(self) -> list[Any]:
        """The cells that are not empty."""
        return [value for value in self.values if value is not None]

    @property
    def known(self) -> list[Any]:
        """The cells without those that stand for a missing number or date."""
        return [value for value in self.filled if not is_missing(value)]

    @property
    def tokens(self) -> list[str]:
        """The words of the column's name, in lower case."""
        return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", self.name)]

    def shares(self, values: Sequence[Any]) -> str:
        """The number of different values, in words."""
        sampled = " sampled" if len(self.rows) < self.total else ""
        return f"{len(set(values)):,} of {len(values):,}{sampled} values differ"

    def refuse(self, found: str, *kinds: str) -> ValueError:
        """The error for a column whose kind is in doubt; `kinds` are those that would settle it."""
        choices = " or ".join(f'"{self.name}={kind}"' for kind in kinds)
        return ValueError(f"the column '{self.name}' of '{self.source}' holds {found}; correct it, or give {choices}")


def sample_cells(source: str, table: datasets.Dataset, folder: Path, name: str) -> Cells:
    """A sample of a column, the same at every call; few rows of embedded media, lists and structures."""
    feature = table.features[name]
    simple = isinstance(feature, (datasets.Value, datasets.ClassLabel)) and "binary" not in str(feature.dtype)
    count = min(len(table), SAMPLE if simple else MEDIA_SAMPLE)
    rows = sorted(random.Random(0).sample(range(len(table)), count))
    part = table.select_columns([name]).select(rows)
    part = part.cast_column(name, undecoded(feature)) if undecoded(feature) != feature else part
    values = part[name][:]
    if isinstance(feature, datasets.ClassLabel):
        values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return Cells(name, source, folder, len(table), rows, [plain(value) for value in values])


def plain(cell: Any) -> Any:
    """A cell with numbers and truth values as text, and empty cells as None."""
    if cell is None or cell != cell or cell in ("", []) or (isinstance(cell, str) and not cell.strip()):
        return None
    return cell if isinstance(cell, (str, bytes, list, dict, date)) else str(cell)


def column_kinds(
    source: str, table: datasets.Dataset, folder: Path, chosen: Mapping[str, tuple[str, str]]
) -> list[Column]:
    """Every column of a table with its kind.

    Args:
        source: the file or name of the dataset, for messages.
        table, folder: as `tables.read_table` returns them.
        chosen: kind and reason of the columns whose kind is not inferred.

    Raises:
        ValueError: the kind of a column is in doubt, or its cells do not fit the kind that was chosen.
    """
    columns = []
    for name, feature in table.features.items():
        cells = sample_cells(source, table, folder, name)
        kind, why = chosen.get(name, ("", ""))
        if name in chosen:
            kind, form = forced_kind(cells, kind)
        else:
            kind, why, form = inferred_kind(cells, feature)
        values = cells.known if kind in ("number", "date") else cells.filled
        missing = 1 - len(values) / len(cells.rows)
        if len(cells.rows) < min(len(table), SAMPLE):
            missing = table.data.column(name).null_count / len(table)
        columns.append(Column(name, kind, why, examples(values), round(missing, 4), form))
    return columns


def examples(values: Sequence[Any]) -> tuple[str, ...]:
    """Two different values, shortened."""
    words = ("(embedded)" if isinstance(value, (bytes, dict)) else str(value) for value in values)
    texts = list(dict.fromkeys(word for word in words))[:2]
    return tuple(text if len(text) <= 24 else f"{text[:23]}…" for text in texts)


def forced_kind(cells: Cells, kind: str) -> tuple[str, str]:
    """Kind and form of a column whose kind was chosen.

    Raises:
        ValueError: it holds no such numbers or dates.
    """
    if kind in ("date", "day_first", "month_first"):
        order = {"day_first": "%d", "month_first": "%m"}.get(kind)
        forms = [form for form in FORMATS if order is None or first_of_day_and_month(form) == order]
        if all(isinstance(value, date) for value in cells.known):
            return "date", PLAIN
        form: str | None = None
        try:
            form = date_form([str(value) for value in cells.known], forms)
        except ValueError as error:
            raise cells.refuse(str(error), "day_first", "month_first", "ignore") from None
        if form is None:
            raise cells.refuse(f"'{cells.known[0]!s:.60}', which is no date", "ignore")
        return "date", form
    if kind not in ("number", "comma_number"):
        return kind, PLAIN
    mark = COMMA if kind == "comma_number" else POINT
    for value in cells.known:
        try:
            cell_number(value, cells.name, mark)
        except ValueError:
            raise cells.refuse(f"'{value!s:.60}', which is no number with a decimal {mark}", "ignore") from None
    if twice := different_marks([str(value) for value in cells.known]):
        raise cells.refuse(f"'{twice[0]}' and '{twice[1]}', numbers of different units", "category", "ignore")
    is_plain = all(NUMBER.fullmatch(str(value).strip()) for value in cells.known)
    return "number", PLAIN if is_plain else mark


def first_of_day_and_month(form: str) -> str:
    """`%m` for a format of dates that begins with the number of the month, else `%d`."""
    return "%m" if form.startswith("%m") else "%d"


def inferred_kind(cells: Cells, feature: Any) -> tuple[str, str, str]:
    """Kind, reason and form of a column.

    Raises:
        ValueError: the kind is in doubt.
    """
    filled = cells.filled
    if not filled:
        return "ignore", "all cells are empty", PLAIN
    if found := medium(cells, feature):
        return *found, PLAIN
    if any(isinstance(value, (bytes, list, dict)) for value in filled):
        return "ignore", "lists, structures or bytes, which are no media", PLAIN
    if len(set(filled)) == 1:
        if len(filled) == len(cells.rows) or is_missing(filled[0]):
            where = f" in {len(cells.rows):,} sampled rows" if len(cells.rows) < cells.total else ""
            return "ignore", f"only the value '{filled[0]!s:.24}'{where}", PLAIN
        return "category", f"'{filled[0]!s:.24}' or empty", PLAIN
    if isinstance(filled[0], date):
        return "date", "dates", PLAIN
    known = cells.known
    if len([value for value in filled if value.lstrip()[:1] in ("[", "{")]) > MOST * len(filled):
        return "ignore", "lists or structures in JSON", PLAIN
    if cells.name.lower().strip() in TEXT_NAMES and not all(NUMBER.fullmatch(value.strip()) for value in known):
        return "text", "words, in a column of this name", PLAIN
    return (number_or_date(cells, known) if known else None) or word_kind(cells, filled)


def medium(cells: Cells, feature: Any) -> tuple[str, str] | None:
    """Kind and reason of a column of media; None for others.

    Raises:
        ValueError: none of the files exists.
    """
    inner = feature.feature if isinstance(feature, datasets.List) else feature
    for kind, declared in (("image", datasets.Image), ("audio", datasets.Audio), ("video", datasets.Video)):
        if isinstance(inner, declared):
            return kind, f"embedded or linked {kind} data"
    flat = [part for value in cells.filled for part in (value if isinstance(value, list) else [value])]
    stored = [part["bytes"] if isinstance(part, dict) else part for part in flat if has_bytes(part)]
    if stored and len(stored) == len(flat):
        kinds = {medium_of_bytes(data) for data in stored}
        found = kinds.pop() if len(kinds) == 1 else None
        return (found, f"embedded {found} files") if found else None
    if not all(isinstance(part, str) for part in flat):
        return None
    web = [text for text in flat if re.match(r"\s*((https?|ftp|s3|gs)://|data:)", text)]
    if len(web) > MOST * len(flat):
        return "ignore", "web addresses or data URIs, which are not fetched"
    paths = [part.strip() for text in flat for part in text.split(";") if part.strip()]
    return path_kind(cells, paths) if paths else None


def path_kind(cells: Cells, paths: Sequence[str]) -> tuple[str, str] | None:
    """Kind and reason of a column of paths; None if most of them are no media.

    Raises:
        ValueError: none of the files exists.
    """
    kind, count = Counter(map(medium_of_path, paths)).most_common(1)[0]
    is_named = cells.name.lower() in MEDIA  # then files need no suffix
    if (kind is None or count < MOST * len(paths)) and not is_named:
        return None
    checked = random.Random(0).sample(paths, min(len(paths), 100))
    found = sum(os.path.isfile(os.path.join(cells.folder, path)) for path in checked)
    if kind is None or count < MOST * len(paths):
        if found < MOST * len(checked):
            return None
        kind = cells.name.lower()
    if found == 0:
        where = f"paths of {kind} files, none of which exists ('{checked[0]:.60}' is sought in '{cells.folder}')"
        raise cells.refuse(where, "ignore")
    suffixes = sorted({Path(path).suffix.lstrip(".").upper() for path in paths if Path(path).suffix})
    exist = "all exist" if found == len(checked) else f"{found} of {len(checked)} sampled exist"
    return kind, f"{'/'.join(suffixes[:3]) or kind} paths, {exist}"


def has_bytes(part: Any) -> bool:
    """True for an embedded file, alone or as `datasets` stores it."""
    return isinstance(part, bytes) or (isinstance(part, dict) and isinstance(part.get("bytes"), bytes))


def medium_of_bytes(data: bytes) -> str | None:
    """The kind of an embedded file; None if it is unknown."""
    try:
        Image.open(io.BytesIO(data))
        return "image"
    except OSError:
        pass
    if data[4:8] == b"ftyp" or data[8:11] == b"AVI" or data.startswith(b"\x1aE\xdf\xa3"):
        return "video"
    return "audio" if data.startswith((b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"FORM")) else None


def medium_of_path(path: str) -> str | None:
    """The kind of a file by its suffix; None if it is no medium."""
    suffix = os.path.splitext(path)[1].lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def number_or_date(cells: Cells, known: Sequence[str]) -> tuple[str, str, str] | None:
    """Kind, reason and form of a column of numbers or dates; None for words.

    Raises:
        ValueError: its form is in doubt.
    """
    try:
        form: str | None = date_form(known)
    except ValueError as error:
        raise cells.refuse(str(error), "day_first", "month_first", "category", "ignore") from None
    if form is not None:
        return "date", f"dates of the form {form}", form
    try:
        form = number_form(known)
    except ValueError as error:
        if len(set(known)) <= min(20, len(known) / 3):
            return None  # "36 months", "3+": few values, which recur, are a category
        raise cells.refuse(str(error), "number", "comma_number", "category", "text", "ignore") from None
    if form is None:
        return None
    if any(re.match(r"0\d", value.strip()) for value in known):
        return code_kind(cells, known, "codes with leading zeros")
    return number_kind(cells, [cell_number(value, cells.name, form) for value in known], form)


def number_kind(cells: Cells, numbers: Sequence[Any], form: str) -> tuple[str, str, str]:
    """Kind, reason and form of a column of numbers: ids and codes are no quantities."""
    different, count = len(set(numbers)), len(numbers)
    whole = all(number.is_integer() for number in numbers)
    if different == 2:
        low, high = sorted(set(numbers))
        return "category", f"two values, {low:g} and {high:g}", PLAIN
    if whole and set(cells.tokens) & ID_NAMES:
        return code_kind(cells, numbers, "numbers named as an id")
    if whole and different == count > 20:
        offsets = {number - row for number, row in zip(numbers, cells.rows, strict=False)}
        in_order = count == len(cells.rows) and len(offsets) == 1
        if in_order or max(numbers) - min(numbers) + 1 == count == cells.total:
            return "ignore", "each row has its number: an id", PLAIN
        if min(numbers) >= 1e8 and len({len(f"{number:.0f}") for number in numbers}) == 1:
            return "ignore", f"{cells.shares(numbers)}, equally long: an id", PLAIN
    if whole and set(cells.tokens) & CODE_NAMES:
        return code_kind(cells, numbers, "whole numbers, a code by its name")
    dressed = ", signs and thousands commas left out" if form == POINT else ""
    return "number", f"{'whole ' if whole else ''}numbers, {min(numbers):g} to {max(numbers):g}{dressed}", form


def code_kind(cells: Cells, values: Sequence[Any], what: str) -> tuple[str, str, str]:
    """Kind, reason and form of a column of codes: a category if its values recur."""
    if len(set(values)) <= min(CATEGORIES, len(values) / 2):
        return "category", f"{what}, {len(set(values)):,} different", PLAIN
    return "ignore", f"{what}, {cells.shares(values)}", PLAIN


def word_kind(cells: Cells, values: Sequence[str]) -> tuple[str, str, str]:
    """Kind, reason and form of a column of words: a text, a category, or an id."""
    different, count = set(values), len(values)
    words = sum(len(value.split()) + len(UNSPACED.findall(value)) / 2 for value in different) / len(different)
    recurs = len(different) <= count / 2
    if cells.name.lower().strip() in WORDY_NAMES and words >= 2:
        return "text", f"{words:.1f} words a cell, named so", PLAIN
    if (words >= 5 and len(different) > 20) or (words >= 1.5 and not (recurs and len(different) <= CATEGORIES)):
        return "text", f"{words:.1f} words a cell, {cells.shares(values)}", PLAIN
    if recurs and len(different) <= CATEGORIES:
        return "category", f"{len(different):,} different values", PLAIN
    if recurs:
        return "ignore", f"{len(different):,} different values, too many for a category", PLAIN
    return "ignore", f"{cells.shares(values)}, no spaces: an id", PLAIN
