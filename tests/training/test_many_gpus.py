# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""docs/many-gpus.md, as far as it can be checked without GPUs: its command lines parse, its sums are right."""

import os
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.run import get_args_parser
from transformers import HfArgumentParser, TrainingArguments

from benchmarks.many_gpus import table
from modeling_mm.training.arguments import DataArguments, ModelArguments

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "many-gpus.md").read_text(encoding="utf-8")
NUMBERS = {"RANK": "1", "HOST": "10.0.0.1"}


def lines(program):
    """The arguments of a program in the documented launch lines."""
    found = re.findall(rf"^    {program} (.*)$", TEXT, re.MULTILINE)
    return [[NUMBERS.get(word, word) for word in shlex.split(line)] for line in found]


@pytest.mark.parametrize("argv", lines("torchrun"), ids=len)
def test_torchrun_takes_its_lines(argv):
    args = get_args_parser().parse_args(argv)
    assert args.module and args.training_script == "modeling_mm.cli" and args.nproc_per_node == "8"
    assert_trains(args.training_script_args)


@pytest.mark.parametrize("argv", lines("accelerate launch"), ids=len)
def test_accelerate_reads_the_recipe(argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(argv))
    assert args.use_fsdp and args.module and args.num_processes == (32 if "--num_machines" in argv else 8)
    assert_trains(args.training_script_args)
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is None
    assert plugin.state_dict_type is StateDictType.SHARDED_STATE_DICT
    assert not plugin.cpu_ram_efficient_loading and os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def assert_trains(argv):
    """Check that the words after the module's name are arguments of `modeling-mm train`."""
    verb, *options = argv
    known = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))._option_string_actions
    assert verb == "train" and {word for word in options if word.startswith("--")} <= {*known, "--config"}


def test_the_table_is_what_the_formulas_give():
    assert "\n".join(table()) in TEXT
