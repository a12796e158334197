"""Rows are read as they are written in files of any format, with images of any format."""

import io
import json

import datasets
import pytest
from helpers.builders import drawing
from PIL import Image

from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.media import BadRow, open_image
from modeling_mm.data.rows import Columns
from modeling_mm.data.samplers import ImageGroupSampler
from modeling_mm.data.tables import read_easy_vqa, read_table

COLUMNS = Columns("image", "text", "answer")
RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 200, 30)
HEADER = ("image", "text", "answer")
ROWS = [("red.png", "what colour?", "red"), ("sub/blue.png", "007", "NA"), ("", "None", "null"), ("red.png", "", "1")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Caches tables in a temporary folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A folder with three images, one of them in a subfolder."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name, colour in (("red", RED), ("sub/blue", BLUE), ("green", GREEN)):
        drawing(colour).save(folder / f"{name}.png")
    return folder


def png(colour):
    """The bytes of an image of one colour."""
    buffer = io.BytesIO()
    drawing(colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, kind, rows=ROWS, header=HEADER):
    """Write a table to a file of this format; an empty cell is missing."""
    path = folder / f"t.{kind}"
    if kind in ("csv", "tsv"):
        separator = {"csv": ",", "tsv": "\t"}[kind]
        path.write_text("\n".join(separator.join(row) for row in (header, *rows)) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        lines = [json.dumps({name: cell or None for name, cell in zip(header, row, strict=True)}) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        cells = zip(header, zip(*rows, strict=True), strict=True)
        table = datasets.Dataset.from_dict({name: [cell or None for cell in column] for name, column in cells})
        table.to_parquet(path)
    return path


def read(path, columns=COLUMNS, labels=None, split="train"):
    """The unchecked dataset of a source."""
    return MMDataset(str(path), *read_table(str(path), split), columns, labels)


def rows_of(dataset):
    return [dataset.row(number) for number in dataset.kept]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_cells_stay_as_written_and_an_empty_one_is_a_missing_modality(folder, kind):
    dataset = read(write(folder, kind)).check()
    assert [(row.number, row.text, row.target) for row in rows_of(dataset)] == [
        (1, "what colour?", "red"),
        (2, "007", "NA"),
        (3, "None", "null"),
        (4, "", "1"),
    ]
    pixels = [[open_image(image.source).getpixel((0, 0)) for image in row.images] for row in rows_of(dataset)]
    assert pixels == [[RED], [BLUE], [], [RED]]


def test_a_byte_order_mark_is_no_part_of_the_first_column(folder):
    path = write(folder, "csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(rows_of(read(path))[0].images) == 1


def test_a_file_that_is_not_utf_8_is_named(folder):
    path = write(folder, "csv")
    path.write_bytes("image,text,answer\nred.png,vérité,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match="t.csv' cannot be read as a table; expected UTF-8"):
        read_table(str(path))


def test_several_pictures_are_joined_by_semicolons_or_a_list(folder):
    (folder / "l.jsonl").write_text(json.dumps({"image": ["red.png", "green.png"], "text": "a", "answer": "b"}))
    for path in (write(folder, "csv", [("red.png; green.png;", "a", "b")]), folder / "l.jsonl"):
        row = read(path).check()[0]
        assert [open_image(image.source).getpixel((0, 0)) for image in row.images] == [RED, GREEN]


@pytest.mark.parametrize("many", [False, True], ids=["one", "list"])
def test_pictures_inside_a_parquet_file_are_rows_too(folder, many):
    cells = [{"bytes": png(RED), "path": None}, {"bytes": png(BLUE), "path": None}]
    kind = datasets.List(datasets.Image()) if many else datasets.Image()
    features = {"image": kind, "text": datasets.Value("string"), "answer": datasets.Value("string")}
    columns = {"image": [[c] for c in cells] if many else cells, "text": ["a", "b"], "answer": ["c", "d"]}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(folder / "i.parquet")
    found = [open_image(row.images[0].source).getpixel((0, 0)) for row in rows_of(read(folder / "i.parquet").check())]
    assert found == [RED, BLUE]


def test_plain_bytes_are_a_picture(folder):
    table = datasets.Dataset.from_dict({"image": [png(RED)], "text": ["a"], "answer": ["b"]})
    table = table.cast_column("image", datasets.Value("binary"))
    table.to_parquet(folder / "b.parquet")
    assert open_image(read(folder / "b.parquet").check()[0].images[0].source).getpixel((0, 0)) == RED


def test_a_cell_that_is_no_picture_is_a_bad_row(folder):
    datasets.Dataset.from_dict({"image": [3], "text": ["a"], "answer": ["b"]}).to_parquet(folder / "n.parquet")
    with pytest.raises(BadRow, match="n.parquet, row 1: 'image' holds 3; expected a path"):
        read(folder / "n.parquet").check()


def test_a_class_label_column_gives_names_and_none_where_unlabelled(folder):
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])}
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, datasets.Features(features))
    table.to_parquet(folder / "c.parquet")
    dataset = read(folder / "c.parquet", Columns("", "text", "label"), ["cat", "dog"])
    assert [row.target for row in rows_of(dataset)] == ["dog", "cat", None]
    assert dataset[0].target == 1
    with pytest.raises(BadRow, match="row 3: 'label' is empty"):
        dataset.check()


def test_class_folders_are_labels(folder):
    for label, colour in (("cat", RED), ("dog", BLUE)):
        (folder / "pets" / label).mkdir(parents=True)
        drawing(colour).save(folder / "pets" / label / "1.png")
    rows = rows_of(read(folder / "pets", Columns("image", "text", "label")).check())
    assert {row.target: open_image(row.images[0].source).getpixel((0, 0)) for row in rows} == {"cat": RED, "dog": BLUE}
    assert [row.text for row in rows] == ["", ""]


def test_metadata_cells_stay_as_written(folder):
    lines = ["file_name,text,answer", "red.png,007,None", "sub/blue.png,1.50,NA", "green.png,,null"]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    rows = rows_of(read(folder).check())
    assert [(row.text, row.target) for row in rows] == [("007", "None"), ("1.50", "NA"), ("", "null")]
    assert [open_image(row.images[0].source).getpixel((0, 0)) for row in rows] == [RED, BLUE, GREEN]


def test_a_folder_named_test_is_read_and_splits_are_kept_apart(folder):
    for split, colour in (("train", RED), ("test", BLUE)):
        for label in ("cat", "dog"):
            (folder / "s" / split / label).mkdir(parents=True)
            drawing(colour).save(folder / "s" / split / label / "1.png")
    columns = Columns("image", "text", "label")

    def colours(source, split):
        return {open_image(r.images[0].source).getpixel((0, 0)) for r in rows_of(read(source, columns, split=split))}

    assert colours(folder / "s" / "test", "train") == colours(folder / "s", "test") == {BLUE}
    assert colours(folder / "s" / "train", "train") == colours(folder / "s", "train") == {RED}
    with pytest.raises(ValueError, match="has the splits .*, not 'validation'"):
        read_table(str(folder / "s"), "validation")


def test_an_unknown_source_is_one_sentence(folder):
    (folder / "empty").mkdir()
    for source in ("nobody/nothing", str(folder / "empty")):
        with pytest.raises(ValueError, match="is neither a file, a folder nor a known dataset"):
            read_table(source)


def questions(folder, num_images=8, each=3):
    """`each` questions about each of many images, and two without an image."""
    for p in range(num_images):
        drawing((p * 20, 0, 0)).save(folder / f"p{p}.png")
    rows = [(f"p{p}.png", f"q{q}", "a") for q in range(each) for p in range(num_images)]
    return read(write(folder, "csv", [*rows, ("", "alone", "a"), ("", "alone", "a")]))


def first_images(dataset):
    return {image for row in rows_of(dataset) for image in row.images[:1]}


def test_held_out_rows_are_disjoint_and_the_same_for_a_seed(folder):
    dataset = questions(folder)
    rest, held = dataset.hold_out(0.3, seed=1)
    assert sorted(rest.kept + held.kept) == dataset.kept
    assert first_images(rest).isdisjoint(first_images(held)) and first_images(held)
    assert len(held.groups()) == round(0.3 * 10)
    again = dataset.hold_out(0.3, seed=1)
    assert (rest.kept, held.kept) == (again[0].kept, again[1].kept)
    assert any(dataset.hold_out(0.3, seed=s)[1].kept != held.kept for s in (2, 3))


def test_rows_left_out_do_not_come_back_when_held_out(folder):
    rows = [("red.png", "a", "b"), ("nowhere.png", "a", "b"), ("green.png", "a", "b"), ("", "", "b")]
    dataset = read(write(folder, "csv", rows)).check(skip=True)
    assert dataset.kept == [0, 2] and [bad["row"] for bad in dataset.bad_rows] == [2, 4]
    rest, held = dataset.hold_out(0.5, seed=0)
    assert sorted(rest.kept + held.kept) == [0, 2]
    assert dataset.subset([]).kept == []


def test_one_picture_cannot_be_held_out_of_itself(folder):
    dataset = read(write(folder, "csv", [("red.png", f"q{i}", "a") for i in range(5)]))
    with pytest.raises(ValueError, match="about one image.*give --validation_file"):
        dataset.hold_out(0.2, seed=0)
    with pytest.raises(ValueError, match="validation share is 1.5; expected a number between 0 and 1"):
        questions(folder).hold_out(1.5, seed=0)


def test_a_group_is_one_picture_or_one_row_without(folder):
    groups = questions(folder, num_images=3, each=2).groups()
    assert sorted(groups) == [[0, 3], [1, 4], [2, 5], [6], [7]]


def test_the_sampler_gives_each_row_once_with_rows_of_a_picture_side_by_side(folder):
    groups = questions(folder).groups()
    sampler = ImageGroupSampler(groups, seed=3)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(26)) and len(sampler) == 26
        for group in groups:
            start = epochs[-1].index(group[0])
            assert epochs[-1][start : start + len(group)] == group
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    again = ImageGroupSampler(groups, seed=3)
    again.set_epoch(1)
    assert list(again) == epochs[1]


