"""Rows with audio are read like rows with images, and each clip is checked before any work is done."""

import json
import logging

import datasets
import numpy as np
import pytest
import soundfile
import torch
from helpers.builders import drawing, mm_model

from modeling_mm import MMForSequenceClassification, MMProcessor, cli
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.media import BadRow
from modeling_mm.data.rows import Columns, Row
from modeling_mm.data.tables import read_table
from modeling_mm.model import audio_mm
from modeling_mm.model.audio_mm import audio_features, read_audio
from modeling_mm.model.audio_towers_mm import audio_tower_from_config, audio_width, run_audio_tower
from modeling_mm.training import scratch

RATE = 16000
COLUMNS = Columns("image", "text", "label", audio="audio")
HEADER = "image,text,audio,label"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Caches tables in a temporary folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_tone(path, hertz=440.0, seconds=0.2, volume=0.5):
    """Write a pure tone to a file."""
    samples = volume * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)
    soundfile.write(path, samples, RATE)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with two audio files, one of them in a subfolder, and an image."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    write_tone(folder / "low.wav", 200)
    write_tone(folder / "sub" / "high.flac", 2000)
    drawing((200, 30, 30)).save(folder / "red.png")
    return folder


def write_csv(folder, *rows, header=HEADER):
    path = folder / "t.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def read(path, columns=COLUMNS, split="train"):
    return MMDataset(str(path), *read_table(str(path), split), columns)


def rows_of(dataset):
    return [dataset.row(number) for number in dataset.kept]


def hertz(source):
    """The loudest frequency of an audio clip, to the nearest 100 Hz."""
    clip = read_audio(source, RATE)
    return round(np.abs(np.fft.rfft(clip)).argmax() * RATE / len(clip) / 100) * 100


def test_any_cell_may_be_empty_and_paths_start_at_the_file(folder):
    path = write_csv(
        folder, "red.png,x,low.wav,a", ",,sub/high.flac,b", "red.png,,,a", ",x,,b", ",x,low.wav;sub/high.flac;,a"
    )
    rows = rows_of(read(path).check())
    assert [[hertz(sound.source) for sound in row.audio] for row in rows] == [[200], [2000], [], [], [200, 2000]]
    assert [len(row.images) for row in rows] == [1, 0, 1, 0, 0]
    assert [row.target for row in rows] == ["a", "b", "a", "b", "a"]


def test_lists_and_embedded_sounds_are_read(folder):
    (folder / "l.jsonl").write_text(json.dumps({"audio": ["low.wav", "sub/high.flac"], "label": "a"}))
    assert [hertz(sound.source) for sound in read(folder / "l.jsonl").check()[0].audio] == [200, 2000]
    cells = [{"bytes": (folder / "low.wav").read_bytes(), "path": None}]
    for name, kind, column in (("one", datasets.Audio(), cells), ("list", datasets.List(datasets.Audio()), [cells])):
        table = datasets.Dataset.from_dict({"audio": column, "label": ["a"]}).cast_column("audio", kind)
        table.to_parquet(folder / f"{name}.parquet")
        dataset = read(folder / f"{name}.parquet")
        assert isinstance(table.features["audio"], type(kind)) and [
            hertz(s.source) for s in dataset.check()[0].audio
        ] == [200]


def test_a_folder_of_sounds_has_its_classes_or_its_metadata(folder):
    for label, pitch in (("low", 200), ("high", 2000)):
        (folder / "calls" / label).mkdir(parents=True)
        write_tone(folder / "calls" / label / "1.wav", pitch)
    rows = rows_of(read(folder / "calls").check())
    assert {row.target: hertz(row.audio[0].source) for row in rows} == {"low": 200, "high": 2000}
    (folder / "calls").rename(folder / "train")
    assert {row.target: hertz(row.audio[0].source) for row in rows_of(read(folder))} == {"low": 200, "high": 2000}
    with pytest.raises(ValueError, match="has the splits train, not 'test'"):
        read_table(str(folder), "test")
    (folder / "metadata.csv").write_text("file_name,label\nlow.wav,007\nsub/high.flac,None\n")
    rows = rows_of(read(folder).check())
    assert {row.target: hertz(row.audio[0].source) for row in rows} == {"007": 200, "None": 2000}


