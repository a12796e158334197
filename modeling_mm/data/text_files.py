# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""CSV, TSV and JSON files as tables of text: each cell as it is written, in its column.

- CSV is read strictly: a quotation mark that would swallow lines and a line with more or fewer cells than the header
  are errors that name the line. TSV has no quoting. Only an empty cell is a missing one.
- JSON holds one object per line, or an array of objects. Numbers, dates, `true` and `false` become the text in the
  file, also inside lists. Conversations stay JSON text, because the turns of one may have other keys than those of
  another.

Neither pandas nor Arrow guesses the type of a cell. Large tables go to a file that is mapped into memory.
"""

import atexit
import csv
import itertools
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pyarrow as pa
import pyarrow.compute as pc

logger = logging.getLogger(__name__)
CHUNK = 10_000  # rows that become Arrow columns together
IN_MEMORY = 2**26  # bytes of a table; larger ones are mapped from a file
TURNS = ("messages", "conversations", "prompt", "completion")  # lists of structures that differ; kept as JSON text
LONGEST_CELL = 2**24  # characters; the csv module would refuse more than 131,072


def refuse(path: Path, reason: str) -> NoReturn:
    """Raise the error for a file that is not a table.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"'{path}' cannot be read as a table: {reason}") from None


def read_delimited(path: Path, delimiter: str) -> datasets.Dataset:
    """The table of a CSV file, or of a TSV file if the delimiter is a tab; columns are strings, empty cells None.

    Raises:
        ValueError: the file is not a table; names the line.
    """
    with decoding(path):
        return gather(delimited_chunks(path, delimiter))


def read_json(path: Path, text_columns: Collection[str] | None = None) -> datasets.Dataset:
    """The table of a file of JSON lines, or of one array; values are strings, or lists and structures of them.

    Args:
        text_columns: columns that hold text; the others keep numbers and booleans. None: all hold text.

    Raises:
        ValueError: the file is not a table; names the line, or the item of an array.
    """
    with decoding(path):
        return gather(json_chunks(path, text_columns))


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """A context that turns errors of decoding into a sentence.

    Raises:
        ValueError: the file is not UTF-8; names the line.
    """
    try:
        yield
    except UnicodeDecodeError:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    reason = f"expected UTF-8 text: line {number} holds {error.object[error.start : error.end]!r}"
                    raise ValueError(f"'{path}' cannot be read as a table; {reason}") from None
        raise


def delimited_chunks(path: Path, delimiter: str) -> Iterator[pa.Table]:
    """The rows below the header in chunks; columns without a name are left out."""
    rows = records(path, delimiter)
    names = next((cells for _, _, cells in rows), [])
    places = named_columns(path, names)
    quoted = 0
    for chunk in batched(whole_rows(path, delimiter, len(names), rows)):
        columns = list(zip(*chunk, strict=True))
        table = pa.table({names[i]: pa.array([cell or None for cell in columns[i]], pa.string()) for i in places})
        if delimiter == "\t":
            quoted += sum(count_quoted(column) for column in table.columns)
        yield table
    if quoted:
        logger.warning(
            f"{quoted} cells of '{path}' begin and end with a quotation mark, which is part of them, as TSV knows no "
            "quoting; if these marks are not meant, save the table as CSV"
        )


def named_columns(path: Path, names: list[str]) -> list[int]:
    """The positions of columns that have a name; a warning lists the others.

    Raises:
        ValueError: no column has a name, or two have the same.
    """
    places = [place for place, name in enumerate(names) if name.strip()]
    if names and not places:
        refuse(path, "no column has a name in its first line")
    if twice := next((name for name in names if name.strip() and names.count(name) > 1), None):
        refuse(path, f"two columns have the name '{twice}'; expected different ones")
    if left_out := [str(place + 1) for place in range(len(names)) if place not in places]:
        logger.warning(f"'{path}': column {', '.join(left_out)} has no name in the first line and is left out")
    return places


