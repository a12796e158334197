"""Bad input is one clear sentence that names the file, the row and what was expected, and exit code 2."""

import io
import json

import pytest
import torch
from helpers.builders import mm_model
from PIL import Image

from modeling_mm import cli

TOWERS = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny"]


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c", "d"):
        Image.new("RGB", (16, 16), name == "a" and "red" or "blue").save(tmp_path / f"{name}.png")
    return tmp_path


def write_csv(folder, *rows, header="image,text,answer"):
    path = folder / "t.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


GOOD = ("a.png,what colour?,red", "b.png,what colour?,blue", "c.png,what colour?,blue", "d.png,what colour?,blue")


def refuse(capsys, *argv):
    """Run a verb that must fail; returns its error message."""
    code = cli.main(list(map(str, argv)))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


def train(folder, path, *extra):
    return ("train", "--train_file", path, *TOWERS, "--output_dir", folder / "out", "--use_cpu", *extra)


def test_missing_image(folder, capsys):
    path = write_csv(folder, *GOOD, "nowhere.png,what colour?,red")
    message = refuse(capsys, *train(folder, path))
    assert "t.csv, row 5" in message and "nowhere.png' does not exist" in message


def test_unreadable_image(folder, capsys):
    (folder / "text.png").write_text("no image")
    message = refuse(capsys, *train(folder, write_csv(folder, *GOOD, "text.png,what?,red")))
    assert "row 5" in message and "text.png" in message and "expected PNG" in message


def test_truncated_image(folder, capsys):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    (folder / "cut.png").write_bytes(buffer.getvalue()[:900])
    message = refuse(capsys, *train(folder, write_csv(folder, *GOOD, "cut.png,what?,red")))
    assert "row 5" in message and "cut.png' is broken" in message