def test_without_an_audio_column_nothing_of_it_is_read(folder):
    path = write_csv(folder, "red.png,x,nowhere.wav,a")
    assert rows_of(read(path, Columns("image", "text", "label")).check())[0].audio == []


@pytest.mark.parametrize(
    "header, missing",
    [("audio,label", None), ("text,audio,label", None), ("image,audio,label", None), ("image,text,label", "audio")]
    + [("img,text,audio,label", "image"), ("image,question,audio,label", "text"), ("image,text,audio", "label")],
)
def test_a_modality_may_have_no_column_but_a_misspelt_one_is_told(folder, header, missing):
    cells = {"audio": "low.wav", "image": "red.png", "label": "a"}
    path = write_csv(folder, ",".join(cells.get(name, "x") for name in header.split(",")), header=header)
    if missing is None:
        assert len(read(path).check()) == 1
    else:
        with pytest.raises(ValueError, match=f"has no column '{missing}'; it has .*--audio_column"):
            read(path)


BAD = {
    "none.wav": "none.wav' does not exist",
    "text.wav": "text.wav' cannot be read .*; expected WAV, FLAC",
    "empty.wav": "empty.wav' has no samples",
    "long.wav": "long.wav' lasts 3 s; expected at most 1 s",
    "nan.wav": "nan.wav' has samples that are not finite",
    "inf.wav": "inf.wav' has samples that are not finite",
    "hour.flac": "hour.flac' lasts 3600 s; expected at most 1 s",
}


@pytest.fixture
def bad(folder):
    """The folder, with files that are not usable audio."""
    (folder / "text.wav").write_text("no sound")
    soundfile.write(folder / "empty.wav", np.zeros(0), RATE)
    write_tone(folder / "long.wav", seconds=3)
    soundfile.write(folder / "nan.wav", np.array([0, np.nan]), RATE, subtype="FLOAT")
    soundfile.write(folder / "inf.wav", np.array([0, -np.inf]), RATE, subtype="FLOAT")
    soundfile.write(folder / "hour.flac", np.zeros(8000 * 3600, np.int16), 8000)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sound_stops_the_run_with_its_row(bad, name):
    path = write_csv(bad, ",x,low.wav,a", f",x,low.wav;{name},b")
    with pytest.raises(BadRow, match=f"t.csv, row 2: the audio clip '.*{BAD[name]}"):
        read(path).check(max_seconds=1)


def test_bad_sounds_are_listed_when_skipped(bad):
    path = write_csv(bad, ",x,low.wav,a", *(f",x,{name},b" for name in BAD), ",,,a", ",  ,,a", "red.png,x,,a")
    dataset = read(path).check(skip=True, max_seconds=1)
    assert dataset.kept == [0, 10] and [row["row"] for row in dataset.bad_rows] == list(range(2, 11))
    assert all("'image', 'text' and 'audio' are all empty" in row["reason"] for row in dataset.bad_rows[-2:])


TOWERS = [word for name in ("vision_tower", "audio_tower", "text_model") for word in (f"--{name}", "scratch-tiny")]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no", "--max_steps", "1"]


def command(*argv):
    """The exit code of a verb."""
    return cli.main([*map(str, argv)])


