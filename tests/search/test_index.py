"""`modeling-mm index`: nothing is lost or doubled, only changes are embedded, bad input gets one sentence."""

# ruff: noqa: F811 (fixtures are imported by name)

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.builders import drawing
from helpers.index import clip, draw, image_folder, refused, rows_of, run_index, run_search, save_clip, table  # noqa: F401
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from modeling_mm.search.gallery import only_writer
from modeling_mm.search.images import read_images


def test_every_picture_is_there_once_with_the_models_own_embedding(clip, image_folder, tmp_path):
    result = run_index(model=clip, images=image_folder, index=tmp_path / "i", batch_size=5, commit_rows=5)
    assert (result["rows"], result["added"], result["skipped"]) == (12, 12, 0)
    found = rows_of(tmp_path / "i")
    assert set(found) == {path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png")}
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    for name in ("00.png", "inner/11.png"):
        with torch.no_grad():
            batch = processor(images=Image.open(image_folder / name), return_tensors="pt")
            expected = torch.nn.functional.normalize(model.get_image_features(**batch).pooler_output[0], dim=0)
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


KILLED = """
import os, signal, sys, threading
from modeling_mm import cli
from modeling_mm.search.gallery import Gallery
put, calls = Gallery.put, []
def dying(self, *rows):
    calls.append(rows)
    if len(calls) == 3:  # in the middle of a commit, or just after it
        threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGKILL)).start()
    put(self, *rows)
    if len(calls) == 3:
        threading.Event().wait()
Gallery.put = dying
cli.main(sys.argv[1:])
"""


def test_killed_and_run_again_is_as_never_killed(clip, image_folder, tmp_path):
    flags = {"model": clip, "images": image_folder, "batch_size": 2, "commit_rows": 2}
    argv = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    argv = [sys.executable, "-c", KILLED, "index", *argv, "--index", str(tmp_path / "killed")]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    survived = rows_of(tmp_path / "killed")
    assert len(survived) in (4, 6)  # two commits, and the third if it was done
    result = run_index(**flags, index=tmp_path / "killed")
    assert (result["rows"], result["embedded"]) == (12, 12 - len(survived))
    run_index(**flags, index=tmp_path / "whole")
    whole, resumed = rows_of(tmp_path / "whole"), rows_of(tmp_path / "killed")
    assert set(whole) == set(resumed)
    for name, vector in whole.items():
        np.testing.assert_allclose(resumed[name], vector, atol=1e-6)
    for name, vector in survived.items():
        np.testing.assert_array_equal(resumed[name], vector)


def test_a_kill_before_the_table_is_whole_leaves_no_index(clip, image_folder, tmp_path, capsys):
    (tmp_path / "i" / "pictures.lance" / "data").mkdir(parents=True)
    assert "is no index" in refused(capsys, "search", "--index", tmp_path / "i", "--text", "red")
    assert run_index(model=clip, images=image_folder, index=tmp_path / "i")["rows"] == 12


def test_only_what_is_new_or_changed_is_embedded(clip, image_folder, tmp_path):
    flags = {"images": image_folder, "index": tmp_path / "i"}
    run_index(model=clip, **flags)
    before = rows_of(tmp_path / "i")
    again = run_index(**flags)
    assert (again["embedded"], again["added"], again["rows"]) == (0, 0, 12)
    draw(image_folder / "00.png", 99)
    draw(image_folder / "new.png", 100)
    result = run_index(**flags)
    assert (result["embedded"], result["added"], result["rows"]) == (2, 1, 13)
    after = rows_of(tmp_path / "i")
    assert np.abs(after["00.png"] - before["00.png"]).max() > 1e-3
    assert all((after[name] == vector).all() for name, vector in before.items() if name != "00.png")


def test_a_caption_changes_without_the_model_and_a_moved_folder_is_known_again(clip, table, image_folder, tmp_path):
    run_index(model=clip, images=table, index=tmp_path / "i")
    table.write_text(table.read_text().replace("no. 3", "the third"))
    result = run_index(images=table, index=tmp_path / "i")
    assert (result["embedded"], result["rewritten"], result["rows"]) == (0, 1, 12)
    (hit,) = run_search(index=str(tmp_path / "i"), text="red", where="price = 3")
    assert hit["metadata"]["caption"] == "<b>the third</b>"
    (tmp_path / "away").mkdir()
    image_folder.rename(tmp_path / "away" / "pictures")
    moved = table.rename(tmp_path / "away" / "table.csv")
    result = run_index(images=moved, index=tmp_path / "i", prune=True)
    assert (result["embedded"], result["rewritten"], result["pruned"], result["rows"]) == (0, 12, 0, 12)


def test_unreadable_pictures_are_skipped_and_listed(clip, image_folder, tmp_path):
    (image_folder / "text.png").write_text("no image")
    whole = (image_folder / "02.png").read_bytes()
    (image_folder / "inner" / "cut.png").write_bytes(whole[: len(whole) // 2])
    result = run_index(model=clip, images=image_folder, index=tmp_path / "i", batch_size=3)
    assert (result["rows"], result["skipped"]) == (12, 2)
    listed = [json.loads(line) for line in Path(result["skipped_file"]).read_text().splitlines()]
    assert listed == result["skipped_pictures"]
    assert {image["id"] for image in listed} == {"text.png", "inner/cut.png"}
    assert all(image["image"] in image["reason"] for image in listed)
    draw(image_folder / "text.png", 50)
    (image_folder / "inner" / "cut.png").unlink()
    result = run_index(images=image_folder, index=tmp_path / "i")
    assert (result["rows"], result["skipped"]) == (13, 0) and not (tmp_path / "i" / "skipped.jsonl").exists()


def test_a_table_may_name_files_that_are_missing(clip, table, tmp_path):
    table.write_text(table.read_text() + "pictures/none.png,x,1,1\n,x,1,1\n")
    result = run_index(model=clip, images=table, index=tmp_path / "i")
    assert result["rows"] == 12
    reasons = [image["reason"] for image in result["skipped_pictures"]]
    assert reasons[0] == "row 14 lacks an image or an id" and "does not exist" in reasons[1]


def test_rows_go_by_id_or_when_their_pictures_are_gone(clip, image_folder, tmp_path, capsys):
    flags = {"images": image_folder, "index": tmp_path / "i"}
    other = draw(tmp_path / "others" / "o'.png", 7).parent
    run_index(model=clip, **flags)
    run_index(images=other, index=tmp_path / "i")
    assert run_index(index=tmp_path / "i", remove=["00.png", "o'.png"])["rows"] == 11
    message = refused(capsys, "index", "--index", tmp_path / "i", "--remove", "02.png", "00.png")
    assert "'00.png'" in message and "02.png" in rows_of(tmp_path / "i")
    run_index(images=other, index=tmp_path / "i")
    (image_folder / "02.png").unlink()
    (image_folder / "04.png").write_text("broken now")
    assert run_index(**flags)["rows"] == 13  # 00.png is back, and nothing goes unasked
    result = run_index(**flags, prune=True)
    assert (result["pruned"], result["rows"]) == (2, 11)
    assert {"02.png", "04.png"} & set(rows_of(tmp_path / "i")) == set() and "o'.png" in rows_of(tmp_path / "i")


def test_another_model_or_revision_is_refused(clip, image_folder, tmp_path, capsys):
    folder = tmp_path / "i"
    run_index(model=clip, images=image_folder, index=folder)
    other, prepared = save_clip(tmp_path / "other", seed=1), save_clip(tmp_path / "prepared", image_mean=0.4)
    for model, difference in ((other, "weights"), (prepared, "image_mean")):
        for argv in (["index", "--images", image_folder], ["search", "--text", "red"]):
            message = refused(capsys, *argv, "--index", folder, "--model", model)
            assert clip in message and model in message and difference in message
    copy = save_clip(tmp_path / "copy")
    assert run_search(index=str(folder), text="red", model=copy)
    assert run_index(model=copy, images=image_folder, index=folder)["embedded"] == 0


@pytest.mark.parametrize(
    "argv, message",
    [
        (["search", "--index", "{i}"], "the query is missing"),
        (["search", "--index", "{i}", "--text", "red", "--rerank", "20"], "CLIPModel) has no matching head"),
        (["search", "--index", "{i}", "--text", "red", "--rerank", "2"], "must be at least --top_k"),
        (["search", "--index", "{i}", "--image", "none.png"], "'none.png' does not exist"),
        (["search", "--index", "none", "--text", "red"], "'none' is no index"),
        (["index", "--index", "none", "--remove", "a"], "'none' is no index"),
        (["index", "--index", "{i}"], "nothing to do"),
        (["index", "--index", "new", "--images", "{image_folder}"], "give the --model"),
        (["index", "--index", "{i}", "--images", "none.csv"], "'none.csv' is neither a folder nor"),
        (["index", "--index", "{i}", "--images", "{empty}"], "holds no images"),
        (["index", "--index", "new", "--images", "{image_folder}", "--model", "{image_folder}"], "no dual encoder"),
        (["index", "--index", "{i}", "--ann"], "at least 1000 images"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(indexed, capsys, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *[str(indexed.get(word.strip("{}"), word)) for word in argv])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def indexed(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed")
    draw(folder / "pictures" / "0.png", 0)
    (folder / "empty").mkdir()
    run_index(model=clip, images=folder / "pictures", index=folder / "i")
    return {"i": folder / "i", "image_folder": folder / "pictures", "empty": folder / "empty"}


def test_an_emptied_gallery_says_so_and_can_be_filled_again(clip, image_folder, tmp_path, capsys):
    run_index(model=clip, images=image_folder, index=tmp_path / "i")
    run_index(index=tmp_path / "i", remove=list(rows_of(tmp_path / "i")))
    assert "holds no images" in refused(capsys, "search", "--index", tmp_path / "i", "--text", "red")
    assert run_index(index=tmp_path / "i", images=image_folder)["rows"] == 12


def test_ids_stand_for_one_picture(clip, image_folder, tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("file,key\npictures/00.png,a\npictures/02.png,b\npictures/04.png,a\n")
    message = refused(
        capsys, "index", "--model", clip, "--index", tmp_path / "i", "--images", path, "--image_column", "file",
        "--id_column", "key",
    )  # fmt: skip
    assert "rows 1 and 3" in message and "'a'" in message
    path.write_text("image\npictures/00.png\npictures/00.png\n")
    with pytest.raises(ValueError, match="rows 1 and 2 .* 'pictures/00.png'"):
        read_images(str(path))
    run_index(model=clip, images=image_folder, index=tmp_path / "i")
    drawing((1, 2, 3)).save(draw(tmp_path / "twin" / "00.png", 3))
    message = refused(capsys, "index", "--index", tmp_path / "i", "--images", tmp_path / "twin")
    assert str(image_folder / "00.png") in message and str(tmp_path / "twin" / "00.png") in message


def test_columns_of_later_files_join_those_of_earlier_ones(clip, table, image_folder, tmp_path, capsys):
    folder = str(tmp_path / "i")
    draw(tmp_path / "more.png", 40)
    run_index(model=clip, images=draw(tmp_path / "plain" / "p.png", 41).parent, index=folder)
    run_index(images=table, index=folder)
    (tmp_path / "more.csv").write_text("id,image,price,maker\nm,more.png,5,us\n")
    assert run_index(images=tmp_path / "more.csv", index=folder)["rows"] == 14
    by_id = {hit["id"]: hit["metadata"] for hit in run_search(index=folder, text="red", top_k=20)}
    assert by_id["m"] == {"caption": None, "price": 5, "code": None, "maker": "us"}
    assert by_id["p.png"] == dict.fromkeys(["caption", "price", "code", "maker"])
    (tmp_path / "more.csv").write_text("id,image,price,maker\nn,more.png,cheap,us\n")
    assert "'price' holds string" in refused(capsys, "index", "--images", tmp_path / "more.csv", "--index", folder)
    (tmp_path / "more.csv").write_text("image,vector\nmore.png,5\n")
    assert "'vector'" in refused(capsys, "index", "--images", tmp_path / "more.csv", "--index", folder)


def test_a_second_writer_is_refused(indexed, monkeypatch):
    monkeypatch.setattr("modeling_mm.search.gallery.LOCK_SECONDS", 0)
    with only_writer(str(indexed["i"])), pytest.raises(ValueError, match="another process is writing"):
        run_index(index=indexed["i"], remove=["0.png"])