@pytest.mark.parametrize("limit", [100, 200], ids=["error", "warning"])
def test_decompression_bomb(folder, capsys, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # 256 pixels: over twice 100, over once 200
    message = refuse(capsys, *train(folder, write_csv(folder, *GOOD)))
    assert "row 1" in message and f"more than {limit} pixels" in message


def test_missing_column(folder, capsys):
    message = refuse(
        capsys, *train(folder, write_csv(folder, "a.png,x,y", header="image,text,reply"), "--task", "generation")
    )
    assert "t.csv' has no column 'answer'; it has image, text, reply" in message


def test_missing_image_and_text_column(folder, capsys):
    message = refuse(capsys, *train(folder, write_csv(folder, "a.png,x", header="picture,answer")))
    assert "has no column 'image'" in message


@pytest.mark.parametrize("header", ["img,text,answer", "image,question,answer"])
def test_misspelt_column(folder, capsys, header):
    message = refuse(capsys, *train(folder, write_csv(folder, *GOOD, header=header)))
    assert "has no column '" in message and "--image_column" in message


def test_a_list_in_place_of_a_value(folder, capsys):
    (folder / "t.jsonl").write_text('{"image": "a.png", "text": "x", "answer": [["red"], ["blue"]]}\n' * 3)
    assert "row 1: 'answer' holds nested values" in refuse(capsys, *train(folder, folder / "t.jsonl"))
    (folder / "t.jsonl").write_text('{"image": "a.png", "text": ["x", "y"], "answer": "red"}\n' * 3)
    assert "row 1: 'text' holds a list" in refuse(capsys, *train(folder, folder / "t.jsonl"))


def test_a_split_of_a_file(folder, capsys):
    argv = train(folder, write_csv(folder, *GOOD), "--test_split", "test")
    assert "--test_split names a split of --dataset" in refuse(capsys, *argv)


def test_unknown_argument(folder, capsys):
    assert "unknown argument --imge" in refuse(capsys, "predict", "--model", folder, "--imge", "a.png")


def test_unknown_label(folder, capsys):
    path = write_csv(folder, *GOOD, header="image,text,label")
    (folder / "v.csv").write_text("image,text,label\na.png,what?,mauve\n")
    message = refuse(capsys, *train(folder, path, "--task", "classification", "--validation_file", folder / "v.csv"))
    assert "v.csv, row 1: the label 'mauve' is unknown; expected one of blue, red" in message


def test_a_label_with_as_many_values_as_rows(folder, capsys):
    path = write_csv(folder, *(f"a.png,x,k{i}" for i in range(30)), header="image,text,label")
    message = refuse(capsys, *train(folder, path, "--task", "classification"))
    assert "t.csv' has 30 different values in 30 rows; classes recur" in message


def test_single_label(folder, capsys):
    path = write_csv(folder, "a.png,x,red", "b.png,x,red", header="image,text,label")
    assert "only the label 'red'" in refuse(capsys, *train(folder, path, "--task", "classification"))


@pytest.mark.parametrize("row", ["a.png,what colour?,", "a.png,what colour?,  "], ids=["empty", "blank"])
def test_empty_answer(folder, capsys, row):
    message = refuse(capsys, *train(folder, write_csv(folder, *GOOD, row)))
    assert "row 5: 'answer' is empty; expected a value" in message


def test_row_without_image_and_text(folder, capsys):
    message = refuse(capsys, *train(folder, write_csv(folder, *GOOD, ",,red")))
    assert "row 5: 'image' and 'text' are both empty" in message


def test_more_markers_than_images(folder, capsys):
    message = refuse(capsys, *train(folder, write_csv(folder, *GOOD, "a.png,<image> or <image>?,red")))
    assert "row 5: the text has 2 '<image>' markers but the row has 1 images" in message


@pytest.mark.parametrize("text", ["", "image,text,answer\n"], ids=["empty file", "header only"])
def test_zero_rows(folder, capsys, text):
    (folder / "t.csv").write_text(text)
    assert "t.csv' holds no rows; expected at least one" in refuse(capsys, *train(folder, folder / "t.csv"))


def test_ragged_csv(folder, capsys):
    message = refuse(capsys, *train(folder, write_csv(folder, *GOOD, "a.png,x,red,one,too,many")))
    assert "t.csv' cannot be read as a table: line 6 has 6 cells; expected 3, as in the header" in message


def test_row_with_too_many_tokens(folder, capsys):
    path = write_csv(folder, *GOOD, f"a.png,{'what? ' * 99},red")
    message = refuse(capsys, *train(folder, path, "--max_length", "60"))
    assert "t.csv, row 5: prompt and answer have" in message and "tokens; expected at most 60" in message


def test_missing_file(folder, capsys):
    assert "none.csv' does not exist" in refuse(capsys, *train(folder, folder / "none.csv"))


def test_unknown_tower(folder, capsys):
    path = write_csv(folder, *GOOD)
    argv = ("train", "--train_file", path, "--vision_tower", folder / "nope", "--text_model", "scratch-tiny")
    message = refuse(capsys, *argv, "--output_dir", folder / "out", "--use_cpu")
    assert "nope' is neither a folder with" in message


def test_layers_of_a_pretrained_text_model(folder, capsys):
    path = write_csv(folder, *GOOD)
    argv = (
        "train",
        "--train_file",
        path,
        "--vision_tower",
        "scratch-tiny",
        "--text_model",
        "bert",
        "--text_layers",
        3,
    )
    message = refuse(capsys, *argv, "--output_dir", folder / "out", "--use_cpu")
    assert "--text_layers is for a scratch text model, but --text_model is bert" in message


def test_no_source(folder, capsys):
    assert "either --train_file or --dataset" in refuse(capsys, "train", *TOWERS, "--output_dir", folder / "out")


def test_resume_without_checkpoint(folder, capsys):
    argv = train(folder, write_csv(folder, *GOOD), "--resume_from_checkpoint", "last")
    assert "no complete checkpoint to resume from" in refuse(capsys, *argv)


def test_checkpoint_of_another_model(folder, capsys):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for argv in (("predict", "--text", "x"), ("evaluate", "--test_file", write_csv(folder, *GOOD))):
        message = refuse(capsys, argv[0], "--model", folder, *argv[1:])
        assert "is a checkpoint of type 'llama'; expected 'modeling_mm'" in message


def test_no_model(folder, capsys):
    assert "neither a folder with a model nor" in refuse(capsys, "predict", "--model", folder / "x", "--text", "x")


def test_unknown_verb_and_config_key(folder, capsys):
    assert "unknown verb 'fly'" in refuse(capsys, "fly")
    (folder / "c.yaml").write_text("learning_rat: 1\n")
    assert "learning_rat" in refuse(capsys, "train", "--config", folder / "c.yaml")
    assert "does not exist" in refuse(capsys, "train", "--config", folder / "none.yaml")


def test_wrong_shape_of_pixels():
    model = mm_model()
    ids = torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"`pixel_values` has shape \(2, 3\); expected \(B, C, H, W\)"):
        model(input_ids=ids, pixel_values=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"`image_index` has shape \(2,\); expected \(B, N\)"):
        model(input_ids=ids, pixel_values=torch.zeros(2, 3, 16, 16), image_index=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`media_key_values` has shape \(2, 3\); expected \(B, 2, 2, "):
        model(input_ids=ids, media_key_values=torch.zeros(2, 3))
    media = model.encode_media(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"`media_start` has shape \(2, 1\); expected"):
        model(input_ids=ids, media_key_values=media, media_start=torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="1 images came without `image_index`, but the 2 texts hold 0 markers"):
        model(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16))


def test_pushing_while_training_is_refused_and_the_way_to_push_named(folder, capsys):
    sentence = refuse(capsys, *train(folder, write_csv(folder, *GOOD), "--push_to_hub", "true"))
    assert f"train first, then run: modeling-mm push --model {folder / 'out'} --repo_id USER/NAME" in sentence
