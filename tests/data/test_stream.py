# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Streams: every row once per pass for any number of readers; resuming changes nothing; bad rows are named.

Tests with two processes are at the end, those with 100,000 rows in test_stream_at_scale.py.
"""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import torch
from helpers.builders import SENTENCES, drawing, model_for
from helpers.processes import together
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil, TrainingArguments

from benchmarks.streaming import COLUMNS, IN_TAR, LABELS, number_of, picture, write_shards
from modeling_mm import MMForSequenceClassification, MMProcessor, cli
from modeling_mm.data.augmentation import Augmentation
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.media import BadRow
from modeling_mm.data.rows import Columns
from modeling_mm.data.shards import open_shards
from modeling_mm.data.stream import MMStream, Position
from modeling_mm.data.stream_loader import StreamLoader
from modeling_mm.training.scratch import train_tokenizer
from modeling_mm.training.trainer import MMTrainer

ROWS, SHARDS = 40, 6  # which do not divide each other
TRAIN = ["--task", "classification", "--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--use_cpu"]
QUIET = ["--disable_tqdm", "true", "--report_to", "none", "--per_device_train_batch_size", "4"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The glob of Parquet shards; tar shards are beside them."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, ROWS, SHARDS, "tar")
    return write_shards(folder, ROWS, SHARDS)


def stream_of(source, columns=COLUMNS, **options):
    return MMStream(open_shards(source), columns, "classification", LABELS, **{"shuffle_buffer": 7, **options})


def numbers(rows):
    return [number_of(row.text) for row in rows]


def handed_out(stream, count):
    return list(itertools.islice(stream, count))


def one_turn(stream, reader, readers):
    return list(itertools.takewhile(lambda row: row.position.epoch == 0, stream.rows(Position(reader), readers)))


@pytest.mark.parametrize("readers", [1, 2, 5, 6])
def test_readers_share_each_row_of_a_pass_once(shards, readers):
    parts = [numbers(one_turn(stream_of(shards), reader, readers)) for reader in range(readers)]
    assert sorted(itertools.chain(*parts)) == list(range(ROWS)) and all(parts)


def test_passes_are_whole_and_in_other_orders(shards):
    rows = numbers(handed_out(stream_of(shards), 2 * ROWS))
    first, second = rows[:ROWS], rows[ROWS:]
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second and first != sorted(first)
    assert rows == numbers(handed_out(stream_of(shards), 2 * ROWS))
    assert first != numbers(handed_out(stream_of(shards, seed=1), ROWS))
    assert numbers(handed_out(stream_of(shards, shuffle_buffer=1), ROWS)) == list(range(ROWS))


@pytest.mark.parametrize("buffer", [0, 1, 5, 1000])
def test_it_goes_on_exactly_after_any_row(tmp_path, buffer):
    source = write_shards(tmp_path, 20, 3, picture=lambda n: b"?" if n % 9 == 4 else picture(n))
    options = {"shuffle_buffer": buffer, "skip": True}
    rows = handed_out(stream_of(source, **options), 40)
    assert len(set(numbers(rows))) == 18 and rows[-1].position.epoch == 2 and rows[-1].position.skipped >= 4
    for cut in range(len(rows) - 1):
        again = handed_out(stream_of(source, positions={0: rows[cut].position}, **options), 2)
        expected = rows[cut + 1 : cut + 3]
        assert again[: len(expected)] == expected


def test_tar_and_parquet_give_the_same_rows(shards):
    tar = shards.replace(".parquet", ".tar")
    pairs = zip(handed_out(stream_of(shards), ROWS), handed_out(stream_of(tar, IN_TAR), ROWS), strict=True)
    for parquet_row, tar_row in pairs:
        assert parquet_row == tar_row


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("how", ["glob", "folder", "file"])
def test_shards_behind_a_url_are_those_of_the_disk(shards, kind, how):
    glob, columns = shards.replace(".parquet", f".{kind}"), COLUMNS if kind == "parquet" else IN_TAR
    memory = fsspec.filesystem("memory")
    for name in open_shards(glob).files:
        memory.pipe(f"/streams/{kind}/{name.rpartition('/')[2]}", open(name, "rb").read())
    url = f"memory://streams/{kind}" + {"glob": f"/train-*.{kind}", "folder": "", "file": f"/train-0000.{kind}"}[how]
    local = glob if how != "file" else glob.replace("*", "0000")
    got, expected = (handed_out(stream_of(source, columns), ROWS) for source in (url, local))
    assert got == expected


def test_a_data_set_by_its_name_gives_the_rows_of_its_files(tmp_path):
    source = write_shards(tmp_path, ROWS, SHARDS)
    by_name = MMStream(open_shards(str(tmp_path), "train"), COLUMNS, "classification", LABELS, shuffle_buffer=7)
    assert handed_out(by_name, ROWS) == handed_out(stream_of(source), ROWS)


def test_a_bad_row_stops_with_its_place_or_is_counted(tmp_path, caplog):
    bad = {3: b"no image", 17: picture(17)[:-60], 30: None}
    source = write_shards(tmp_path, ROWS, 4, picture=lambda n: bad.get(n, picture(n)))
    with pytest.raises(BadRow, match=r"train-0000.parquet, row 4: the image its embedded bytes is not in a format"):
        handed_out(stream_of(source, shuffle_buffer=1), ROWS)
    rows = handed_out(stream_of(source, shuffle_buffer=1, skip=True), 2 * ROWS - 4)
    assert numbers(rows) == [n for n in range(ROWS) if n not in (3, 17)] * 2  # a row may lack its image
    assert rows[-1].position.skipped == 4
    assert "train-0001.parquet, row 8: the image its embedded bytes is broken" in caplog.text


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_broken_file_is_a_bad_row(tmp_path, kind):
    source = write_shards(tmp_path, ROWS, 4, kind)
    path = tmp_path / f"train-0002.{kind}"
    whole = path.read_bytes()
    # within an image; what ends between two members `tarfile` takes for a shorter archive
    path.write_bytes(whole[:28_000] if kind == "tar" else whole[:200] + bytes(9000) + whole[9200:])
    columns = COLUMNS if kind == "parquet" else IN_TAR
    with pytest.raises(BadRow, match=f"train-0002.{kind}, row .*: the rest of the file cannot be read: "):
        handed_out(stream_of(source, columns), ROWS)
    stream = stream_of(source, columns, skip=True)
    rows = one_turn(stream, 0, 1)
    assert {n for n in range(ROWS) if n // 10 != 2} <= set(numbers(rows)) < set(range(ROWS))
    last = handed_out(stream_of(source, columns, skip=True, positions={0: rows[-1].position}), 1)[0]
    assert last.position[:5] == (0, 1, 0, 0, 1) and last.position.skipped >= 1


def test_a_broken_member_of_a_tar_is_one_bad_row(tmp_path):
    source = write_shards(tmp_path, ROWS, 4, "tar")
    path = tmp_path / "train-0001.tar"
    path.write_bytes(path.read_bytes().replace(b'"row 13 ', b'"row 13"').replace(b"row 15", b"row\xff15"))
    with pytest.raises(BadRow, match=r"train-0001.tar, row 4: its 'json' is broken: Expecting ',' delimiter"):
        handed_out(stream_of(source, IN_TAR, shuffle_buffer=1), ROWS)
    rows = one_turn(stream_of(source, IN_TAR, skip=True), 0, 1)
    assert sorted(numbers(rows)) == [n for n in range(ROWS) if n not in (13, 15)]


def test_a_later_row_of_an_unknown_class_is_bad(shards):
    stream = stream_of(shards, skip=False)
    stream.labels = ["even", "other"]
    with pytest.raises(BadRow, match="row 2: the label 'odd' is unknown; expected one of even, other"):
        handed_out(dataclasses.replace(stream, shuffle_buffer=1), 2)


def test_a_pass_without_a_good_row_ends(tmp_path):
    source = write_shards(tmp_path, 8, 2, picture=lambda n: b"?" if n < 4 else picture(n))
    assert len(handed_out(stream_of(source, skip=True), 9)) == 9  # one shard alone is good
    with pytest.raises(BadRow, match="reader 0 of 2 found no usable row"):
        list(stream_of(source, skip=True, shuffle_buffer=1).rows(Position(0), 2))


def test_few_files_are_read_by_row_groups_and_fewer_are_refused(tmp_path):
    source = write_shards(tmp_path, 1200, 1)  # groups of 500
    parts = [numbers(one_turn(dataclasses.replace(stream_of(source), shards=open_shards(source).enough_for(3)), r, 3))
             for r in range(3)]  # fmt: skip
    assert sorted(map(len, parts)) == [200, 500, 500] and sorted(itertools.chain(*parts)) == list(range(1200))
    with pytest.raises(ValueError, match="has 3 shards for 4 readers"):
        StreamLoader(stream_of(source), 4, list, num_workers=4)
    write_shards(tmp_path, 8, 2, "tar")
    with pytest.raises(ValueError, match="has 2 shards for 3 readers"):
        StreamLoader(stream_of(str(tmp_path / "*.tar"), IN_TAR), 4, list, num_workers=3)


def test_what_cannot_be_streamed_is_one_sentence(shards, tmp_path):
    (tmp_path / "t.csv").write_text("image,text,label\n")
    (tmp_path / "t.parquet").write_bytes(b"")
    for source, message in {
        str(tmp_path / "t.csv"): "names no shards; expected files that end in .parquet or .tar",
        str(tmp_path / "none-*.parquet"): "names no shards",
        str(tmp_path / "t.*"): "names .csv and .parquet files",
        str(tmp_path / "t.parquet"): "cannot be streamed",
        "nowhere://x/*.tar": "cannot be streamed",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_shards(source)
    with pytest.raises(ValueError, match="has no column 'picture'; it has image, text, label"):
        stream_of(shards, Columns("picture", target="label"))


class Numbered(MMCollator):
    """A collator that also returns the numbers of a batch's rows."""

    def __call__(self, rows):
        return {**super().__call__(rows), "numbers": torch.tensor(numbers(rows))}