def records(path: Path, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """The first line, the last line and the cells of each record; empty lines are skipped.

    Raises:
        ValueError: a quotation mark is not closed, or text follows the closing one.
    """
    quoting, begin = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL, 1
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
            for cells in reader:
                if len(cells) > 1 or (cells and cells[0].strip()):
                    yield begin, reader.line_num, cells
                begin = reader.line_num + 1
    except csv.Error as error:
        if "field larger" in str(error) and delimiter == "\t":
            refuse(path, f"line {begin} holds a cell of more than {LONGEST_CELL} characters")
        opened = opening_line(path, begin, delimiter)
        refuse(
            path,
            f"the quotation mark that opens a cell in line {opened} is not closed by one that stands before a "
            f"'{delimiter}' or the end of a line (within such a cell it is written twice)",
        )
    finally:
        csv.field_size_limit(limit)


def opening_line(path: Path, begin: int, delimiter: str) -> int:
    """The line of the quotation mark that a record, from line `begin` on, does not close."""
    opened, state = begin, "start"  # the start of a cell, or "open", "quoted" or "behind" the closing mark
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, line in itertools.islice(enumerate(file, 1), begin - 1, None):
            for character in line:
                if character == '"' and state in (
                    "start",
                    "behind",
                ):  # the second of two is text
                    opened, state = number if state == "start" else opened, "quoted"
                elif character == '"' and state == "quoted":
                    state = "behind"
                elif state == "behind" and character not in (delimiter, "\r", "\n"):
                    return opened
                elif state != "quoted":
                    state = "start" if character in (delimiter, "\r", "\n") else "open"
    return opened


def whole_rows(
    path: Path, delimiter: str, width: int, rows: Iterator[tuple[int, int, list[str]]]
) -> Iterator[list[str]]:
    """The cells of each record, as many as the header has.

    Surplus cells are ignored only if every record has them and they are always empty, as after a comma that ends each
    line.

    Raises:
        ValueError: a record has more or fewer cells, or seems to contain other records.
    """
    first = next(rows, None)
    if first is None:
        return
    surplus = max(0, len(first[2]) - width)
    hint = (
        "a text cannot hold a tab" if delimiter == "\t" else f"a text with a '{delimiter}' in it needs quotation marks"
    )
    for begin, end, cells in itertools.chain([first], rows):
        if len(cells) != width + surplus or (surplus and any(cells[width:])):
            where = f"line {begin}" if begin == end else f"the row in lines {begin} to {end}"
            expected = f"{width}, as in the header" + (
                f", or {width + surplus} as in line {first[0]}" if surplus else ""
            )
            refuse(path, f"{where} has {len(cells)} cells; expected {expected} ({hint})")
        if begin != end and swallows(cells, delimiter):
            refuse(
                path,
                f"the quotation mark that opens a cell in line {begin} is closed only in line {end}, and each line "
                "between them reads as a row; close it in its line, or write marks that are part of a text twice",
            )
        yield cells[:width] if surplus else cells


def swallows(cells: list[str], delimiter: str) -> bool:
    """True if each of the lines of a record would be a row by itself; a comma before a space is prose."""
    if len(cells) == 1:
        return False
    lines = re.split("\r\n|\r|\n", delimiter.join(cells))
    return all(len(re.split(f"{re.escape(delimiter)}(?! )", line)) == len(cells) for line in lines)


def count_quoted(column: pa.ChunkedArray) -> int:
    """The number of cells that begin and end with a quotation mark."""
    both = pc.and_(pc.starts_with(column, '"'), pc.ends_with(column, '"'))
    return pc.sum(pc.and_(both, pc.greater(pc.utf8_length(column), 1))).as_py() or 0


class Number(str):
    """A JSON number as text, as it is written."""

    def value(self) -> int | float:
        """The number itself."""
        return float(self) if re.search("[.eENI]", self) else int(self)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs.

    Raises:
        KeyError: a key occurs twice; `json` would keep the last.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return found


DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=Number, object_pairs_hook=unique)


def as_written(value: Any) -> Any:
    """A JSON value as the text in the file; lists and structures hold such texts."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return [as_written(part) for part in value]
    return {name: as_written(part) for name, part in value.items()}


def as_meant(value: Any) -> Any:
    """A JSON value as a Python value, with numbers as int or float."""
    if isinstance(value, Number):
        return value.value()
    if isinstance(value, list):
        return [as_meant(part) for part in value]
    return {name: as_meant(part) for name, part in value.items()} if isinstance(value, dict) else value


def parse_json(text: str) -> Any:
    """The value of a JSON text, its numbers as `Number`.

    Raises:
        ValueError: the text is not JSON, or an object in it has a key twice.
    """
    try:
        return DECODER.decode(text)
    except KeyError as error:
        raise ValueError(f"the key '{error.args[0]}' stands twice in one object") from None
    except RecursionError:
        raise ValueError("lists and structures are nested too deeply") from None


def json_rows(path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The position of each object, such as ("line", 1) or ("item", 1), and the object.

    Raises:
        ValueError: a line or an item is not an object.
    """
    with path.open(encoding="utf-8-sig") as file:
        begin = next((line for line in file if line.strip()), "")
        file.seek(0)
        items = None
        if begin.lstrip().startswith("["):
            text = file.read()
            try:
                items = parse_json(text)
            except ValueError as error:
                refuse(path, f"expected one array of objects: {error}")
        unit = "line" if items is None else "item"
        for number, row in json_lines(path, file) if items is None else enumerate(items, 1):
            if not isinstance(row, dict):
                found = json.dumps(as_meant(row))
                refuse(path, f'{unit} {number} is {found:.60}; expected an object like {{"text": ...}}')
            yield unit, number, row


