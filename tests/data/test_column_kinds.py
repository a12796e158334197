# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The kind of each column is the one that a data scientist would give it, or a question."""

import io
import random
import re
import uuid
from datetime import date, datetime

import datasets
import numpy as np
import pytest
import soundfile
from helpers.builders import drawing
from helpers.tables import KNOWN, TEN_KINDS, write_rows, write_ten_columns
from PIL import Image

from modeling_mm.data.column_kinds import SAMPLE, column_kinds
from modeling_mm.data.tables import read_table

ROWS = 60
DRAW = random.Random(0)
WORDS = ["a chair", "of old oak", "in good state", "with three legs", "and no back", "for a small room"]


def kinds_of(path, chosen=None):
    """The columns of a file by name."""
    chosen = {name: (kind, "") for name, kind in (chosen or {}).items()}
    return {column.name: column for column in column_kinds(path.name, *read_table(str(path)), chosen)}


def judge(folder, cells, name="x", chosen=None):
    """The column of a table that has, beside it, a column of numbers."""
    path = write_rows(folder / "t.csv", ["row", name], [[f"{i * 0.37 + 1:.3f}", cell] for i, cell in enumerate(cells)])
    return kinds_of(path, {name: chosen} if chosen else None)[name]


@pytest.mark.parametrize("maker", KNOWN)
def test_tables_of_known_forms(tmp_path, maker):
    header, rows, kinds = maker()
    found = kinds_of(write_rows(tmp_path / "t.csv", header, rows))
    assert {name: column.kind for name, column in found.items()} == dict(zip(header, kinds, strict=True))


def test_a_table_of_ten_columns(tmp_path):
    found = kinds_of(write_ten_columns(tmp_path), {"label": "label"})
    assert {name: column.kind for name, column in found.items()} == TEN_KINDS
    why = {name: column.why for name, column in found.items()}
    assert why["photo"] == "PNG paths, all exist" and why["material"] == "3 different values"
    assert why["item_id"] == "60 of 60 values differ, no spaces: an id"
    assert (found["weight"].missing, found["price"].missing, found["notes"].missing) == (0.1, 0, 0.15)
    assert all(len(column.examples) == 2 and all(column.examples) for column in found.values())


def spread(*values, rows=ROWS):
    return [values[i % len(values)] for i in range(rows)]