@pytest.mark.parametrize("split, rows, num_images", [("train", 38575, 4000), ("test", 9673, 1000)])
def test_easy_vqa_has_its_official_size(split, rows, num_images):
    table = read_easy_vqa(split)
    assert len(table) == rows and len(set(table["image"])) == num_images
    assert set(table.column_names) == set(HEADER)
    dataset = MMDataset("easy-vqa", *read_table("easy-vqa", split), COLUMNS)
    assert open_image(dataset[rows - 1].images[0].source).size == (64, 64)


def test_easy_vqa_has_no_other_split():
    with pytest.raises(ValueError, match="'train' and 'test', not 'dev'"):
        read_table("easy-vqa", "dev")


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "CMYK", "1", "I;16"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    grey = (128, 128, 128)
    image = drawing(grey)
    if mode == "I;16":
        image = Image.frombytes("I;16", (20, 20), (128 * 256).to_bytes(2, "little") * 400)
    elif mode == "1":
        image = drawing((255, 255, 255)).convert("1")
    else:
        image = image.quantize() if mode == "P" else image.convert(mode)
    path = tmp_path / f"x.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path)
    opened = open_image(str(path))
    assert opened.mode == "RGB" and opened.size == (20, 20)
    expected = (255, 255, 255) if mode == "1" else grey
    assert all(abs(a - b) <= 2 for a, b in zip(opened.getpixel((3, 3)), expected, strict=True))


def test_a_photo_is_turned_the_way_its_camera_says(tmp_path):
    image = Image.new("RGB", (30, 20), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(str(tmp_path / "turned.jpg")).size == (20, 30)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_a_bad_row(tmp_path, kind):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, kind)
    (tmp_path / "cut").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(BadRow, match="cut' is broken"):
        open_image(str(tmp_path / "cut"))
    with pytest.raises(BadRow, match="its embedded bytes"):
        open_image(buffer.getvalue()[:300])


def test_both_columns_missing_a_cell_names_them(folder):
    with pytest.raises(BadRow, match="row 1: 'image' and 'text' are both empty"):
        read(write(folder, "csv", [("", "", "x")])).check()
