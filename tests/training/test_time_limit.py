"""A time limit holds for the whole command, over interruptions, and its schedule ends inside it."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.digits import write_digits
from transformers import TrainerControl, TrainerState, get_cosine_schedule_with_warmup

from modeling_mm import cli
from modeling_mm.training.time_limit import Clock, TimeLimitCallback, follow_progress

ARGS = SimpleNamespace(device="cpu", world_size=1)


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """A clock of 100 s that stands still until its `began` is changed."""
    clock = Clock(100, tmp_path, False)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    clock.began = 1000.0
    return clock


def step(callback, clock, seconds, number, max_steps=1000):
    """The control after an optimiser step that ends `seconds` after the start."""
    clock.began = 1000.0 - seconds
    state = TrainerState(global_step=number, max_steps=max_steps, num_train_epochs=10)
    return callback.on_step_end(ARGS, state, control := TrainerControl()) or control


def test_training_ends_with_enough_time_for_what_follows(clock):
    callback = TimeLimitCallback(clock, rows_after=2.0)
    callback.on_train_begin(ARGS, TrainerState(), TrainerControl())
    assert step(callback, clock, 10, 1).should_evaluate  # the first evaluation is due after a twentieth
    callback.on_evaluate(ARGS, None, None, {"eval_runtime": 5.0})
    assert callback.reserve() == 3 * 5.0 + 4.0
    assert not step(callback, clock, 80, 50).should_training_stop
    last = step(callback, clock, 81.5, 51)
    assert last.should_training_stop and last.should_evaluate and last.should_save


def test_progress_is_that_of_steps_if_they_are_faster_and_never_falls(clock):
    callback = TimeLimitCallback(clock, rows_after=0.0)
    callback.on_train_begin(ARGS, TrainerState(), TrainerControl())
    step(callback, clock, 1, 900)
    assert callback.progress == 0.9
    callback.on_evaluate(ARGS, None, None, {"eval_runtime": 1.0})
    step(callback, clock, 2, 901)
    assert callback.progress == 0.901


def test_a_fitted_start_is_kept_if_it_took_all_the_time(clock, caplog):
    callback = TimeLimitCallback(clock, rows_after=0.0)
    clock.began = 899.0
    with pytest.raises(ValueError, match="used up before the first step"):
        callback.on_train_begin(ARGS, TrainerState(), TrainerControl())
    callback.has_start = True
    callback.on_train_begin(ARGS, TrainerState(), TrainerControl())
    assert "the fitted start is kept" in caplog.text
    last = step(callback, clock, 102, 1)
    assert last.should_training_stop and last.should_evaluate and last.should_save


def test_a_costly_evaluation_is_rare(clock):
    callback = TimeLimitCallback(clock, rows_after=0.0)
    callback.on_train_begin(ARGS, TrainerState(), TrainerControl())
    step(callback, clock, 6, 1)
    callback.on_evaluate(ARGS, None, None, {"eval_runtime": 3.0})
    assert not step(callback, clock, 20, 2).should_evaluate
    assert step(callback, clock, 35, 3).should_evaluate


def test_evaluation_can_be_left_to_the_training_arguments(clock):
    callback = TimeLimitCallback(clock, rows_after=0.0, evaluates=False)
    callback.on_train_begin(ARGS, TrainerState(), TrainerControl())
    assert not step(callback, clock, 50, 1).should_evaluate
    assert step(callback, clock, 99, 2).should_training_stop


def test_the_schedule_follows_progress(clock):
    callback = TimeLimitCallback(clock, rows_after=0.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 100, 1000)
    follow_progress(scheduler, callback, 1000)
    rates = {}
    for callback.progress in (0.05, 0.1, 0.55, 1.0):
        optimizer.step()
        scheduler.step()
        rates[callback.progress] = scheduler.get_last_lr()[0]
    assert rates == pytest.approx({0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 1.0: 0.0}, abs=1e-6)


def test_the_seconds_of_an_interrupted_run_count_if_it_is_resumed(clock, tmp_path):
    clock.began = 960.0
    clock.save()
    assert json.loads((tmp_path / "time_limit.json").read_text()) == {"seconds": 40.0, "limit": 100}
    assert Clock(100, tmp_path, True).earlier == 40.0 and Clock(100, tmp_path, False).earlier == 0.0


@pytest.mark.parametrize("seconds", ["0", "-5"])
def test_a_limit_that_is_not_positive_is_refused(tmp_path, capsys, seconds):
    argv = ["--train_file", "t.csv", "--output_dir", str(tmp_path), "--time_limit", seconds]
    assert cli.main(["train", *argv]) == 2
    assert f"--time_limit is {seconds}; expected seconds, more than 0" in capsys.readouterr().err


def test_a_limit_that_is_used_up_before_training_is_refused(tmp_path, capsys):
    write_digits(tmp_path, "t.csv", 0, 60, ("image", "text", "label"))
    argv = ["--train_file", tmp_path / "t.csv", "--output_dir", tmp_path / "out", "--time_limit", 0.5, "--use_cpu"]
    assert cli.main(["train", *map(str, argv)]) == 2
    assert "--time_limit 0.5 is used up before the first step" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_and_resumed_run_keeps_to_the_limit(tmp_path):
    write_digits(tmp_path, "t.csv", 0, 600, ("image", "text", "label"))
    limit, out = 60, tmp_path / "out"
    argv = ["train", "--train_file", tmp_path / "t.csv", "--output_dir", out, "--time_limit", limit, "--use_cpu"]
    command = [sys.executable, "-m", "modeling_mm.cli", *map(str, [*argv, "--num_train_epochs", 10000])]
    began = time.monotonic()
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.glob("checkpoint-*/trainer_state.json")) or time.monotonic() - began < 25:
        assert first.poll() is None
        time.sleep(0.5)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run([*command, "--resume_from_checkpoint", "true"], check=True, capture_output=True)
    assert 0.8 * limit <= time.monotonic() - began <= 1.1 * limit
    assert json.loads((out / "report.json").read_text())["accuracy"] > 0.5


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(tmp_path):
    write_digits(tmp_path, "t.csv", 0, 200, ("image", "text", "label"))
    limit, out = 50, tmp_path / "out"
    argv = ["train", "--train_file", tmp_path / "t.csv", "--output_dir", out, "--time_limit", limit, "--use_cpu"]
    command = ["torchrun", "--nproc_per_node", "2", "-m", "modeling_mm.cli", *map(str, argv)]
    began = time.monotonic()
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    command += ["--num_train_epochs", "10000"]
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=4 * limit)
    assert time.monotonic() - began <= 1.2 * limit
    assert json.loads((out / "report.json").read_text())["accuracy"] > 0.3
