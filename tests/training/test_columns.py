# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Label, task and towers follow from the table; what is in doubt is a question, and flags have the last word."""

import json

import datasets
import pytest
from helpers.builders import drawing, mm_config
from helpers.tables import TEN_KINDS, titanic, write_rows, write_ten_columns

from modeling_mm.training.arguments import DataArguments, ModelArguments
from modeling_mm.training.columns import choose_columns

SCRATCH = {"vision_tower": "scratch-tiny", "text_model": "scratch-tiny"}
TEXTS = [f"a note about item {i} and more" for i in range(60)]


def choose(path, model=None, **flags):
    """The flags after the choice, and what goes into the report."""
    model, data = ModelArguments(**(model or {})), DataArguments(train_file=str(path), **flags)
    return model, data, choose_columns(model, data).get("columns", {})


def labelled(folder, cells, name="label", **more):
    """A table of texts, a label and further columns."""
    header = ["remarks", name, *more]
    rows = zip(TEXTS * (len(cells) // 60 + 1), cells, *more.values(), strict=False)
    return write_rows(folder / "t.csv", header, [list(row) for row in rows])


def spread(*values, rows=60):
    return [values[i % len(values)] for i in range(rows)]


def test_a_table_of_ten_columns_needs_no_flag(tmp_path, capsys):
    model, data, report = choose(write_ten_columns(tmp_path))
    assert {name: column["kind"] for name, column in report.items()} == TEN_KINDS
    assert (data.task, data.label_column, data.image_column, data.text_column) == (
        "classification", "label", "photo", "title,notes",
    )  # fmt: skip
    assert (data.audio_column, data.video_column) == ("", "")
    assert data.number_columns == ["price", "weight", "width", "views"]
    assert data.category_columns == ["city", "material"]
    assert (model.vision_tower, model.text_model, model.audio_tower) == ("scratch-tiny", "scratch-tiny", None)
    page = capsys.readouterr().out
    assert [line.split()[:2] for line in page.splitlines()[3:14]] == [list(pair) for pair in TEN_KINDS.items()]
    assert "task: classification, because 'label' has 3 different values in 60 rows" in page
    json.dumps(report)


@pytest.mark.parametrize(
    "cells, name, task",
    [
        (spread("a", "b"), "label", "classification"),
        (spread("0", "1"), "Target", "classification"),
        (spread("1.0", "0.0"), "y", "classification"),
        (spread(*map(str, range(10))), "class", "classification"),
        (spread(*[f"{i / 7:.3f}" for i in range(50)]), "y", "regression"),
        (spread(*[str(i * i) for i in range(50)]), "y", "regression"),
        (spread("0.5", "1", "1.5", "2"), "y", "regression"),
        (spread("a|b", "a", "c|a", ""), "label", "multilabel"),
        (spread('["a", "b"]', '["c"]'), "labels", "multilabel"),
        (TEXTS, "answer", "generation"),
        (spread("yes", "no"), "answer", "generation"),
    ],
)
def test_the_task_follows_from_the_label(tmp_path, cells, name, task):
    _, data, report = choose(labelled(tmp_path, cells, name))
    assert (data.task, data.label_column, report[name]["kind"]) == (task, name, "label")


def test_lists_and_classes_of_typed_tables(tmp_path):
    table = {"remarks": TEXTS, "label": spread(["a"], ["a", "b"])}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "t.parquet")
    assert choose(tmp_path / "t.parquet")[1].task == "multilabel"
    table = datasets.Dataset.from_dict({"remarks": TEXTS, "label": spread(0, 1)})
    table.cast_column("label", datasets.ClassLabel(names=["cat|dog", "7"])).to_parquet(tmp_path / "c.parquet")
    assert choose(tmp_path / "c.parquet")[1].task == "classification"


@pytest.mark.parametrize(
    "cells, sentence",
    [
        (TEXTS, "'label' of '.*t.csv' has 60 different values in 60 rows; classes recur"),
        ([f"k{i % 40}" for i in range(60)], "has 40 different values in 60 rows"),
        ([str(i) for i in range(60)], "'label' of .* numbers the rows"),
        ([str(i % 30) for i in range(300)], "30 different whole numbers in 300 rows; give --task classification"),
        ([str(i % 12) for i in range(30)], "12 different whole numbers in 30 rows; give --task classification"),
        (spread("a|b", "c|d|e"), "such as '(a.b|c.d.e)'; give --task multilabel if | separates labels"),
        (spread("a"), "the label column 'label' of '.*t.csv' has fewer than two different values"),
        (spread(None), "fewer than two different values"),
    ],
)
def test_a_label_in_doubt_is_refused(tmp_path, cells, sentence):
    with pytest.raises(ValueError, match=sentence.replace("if | ", r"if \| ")):
        choose(labelled(tmp_path, cells, other=spread("x", "y", rows=len(cells))))


def test_as_many_values_as_rows_are_refused_for_a_chosen_task_too(tmp_path):
    path = labelled(tmp_path, TEXTS)
    with pytest.raises(ValueError, match="60 different values in 60 rows"):
        choose(path, task="classification")
    assert choose(path, task="generation")[1].label_column == "label"
    several = labelled(tmp_path, [f"{i % 8}|{i // 8}a" for i in range(60)])
    assert choose(several, task="multilabel")[1].task == choose(several)[1].task == "multilabel"


def test_two_possible_labels_are_a_question(tmp_path):
    path = labelled(tmp_path, spread("a", "b"), target=spread("1", "2", "3"))
    with pytest.raises(
        ValueError, match='may be the label, label and target; .*--columns "label=label,target=ignore"'
    ):
        choose(path)
    _, data, report = choose(path, columns="label=label,target=ignore")
    assert data.label_column == "label" and report["target"]["kind"] == "ignore"
    assert choose(path, label_column="target")[1].category_columns == ["label"]


def test_no_label_is_a_question(tmp_path):
    header, rows, _ = titanic()
    path = write_rows(tmp_path / "t.csv", header, rows)
    with pytest.raises(ValueError, match=r'\(perhaps Survived, Pclass, .*\), .* --columns "Survived=label"$'):
        choose(path)
    for flags in ({"columns": "Survived=label"}, {"label_column": "Survived"}):
        _, data, _ = choose(path, **flags)
        assert (data.task, data.label_column, data.text_column) == ("classification", "Survived", "Name")
        assert data.category_columns == ["Pclass", "Sex", "Embarked"]
        assert data.number_columns == ["Age", "SibSp", "Parch", "Fare"] and data.image_column == ""
    with pytest.raises(ValueError, match=r"has no column 'survived'; it has PassengerId, Survived"):
        choose(path, label_column="survived")


def test_images_and_texts_alone_may_be_retrieval(tmp_path):
    for i in range(60):
        drawing(4 * i).save(tmp_path / f"{i}.png")
    path = write_rows(tmp_path / "t.csv", ["image", "caption"], [[f"{i}.png", text] for i, text in enumerate(TEXTS)])
    with pytest.raises(ValueError, match="--task retrieval .* or --task matching"):
        choose(path)
    _, data, report = choose(path, task="retrieval")
    assert (data.label_column, data.text_column, report["caption"]["kind"]) == (None, "caption", "text")


def test_pairs_have_no_label_and_no_columns_that_would_tell_them(tmp_path):
    for i in range(60):
        drawing(4 * i).save(tmp_path / f"{i}.png")
    path = labelled(
        tmp_path, spread("a", "b"), image=[f"{i}.png" for i in range(60)], price=[str(i * 7) for i in range(60)]
    )
    for task in ("retrieval", "matching"):
        _, data, report = choose(path, task=task)
        assert (data.label_column, data.image_column, data.text_column) == (None, "image", "remarks")
        assert data.number_columns == data.category_columns == []
        assert report["label"]["why"] == f"category, which {task} does not use"


def test_nothing_to_predict_from_is_refused(tmp_path):
    path = write_rows(tmp_path / "t.csv", ["key", "label"], [[f"k{i}", "ab"[i % 2]] for i in range(60)])
    with pytest.raises(ValueError, match='no column to predict from; .* give --columns "key=category"'):
        choose(path)


def test_flags_have_the_last_word(tmp_path):
    path = write_ten_columns(tmp_path)
    _, data, report = choose(path, columns="views=ignore,city=text,width=category,label=label")
    assert data.text_column == "title,notes,city" and data.category_columns == ["width", "material"]
    assert data.number_columns == ["price", "weight"] and report["views"]["why"] == "by --columns"
    _, data, report = choose(path, text_column="notes", image_column="", number_columns=["price,weight"])
    assert (data.text_column, data.image_column) == ("notes", "")
    assert data.number_columns == ["price", "weight"]
    assert report["title"]["why"] == "text, but --text_column names the columns of this kind"
    assert report["photo"]["kind"] == "ignore" and report["views"]["kind"] == "ignore"
    _, data, _ = choose(path, task="regression", label_column="price,weight")
    assert (data.task, data.label_column) == ("regression", "price,weight")
    assert data.category_columns == ["city", "material", "label"] and data.number_columns == ["width", "views"]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"columns": "price=money"}, "--columns gives 'price=money'; expected name=kind with a kind of image, audio"),
        ({"columns": "price"}, "--columns gives 'price'"),
        ({"columns": "cost=number"}, "--columns names 'cost', but '.*t.csv' has the columns item_id, photo"),
        ({"columns": "price=number,price=text"}, "--columns names 'price' twice"),
        (
            {"columns": "title=ignore", "text_column": "title"},
            "--text_column names 'title', which --columns names too",
        ),
        ({"columns": "city=label", "label_column": "label"}, "--label_column is label, but --columns names another"),
        ({"columns": "title=number"}, "'title' of .* holds '.*', which is no number"),
        ({"columns": "auto", "streaming": True}, "--columns reads the table before training"),
    ],
)
def test_bad_flags_are_refused(tmp_path, flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        choose(write_ten_columns(tmp_path), **flags)


def test_dates_and_dressed_numbers_keep_their_form(tmp_path):
    days = [f"{1 + i % 28}.{1 + i % 12}.2020" for i in range(60)]
    weight = [f"{i},5 kg" for i in range(60)]
    _, data, _ = choose(labelled(tmp_path, spread("a", "b"), sold=days, kg=weight), columns="kg=comma_number")
    assert data.number_columns == ["sold", "kg"]
    assert data.number_forms == {"sold": "%d.%m.%Y", "kg": "comma"}
    _, data, _ = choose(labelled(tmp_path, spread("a", "b"), age=spread("17", "NA", *map(str, range(40)))))
    assert data.number_forms == {"age": ""}  # in which NA is missing


def test_flags_as_they_were_given_before_infer_nothing(tmp_path, capsys):
    path = write_ten_columns(tmp_path)
    mm_config().save_pretrained(tmp_path / "trained")
    ways = (
        (SCRATCH, {"task": "classification"}),
        (SCRATCH, {"label_column": "label"}),
        ({"model": str(tmp_path / "trained")}, {}),
        (SCRATCH, {"streaming": True}),
    )
    for model, flags in ways:
        _, data, report = choose(path, model, **flags)
        assert report == {} and (data.image_column, data.text_column, data.audio_column) == ("image", "text", "")
        assert data.number_columns == [] and data.task == flags.get("task", "generation")
    answers = labelled(tmp_path, spread("a", "b"), "answer", price=[str(i * 7) for i in range(60)])
    assert choose(answers, SCRATCH)[2] == {} and capsys.readouterr().out == ""
    assert choose(answers, SCRATCH, columns="auto")[1].number_columns == ["price"]


def test_further_training_reads_the_columns_of_training(tmp_path):
    columns = {"image": "photo", "text": "title,notes", "target": "label", "forms": {"sold": "%d.%m.%Y"}}
    mm_config(columns=columns).save_pretrained(tmp_path / "trained" / "base")
    model = {"model": str(tmp_path / "trained")}
    _, data, report = choose(write_ten_columns(tmp_path), model, task="classification", text_column="notes")
    assert (data.image_column, data.text_column, data.label_column, report) == ("photo", "notes", "label", {})
    assert (data.audio_column, data.number_forms) == ("", {"sold": "%d.%m.%Y"})


def test_towers_without_other_flags_are_enough(tmp_path):
    model, data, report = choose(write_ten_columns(tmp_path), SCRATCH | {"vision_tower": "somebody/tower"})
    assert (model.vision_tower, data.image_column, data.task) == ("somebody/tower", "photo", "classification")


def test_a_modality_without_a_tower_is_a_question(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.wav").touch()
        (tmp_path / f"{i}.mp4").touch()
    sounds, films = [[f"{i}.{suffix}" for i in range(60)] for suffix in ("wav", "mp4")]
    path = labelled(tmp_path, spread("a", "b"), clip=sounds)
    assert choose(path)[0].audio_tower == "scratch-tiny"
    with pytest.raises(ValueError, match="'clip' needs --audio_tower scratch-tiny; .* --columns \"clip=ignore\""):
        choose(path, SCRATCH)
    path = labelled(tmp_path, spread("a", "b"), film=films)
    assert choose(path)[0].num_frames == 8
    with pytest.raises(ValueError, match="'film' needs --num_frames 8"):
        choose(path, SCRATCH)
