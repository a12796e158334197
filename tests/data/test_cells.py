# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Numbers and dates as people write them: one form for a column, or a sentence that names the cell in doubt."""

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest

from modeling_mm.data.cells import COMMA, PLAIN, POINT, cell_number, date_form, number_form


@pytest.mark.parametrize(
    "cell, form, number",
    [
        ("12.5", PLAIN, 12.5),
        (" -3 ", PLAIN, -3),
        ("1e5", PLAIN, 1e5),
        (7, PLAIN, 7),
        (Decimal("2.50"), PLAIN, 2.5),
        (np.float32(2.5), PLAIN, 2.5),
        (None, PLAIN, None),
        ("NA", PLAIN, None),
        ("nan", PLAIN, None),
        (float("nan"), PLAIN, None),
        ("-", PLAIN, None),
        ("$1,234.50", POINT, 1234.5),
        ("-$5", POINT, -5),
        ("45 %", POINT, 45),
        ("12.5 kg", POINT, 12.5),
        ("1 234", POINT, 1234),
        ("1'234.5", POINT, 1234.5),
        ("12,5 kg", COMMA, 12.5),
        ("1.234,5", COMMA, 1234.5),
        ("7", COMMA, 7),
        ("2.1.1970", "%d.%m.%Y", 1),
        ("1970-01-02 12:00", "%Y-%m-%d", 1.5),
        ("1970-01-02T01:00:00+01:00", "%Y-%m-%d", 1),
        ("1/2/1970 6:00 PM", "%m/%d/%Y", 1.75),
        ("19700102T120000", "%Y%m%d", 1.5),
        (date(1970, 1, 3), PLAIN, 2),
        (datetime(1970, 1, 3, 12), PLAIN, 2.5),
        (datetime(1970, 1, 3, 1, tzinfo=timezone(timedelta(hours=1))), PLAIN, 2),
    ],
)
def test_a_cell_is_its_number(cell, form, number):
    assert cell_number(cell, "price", form) == (None if number is None else pytest.approx(number))


@pytest.mark.parametrize(
    "cell, form",
    [
        ("12,5", PLAIN), ("$5", PLAIN), ("1_000", PLAIN), ("inf", PLAIN), ("12,5 kg", POINT), ("1,23,4", POINT),
        ("1 2", POINT), ("1.5", COMMA), ("1,234.5", COMMA), ("31.2.1970", "%d.%m.%Y"), ("1970-01-02", "%d.%m.%Y"),
        (float("inf"), PLAIN), (True, PLAIN), ("1e39", POINT), ("٣", PLAIN),
    ],
)  # fmt: skip
def test_a_cell_of_another_form_is_refused(cell, form):
    with pytest.raises(ValueError, match="'price' is .*; expected a"):
        cell_number(cell, "price", form)


@pytest.mark.parametrize(
    "cells, form",
    [
        (["1", "2.5", "-3e2"], PLAIN),
        (["5%", "13%"], POINT),
        (["$1,234.00", "$5.10", "7"], POINT),
        (["1,500", "2,250,000"], POINT),
        (["a", "b"], None),
        (["C85", "B10"], None),
        (["10-20", "20-30"], None),
        (["10A", "9B", "3C", "4D", "5E"], None),
        (["12:30", "13:00"], None),
        (["1.2.3", "1.10.0"], None),
        (["192.168.0.1", "10.0.0.1"], None),
        (["52.1,4.3", "52.2,4.4"], None),
        (["1,2,3", "4"], None),
    ],
)
def test_the_form_of_numbers(cells, form):
    assert number_form(cells) == form


@pytest.mark.parametrize(
    "cells, sentence",
    [
        (["1,5", "2,25"], "'1,5', a number with a decimal comma"),
        (["12,5 kg", "3 kg"], "'12,5 kg', a number with a unit"),
        (["1,500", "2,250"], "'1,500', whose comma may be one of thousands or of decimals"),
        (["$5", "€7"], "'.5' and '.7', numbers of different units"),
        (["45%", "0.45"], "'45%' and '0.45', numbers of different units"),
        (["1"] * 20 + ["unknwon"], "'unknwon', which is no number as the others are"),
        (["1.234.567", "2"], "'1.234.567', a number with points between thousands"),
    ],
)
def test_numbers_in_doubt_are_named(cells, sentence):
    with pytest.raises(ValueError, match=sentence):
        number_form(cells)


@pytest.mark.parametrize(
    "cells, form",
    [
        (["2014-01-02", "2014-5-6 10:00"], "%Y-%m-%d"),
        (["01/02/2014", "13/02/2014"], "%d/%m/%Y"),
        (["01/02/2014", "02/13/2014"], "%m/%d/%Y"),
        (["1/2/14", "2/13/14"], "%m/%d/%y"),
        (["02.01.2014", "03.01.2014"], "%d.%m.%Y"),
        (["May 3, 2014", "May 4, 2014"], "%b %d, %Y"),
        (["3 June 2014", "4 May 2014"], "%d %B %Y"),
        (["20140502", "20151231"], "%Y%m%d"),
        (["hello", "world"], None),
        (["1", "2"], None),
        (["2014", "2015"], None),
    ],
)
def test_the_form_of_dates(cells, form):
    assert date_form(cells) == form


@pytest.mark.parametrize(
    "cells, sentence",
    [
        (["2014-01-02", "02.03.2014"], "several formats, '2014-01-02' and '02.03.2014'"),
        (["13/02/2014", "02/13/2014"], "several formats, '13/02/2014' and '02/13/2014'"),
        (["01/02/2014", "02/03/2014"], "'01/02/2014' and '02/03/2014', in which day and month cannot be told apart"),
        (["01/01/2014", "01/01/2014"], "cannot be told apart"),
        (["2014-01-02"] * 30 + ["soon"], "'soon', which is no date as the others are"),
    ],
)
def test_dates_in_doubt_are_named(cells, sentence):
    with pytest.raises(ValueError, match=sentence):
        date_form(cells)