@pytest.mark.parametrize(
    "name, cells, kind, why",
    [
        ("x", [None] * ROWS, "ignore", "all cells are empty"),
        ("x", ["a"] * ROWS, "ignore", "only the value 'a'"),
        ("x", ["-"] * ROWS, "ignore", "only the value '-'"),
        ("x", spread("yes", None), "category", "'yes' or empty"),
        ("x", spread("yes", "no"), "category", "2 different"),
        ("x", spread("0", "1"), "category", "two values"),
        ("x", spread("0", "1", "NA"), "category", "two values"),
        ("x", spread("true", "false", None), "category", "2 different"),
        ("rooms", spread("1", "2", "3", "4", "5"), "number", "whole numbers, 1 to 5"),
        ("zip", spread("02134", "10001", "94110"), "category", "leading zeros"),
        ("zip_code", spread("12134", "10001", "94110"), "category", "a code by its name"),
        ("zip", [f"0{1000 + i}" for i in range(ROWS)], "ignore", "leading zeros, 60 of 60"),
        ("x", [str(i) for i in range(ROWS)], "ignore", "each row has its number"),
        ("x", [str(i) for i in DRAW.sample(range(ROWS), ROWS)], "ignore", "each row has its number"),
        ("user_id", spread(*map(str, range(40))), "ignore", "named as an id"),
        ("storeId", spread("11", "12", "17"), "category", "named as an id"),
        ("x", [str(uuid.UUID(int=DRAW.getrandbits(128))) for _ in range(ROWS)], "ignore", "no spaces: an id"),
        ("mail", [f"u{i}@example.org" for i in range(ROWS)], "ignore", "no spaces: an id"),
        ("phone", [f"0{DRAW.randrange(10**9)}" for _ in range(ROWS)], "ignore", "leading zeros"),
        ("phone", [str(DRAW.randrange(10**9, 10**10)) for _ in range(ROWS)], "ignore", "equally long: an id"),
        ("paid", [str(DRAW.randrange(1, 10**6)) for _ in range(ROWS)], "number", "whole numbers"),
        ("x", spread("1.5", "NA", "2.25", "-", "nan", "7"), "number", "numbers, 1.5 to 7"),
        ("rate", spread("10%", "12.5%", "99%"), "number", "signs and thousands commas left out"),
        ("cost", spread("1,500", "2,250,000", "17"), "number", "17 to 2.25e\\+06"),
        ("term", spread("36 months", "60 months"), "category", "2 different"),
        ("dependents", spread("0", "1", "2", "3+"), "category", "4 different"),
        ("sold", spread("2014-05-02", "2015-12-31", "2014-07-09"), "date", "%Y-%m-%d"),
        ("sold", spread("2.5.2014", "31.12.2015"), "date", "%d.%m.%Y"),
        ("sold", spread("5/2/2014", "12/31/2015", "NA"), "date", "%m/%d/%Y"),
        ("notes", [f"{DRAW.choice(WORDS)} {DRAW.choice(WORDS)} {i}" for i in range(ROWS)], "text", "named so"),
        ("x", [f"{DRAW.choice(WORDS)} {DRAW.choice(WORDS)} {i}" for i in range(ROWS)], "text", "words a cell"),
        ("author", [f"Ann{i} Smith" for i in range(ROWS)], "text", "2.0 words"),
        ("x", [f"这是一张第{'一二三四五六七八九十'[i % 10]}{i}号的桌子" for i in range(ROWS)], "text", "words a cell"),
        ("text", spread("what colour is it?", "how many are there?"), "text", "in a column of this name"),
        ("Title", spread("Mr", "Mrs", "Miss"), "category", "3 different"),
        ("place", spread("Los Angeles, CA", "New York, NY", "Austin, TX"), "category", "3 different"),
        ("answer_sheet", spread("I strongly agree with all that", "I do not agree"), "category", "2 different"),
        ("page", [f"https://example.org/{i}.png" for i in range(ROWS)], "ignore", "web addresses"),
        ("picture", ["data:image/png;base64,iVBOR"] * 2 + ["data:image/png;base64,iV"] * 58, "ignore", "data URIs"),
        ("x", [f"[0.{i}, 0.2, 0.3, 0.4, 0.5, 0.6]" for i in range(ROWS)], "ignore", "lists or structures in JSON"),
        ("address", [f"192.168.0.{i}" for i in range(ROWS)], "ignore", "an id"),
        ("place", [f"52.{i},4.{i}" for i in range(ROWS)], "ignore", "an id"),
        ("Unnamed: 0", [str(i) for i in range(ROWS)], "ignore", "each row has its number"),
        ("Fare", [*(f"{i / 7:.2f}" for i in range(1, 60)), "-5"], "number", "numbers, -5 to"),
        ("id", ["NULL"] * 30 + ["a"] * 30, "category", "2 different"),
    ],
)
def test_kinds_of_hostile_columns(tmp_path, name, cells, kind, why):
    column = judge(tmp_path, cells, name)
    assert column.kind == kind
    assert why in column.why or re.search(why, column.why)


@pytest.mark.parametrize(
    "cells, sentence, settled, kind, form",
    [
        (spread("12,5 kg", "13,25 kg", rows=40) + [f"{i},5 kg" for i in range(40)],
         "holds '12,5 kg', a number with a unit", "comma_number", "number", "comma"),
        ([f"{i}.5 kg" for i in range(ROWS)], "a number with a unit", "number", "number", "point"),
        ([f"{i},5" for i in range(ROWS)], "'0,5', a number with a decimal comma", "comma_number", "number", "comma"),
        ([f"{i + 1},250" for i in range(ROWS)], "may be one of thousands or of decimals", "number", "number", "point"),
        ([*(str(i * 3) for i in range(ROWS)), "twelve"], "'twelve', which is no number", "ignore", "ignore", ""),
        (["2014-05-02"] * 30 + [f"{1 + i % 28}.5.2014" for i in range(30)],
         "several formats, '2014-05-02' and '1.5.2014'", "category", "category", ""),
        ([f"{1 + i % 12:02d}/{1 + i % 9:02d}/2014" for i in range(ROWS)],
         "'01/01/2014' and '02/02/2014', in which day and month", "day_first", "date", "%d/%m/%Y"),
        ([f"{1 + i % 12:02d}/{1 + i % 9:02d}/2014" for i in range(ROWS)], "day and month", "month_first", "date",
         "%m/%d/%Y"),
        ([f"img/{i}.png" for i in range(ROWS)], "paths of image files, none of which exists", "ignore", "ignore", ""),
    ],
)  # fmt: skip
def test_what_is_in_doubt_is_a_question_that_a_flag_settles(tmp_path, cells, sentence, settled, kind, form):
    with pytest.raises(ValueError, match="the column 'x' of 't.csv' holds .*; correct it, or give .*=ignore") as error:
        judge(tmp_path, cells)
    assert sentence in str(error.value)
    column = judge(tmp_path, cells, chosen=settled)
    assert (column.kind, column.form) == (kind, form)


