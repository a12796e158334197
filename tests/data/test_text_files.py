"""Cells of CSV, TSV and JSON files are the written text, in their column; errors name the line."""

import datetime
import decimal
import io
import itertools
import json
import random
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.builders import drawing

from modeling_mm.data import text_files
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.media import BadRow
from modeling_mm.data.rows import Columns
from modeling_mm.data.shards import open_shards
from modeling_mm.data.tables import read_file, read_table
from modeling_mm.search.images import read_images

# as JSON has them, and the text that stands there
WRITTEN = ["7", "7.0", "1e5", "1.10", "-0", "true", "false", "98765432109876543210987", "0.1000", "1E-7", "NaN"]
DATES = ["2024-01-01", "2024-01-01T10:00:00Z", "2024-01-01 10:00", "10:00", "1/2/2024"]
SEPARATORS = {"csv": ",", "tsv": "\t"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Caches tables in a temporary folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def table(tmp_path):
    """A function that writes lines to a file and returns its path."""

    def write(name, *lines, end="\n"):
        path = tmp_path / name
        path.write_bytes((end.join(lines) + end).encode())
        return path

    return write


def columns_of(path):
    return read_file(path).to_dict()


def refused(path):
    with pytest.raises(ValueError) as error:
        read_file(path)
    sentence = str(error.value)
    assert sentence.startswith(f"'{path}' cannot be read as a table: ") and "\n" not in sentence
    return sentence


def rows_of(path, task="generation", target="answer"):
    dataset = MMDataset(str(path), *read_table(str(path)), Columns("", "text", target), task=task)
    return [(row.text, row.target) for row in map(dataset.row, dataset.kept)]


# ---------------------------------------------------------------------------------- where cells stand


@pytest.mark.parametrize("kind", SEPARATORS)
def test_a_column_without_a_name_is_left_out_and_said(table, caplog, kind):
    lines = [["", "text", "label"], ["0", "a", "x"], ["1", "b", "y"]]
    path = table(f"t.{kind}", *map(SEPARATORS[kind].join, lines))
    assert columns_of(path) == {"text": ["a", "b"], "label": ["x", "y"]}
    assert "column 1 has no name in the first line and is left out" in caplog.text
    assert "no column has a name" in refused(table(f"n.{kind}", SEPARATORS[kind], f"a{SEPARATORS[kind]}b"))


@pytest.mark.parametrize("kind", SEPARATORS)
def test_a_surplus_is_ignored_only_where_it_is_empty_in_every_row(table, kind):
    def lines(*rows):
        return [line.replace(",", SEPARATORS[kind]) for line in ("text,label,image", *rows)]

    everywhere = {"text": ["a", "b"], "label": ["x", "y"], "image": ["1.png", None]}
    assert columns_of(table(f"a.{kind}", *lines("a,x,1.png,", "b,y,,"))) == everywhere
    assert columns_of(table(f"b.{kind}", *lines("a,x,1.png,,", "b,y,,,"))) == everywhere
    for rows, place in [
        (("a,x,1.png", "Hello, b,y,2.png"), "line 3 has 4 cells; expected 3"),
        (("Hello, a,x,1.png", "Hello, b,y,2.png"), "line 2 has 4 cells; expected 3"),
        (("a,x,1.png", "Hello, b,y,"), "line 3 has 4 cells; expected 3"),  # empty, but others were moved
        (("a,x,1.png,", "Hello, b,y,2.png"), "line 3 has 4 cells; expected 3"),
        (("a,x,1.png,", "b,y,2.png"), "line 3 has 3 cells; expected 3, as in the header, or 4 as in line 2"),
        (("a,x,1.png", "b,y"), "line 3 has 2 cells; expected 3"),
        (("a,x,1.png", "b"), "line 3 has 1 cells; expected 3"),
    ]:
        assert place in refused(table(f"c.{kind}", *lines(*rows))), rows


@pytest.mark.parametrize("name, lines", [
    ("d.csv", ["text,label,text", "a,b,c"]),
    ("d.tsv", ["text\tlabel\ttext", "a\tb\tc"]),
    ("d.csv", ["text,,,label,text", "a,,,b,c"]),
])  # fmt: skip
def test_two_columns_of_one_name_are_refused(table, name, lines):
    assert "two columns have the name 'text'" in refused(table(name, *lines))


def test_two_columns_of_one_name_are_refused_in_parquet_and_a_key_twice_in_json(tmp_path, table):
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "d.parquet")
    assert "two columns have the name 'text'" in refused(tmp_path / "d.parquet")
    path = table("d.jsonl", '{"text": "a"}', '{"text": "a", "answer": "b", "text": "c"}')
    assert "line 2 " in refused(path) and "the key 'text' stands twice" in refused(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "mac"])
