# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Rows with videos: read from cells, checked before any work is done, collated, and given to models."""

import csv
import json
from importlib import import_module

import datasets
import numpy as np
import pytest
import torch
from helpers.builders import drawing, mm_model
from helpers.laws import assert_classified_alike
from helpers.video import bar, folder, places, write_video  # noqa: F401
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil, pipeline

from modeling_mm import MMForSequenceClassification, MMProcessor, cli
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.media import BadRow
from modeling_mm.data.rows import Columns, Row
from modeling_mm.data.tables import read_table
from modeling_mm.model import video_mm
from modeling_mm.model.compose_mm import add_video
from modeling_mm.model.video_mm import read_video
from modeling_mm.training.scratch import train_tokenizer

pytest.importorskip("av")
COLUMNS = Columns("image", "text", "label", video="video")
HEADER = "image,text,video,label"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Caches tables in a temporary folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def watcher():
    """A processor for 16 x 16 images and videos of four frames."""
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_convert_rgb=True)
    tokenizer = train_tokenizer(["which way does it move", "left", "right"], "scratch-tiny", video=True)
    return MMProcessor(image_processor=images, tokenizer=tokenizer, max_frames=4)


def write_csv(folder, *rows, header=HEADER):
    path = folder / "t.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def read(path, columns=COLUMNS):
    return MMDataset(str(path), *read_table(str(path), "train"), columns)


def checked(path, columns=COLUMNS, **options):
    dataset = read(path, columns).check(**{"num_frames": 4, **options})
    return [dataset.row(number) for number in dataset.kept]


def test_without_the_library_frames_are_read_and_files_are_one_sentence(folder, monkeypatch, capsys):
    def without(name, *rest):
        if name == "av":
            raise ImportError(name)
        return import_module(name, *rest)

    monkeypatch.setattr("importlib.import_module", without)
    assert len(read_video(str(folder / "frames"), 4)) == 4
    with pytest.raises(ImportError, match=r'reading video needs av: pip install "modeling-mm\[video\]"'):
        read_video(str(folder / "long.mp4"), 4)
    assert train(folder, write_csv(folder, ",x,long.mp4,a", ",x,short.mp4,b")) == 2
    assert 'reading video needs av: pip install "modeling-mm[video]"' in capsys.readouterr().err


def train(folder, path, *more):
    towers = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny"]
    flags = ["--task", "classification", "--video_column", "video", "--num_frames", "4", "--image_column", ""]
    output = ["--output_dir", folder / "out", "--use_cpu", "--disable_tqdm", "true", "--report_to", "none"]
    return cli.main([*map(str, ["train", "--train_file", path, *flags, *towers, *output, *more])])


def test_cells_name_files_folders_and_several(folder):
    rows = [
        ",x,long.mp4,a",
        "red.png,,frames,b",
        "red.png,x,,a",
        ",x,long.mp4; short.mp4,b",
        ",x,frames/1.png;red.png,a",
    ]
    rows = checked(write_csv(folder, *rows))
    assert [len(row.videos) for row in rows] == [1, 1, 0, 2, 1]
    assert [len(read_video(video.source, 4)) for row in rows for video in row.videos] == [4, 4, 4, 2, 2]
    assert read(write_csv(folder, ",x,nowhere.mp4,a"), Columns("image", "text", "label")).check()[0].videos == []


