# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Parts wake on a schedule: equal to the bit until then, in the right phase when resumed, on two processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.builders import save_towers
from helpers.digits import write_digits
from safetensors.torch import load_file

from modeling_mm import cli
from modeling_mm.training.part_arguments import Phase, parse_schedule

TINY = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--task", "classification"]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--baselines", "false", "--eval_strategy", "no"]
QUIET += ["--per_device_train_batch_size", "8", "--lr_scheduler_type", "constant", "--learning_rate", "1e-3"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_digits(folder, "train.csv", 0, 64, ("image", "text", "label"))
    return folder


def train(rows, output, *flags, schedule="0: fusion; 2: fusion,text; 4: +vision.last1"):
    """Train with a schedule; returns the weights at each checkpoint by its step, and after training."""
    argv = ["train", *TINY, *QUIET, "--train_file", rows / "train.csv", "--output_dir", output]
    argv += ["--save_steps", 2, "--save_strategy", "steps", *flags]
    argv += ["--freeze_schedule", schedule] if schedule else []
    assert cli.main(list(map(str, argv))) == 0
    steps = {int(path.parent.name.split("-")[1]): load_file(path) for path in output.glob("checkpoint-*/model.*")}
    return steps, load_file(output / "model.safetensors")


def changed(before, after):
    """The parts whose weights differ."""
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {name.split(".")[1] if name.startswith("model.") else "head" for name in names}


def test_parts_are_equal_to_the_bit_until_they_wake(rows, tmp_path):
    steps, last = train(rows, tmp_path / "out", "--max_steps", 6)
    assert changed(steps[2], steps[4]) == {"fusion", "text_model", "head"}
    moved = {name for name in last if not torch.equal(steps[4][name], last[name]) and ".vision_tower." in name}
    assert moved and all(".encoder.stages.2." in name for name in moved)
    start, _ = train(rows, tmp_path / "start", "--max_steps", 2, schedule="0: fusion; 2: +vision.last1")
    assert changed(start[2], steps[2]) == set()


def test_interrupted_and_resumed_lands_in_its_phase(rows, tmp_path):
    _, whole = train(rows, tmp_path / "whole", "--max_steps", 6)
    train(rows, tmp_path / "parts", "--max_steps", 4)
    _, parts = train(rows, tmp_path / "parts", "--max_steps", 6, "--resume_from_checkpoint", "true")
    assert changed(whole, parts) == set()


def test_adapters_wake_alone_and_the_cache_of_a_tower_ends(tmp_path, rows, tokenizer, caplog):
    towers = save_towers(tmp_path, tokenizer)
    flags = [
        "train",
        "--task",
        "generation",
        *towers,
        *QUIET,
        "--train_file",
        rows / "answers.csv",
        "--max_steps",
        "6",
    ]
    write_digits(rows, "answers.csv", 0, 64, ("image", "text", "answer"))
    flags += ["--use_peft", "true", "--save_strategy", "no", "--freeze_schedule"]
    flags += ["0: fusion; 30%: fusion,text.lora; 0.6: +vision.last1"]
    outputs = {}
    for name, more in (("plain", []), ("cached", ["--cache_features", tmp_path / "features"])):
        assert cli.main([*map(str, flags), "--output_dir", str(tmp_path / name), *map(str, more)]) == 0
        outputs[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    phases = [record.message for record in caplog.records if "phase" in record.message]
    assert ["phase 1 of 3", "phase 2 of 3", "phase 3 of 3"] == [
        p.split(": ")[1].split(" trains")[0] for p in phases[:3]
    ]
    for name, weight in outputs["plain"].items():
        torch.testing.assert_close(outputs["cached"][name], weight, atol=1e-5, rtol=1e-4)
    assert any("lora_B" in name and weight.any() for name, weight in outputs["plain"].items())
    base = load_file(tmp_path / "plain" / "base" / "model.safetensors")
    moved = {
        name for name, weight in outputs["plain"].items()
        if ".vision_tower." in name and not torch.equal(weight, base[name.removeprefix("base_model.model.")])
    }  # fmt: skip
    assert moved and all(".layers.1." in name for name in moved)


def test_rates_by_part_are_the_optimiser_s(rows, tmp_path, monkeypatch):
    from modeling_mm.training.trainer import MMTrainer

    seen = []
    make = MMTrainer.create_optimizer

    def watched(self, model=None):
        optimizer = make(self, model)
        names = {id(p): name for name, p in self.model.named_parameters()}
        seen.append({names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]})
        return optimizer

    monkeypatch.setattr(MMTrainer, "create_optimizer", watched)
    rates = ["--learning_rate_vision", "1e-5", "--learning_rate_fusion", "2e-4", "--max_steps", "1"]
    train(rows, tmp_path / "out", *rates, schedule=None)
    found = {(name.split(".")[1] if name.startswith("model.") else "head"): rate for name, rate in seen[0].items()}
    assert found == {"vision_tower": 1e-5, "fusion": 2e-4, "text_model": 1e-3, "head": 1e-3}


def test_weights_in_bfloat16_learn_by_stochastic_rounding(rows, tmp_path):
    with torch.compiler.set_stance("force_eager"):
        flags = ["--bf16_weights", "true", "--learning_rate", "1e-5", "--max_steps", 8]  # smaller than half a unit
        steps, last = train(rows, tmp_path / "out", *flags, schedule=None)
    assert {weight.dtype for weight in last.values() if weight.is_floating_point()} == {torch.bfloat16}
    weights = [name for name in last if name.endswith(".weight") and last[name].dim() == 2]
    moved = torch.cat([(last[name] != steps[2][name]).flatten() for name in weights]).float().mean()
    assert 0 < moved < 0.5  # some of them, at random: rounding to nearest would lose nearly all of such updates


@pytest.mark.slow
def test_two_processes_killed_in_the_second_phase_and_resumed_equal_the_uninterrupted(rows, tmp_path):
    schedule = ["--freeze_schedule", "0: fusion; 4: fusion,text; 8: +vision.last1", "--max_steps", "12"]
    command = ["torchrun", "--nproc_per_node", "2", "-m", "modeling_mm.cli", "train", *TINY, *QUIET, *schedule]
    command += ["--train_file", str(rows / "train.csv"), "--save_steps", "1", "--save_strategy", "steps"]
    command[0] = os.path.join(os.path.dirname(sys.executable), "torchrun")
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}
    subprocess.run([*command, "--output_dir", str(tmp_path / "whole")], check=True, timeout=300, **options)
    killed = [*command, "--output_dir", str(tmp_path / "parts")]
    process = subprocess.Popen(killed, start_new_session=True, **options)
    deadline = time.monotonic() + 200
    while not (tmp_path / "parts" / "checkpoint-6" / "trainer_state.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*killed, "--resume_from_checkpoint", "true"], check=True, timeout=300, **options)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert changed(whole, parts) == set()
    assert json.loads((tmp_path / "whole" / "report.json").read_text())["accuracy"] is not None


def test_phases_are_read_from_words():
    assert parse_schedule("0:fusion; 30%: fusion,text.lora; 0.7: +vision.last4") == [
        Phase(0, ("fusion",)),
        Phase(0.3, ("fusion", "text.lora")),
        Phase(0.7, ("fusion", "text.lora", "vision.last4")),
    ]
    assert [phase.start for phase in parse_schedule("0: text; 100: fusion")] == [0, 100]


@pytest.mark.parametrize(
    "words, expected",
    [
        ("fusion", "has 'fusion'; expected START: PARTS"),
        ("0: fusion; 0.5: ears", "names 'ears'; expected vision, audio, fusion, text, head"),
        ("0.1: fusion", "says nothing about the first step"),
        ("0: fusion; 0.5: text; 0.3: vision", "begins phases at 0, 0.5, 0.3; expected rising"),
        ("0: fusion; 10: text; 0.3: vision", "expected rising steps, or rising shares"),
        ("0: fusion; 1.5: text", "begins a phase at 1.5; expected a share of training below 1"),
        ("", "says nothing about the first step"),
    ],
)
def test_bad_words_are_refused(words, expected):
    with pytest.raises(ValueError, match=".*") as error:
        parse_schedule(words)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--freeze_schedule", "0: text.lora"], "give --use_peft true"),
        (["--freeze_schedule", "0: fusion", "--vision_trainable", "true"], "leave out --vision_trainable"),
        (["--freeze_schedule", "0: fusion; 0.5: audio"], "names 'audio', but this model has no weights there"),
        (["--freeze_schedule", "0: fusion", "--use_peft", "true"], " in no phase; add them to one"),
        (["--freeze_schedule", "0: vision.last40"], "names vision.last40, but this part has"),
        (["--freeze_schedule", "0: fusion", "--search", "2"], "leave out --freeze_schedule, or --search"),
        (["--learning_rate_text", "1e-4", "--muon_learning_rate", "1e-3"], "leave out --muon_learning_rate"),
        (["--bf16_weights", "true", "--optim", "sgd"], "--bf16_weights needs AdamW"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(rows, tmp_path, capsys, flags, expected):
    argv = ["train", *TINY, *QUIET, "--train_file", rows / "train.csv", "--output_dir", tmp_path / "out", *flags]
    assert cli.main(list(map(str, argv))) != 0
    assert expected in capsys.readouterr().err