def test_line_ends_empty_lines_and_a_byte_order_mark_are_no_cells(table, end):
    for kind, separator in SEPARATORS.items():
        path = table(f"e.{kind}", "\ufefftext,label".replace(",", separator), "", f"a{separator}x", "  ", end=end)
        assert columns_of(path) == {"text": ["a"], "label": ["x"]}
    path = table("e.jsonl", "\ufeff" + '{"text": "a"}', "", '{"text": "b"}', end=end)
    assert columns_of(path) == {"text": ["a", "b"]}


# ---------------------------------------------------------------------------------- quotation marks


def test_tsv_knows_no_quotation_marks(table, caplog):
    cells = ['"what colour?', 'what" colour?', '"what" colour?', '""', '"', 'a "b"', "plain"]
    path = table("q.tsv", "text\tlabel", *(f"{cell}\t{n}" for n, cell in enumerate(cells)))
    assert columns_of(path) == {"text": cells, "label": [str(n) for n in range(len(cells))]}
    assert "1 cells of" in caplog.text and "save the table as CSV" in caplog.text  # "" may be an empty cell of a CSV


def test_what_a_csv_writer_quotes_comes_back(table):
    texts = ['say "hi"', "two\nlines", "a, b,\nand c, d\n", "", '"', '""', "\r\nx", "one,two\nthree", 'it is 5"']
    import csv

    for number, order in enumerate(itertools.permutations(["text", "label", "n"])):
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        rows = [{"text": text, "label": "x", "n": str(n)} for n, text in enumerate(texts)]
        writer.writerows([order, *([row[name] for name in order] for row in rows)])
        path = table(f"{number}.csv", buffer.getvalue(), end="")
        assert read_file(path)["text"][:] == [text or None for text in texts]


def test_a_quotation_mark_that_would_swallow_lines_is_refused_where_it_opens(table):
    plain = [f"{n}.png,what is it,red" for n in range(9)]
    for at, line, other, last in [
        (3, '3.png,"what is it,red', None, None),  # never closed
        (3, '3.png,"what is it,red', 6, '6.png,"what" is it,red'),  # closed, with text behind
        (3, '3.png,"what is it,red', 6, '6.png,what is it",red'),  # closed as it should be: three rows in one cell
        (3, '3.png,what is it,"red', 6, '6.png,what is it,red"'),  # the same, at the end of lines
        (3, '3.png,"what is it,red', 4, '4.png,what is it",red'),
        (3, '3.png,"what" is it,red', None, None),
        (3, '3.png,"what \\"is\\" it",red', None, None),
    ]:
        lines = list(plain)
        lines[at] = line
        if other is not None:
            lines[other] = last
        path = table("s.csv", "image,text,label", *lines)
        assert f"the quotation mark that opens a cell in line {at + 2} is" in refused(path), lines
    proper = [*plain[:2], '2.png,"two\nlines, of ""text""",red', *plain[3:6], '6.png,"open,red', *plain[7:]]
    assert "opens a cell in line 9 is" in refused(table("p.csv", "image,text,label", *proper))


def test_a_quotation_mark_within_a_cell_is_part_of_it(table):
    path = table("i.csv", "text,label", 'a 5" pipe,x', 'it"s,y', "'a,z")
    assert columns_of(path) == {"text": ['a 5" pipe', 'it"s', "'a"], "label": ["x", "y", "z"]}


# ---------------------------------------------------------------------------------- what stands there


@pytest.mark.parametrize("shape", ["lines", "array"])
def test_values_of_json_are_the_text_that_stands_there(table, shape):
    values = [*WRITTEN, *(json.dumps(date) for date in DATES), "null", '""']
    rows = [f'{{"text": {value}, "answer": {value}}}' for value in values]
    path = table("w.jsonl", *rows) if shape == "lines" else table("w.json", f"[{','.join(rows)}]")
    assert columns_of(path)["text"] == [*WRITTEN, *DATES, None, ""]
    assert rows_of(path) == [*((text, text) for text in [*WRITTEN, *DATES]), ("", None), ("", None)]


@pytest.mark.parametrize("task", ["generation", "classification", "multilabel"])
@pytest.mark.parametrize("value", ["7", "7.0", "1e5", "true", '"2024-01-01"', "123456789012345678901"])
def test_every_row_of_a_column_alike_is_still_text(table, task, value):
    written = json.loads(value) if value.startswith('"') else value
    path = table("c.jsonl", *[f'{{"text": "x", "answer": {value}}}'] * 3)
    assert rows_of(path, task) == [("x", [written] if task == "multilabel" else written)] * 3


