# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Numbers and dates as people write them: the form of a column, and the number of a cell in that form.

A form is PLAIN (12.5), POINT (with a currency, a per cent sign, a unit or thousands commas: $1,234.50), COMMA
(1.234,5 kg) or the `strptime` format of a date, whose number counts the days since 1970.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timezone
from typing import Any

from ..model.table_mm import NUMBER, is_empty, read_number

PLAIN, POINT, COMMA = "", "point", "comma"
MISSING = {"", "-", "--", "?", "#n/a", "<na>", "n/a", "na", "nan", "nat", "none", "null", "missing"}
CURRENCY, UNIT = "[$€£¥₹]", r"%|[^\W\d_]{1,8}[²³]?"
DRESSED = re.compile(rf"([+-]?)\s?({CURRENCY})?\s?(\d[\d.,'\s]*?)\s?({UNIT}|{CURRENCY})?")
DIGITS = {
    POINT: re.compile(r"(\d{1,3}([,'\s]\d{3})+|\d+)(\.\d*)?"),
    COMMA: re.compile(r"(\d{1,3}([.'\s]\d{3})+|\d+)(,\d+)?"),
}
SUFFIXES = 4  # a column of numbers has no more units
FORMATS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%Y-%m", "%d.%m.%Y", "%d.%m.%y"),
    *("%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%y", "%m-%d-%y"),
    *("%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y"),
)
TIME = re.compile(
    r"[T ]\s*(?P<hour>\d{1,2}):?(?P<minute>\d\d)(:?(?P<second>\d\d(\.\d+)?))?\s?(?P<half>[AaPp][Mm])?"
    r"\s?(?P<zone>Z|UTC|[+-]\d\d:?\d\d)?"
)
EPOCH = date(1970, 1, 1).toordinal()
DAY = 24 * 60 * 60  # seconds


def is_missing(cell: Any) -> bool:
    """True for an empty cell, and for the words that stand for a missing number or date."""
    return is_empty(cell) or (isinstance(cell, str) and cell.strip().lower() in MISSING)


def cell_number(cell: Any, column: str, form: str = PLAIN) -> float | None:
    """The number of a cell in the form of its column; None if it is missing. Once plain, `read_number` reads it.

    Args:
        column: the column's name, for messages.

    Raises:
        ValueError: names the column and the value that is no finite number, or no date, of this form.
    """
    if is_missing(cell):
        return None
    if isinstance(cell, (date, datetime)):
        return typed_days(cell)
    if isinstance(cell, str):
        plain = days(cell, form) if form.startswith("%") else plain_number(cell, form)
        if plain is None:
            expected = f"a date like {form}" if form.startswith("%") else "a number"
            raise ValueError(f"'{column}' is {cell!r:.60}; expected {expected}")
        cell = plain
    return read_number(cell, column)


def formed_numbers(cells: Mapping[str, Any], forms: Mapping[str, str]) -> dict[str, Any]:
    """The cells of a row by column; those of a column with a form become numbers, None if they are missing.

    Raises:
        ValueError: names the column and its cell of another form.
    """
    return {name: cell_number(cell, name, forms[name]) if name in forms else cell for name, cell in cells.items()}


def plain_number(cell: str, form: str) -> str | None:
    """The number that a text holds, without unit and commas; None if it holds none of this form."""
    text = cell.strip()
    if NUMBER.fullmatch(text) and (form != COMMA or "." not in text):
        return text
    match = DRESSED.fullmatch(text) if form else None
    if match is None or not DIGITS[form].fullmatch(match[3]):
        return None
    grouping, mark = (r"[,'\s]", ".") if form == POINT else (r"[.'\s]", ",")
    return match[1] + re.sub(grouping, "", match[3]).replace(mark, ".")


def different_marks(cells: Iterable[str]) -> list[str] | None:
    """Two cells with different currencies or units, or with and without a per cent sign; None if all have the same."""
    matches = {cell: DRESSED.fullmatch(cell.strip()) for cell in cells}
    found = {match[2] or match[4] or "": cell for cell, match in matches.items() if match}
    marks = [mark for mark in found if mark]
    if len(marks) > 1 or (marks == ["%"] and "" in found):
        return list(found.values())[:2] if len(found) == 2 else [found[mark] for mark in marks[:2]]
    return None