@pytest.mark.parametrize(
    "cells, chosen, sentence",
    [
        (spread("a", "b"), "number", "'a', which is no number with a decimal point"),
        (spread("1.5", "2"), "comma_number", "'1.5', which is no number with a decimal comma"),
        (spread("12 kg", "500 g"), "number", "'12 kg' and '500 g', numbers of different units"),
        (spread("a", "b"), "date", "'a', which is no date"),
        (spread("2014-13-45", "2014-01-01"), "date", "is no date"),
        (spread("13/02/2014", "12/01/2014"), "month_first", "'13/02/2014'"),
    ],
)
def test_a_chosen_kind_that_does_not_fit_is_refused(tmp_path, cells, chosen, sentence):
    with pytest.raises(ValueError, match=sentence):
        judge(tmp_path, cells, chosen=chosen)


def test_a_category_of_100_000_values(tmp_path):
    cells = [f"v{i % 100_000}" for i in range(250_000)]
    column = judge(tmp_path, cells)
    assert column.kind == "ignore" and "sampled values differ" in column.why
    few = judge(tmp_path, [f"v{i % 1500}" for i in range(SAMPLE)])
    assert few.kind == "ignore" and "1,500 different values, too many for a category" in few.why


def test_a_value_that_a_sample_lacks_is_not_denied(tmp_path):
    column = judge(tmp_path, ["0"] * (4 * SAMPLE))
    assert column.why == "only the value '0' in 5,000 sampled rows"


def test_paths_of_media(tmp_path):
    for i in range(ROWS):
        drawing(3 * i).save(tmp_path / f"{i}.jpg")
        drawing(3 * i).save(tmp_path / f"bare{i}", "PNG")
        (tmp_path / f"{i}.wav").touch()
        (tmp_path / f"{i}.mp4").touch()
    header = ["photo", "both", "image", "clip", "film", "one_missing"]
    rows = [
        [f"{i}.jpg", f"{i}.jpg; 0.jpg", f"bare{i}", str(tmp_path / f"{i}.wav"), f"{i}.mp4" if i else None, f"{i}.jpg"]
        for i in range(ROWS)
    ]
    rows[7][5] = "lost.jpg"
    found = kinds_of(write_rows(tmp_path / "t.csv", header, rows))
    assert [column.kind for column in found.values()] == ["image", "image", "image", "audio", "video", "image"]
    assert found["one_missing"].why == "JPG paths, 59 of 60 sampled exist" and found["film"].missing == 0.0167


def test_typed_and_embedded_columns(tmp_path):
    buffer, sound = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    soundfile.write(sound, np.zeros(800), 16000, format="WAV")
    count = 40
    table = {
        "whole": [i * 3 % 23 for i in range(count)],
        "half": [i / 2 if i else None for i in range(count)],
        "truth": [i % 2 == 0 for i in range(count)],
        "day": [date(2020, 1, 1 + i % 28) for i in range(count)],
        "time": [datetime(2020, 1, 1 + i % 28, 12) for i in range(count)],
        "raw": [buffer.getvalue()] * count,
        "heard": [{"bytes": sound.getvalue(), "path": None}] * count,
        "tags": [["a", "b"], ["c"]] * (count // 2),
        "photos": [[buffer.getvalue()]] * count,
    }
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "t.parquet")
    found = kinds_of(tmp_path / "t.parquet")
    expected = ["number", "number", "category", "date", "date", "image", "audio", "ignore", "image"]
    assert [column.kind for column in found.values()] == expected
    assert found["half"].missing == 0.025
    classes = datasets.ClassLabel(names=["cat", "dog"])
    dataset = datasets.Dataset.from_dict({"pet": [0, 1] * 20, "photo": [Image.new("RGB", (8, 8))] * 40})
    dataset = dataset.cast_column("pet", classes).cast_column("photo", datasets.Image())
    pet, photo = column_kinds("pets", dataset, tmp_path, {})
    assert (pet.kind, set(pet.examples), photo.kind) == ("category", {"cat", "dog"}, "image")


def test_the_same_columns_at_every_call(tmp_path):
    path = write_rows(tmp_path / "t.csv", ["a", "b"], [[i % 7, f"k{i % 900}"] for i in range(20_000)])
    assert kinds_of(path) == kinds_of(path)
    assert kinds_of(path)["b"].kind == "category"