def test_lists_of_frames_and_embedded_videos_are_read(folder):
    frames_alone, frame_lists = ["frames/1.png", "frames/2.png"], [["frames/1.png"], ["red.png", "frames/3.png"]]
    lines = [{"video": cell, "label": "a"} for cell in (frames_alone, ["long.mp4", "short.mp4"])]
    (folder / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [[np.size(video.source) for video in row.videos] for row in checked(folder / "l.jsonl")] == [[2], [1, 1]]
    (folder / "n.jsonl").write_text(json.dumps({"video": frame_lists, "label": "a"}))
    assert [len(video.source) for video in checked(folder / "n.jsonl")[0].videos] == [1, 2]
    encoded_frames = [[{"bytes": (folder / "frames" / f"{n}.png").read_bytes(), "path": None} for n in range(3)]]
    for kind, column, frames in (
        (datasets.Video(), [{"bytes": (folder / "long.mp4").read_bytes(), "path": None}], 4),
        (datasets.List(datasets.Image()), encoded_frames, 3),
    ):
        table = datasets.Dataset.from_dict({"video": column, "label": ["a"]}).cast_column("video", kind)
        table.to_parquet(folder / "e.parquet")
        (video,) = checked(folder / "e.parquet")[0].videos
        assert len(read_video(video.source, 4)) == frames


def test_bad_videos_stop_with_their_row_or_are_listed_when_skipped(folder):
    (folder / "text.mp4").write_text("no video")
    (folder / "empty").mkdir()
    rows = [
        ",x,long.mp4,a",
        ",x,text.mp4,a",
        ",x,long.mp4;none.mp4,a",
        ",x,empty,b",
        ",<video><video>,long.mp4,a",
        ",,,a",
    ]
    path = write_csv(folder, *rows)
    with pytest.raises(BadRow, match="t.csv, row 2: the video '.*text.mp4' cannot be read"):
        checked(path)
    dataset = read(path).check(skip=True, num_frames=4)
    reasons = [bad["reason"] for bad in dataset.bad_rows]
    assert dataset.kept == [0] and [bad["row"] for bad in dataset.bad_rows] == [2, 3, 4, 5, 6]
    for reason, message in zip(
        reasons, ("cannot be read", "does not exist", "holds no images", "2 '<video>' markers"), strict=False
    ):
        assert message in reason
    assert reasons[-1] == "'image', 'text' and 'video' are all empty; expected at least one"
    with pytest.raises(BadRow, match="t.csv, row 1: the row has a video, but this model takes none"):
        read(write_csv(folder, rows[0])).check()
    with pytest.raises(ValueError, match="has no column 'video'; it has .*--video_column"):
        read(write_csv(folder, "red.png,x,a", header="image,text,label"))


def test_each_distinct_video_is_opened_once_and_its_rows_stay_together(folder, monkeypatch):
    opened, real = [], video_mm.decode_video
    monkeypatch.setattr(video_mm, "decode_video", lambda source, frames: opened.append(source) or real(source, frames))
    dataset = read(write_csv(folder, *[",x,long.mp4,a", ",y,short.mp4;long.mp4,b"] * 3)).check(num_frames=4)
    assert len(opened) == 2 and dataset.groups() == [[0, 2, 4], [1, 3, 5]]


def test_a_processor_prepares_video_and_comes_back(watcher, folder, tmp_path):
    long, short = str(folder / "long.mp4"), str(folder / "short.mp4")
    texts = ["<video>which way", "which way", "<video>or<video>left"]
    options = {"images": [None, drawing(9), None], "return_tensors": "pt", "padding": True, "deduplicate": True}
    batch = watcher(text=texts, videos=[long, None, [short, long]], **options)
    assert batch["pixel_values_videos"].shape == (2, 4, 3, 16, 16)
    assert batch["video_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["video_index"].tolist() == [[0, -1], [-1, -1], [1, 0]] and batch["image_index"].shape == (3, 1)
    marker = watcher.tokenizer.convert_tokens_to_ids("<video>")
    assert (batch["input_ids"] == marker).sum(dim=1).tolist() == [1, 0, 2]
    watcher.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert (type(again), again.max_frames) == (MMProcessor, 4)
    for processor in (again, watcher):
        alone = processor(videos=list(bar(32)))
        assert set(alone) == {"pixel_values_videos"} and len(alone["pixel_values_videos"]) == 1
    second = again(text=texts, videos=[long, None, [short, long]], **options)
    assert all(torch.equal(second[name], value) for name, value in batch.items())
    with pytest.raises(ValueError, match="row 0: the text has 1 '<video>' markers but 2 videos"):
        watcher(text="<video>hm", videos=[[long, short]])
    with pytest.raises(ValueError, match="2 videos or lists of videos came with 3 texts"):
        watcher(text=["hm"] * 3, videos=[long, short])


def test_a_processor_without_frames_or_marker_says_so(processor, folder):
    with pytest.raises(ValueError, match="a processor without `max_frames`"):
        processor(text="hm", videos=str(folder / "long.mp4"))
    with pytest.raises(ValueError, match="does not know the marker '<video>'"):
        MMProcessor(processor.image_processor, processor.tokenizer, max_frames=4)


def test_a_chat_about_a_video_is_its_text_processed(watcher, folder):
    parts = [{"type": "text", "text": "now "}, {"type": "video", "path": str(folder / "long.mp4")}]
    parts += [{"type": "text", "text": " or "}, {"type": "video", "video": list(bar(3))}]
    chat = [{"role": "user", "content": parts}]
    text = watcher.apply_chat_template(chat, add_generation_prompt=True)
    assert text.startswith("now <video> or <video>")
    tokenized = watcher.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    processed = watcher(text=text, videos=[[str(folder / "long.mp4"), list(bar(3))]], return_tensors="pt")
    assert len(tokenized.pop("pixel_values")) == 0
    assert set(tokenized) == set(processed) and all(torch.equal(tokenized[k], v) for k, v in processed.items())
    assert tokenized["video_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    prompts = watcher.encode_prompts(["which way", "so <video>"], [0, 0], None, [2, 1])
    marker = watcher.tokenizer.convert_tokens_to_ids("<video>")
    assert [prompt.count(marker) for prompt in prompts] == [2, 1] and prompts[0][1:3] == [marker, marker]


def test_the_collator_sees_each_distinct_video_and_none_when_blind(watcher, folder):
    long, frames = str(folder / "long.mp4"), [str(folder / "frames" / f"{n}.png") for n in range(3)]
    rows = [
        Row(1, [], "left", 0, [], [long]),
        Row(2, [], "so", 1),
        Row(3, [], "<video>or<video>", 0, [], [frames, long]),
    ]
    rows += [Row(4, [], "a", 1, [], [list(frames)])]  # the same frames in another list
    batch = MMCollator(watcher, "classification")(rows)
    assert batch["video_index"].tolist() == [[0, -1], [-1, -1], [1, 0], [1, -1]]
    assert batch["pixel_values_videos"].shape[0] == 2
    blind = MMCollator(watcher, "classification", blind=True)(rows)
    assert "video_index" not in blind
    assert not (blind["input_ids"] == watcher.tokenizer.convert_tokens_to_ids("<video>")).any()


@torch.no_grad()
def test_rows_of_any_number_of_pictures_between_words_come_from_a_csv(folder, processor):
    for number in range(3):
        drawing((80 * number, 0, 200)).save(folder / f"{number}.png")
    path = write_csv(
        folder,
        ",no image at all,a",
        "0.png,is <image> it,a",
        "1.png;0.png,is <image> or <image> it,b",
        "2.png; 1.png;0.png,<image>then<image>then<image>,a",
        "2.png;0.png,both of them in front,b",
        header="image,text,answer",
    )
    dataset = read(path, Columns("image", "text", "answer")).check()
    rows = [dataset[index] for index in range(len(dataset))]
    batch = MMCollator(processor, "generation")(rows)
    ids, marker = batch["input_ids"], processor.image_token_id
    assert (ids == marker).sum(dim=1).tolist() == [0, 1, 2, 3, 2]
    assert (batch["image_index"] >= 0).sum(dim=1).tolist() == [0, 1, 2, 3, 2]
    assert batch["pixel_values"].shape[0] == 3  # distinct ones
    index, means = batch["image_index"].tolist(), batch["pixel_values"].flatten(1).mean(dim=1).tolist()
    means = [[means[i] for i in images if i >= 0] for images in index]
    assert means[3] == sorted(means[3], reverse=True) and means[2] == sorted(means[2], reverse=True)
    model = mm_model(image_token_id=marker)
    model.resize_token_embeddings(len(processor.tokenizer))
    together = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    for number, row in enumerate(rows):
        alone = MMCollator(processor, "generation")([row])
        logits = model(**{name: value for name, value in alone.items() if name != "labels"}).logits[0]
        torch.testing.assert_close(together[number, : len(logits)], logits, atol=1e-5, rtol=1e-5)
    columns = (ids[3] == marker).nonzero().flatten().tolist()
    other = {**batch, "pixel_values": torch.where(torch.arange(3)[:, None, None, None] == 1, 0, batch["pixel_values"])}
    other.pop("labels")
    changed = (model(**other).logits - together)[3].abs().amax(-1) > 0
    second = columns[batch["image_index"][3].tolist().index(1)]
    assert not changed[:second].any() and changed[second:].any()


def test_a_pipeline_takes_video_in_any_row(watcher, folder):
    marker = watcher.tokenizer.convert_tokens_to_ids("<video>")
    model = mm_model("bert", head=MMForSequenceClassification, num_frames=4, video_token_id=marker)
    model.resize_token_embeddings(len(watcher.tokenizer))
    classify = pipeline("multimodal-classification", model=model, processor=watcher)
    long, frames = str(folder / "long.mp4"), list(bar(3))
    rows = [
        {"video": long, "text": "which way"},
        {"text": "which way"},
        {"video": [long, frames], "image": drawing(9)},
    ]
    assert_classified_alike(classify, rows)


@torch.no_grad()
def test_a_trained_picture_model_is_given_video(processor):
    model = mm_model(image_token_id=processor.image_token_id)
    model.resize_token_embeddings(len(processor.tokenizer))
    inputs = processor(drawing(9), "<image>is it red", return_tensors="pt")
    expected = model(**inputs).logits
    add_video(model, processor, 4)
    assert torch.equal(model(**inputs).logits[..., : expected.shape[-1]], expected)
    watched = processor(text="<video>is it red", videos=bar(6), return_tensors="pt")
    assert watched["input_ids"].eq(model.config.video_token_id).sum() == 1
    assert model(**watched).logits.isfinite().all()
    with pytest.raises(ValueError, match="the model takes 4 frames per video, not 8"):
        add_video(model, processor, 8)


def test_video_needs_a_column_and_frames(folder, capsys):
    command = ["train", "--train_file", "t.csv", "--output_dir", str(folder), "--vision_tower", "scratch-tiny"]
    assert cli.main([*command, "--video_column", "video"]) == 2
    assert "video needs both --video_column, the column with the videos, and --num_frames" in capsys.readouterr().err


def write_motions(folder, count, seed):
    """A CSV of squares that cross the image, to the right or to the left: any frame alone is equally likely in both.

    Half of the files are videos, the others folders of frames; every third has fewer frames than the model takes.
    """
    rng = np.random.default_rng(seed)
    with (folder / f"{seed}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "video", "label", "answer"])
        for number in range(count):
            length, side, row = 3 if number % 3 == 0 else 16, rng.integers(10, 18), rng.integers(0, 46)
            frames = np.full((length, 64, 64, 3), rng.integers(0, 90, 3), np.uint8)
            colour = rng.integers(140, 255, 3)
            for frame, column in zip(frames, np.linspace(0, 64 - side, length).astype(int), strict=True):
                frame[row : row + side, column : column + side] = colour
            left = bool(rng.integers(2))
            frames, name = frames[::-1] if left else frames, f"{seed}-{number}"
            if number % 2:
                (folder / name).mkdir()
                for place, frame in enumerate(frames):
                    Image.fromarray(frame).save(folder / name / f"{place}.png")
            else:
                name = write_video(folder / f"{name}.mp4", frames).name
            direction = "left" if left else "right"
            writer.writerow(["which way does it move", name, direction, f"to the {direction}"])
    return str(folder / f"{seed}.csv")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "generation"])
def test_a_scratch_model_learns_the_direction_of_motion(tmp_path, capsys, task):
    files = ["--train_file", write_motions(tmp_path, 400, 0), "--test_file", write_motions(tmp_path, 60, 1)]
    towers = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--image_column", ""]
    video = ["--video_column", "video", "--num_frames", "4"]
    options = ["--num_train_epochs", "20", "--per_device_train_batch_size", "16", "--learning_rate", "2e-3"]
    quiet = ["--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no", "--eval_strategy", "no"]
    output = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--task", task]
    assert cli.main(["train", *files, *towers, *video, *options, *quiet, *output]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["accuracy"] >= 0.95 and report["blind_accuracy"] < 0.75
    for seed_and_number in ("1-0.mp4", "1-1"):
        (truth,) = [row for row in csv.reader(open(tmp_path / "1.csv")) if row[1] == seed_and_number]
        asked = ["--video", str(tmp_path / seed_and_number), "--text", truth[0]]
        assert cli.main(["predict", "--model", str(tmp_path / "out"), *asked, "--device", "cpu"]) == 0
        output = json.loads(capsys.readouterr().out.splitlines()[-1])
        result = output["results"][0]
        assert output["video"] and result.get("label", result.get("answer")) in truth[2:]
    test = ["--model", str(tmp_path / "out"), "--test_file", files[3], "--video_column", "video", "--image_column", ""]
    assert cli.main(["evaluate", *test, "--device", "cpu", "--modality_report", "true"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["accuracy"] == report["accuracy"]
    assert (
        scores["modalities"].keys() == {"all", "video alone", "text alone"}
        and scores["modalities"]["text alone"] < 0.75
    )
    assert (tmp_path / "out" / "evaluation" / "report.html").is_file()
