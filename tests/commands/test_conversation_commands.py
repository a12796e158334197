# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A file of conversations trains, evaluates and resumes in one command, in each format, padded and packed."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from helpers.conversations import FORMATS, write_conversations
from safetensors.torch import load_file
from transformers import AutoProcessor

from modeling_mm import cli

RECIPE = Path(__file__).parents[2] / "recipes" / "cauldron.yaml"
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--per_device_train_batch_size", "4"]


def run(capsys, *argv):
    """Run a verb that must succeed; returns the JSON of its last line and what it said beside."""
    assert cli.main(list(map(str, argv))) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out.strip().splitlines()[-1]), captured.err


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("cauldron", "prompts")]


@pytest.mark.parametrize("kind", ["messages", "llava", *SLOW])
def test_each_format_trains_and_evaluates(tmp_path, capsys, kind):
    train, test = write_conversations(tmp_path, kind), write_conversations(tmp_path, kind, 8, "test")
    report, printed = run(
        capsys, "train", "--train_file", train, "--test_file", test, "--output_dir", tmp_path / "out",
        "--max_steps", 2, "--save_strategy", "no", *QUIET,
    )  # fmt: skip
    assert "conversations in" in printed and "image in" in printed
    answers = 1 if kind == "prompts" else 2
    assert report["evaluated_rows"] == 8 * answers and set(report["turns"]) == {"1", "2"} - (
        {"1"} if answers == 1 else set()
    )
    again, _ = run(
        capsys, "evaluate", "--model", tmp_path / "out", "--test_file", test, "--device", "cpu",
        "--answer_metrics", "vqa_accuracy", "anls",
    )  # fmt: skip
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.padding_side == "left"  # as batches of chats need
    assert 0 <= again["vqa_accuracy"] <= 1 and 0 <= again["anls"] <= 1
    assert again["accuracy"] == report["accuracy"] and again["turns"] == report["turns"]


@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_tiny_chat_is_learned(tmp_path, capsys, packing):
    train, test = write_conversations(tmp_path, "messages", 64), write_conversations(tmp_path, "messages", 8, "test")
    report, _ = run(
        capsys, "train", "--train_file", train, "--validation_file", test, "--output_dir", tmp_path / "out",
        "--packing", packing, "--max_length", 64, "--max_steps", 120, "--learning_rate", "3e-3",
        "--eval_strategy", "no", "--save_strategy", "no", *QUIET,
    )  # fmt: skip
    assert report["turns"]["1"]["accuracy"] == 1.0


@pytest.mark.parametrize("packing", ["true", "false"])
def test_resumed_is_never_interrupted(tmp_path, capsys, packing):
    train = write_conversations(tmp_path, "messages", 40)
    flags = [
        "--train_file",
        train,
        "--packing",
        packing,
        "--max_length",
        80,
        "--save_steps",
        2,
        "--save_strategy",
        "steps",
    ]
    flags += ["--eval_strategy", "no", "--lr_scheduler_type", "constant", *QUIET, "--per_device_train_batch_size", 2]
    run(capsys, "train", *flags, "--output_dir", tmp_path / "whole", "--max_steps", 4)
    run(capsys, "train", *flags, "--output_dir", tmp_path / "parts", "--max_steps", 2)
    run(
        capsys,
        "train",
        *flags,
        "--output_dir",
        tmp_path / "parts",
        "--max_steps",
        4,
        "--resume_from_checkpoint",
        "true",
    )
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_stream_of_shards_trains_as_the_recipe_of_the_cauldron_does(tmp_path, capsys, caplog):
    (tmp_path / "shards").mkdir()
    write_conversations(tmp_path, "cauldron")
    images = datasets.List(datasets.Image())
    for number in range(2):
        rows = [FORMATS["cauldron"]((colour, str(tmp_path / f"{colour}.png"))) for colour in ("red", "blue")] * 8
        table = datasets.Dataset.from_list(rows).cast_column("images", images)
        table.map(lambda row: row).to_parquet(tmp_path / "shards" / f"train-{number}.parquet")
    files = ["--train_file", tmp_path / "shards" / "train-*.parquet"]
    files += ["--validation_file", tmp_path / "shards" / "train-1.parquet", "--output_dir", tmp_path / "out"]
    towers = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--max_length", 256]
    few = ["--max_steps", 4, "--eval_strategy", "no", "--save_strategy", "no", "--dataloader_num_workers", 0]
    recipe = ["train", "--config", RECIPE, *files, *towers, *few, "--gradient_accumulation_steps", 1, *QUIET]
    report, _ = run(capsys, *recipe)
    assert report["turns"]["2"]["rows"] == 16 and "phase 2 of 2 trains fusion, text.lora" in caplog.text


def test_a_plain_table_may_have_such_columns(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("prompt,completion,label\n" + "a b c,d e,x\nb c d,e f,y\n" * 10)
    flags = ["--train_file", tmp_path / "t.csv", "--output_dir", tmp_path / "out", "--max_steps", 1, *QUIET]
    report, printed = run(capsys, "train", *flags, "--label_column", "label", "--save_strategy", "no")
    assert "conversations" not in printed and "macro_f1" in report
