# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Several runs of the training command under `torchrun`, with their final state; for training/test_processes.py.

`torchrun_train.py RUNS.json FOUND.json`: RUNS maps names to arguments of `modeling-mm train`, FOUND receives the
results by name.
"""

import json
import sys
from pathlib import Path

from torch import distributed

from modeling_mm.commands import train
from modeling_mm.training import build as assembly
from modeling_mm.training.trainer import MMTrainer

FOUND = {}


def from_all(value):
    """The value of every process."""
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


class WatchedTrainer(MMTrainer):
    """The trainer, which records the state of each process after training."""

    def train(self, *args, **kwargs):
        has_audio, collate = [], self.data_collator

        def counted(rows):
            batch = collate(rows)
            has_audio.append("input_features" in batch)
            return batch

        self.data_collator = counted
        result = super().train(*args, **kwargs)
        self.data_collator = collate
        model = self.accelerator.unwrap_model(self.model_wrapped)
        state = {name: value.float() for name, value in model.state_dict().items()}
        gaps = {}
        for name, value in state.items():
            first = value.clone()
            distributed.broadcast(first, 0)
            gaps[name] = float((first - value).abs().max()) if value.numel() else 0.0
        FOUND[NAME] = {
            "world": distributed.get_world_size(),
            "backend": distributed.get_backend(),
            "wrapped": type(self.model_wrapped).__name__,
            "argument": self.args.ddp_find_unused_parameters,
            "find_unused": self.model_wrapped.find_unused_parameters,
            "steps": self.state.global_step,
            "batches_with_sound": from_all(sum(has_audio)),
            "furthest": max(from_all(max(gaps.values()))),
            "trained": sorted({name for name, p in model.named_parameters() if p.requires_grad}),
            "statistics": {n: v.sum().item() for n, v in state.items() if n.endswith(("running_mean", "_tracked"))},
        }
        return result


assembly.MMTrainer = WatchedTrainer
for NAME, argv in json.loads(Path(sys.argv[1]).read_text()).items():
    print(f"--- {NAME}", file=sys.stderr, flush=True)
    report = train.main(argv)
    if report is not None:
        FOUND[NAME]["report"] = {key: report[key] for key in ("accuracy", "train_rows", "evaluated_rows")}
        Path(sys.argv[2]).write_text(json.dumps(FOUND))
distributed.destroy_process_group()
