# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A time limit for the whole command, `--time_limit SECONDS`.

- A clock counts the seconds since the process began, and those of an interrupted run that is resumed; a file in the
  output folder holds them.
- Progress is the larger of two shares: that of all steps, and that of the time for training. The learning rate
  schedule follows progress, so that it reaches its end on any machine, and whatever else runs on it.
- The time for training is what the rest leaves: evaluation is measured by the first one, which comes early.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

FILE = "time_limit.json"
FIRST, EVERY = 0.05, 0.05  # share of the training time before the first evaluation, and between two
COST = 8  # an evaluation must be followed by this many times its duration of training
ENDING = 0.04  # share of the limit for what is not measured: loading the best checkpoint, saving, pictures
UNMEASURED = 0.1  # the same, with what will be measured
PROBE_STEPS = 10  # optimiser steps that are timed before the number of epochs is announced


class Clock:
    """The seconds that a command has used, over all its interrupted runs.

    Args:
        limit: seconds that the command may use.
        folder: the output folder. resumed: count the seconds of the run that is resumed.

    Raises:
        ValueError: the limit is not positive.
    """

    def __init__(self, limit: float, folder: Path, resumed: bool):
        if limit <= 0:
            raise ValueError(f"--time_limit is {limit:g}; expected seconds, more than 0")
        self.limit, self.file, self.saved = limit, folder / FILE, 0.0
        self.earlier = 0.0
        if resumed and self.file.is_file():
            self.earlier = json.loads(self.file.read_text(encoding="utf-8"))["seconds"]
        self.began = psutil.Process().create_time()

    def used(self) -> float:
        """Seconds used so far."""
        return self.earlier + time.time() - self.began

    def left(self) -> float:
        """Seconds left; negative once the limit is exceeded."""
        return self.limit - self.used()

    def check(self) -> None:
        """Refuse to train without time.

        Raises:
            ValueError: the limit is used up.
        """
        if self.left() <= 0:
            raise ValueError(
                f"--time_limit {self.limit:g} is used up before the first step: start and reading took "
                f"{self.used():.0f} s; give more"
            )

    def save(self) -> None:
        """Write the seconds used so far, at most once a second."""
        if (now := self.used()) - self.saved >= 1:
            self.saved = now
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_name(f"{FILE}.part")
            part.write_text(json.dumps({"seconds": round(now, 1), "limit": self.limit}), encoding="utf-8")
            part.replace(self.file)


class TrialClock(Clock):
    """The seconds that a trial of a search has used; the file holds those of the whole command.

    A trial takes one step even if its seconds are used up before.

    Args:
        limit: seconds that the trial may use.
    """

    def __init__(self, limit: float, command: Clock):
        self.limit, self.command = limit, command
        self.earlier, self.began = 0.0, time.time()

    def check(self) -> None:
        pass

    def save(self) -> None:
        self.command.save()


class TimeLimitCallback(TrainerCallback):
    """Ends training, and evaluates during it, so that the command keeps to its limit.

    A limit that is used up before the first step raises a `ValueError`.

    Args:
        clock: the command's clock.
        rows_after: rows to evaluate after training, in units of the validation rows: 2.0 is twice as many.
        evaluates: evaluate and save as time allows; otherwise at the times of the training arguments.
        before: seconds that had been used before training, if it is resumed; a search takes them.
    """

    def __init__(self, clock: Clock, rows_after: float, evaluates: bool = True, before: float = 0.0):
        self.clock, self.rows_after, self.evaluates, self.before = clock, rows_after, evaluates, before
        self.start = self.progress = self.evaluated_at = 0.0
        self.evaluation: float | None = None  # seconds of one
        self.started_steps: tuple[float, int] | None = None
        self.has_start = False  # a fitted start is of use even if no time is left

    def reserve(self) -> float:
        """Seconds to leave for what follows training, one more evaluation included."""
        if self.evaluation is None:
            return UNMEASURED * self.clock.limit
        return self.evaluation * (1 + self.rows_after) + ENDING * self.clock.limit

    def twentieths(self) -> int:
        """Twentieths of the training that have passed, about one for each evaluation."""
        return int(self.progress / EVERY + 1e-6)

    def update(self, step: int, max_steps: int) -> None:
        """Set `progress`, from 0 to 1, which never falls."""
        budget = self.clock.limit - self.reserve() - self.start
        share = (self.clock.used() - self.start) / budget if budget > 0 else 1.0
        self.progress = min(1.0, max(self.progress, share, step / max_steps))

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.has_start:
            self.clock.check()
        elif self.clock.left() <= 0:
            logger.warning(f"--time_limit {self.clock.limit:g} is used up; the fitted start is kept as it is")
        self.start = self.before if state.global_step else self.clock.used()  # resumed: earlier training counts
        self.started_steps = (self.clock.used(), state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.update(state.global_step, state.max_steps)
        if args.world_size > 1:  # or processes would evaluate and stop at different steps
            measured = torch.tensor([self.progress, self.evaluation or -1.0], device=args.device)
            torch.distributed.all_reduce(measured, torch.distributed.ReduceOp.MAX)
            self.progress, evaluation = measured.tolist()
            self.evaluation = evaluation if evaluation >= 0 else None
        if state.is_world_process_zero:
            self.clock.save()
            self.announce(state)
        control.should_training_stop |= self.progress >= 1
        wait = max(EVERY, COST * (self.evaluation or 0.0) / self.clock.limit)
        is_due = self.progress - self.evaluated_at >= (wait if self.evaluated_at else FIRST)
        if self.evaluates and (is_due or self.progress >= 1):
            control.should_evaluate = control.should_save = True
        if control.should_evaluate:
            self.evaluated_at = self.progress

    def announce(self, state) -> None:
        """Say once, after the first steps, how many epochs fit."""
        began, first = self.started_steps or (0.0, 0)
        if state.global_step - first != PROBE_STEPS:
            return
        step = (self.clock.used() - began) / PROBE_STEPS
        steps = min(state.max_steps, first + (self.clock.left() - self.reserve()) / step)
        epochs = steps * state.num_train_epochs / state.max_steps
        logger.warning(f"time limit {self.clock.limit:g} s: {step:.2g} s per step, about {epochs:.2g} epochs fit")
        if epochs < 1:
            logger.warning(
                f"--time_limit {self.clock.limit:g} is too short for one epoch, which takes "
                f"{step * state.max_steps / state.num_train_epochs:.0f} s of training; some rows will not be used"
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        runtimes = [value for name, value in (metrics or {}).items() if name.endswith("_runtime")]
        if runtimes:
            self.evaluation = max(runtimes[0], self.evaluation or 0.0)


def follow_progress(scheduler: Any, callback: TimeLimitCallback, num_steps: int) -> None:
    """Let a `LambdaLR` schedule over `num_steps` follow the callback's progress instead of its own steps."""
    scheduler.lr_lambdas = [
        lambda _, rate=rate: rate(min(num_steps, round(callback.progress * num_steps)))
        for rate in scheduler.lr_lambdas
    ]