def test_skipped_rows_are_listed_and_counted_and_a_trained_model_knows_what_it_hears(bad, capsys, caplog):
    train = write_csv(bad, *[",x,low.wav,a", "red.png,x,sub/high.flac,b"] * 4, *(f",x,{name},b" for name in BAD))
    (bad / "v.csv").write_text("\n".join([HEADER, ",x,low.wav,a", ",x,low.wav,unseen", ",,,a"]) + "\n")
    out, sound = bad / "out", ["--audio_column", "audio"]
    argv = ["train", "--task", "classification", "--train_file", train, "--validation_file", bad / "v.csv", *sound]
    argv += [*TOWERS, *QUIET, "--max_seconds", "1", "--output_dir", out]
    assert command(*argv, "--on_bad_row", "skip") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    listed = [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]
    assert report["skipped_rows"] == len(listed) == len(BAD) + 2 and report["train_rows"] == 8
    assert [row["row"] for row in listed] == [*range(9, 9 + len(BAD)), 2, 3]
    assert "the label 'unseen' is unknown; expected one of a, b" in listed[-2]["reason"]
    assert f"9 bad rows were skipped ({len(BAD)} of {train}, 2 of {bad}/v.csv)" in caplog.text
    assert all(f"row {row['row']}: {row['reason']}" in caplog.text for row in listed)
    # what the model was trained to hear is the limit in its evaluation too, said before any work is done
    (bad / "long.csv").write_text("\n".join([HEADER, ",x,low.wav,a", ",x,long.wav,b"]) + "\n")
    evaluate = ["evaluate", "--model", out, "--test_file", bad / "long.csv", "--device", "cpu"]
    assert command(*evaluate, *sound) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "long.csv, row 2: the audio clip" in message and "at most 1 s" in message
    assert command(*evaluate, *sound, "--on_bad_row", "skip") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["skipped_rows"] == 1
    page = (out / "evaluation" / "report.html").read_text()
    assert "1 rows of" in page and "1 bad rows left out" in page and "long.wav" in page
    caplog.clear()
    assert command(*evaluate, "--audio_column", "", "--modality_report", "false") == 0
    assert "without --audio_column it is evaluated without" in caplog.text
    further = ["train", "--task", "classification", "--model", out, "--train_file", bad / "long.csv", *sound, *QUIET]
    assert command(*further, "--output_dir", bad / "further") == 2
    assert "long.csv, row 2: the audio clip" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_label_unseen_in_training_is_named_by_file_and_row(folder, capsys, processor, verb, tmp_path):
    path = write_csv(folder, *[",x,low.wav,a", "red.png,x,sub/high.flac,b"] * 2)
    (folder / "test.csv").write_text("\n".join([HEADER, ",x,low.wav,a", ",x,low.wav,c"]) + "\n")
    argv = ["train", "--task", "classification", "--train_file", path, "--audio_column", "audio", *TOWERS, *QUIET]
    argv += ["--output_dir", folder / "out", "--test_file", folder / "test.csv"]
    if verb == "evaluate":
        listener = MMProcessor(processor.image_processor, processor.tokenizer, audio=scratch.feature_extractor(1.0))
        listener.save_pretrained(folder / "model")
        mm_model("bert", head=MMForSequenceClassification, id2label={0: "a", 1: "b"}).save_pretrained(folder / "model")
        argv = ["evaluate", "--model", folder / "model", "--test_file", folder / "test.csv", "--audio_column", "audio"]
    assert command(*argv) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "test.csv, row 2: the label 'c' is unknown; expected one of a, b" in message


def test_a_cell_that_is_no_sound_is_a_bad_row(folder):
    (folder / "n.jsonl").write_text('{"audio": 3, "text": "a", "label": "b"}\n')
    with pytest.raises(BadRow, match="row 1: the audio clip '.*3' does not exist"):
        read(folder / "n.jsonl").check()


def test_sound_markers_must_be_as_many_as_sounds(folder):
    with pytest.raises(BadRow, match="row 1: the text has 2 '<audio>' markers but the row has 1 audio clips"):
        read(write_csv(folder, "red.png,<audio> or <audio>,low.wav,a")).check()
    assert len(read(write_csv(folder, "red.png,<image> <audio>,low.wav,a")).check()) == 1
    with pytest.raises(BadRow, match="row 1: the text has 1 '<image>' markers but the row has 0 images"):
        read(write_csv(folder, "red.png,<image>,low.wav,a"), Columns("", "text", "label", "audio")).check()


def test_silent_and_cut_sounds_are_reported_once(folder, caplog):
    write_tone(folder / "silent.wav", volume=0)
    write_tone(folder / "longer.wav", seconds=0.3)
    path = write_csv(folder, *[f",x,{name},a" for name in ("silent.wav", "longer.wav", "low.wav") for _ in range(3)])
    with caplog.at_level(logging.WARNING):
        assert len(read(path).check(max_seconds=0.25)) == 9
    assert f"1 of 3 audio clips are silent: '{folder}/silent.wav'\n" in caplog.text
    assert f"1 of 3 audio clips are longer than 0.25 s and will be cut: '{folder}/longer.wav'\n" in caplog.text


