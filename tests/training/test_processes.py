# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Two processes train together though audio occurs in one of them only or never; none waits for gradients.

One `torchrun` makes all runs; the tests check its results.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.builders import drawing
from safetensors.torch import load_file

ROWS = 16
WAYS = {
    "cross": [],
    "weighted": ["--late_fusion", "weighted"],
    "linear beside cross": ["--late_fusion", "linear", "--cross_attention", "true"],
    "gated beside cross": ["--late_fusion", "gated", "--cross_attention", "true"],
    "LoRA": ["--use_peft", "true", "--text_trainable", "false"],
    "LoRA in late fusion": ["--use_peft", "true", "--late_fusion", "product", "--audio_trainable", "true"],
    "accumulated": ["--gradient_accumulation_steps", "2"],
    "checkpointed": ["--gradient_checkpointing", "true"],
}
AUDIO_ROWS = {"never": lambda i: False, "one": lambda i: i // 2 % 2 == 1}  # the processes take two rows each in turn
RUNS = [f"{where}: {way}" for where in AUDIO_ROWS for way in WAYS]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with two tables of 16 rows, which differ in the rows that have audio."""
    work = tmp_path_factory.mktemp("processes")
    for i in range(ROWS):
        drawing((15 * i, 240 - 15 * i, 90)).save(work / f"{i}.png")
        tone = np.sin(2 * np.pi * (200 + 40 * i) * np.arange(8000) / 16000)
        soundfile.write(work / f"{i}.wav", tone.astype(np.float32), 16000)
    for name, has_audio in AUDIO_ROWS.items():
        lines = [f"{i}.png,what is it,{f'{i}.wav' if has_audio(i) else ''},{'ab'[i % 2]}" for i in range(ROWS)]
        (work / f"{name}.csv").write_text("\n".join(["image,text,audio,label", *lines]) + "\n")
    return work


def arguments(work, where, way):
    """Arguments of one run: four steps, all towers from scratch, rows in their order."""
    argv = ["--task", "classification", "--train_file", work / f"{where}.csv", "--validation_file", work / "one.csv"]
    for tower in ("--vision_tower", "--text_model", "--audio_tower"):
        argv += [tower, "scratch-tiny"]
    argv += ["--audio_column", "audio", "--max_seconds", "1", "--per_device_train_batch_size", "2", "--use_cpu"]
    argv += ["--train_sampling_strategy", "sequential", "--num_train_epochs", "1", "--learning_rate", "1e-3"]
    argv += ["--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no", "--eval_strategy", "no"]
    return [*map(str, argv), "--output_dir", str(work / f"{where}: {way}"), *WAYS[way]]


@pytest.fixture(scope="module")
def found(work):
    """Results of the processes, by run."""
    runs = {f"{where}: {way}": arguments(work, where, way) for where in AUDIO_ROWS for way in WAYS}
    (work / "runs.json").write_text(json.dumps(runs))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [
            *start,
            str(Path(__file__).parents[1] / "helpers" / "torchrun_train.py"),
            str(work / "runs.json"),
            str(work / "found.json"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=(work / "log").open("w"),
        start_new_session=True,
    )
    try:
        code = process.wait(timeout=600)  # it takes a minute and a half on two idle cores
    except subprocess.TimeoutExpired:
        code = "hanging"
    finally:  # also the workers, which a hanging launcher would leave running
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, (work / "log").read_text()[-4000:]
    return json.loads((work / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_processes_stay_together_without_looking_for_unused_parameters(found, run):
    result = found[run]
    assert (result["world"], result["backend"], result["wrapped"]) == (2, "gloo", "DistributedDataParallel")
    assert result["argument"] is False and result["find_unused"] is False
    accumulated = 2 if run.endswith("accumulated") else 1
    assert result["steps"] == ROWS // 4 // accumulated
    assert result["batches_with_sound"] == ([0, 4] if run.startswith("one") else [0, 0])
    assert result["furthest"] == 0
    assert result["report"]["evaluated_rows"] == ROWS


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_tower_trains_where_its_modality_occurs_and_is_frozen_where_it_never_does(found, run):
    trained = [name for name in found[run]["trained"] if "audio_tower" in name]
    assert bool(trained) == run.startswith("one")


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in RUNS if "LoRA" not in run])
def test_what_one_process_heard_is_in_the_saved_model(found, work, run):
    saved = load_file(work / run / "model.safetensors")
    counts = [int(v) for name, v in saved.items() if "audio_tower" in name and name.endswith("num_batches_tracked")]
    assert counts and set(counts) == {4 if run.startswith("one") else 0}
    counts = [int(v) for name, v in saved.items() if "vision_tower" in name and name.endswith("num_batches_tracked")]
    assert set(counts) == {8}  # four batches in each of two processes