def number_form(cells: Sequence[str]) -> str | None:
    """The form of a column's cells, none of them missing; None if most of them hold no numbers.

    Raises:
        ValueError: a decimal comma, a unit or a stray word makes the form ambiguous; names a cell and says what it is.
    """
    others = [cell for cell in dict.fromkeys(cells) if not NUMBER.fullmatch(cell.strip())]
    if not others:
        return PLAIN
    strange = [cell for cell in others if plain_number(cell, POINT) is plain_number(cell, COMMA) is None]
    suffixes = {cell: match[4] for cell in others if (match := DRESSED.fullmatch(cell.strip())) and match[4]}
    if len([cell for cell in cells if cell in strange]) > 0.1 * len(cells) or len({*suffixes.values()}) > SUFFIXES:
        return None
    if strange:
        raise ValueError(f"'{strange[0][:60]}', which is no number as the others are")
    if units := [cell for cell, suffix in suffixes.items() if suffix.isalpha()]:
        raise ValueError(f"'{units[0]}', a number with a unit")
    if twice := different_marks(cells):
        raise ValueError(f"'{twice[0]}' and '{twice[1]}', numbers of different units")
    for cell in others:
        if plain_number(cell, POINT) is None:
            mark = "a decimal comma" if "," in cell else "points between thousands"
            raise ValueError(f"'{cell}', a number with {mark}")
    commas = [cell for cell in others if "," in cell]
    if commas and not any("." in cell or cell.count(",") > 1 for cell in commas):
        raise ValueError(f"'{commas[0]}', whose comma may be one of thousands or of decimals")
    return POINT


def date_form(cells: Sequence[str], orders: Iterable[str] = FORMATS) -> str | None:
    """The `strptime` format of a column's cells, none of them missing; None if most of them hold no dates.

    Args:
        orders: the formats that are possible.

    Raises:
        ValueError: the cells have several formats, or the order of day and month is unknown; names two of them.
    """
    first = cells[:50]
    if sum(any(days(cell, form) is not None for form in FORMATS) for cell in first) < 0.9 * len(first):
        return None
    left, before = list(orders), cells[0]
    for cell in dict.fromkeys(cells):
        fitting = [form for form in left if days(cell, form) is not None]
        if not any(days(cell, form) is not None for form in fitting or FORMATS):
            raise ValueError(f"'{cell[:60]}', which is no date as the others are")
        if not fitting:
            raise ValueError(f"dates in several formats, '{before}' and '{cell[:60]}'")
        left, before = fitting, cell if len(fitting) < len(left) else before
    if len({form.replace("%B", "%b") for form in left}) > 1:
        other = next((cell for cell in cells if cell != cells[0]), cells[0])
        raise ValueError(f"dates such as '{cells[0]}' and '{other}', in which day and month cannot be told apart")
    return left[0]


def days(cell: str, form: str) -> float | None:
    """The days from 1970 to a date and time, in UTC if it names its zone; None if the text has another form."""
    text = cell.strip()
    time = TIME.search(text) if re.search(r"\d:\d\d|\dT\d", text) else None
    if time and (time.end() < len(text) or time.start() == 0):
        return None
    day = text[: time.start()] if time else text
    if form == "%Y%m%d" and not re.fullmatch(r"(19|20)\d{6}", day):
        return None
    try:
        count = datetime.strptime(day, form).toordinal() - EPOCH
    except ValueError:
        return None
    return float(count) if time is None else count + share_of_day(time)


def share_of_day(time: re.Match) -> float:
    """The days from midnight UTC to a time that TIME found."""
    hour, half, zone = int(time["hour"]), (time["half"] or "").lower(), time["zone"] or "Z"
    if half:
        hour = hour % 12 + 12 * (half == "pm")
    seconds = hour * 3600 + int(time["minute"]) * 60 + float(time["second"] or 0)
    if zone not in ("Z", "UTC"):
        seconds -= int(f"{zone[0]}1") * (int(zone[1:3]) * 3600 + int(zone[-2:]) * 60)
    return seconds / DAY


def typed_days(cell: date | datetime) -> float:
    """The days from 1970 to a date or time, in UTC if it has a zone."""
    if not isinstance(cell, datetime):
        return float(cell.toordinal() - EPOCH)
    return (cell if cell.tzinfo else cell.replace(tzinfo=timezone.utc)).timestamp() / DAY