def json_lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    """The number and the value of each line that is not empty.

    Raises:
        ValueError: a line is not JSON.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                reason = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else error
                refuse(path, f"line {number} is no JSON object, or not a whole one: {reason}")


def kind_of(value: Any) -> str:
    """The kind of a JSON value, with its article."""
    return "a list" if isinstance(value, list) else "a structure" if isinstance(value, dict) else "a plain value"


def json_chunks(path: Path, text_columns: Collection[str] | None) -> Iterator[pa.Table]:
    """The rows in chunks; a key that an object lacks is an empty cell."""
    kinds: dict[str, tuple[str, int]] = {}  # the kind of each column, and its first row
    for chunk in batched(json_rows(path)):
        columns: dict[str, list[Any]] = {}
        for row, (unit, number, cells) in enumerate(chunk):
            for name, value in cells.items():
                if name not in columns:
                    columns[name] = [None] * len(chunk)
                if value is None:
                    continue
                kind = kind_of(value)
                if kind == "a list" and name in TURNS:
                    kind, value = "a plain value", json.dumps(as_meant(value), ensure_ascii=False)
                first, at = kinds.setdefault(name, (kind, number))
                if kind != first:
                    where = f"{unit} {number} and {first} in {unit} {at}"
                    refuse(path, f"'{name}' is {kind} in {where}; expected the same in all rows")
                convert = as_written if text_columns is None or name in text_columns else as_meant
                columns[name][row] = convert(value)
        span = f"{chunk[0][0]} {chunk[0][1]}" + (f" to {chunk[-1][1]}" if len(chunk) > 1 else "")
        yield pa.table({name: json_column(path, name, column, span) for name, column in columns.items()})


def json_column(path: Path, name: str, values: list[Any], span: str) -> pa.Array:
    """The values of a column as an Arrow array.

    Raises:
        ValueError: the values have several types.
    """
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, UnicodeEncodeError) as error:
        refuse(path, f"the values of '{name}' in {span} do not make one column: {' '.join(str(error).split())}")


def batched(rows: Iterator[Any]) -> Iterator[list[Any]]:
    """Rows in lists of CHUNK."""
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield chunk


def gather(chunks: Iterator[pa.Table]) -> datasets.Dataset:
    """All chunks as one table, in memory or, if it is large, in a file of the datasets' cache that is removed at the
    end of the program.

    Raises:
        ValueError: a column changes its type from one chunk to another.
    """
    kept, size = [], 0
    for chunk in chunks:
        kept.append(chunk)
        size += chunk.nbytes
        if size > IN_MEMORY:
            return datasets.Dataset.from_file(str(spill(itertools.chain(kept, chunks))))
    return datasets.Dataset(joined(kept)) if kept else datasets.Dataset.from_dict({})


def joined(tables: list[pa.Table]) -> pa.Table:
    """The concatenation of tables; a column that a table lacks, or has without values, is empty in its rows.

    Raises:
        ValueError: a column has different types.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"the rows do not make one table: {' '.join(str(error).split())}") from None


def spill(chunks: Iterator[pa.Table]) -> Path:
    """Write all chunks to an Arrow file. Chunks with other columns go to other parts, which are joined at the end."""
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    for _, alike in itertools.groupby(chunks, lambda chunk: chunk.schema):
        parts.append(written(alike, folder))
    if len(parts) == 1:
        return parts[0]
    whole = joined([pa.ipc.open_stream(pa.memory_map(str(part))).read_all() for part in parts])
    made = written(iter([whole]), folder)
    for part in parts:
        part.unlink()
    return made


def written(tables: Iterator[pa.Table], folder: Path) -> Path:
    """Write these tables, which have the same columns, to a temporary file."""
    handle, name = tempfile.mkstemp(prefix="modeling_mm-", suffix=".arrow", dir=folder)
    os.close(handle)
    forget: Callable[..., None] = Path(name).unlink
    atexit.register(forget, missing_ok=True)
    first = next(tables)
    with pa.ipc.new_stream(name, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table, max_chunksize=CHUNK)
    return Path(name)