def test_labels_in_lists_are_the_texts_that_stand_there(table):
    path = table("l.jsonl", '{"text": "x", "answer": [1e5, true, "2024-01-01", 7.0]}', '{"text": "y", "answer": []}')
    expected = [("x", ["1e5", "2024-01-01", "7.0", "true"]), ("y", [])]
    assert rows_of(path, "multilabel") == expected
    path = table("l.csv", "text,answer", 'x,"[1e5, true, ""2024-01-01"", 7.0]"', "y,[]")
    assert rows_of(path, "multilabel") == expected


def test_numbers_of_a_regression_are_read_from_their_text(table):
    path = table("r.jsonl", '{"text": "x", "answer": 1e1}', '{"text": "x", "answer": "2.50"}')
    assert rows_of(path, "regression") == [("x", [10.0]), ("x", [2.5])]


def test_parquet_columns_give_the_text_that_stands_there(tmp_path):
    day = datetime.date(2024, 1, 1)
    cells = {
        "date": (pa.array([day]), "2024-01-01"),
        "time": (pa.array([datetime.datetime(2024, 1, 1, 10)], pa.timestamp("us")), "2024-01-01 10:00:00"),
        "decimal": (pa.array([decimal.Decimal("1.50")], pa.decimal128(5, 2)), "1.50"),
        "zero": (pa.array([decimal.Decimal("0")], pa.decimal128(12, 8)), "0.00000000"),
        "float32": (pa.array([0.1], pa.float32()), "0.1"),
        "float64": (pa.array([0.1]), "0.1"),
        "bytes": (pa.array([b"vu \xc3\xa0"], pa.binary()), "vu à"),
        "integer": (pa.array([7]), "7"),
    }
    for name, (column, text) in cells.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"text": column, "answer": column}), path)
        assert rows_of(path) == [(text, text)], name
        assert rows_of(path, "multilabel") == [(text, [text])], name
        ((shard,),) = [list(open_shards(str(path)).read(0))]
        assert read_file(path)[0] == shard, name
    column = pa.array([b"\xff\xfe"], pa.binary())
    pq.write_table(pa.table({"text": column, "answer": column}), tmp_path / "b.parquet")
    with pytest.raises(BadRow, match="'text' holds bytes that are not UTF-8 text"):
        rows_of(tmp_path / "b.parquet")


def test_a_member_of_a_tar_is_read_as_a_line_of_json(tmp_path):
    values = [*WRITTEN, *(json.dumps(date) for date in DATES)]
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number, value in enumerate(values):
            members = {"json": f'{{"text": {value}, "more": [{value}]}}', "cls": f"00{number}\n", "txt": "a\n"}
            for ending, text in members.items():
                info = tarfile.TarInfo(f"{number:03d}.{ending}")
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
    rows = list(open_shards(str(tmp_path / "s.tar")).read(0))
    assert [row["json.text"] for row in rows] == [*WRITTEN, *DATES]
    assert [row["json.more"] for row in rows] == [[text] for text in [*WRITTEN, *DATES]]
    assert [row["cls"] for row in rows] == [f"00{number}" for number in range(len(values))]
    assert {row["txt"] for row in rows} == {"a\n"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_of_a_folder_is_read_as_a_file_is(tmp_path, table, kind):
    drawing((9, 9, 9)).save(tmp_path / "a.png")
    rows = [("a.png", "7.0", "2024-01-01"), ("a.png", "1e5", "2024-01-02")]
    if kind == "csv":
        table("metadata.csv", "file_name,text,answer", *map(",".join, rows))
    else:
        table("metadata.jsonl", *(f'{{"file_name": "{a}", "text": {b}, "answer": "{c}"}}' for a, b, c in rows))
    data, folder = read_table(str(tmp_path))
    assert folder == tmp_path
    assert data.to_dict() == dict(zip(("image", "text", "answer"), map(list, zip(*rows, strict=True)), strict=True))


def test_metadata_may_name_several_pictures(tmp_path, table):
    drawing((9, 9, 9)).save(tmp_path / "a.png")
    table("metadata.jsonl", '{"file_names": ["a.png"], "mask_file_name": "a.png", "text": "x"}')
    data, _ = read_table(str(tmp_path))
    assert data.to_dict() == {"images": [["a.png"]], "mask": ["a.png"], "text": ["x"]}


# ---------------------------------------------------------------------------------- other faults of JSON


@pytest.mark.parametrize("lines, sentence", [
    (['{"text": "a"}', "{oops}"], "line 2 is no JSON object, or not a whole one: Expecting property name"),
    (['{"text": "a"}', '{"text": '], "line 2 is no JSON object"),
    (['{"text": "a"}', '"b"'], 'line 2 is "b"; expected an object'),
    (['[{"text": "a"}, 3]'], "item 2 is 3; expected an object"),
    (['[{"text": "a"}'], "expected one array of objects"),
    (['["a"]', '["b"]'], "expected one array of objects: Extra data"),
    (['{"text": "a"}', "", '{"text": ["b"]}'], "'text' is a list in line 3 and a plain value in line 1"),
    (['{"text": {"a": 1}}', '{"text": "b"}'], "'text' is a plain value in line 2 and a structure in line 1"),
    (['{"text": [["a"], "b"]}'], "the values of 'text' in line 1 do not make one column"),
    (['{"text": "\\ud800"}'], "the values of 'text' in line 1 do not make one column"),
])  # fmt: skip
def test_what_is_no_table_in_json_is_one_sentence(table, lines, sentence):
    assert sentence in refused(table("j.jsonl", *lines))


def test_a_file_of_other_bytes_is_named_with_its_line(tmp_path):
    for name, text in (
        ("u.csv", "text\na\nvérité\n"),
        ("u.tsv", "text\na\nvérité\n"),
        ("u.jsonl", '{}\n{}\n{"a":"é"}\n'),
    ):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"cannot be read as a table; expected UTF-8 text: line 3 holds b'\\xe9'"):
            read_file(tmp_path / name)