class Noting(MMTrainer):
    """A trainer that records the numbers of the rows that it trained on."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.noted = [*getattr(self, "noted", []), inputs.pop("numbers").tolist()]
        return super().training_step(model, inputs, *args, **kwargs)


def trainer_on(stream, processor, folder, augmentation=None, **options):
    """A trainer of a tiny classifier with dropout, the same for each call."""
    torch.manual_seed(0)
    model = model_for(processor, MMForSequenceClassification, "bert", num_labels=2)
    options = {"report_to": [], "disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-3, **options}
    options = {"per_device_train_batch_size": 3, "max_steps": 8, "save_steps": 3, **options}
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, **options)
    collator = Numbered(processor, "classification", augmentation=augmentation)
    inputs = {"train_dataset": stream, "data_collator": collator, "processing_class": processor}
    return Noting(model=model, args=arguments, **inputs)


def losses(trainer):
    return {log["step"]: log["loss"] for log in trainer.state.log_history if "loss" in log}


# three steps of one batch end with the first of two workers
@pytest.mark.parametrize("workers, accumulated", [(0, 2), (1, 2), (2, 2), (2, 1)])
def test_resumed_is_uninterrupted(shards, processor, tmp_path, workers, accumulated):
    options = {"dataloader_num_workers": workers, "gradient_accumulation_steps": accumulated}

    def trained(checkpoint=None):
        augmentation = Augmentation(word_dropout=0.3, seed=1)
        trainer = trainer_on(stream_of(shards), processor, tmp_path / "out", augmentation, **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = trained()
    resumed = trained(str(tmp_path / "out" / "checkpoint-3"))
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 8
    assert resumed.noted == whole.noted[3 * accumulated :] and len(whole.noted) == 8 * accumulated
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    logs = [log for log in whole.state.log_history if "loss" in log]
    assert all(log["rows_per_second"] > 0 and log["skipped_rows"] == 0 for log in logs)
    assert [log["epoch"] for log in logs] == [step / 8 for step in range(1, 9)]  # of all steps: rows are not counted
    done = trained(str(tmp_path / "out" / "checkpoint-8"))
    assert not hasattr(done, "noted") and done.state.global_step == 8


def test_a_checkpoint_of_another_run_is_refused(shards, processor, tmp_path):
    trainer_on(stream_of(shards), processor, tmp_path / "out", max_steps=3).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-3")

    def refused(stream, **options):
        with pytest.raises(ValueError) as error:
            trainer_on(stream, processor, tmp_path / "out", **options).train(resume_from_checkpoint=checkpoint)
        return str(error.value)

    assert "written with workers 1; this run has 2" in refused(stream_of(shards), dataloader_num_workers=2)
    assert "written with shuffle_buffer 7; this run has 8" in refused(stream_of(shards, shuffle_buffer=8))
    fewer = write_shards(tmp_path / "fewer", ROWS, 5)
    assert "written with shards 6; this run has 5" in refused(stream_of(fewer))
    moved = tmp_path / "moved"
    shutil.copytree(shards.rpartition("/")[0], moved)
    trainer = trainer_on(stream_of(str(moved / "*.parquet")), processor, tmp_path / "out", max_steps=4)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert len(trainer.noted) == 1
    (tmp_path / "out" / "checkpoint-3" / "stream_0.json").unlink()
    assert "stream_0.json'; expected a checkpoint of a run that streams" in refused(stream_of(shards))


def test_a_worker_s_bad_row_is_one_sentence(tmp_path, processor):
    source = write_shards(tmp_path / "s", ROWS, 4, picture=lambda n: b"?" if n == 25 else picture(n))
    trainer = trainer_on(stream_of(source), processor, tmp_path / "out", dataloader_num_workers=2, save_strategy="no")
    with pytest.raises(BadRow) as error:
        trainer.train()
    assert str(error.value).startswith(str(tmp_path / "s" / "train-0002.parquet, row 6: the image"))
    assert "\n" not in str(error.value)


def test_bad_rows_leave_batches_full(tmp_path, processor):
    source = write_shards(tmp_path / "s", ROWS, 4, picture=lambda n: b"?" if n % 4 == 1 else picture(n))
    stream = stream_of(source, skip=True)
    trainer = trainer_on(stream, processor, tmp_path / "out", dataloader_num_workers=2, max_steps=10)
    trainer.train()
    assert {len(batch) for batch in trainer.noted} == {3}
    assert sorted(itertools.chain(*trainer.noted)) == [n for n in range(ROWS) if n % 4 != 1]
    found = trainer.state.log_history[-1]
    assert 8 <= found["skipped_rows"] <= 10  # the last ones may stand behind the last good row


def test_pictures_are_decoded_once(shards, processor, monkeypatch):
    def twice(*args):
        raise AssertionError("an image was opened again")

    rows = handed_out(stream_of(shards), 4)
    monkeypatch.setattr("modeling_mm.data.collator.open_image", twice)
    batch = MMCollator(processor, "classification")(rows)
    assert len(batch["pixel_values"]) == 4


def test_a_plain_loader_with_workers_sees_each_row_once(shards):
    loader = DataLoader(stream_of(shards), batch_size=1, num_workers=2, collate_fn=numbers)
    firsts = [number for batch in itertools.islice(loader, ROWS) for number in batch]
    parts = [numbers(one_turn(stream_of(shards), reader, 2)) for reader in range(2)]
    even, odd = firsts[::2], firsts[1::2]
    assert even[: len(parts[0])] == parts[0][: len(even)] and odd[: len(parts[1])] == parts[1][: len(odd)]


def write_validation(folder):
    for n in range(len(LABELS)):
        drawing((90 * n, 20, 90)).save(folder / f"{n}.png")
    lines = [f"{n}.png,row {n} what is it,{label}" for n, label in enumerate(LABELS)]
    (folder / "val.csv").write_text("\n".join(["image,text,label", *lines]) + "\n")
    return str(folder / "val.csv")


def run(capsys, *argv):
    assert cli.main(["train", *TRAIN, *QUIET, "--streaming", "true", *map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def refuse(capsys, *argv):
    assert cli.main(["train", *TRAIN, *QUIET, "--streaming", "true", *map(str, argv)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_command_streams_and_goes_on(tmp_path, capsys):
    source = write_shards(tmp_path / "s", ROWS, SHARDS, picture=lambda n: b"?" if n == 11 else picture(n))
    common = ["--train_file", source, "--validation_file", write_validation(tmp_path), "--on_bad_row", "skip"]
    common += ["--shuffle_buffer", 5, "--save_steps", 4, "--logging_steps", 1, "--num_train_epochs", 1]
    common += ["--eval_strategy", "steps", "--eval_steps", 4]
    report = run(capsys, *common, "--output_dir", tmp_path / "whole")
    assert report["train_rows"] == ROWS and report["rows_per_second"] > 0 and report["skipped_rows"] == 1
    assert report["evaluated_rows"] == 2
    assert report["baselines"]["verdict"] == "Simple baselines are not fitted for a stream."
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    run(capsys, *common, "--output_dir", tmp_path / "again", "--resume_from_checkpoint", "last")
    whole, again = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "again"))
    assert whole["loss_history"] == again["loss_history"] and len(whole["loss_history"]) == 10
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    state = json.loads((tmp_path / "whole" / "checkpoint-10" / "trainer_state.json").read_text())
    assert [log["epoch"] for log in state["log_history"] if "loss" in log] == [step / 10 for step in range(1, 11)]


@pytest.mark.slow
def test_a_killed_command_goes_on_as_if_nothing_had_been(tmp_path):
    source, validation = write_shards(tmp_path / "s", 400, 8), write_validation(tmp_path)

    def start(out, *more):
        argv = [*TRAIN, *QUIET, "--streaming", "true", "--train_file", source, "--validation_file", validation]
        argv += ["--dataloader_num_workers", "2", "--shuffle_buffer", "30", "--max_steps", "60", "--save_steps", "10"]
        argv += ["--logging_steps", "1", "--gradient_accumulation_steps", "2", "--output_dir", out, *more]
        start = [sys.executable, "-m", "modeling_mm.cli", "train", *map(str, argv)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=(tmp_path / "log").open("a"))

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    process = start(killed)
    while not (killed / "checkpoint-30" / "trainer_state.json").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (killed / "model.safetensors").exists()
    assert start(killed, "--resume_from_checkpoint", "last").wait() == 0
    reports = [json.loads((out / "report.json").read_text()) for out in (whole, killed)]
    assert reports[0]["loss_history"] == reports[1]["loss_history"] and len(reports[0]["loss_history"]) == 60
    weights = [load_file(out / "model.safetensors") for out in (whole, killed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_command_streams_answers_from_tar(tmp_path, capsys):
    source = write_shards(tmp_path / "s", ROWS, SHARDS, "tar")
    argv = ["--task", "generation", "--train_file", source, "--validation_file", tmp_path / "s" / "train-0000.tar"]
    argv += ["--image_column", "png", "--text_column", "json.text", "--label_column", "json.label"]
    argv += ["--output_dir", tmp_path / "out", "--max_new_tokens", 2]
    assert "give --max_steps" in refuse(capsys, *argv)
    report = run(capsys, *argv, "--max_steps", 2, "--save_strategy", "no")
    assert report["train_rows"] == 8 and report["evaluated_rows"] == 7
    assert "tokens; expected at most 6" in refuse(capsys, *argv, "--max_steps", 2, "--max_length", 6)


def test_flags_that_need_all_rows_are_refused(shards, tmp_path, capsys):
    common = ["--train_file", shards, "--output_dir", tmp_path / "out", "--max_steps", 2]
    assert "give --validation_file" in refuse(capsys, *common)
    common += ["--validation_file", write_validation(tmp_path)]
    for flag in (["--class_weights", "balanced"], ["--group_by_image", "true"], ["--cache_features", "x"]):
        assert flag[0] in refuse(capsys, *common, *flag)
    assert "--streaming reads .parquet or .tar" in refuse(capsys, *common, "--train_file", tmp_path / "*.csv")
    assert "--shuffle_buffer is -1" in refuse(capsys, *common, "--shuffle_buffer", -1)


def in_a_process(source, folder, checkpoint):
    """The rows that one of several processes trained on, the presence of images in each batch, losses and weights."""
    size = {"height": 16, "width": 16}
    image_processor = CLIPImageProcessorPil(size=size, crop_size=size, do_convert_rgb=True)
    processor = MMProcessor(image_processor=image_processor, tokenizer=train_tokenizer(SENTENCES, "scratch-tiny"))
    options = {"max_steps": 4, "save_steps": 2, "ddp_find_unused_parameters": False, "max_grad_norm": 0.0}
    trainer = trainer_on(stream_of(source), processor, folder, per_device_train_batch_size=4, **options)
    seen, prepare = [], trainer._prepare_inputs
    trainer._prepare_inputs = lambda inputs: seen.append("pixel_values" in inputs) or prepare(inputs)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.noted, seen, losses(trainer), trainer.model.state_dict()


def test_two_processes_take_halves_of_which_one_lacks_pictures_and_go_on(tmp_path):
    source = write_shards(tmp_path / "s", 32, 2, picture=lambda n: picture(n) if n < 16 else None)
    whole = together(2, in_a_process, source, tmp_path / "out", None, folder=tmp_path / "meet")
    noted = [sorted(itertools.chain(*process[0])) for process in whole]
    assert sorted(noted) == [list(range(16)), list(range(16, 32))]
    assert sorted(process[1] for process in whole) == [[False] * 4, [True] * 4]
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    again = together(2, in_a_process, source, tmp_path / "out", checkpoint, folder=tmp_path / "meet again")
    for first, resumed in zip(whole, again, strict=True):
        assert resumed[0] == first[0][2:] and first[2] == resumed[2] and len(first[2]) == 4
        for name, value in whole[0][3].items():
            assert torch.equal(value, first[3][name]) and torch.equal(value, resumed[3][name]), name


def test_processes_of_different_shards_take_as_many_steps(tmp_path):
    source = write_shards(tmp_path / "s", 9, 3)  # one process has two shards, the other one has one
    whole = together(2, in_a_process, source, tmp_path / "out", None, folder=tmp_path / "meet")
    assert [len(process[0]) for process in whole] == [4, 4]
    assert whole[0][2].keys() == whole[1][2].keys() == {1, 2, 3, 4}