def test_every_silent_sound_is_listed(folder, caplog):
    for number in range(23):
        write_tone(folder / f"s{number:02}.wav", volume=0)
    with caplog.at_level(logging.WARNING):
        read(write_csv(folder, *[f",x,s{number:02}.wav,a" for number in range(23)])).check()
    assert "23 of 23 audio clips are silent" in caplog.text
    assert all(f"s{number:02}.wav" in caplog.text for number in range(20)) and ", 3 more" in caplog.text


def test_each_distinct_sound_is_opened_once(folder, monkeypatch):
    opened = []
    real = audio_mm.open_encoded
    monkeypatch.setattr(
        audio_mm, "open_encoded", lambda source, seconds: opened.append(source) or real(source, seconds)
    )
    read(write_csv(folder, *[",x,low.wav,a", ",y,low.wav;sub/high.flac,b"] * 5)).check()
    assert len(opened) == 2


def test_rows_about_one_sound_are_held_out_together(folder):
    for number in range(6):
        write_tone(folder / f"{number}.wav", 200 + number)
    dataset = read(write_csv(folder, *[f",{q},{number}.wav,a" for q in "xyz" for number in range(6)]))
    rest, held = dataset.hold_out(0.3, seed=0)
    sounds = [{row.audio[0] for row in rows_of(part)} for part in (rest, held)]
    assert sounds[0].isdisjoint(sounds[1]) and len(sounds[1]) == 2


@pytest.mark.parametrize("missing", [False, True], ids=["bad row", "no library"])
def test_the_command_says_it_in_one_sentence(folder, capsys, monkeypatch, missing):
    path = write_csv(folder, "red.png,x,low.wav,a", "red.png,y,none.wav,b")
    if missing:
        monkeypatch.setattr("importlib.import_module", fail_for("soundfile"))
    argv = ["train", "--train_file", path, "--task", "classification", "--audio_column", "audio"]
    for tower in ("--vision_tower", "--audio_tower", "--text_model"):
        argv += [tower, "scratch-tiny"]
    argv += ["--output_dir", folder / "out"]
    assert cli.main([*map(str, argv), "--use_cpu"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    expected = (
        'reading audio needs soundfile: pip install "modeling-mm[audio]"'
        if missing
        else "t.csv, row 2: the audio clip"
    )
    assert expected in message


def fail_for(name):
    """`import_module` without one library."""
    from importlib import import_module

    def without(wanted, *rest):
        if wanted == name:
            raise ImportError(wanted)
        return import_module(wanted, *rest)

    return without


def test_the_collator_hears_each_distinct_sound_and_none_when_blind(folder, processor):
    listener = MMProcessor(processor.image_processor, processor.tokenizer, audio=scratch.feature_extractor(1.0))
    sounds = [str(folder / "low.wav")]
    rows = [Row(1, [], "no", 0, sounds), Row(2, [str(folder / "red.png")], "yes", 1), Row(3, [], "so", 0, sounds)]
    batch = MMCollator(listener, "classification")(rows)
    assert batch["input_features"].shape[0] == 1 and batch["audio_index"].tolist() == [[0], [-1], [0]]
    assert {"pixel_values", "labels"} <= set(batch)
    blind = MMCollator(listener, "classification", blind=True)(rows)
    assert "audio_index" not in blind and "pixel_values" not in blind
    assert "audio_index" not in MMCollator(processor, "classification")(rows[1:2])
    with pytest.raises(ValueError, match="a processor without a feature extractor"):
        MMCollator(processor, "classification")(rows)


@pytest.mark.parametrize("size", scratch.SIZES)
@torch.no_grad()
def test_a_scratch_audio_tower_hears_clips_of_any_length(folder, size):
    tower, extractor = audio_tower_from_config(scratch.audio_config(size)).eval(), scratch.feature_extractor(1.5)
    clips = [read_audio(str(path), extractor.sampling_rate) for path in (folder / "low.wav", folder / "sub/high.flac")]
    clips.append(np.tile(clips[0], 20)[: 2 * RATE])
    heard = run_audio_tower(tower, *audio_features(extractor, clips))
    states, present = heard.pooler_output, heard.attention_mask
    assert states.shape == (3, 4 * 5, audio_width(tower.config)) and present[2].all() and not present[:2].all()
    alone = run_audio_tower(tower, *audio_features(extractor, clips[:1])).pooler_output
    torch.testing.assert_close(alone[0], states[0])