@pytest.mark.parametrize("name", ["n.csv", "n.tsv", "n.jsonl", "n.json", "n.parquet"])
def test_no_rows_are_one_sentence(tmp_path, name):
    for text in ("", "\n", "text\n", "[]"):
        if not (text and name == "n.parquet") and not (text == "text\n" and "json" in name):
            (tmp_path / name).write_text(text)
            with pytest.raises(ValueError, match="holds no rows; expected at least one"):
                read_file(tmp_path / name)


# ---------------------------------------------------------------------------------- large files


@pytest.mark.parametrize("memory", [0, 2**26], ids=["mapped", "in memory"])
def test_a_large_file_is_the_same_table_mapped_from_a_disk(table, monkeypatch, memory):
    monkeypatch.setattr(text_files, "CHUNK", 3)
    monkeypatch.setattr(text_files, "IN_MEMORY", memory)
    chance = random.Random(0)
    rows: list[dict] = [{"text": f"t{n}", "many": None} for n in range(10)]
    rows += [{"text": chance.choice(["x", None]), "many": chance.choice([[], ["a", "b"], None])} for _ in range(9)]
    rows += [{"late": "l", "part": {"path": "p"}}]
    path = table("g.jsonl", *map(json.dumps, rows))
    data = read_file(path)
    assert bool(data.cache_files) == (memory == 0)
    names = ("text", "many", "late", "part")
    assert data.to_list() == [{name: row.get(name) for name in names} for row in rows]
    path = table("g.csv", "text,n", *(f"t{n},{n}" for n in range(10)))
    assert read_file(path).to_list() == [{"text": f"t{n}", "n": str(n)} for n in range(10)]


def test_pictures_of_an_index_keep_numbers_as_numbers_and_dates_as_text(tmp_path, table):
    cells = '"price": 5, "weight": 1.5, "sold": true, "date": "2024-01-01", "code": "007", "tags": [1, 2]'
    path = table("p.jsonl", f'{{"id": 1e5, "image": "a.png", {cells}}}', '{"id": 7, "image": "a.png"}')
    found = read_images(str(path))
    assert found.ids == ["1e5", "7"]
    values = {name: column[0].as_py() for name, column in found.metadata.items()}
    assert values == {"price": 5, "weight": 1.5, "sold": True, "date": "2024-01-01", "code": "007", "tags": [1, 2]}
    path = table("p.csv", ",id,image,price,date", "0,1e5,a.png,5,2024-01-01")
    assert {name: column[0].as_py() for name, column in read_images(str(path)).metadata.items()} == {
        "price": 5, "date": "2024-01-01",
    }  # fmt: skip
    path = table("p.tsv", "id\timage\tsays", 'a\ta.png\t"5" tall', 'b\tb.png\t"x')
    assert read_images(str(path)).metadata["says"].to_pylist() == ['"5" tall', '"x']
    with pytest.raises(ValueError, match="line 2 has 3 cells; expected 2"):
        read_images(str(table("s.csv", "id,image", "a,b,c.png")))
