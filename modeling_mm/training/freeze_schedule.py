# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Parts that wake on a schedule: all are in the optimiser from the start, and `requires_grad` says which train.

A part that sleeps has no gradient, so that the optimiser leaves it alone, weight decay included, and it is equal to
the bit until it wakes. The phase follows from the step alone: a resumed training lands in the right one.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable

from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from ..model.adapters_mm import PARTS, without_adapters
from .part_arguments import SELECTOR, Phase
from .time_limit import TimeLimitCallback
from .trainable import part_of

logger = logging.getLogger(__name__)


def plain_name(name: str) -> str:
    """The name of a parameter or module without what peft puts into it for parts that train in full."""
    return name.replace("modules_to_save.default.", "").replace("original_module.", "")


def layer_prefixes(model: PreTrainedModel, part: str, count: int) -> tuple[str, ...]:
    """The beginnings of the names of parameters in the last layers of a part.

    Raises:
        ValueError: the part has no list of so many layers.
    """
    tower: nn.Module | None = getattr(model.base_model, PARTS.get(part, part), None)
    modules = [] if tower is None else [(plain_name(name), module) for name, module in tower.named_modules()]
    lists = [(name, module) for name, module in modules if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"--freeze_schedule names {part}.last{count}, but this part has no list of layers")
    name, layers = min(lists, key=lambda entry: (entry[0].count("."), -len(entry[1])))
    if len(layers) < count:
        raise ValueError(f"--freeze_schedule names {part}.last{count}, but this part has {len(layers)} layers")
    first, end = len(layers) - count, len(layers)
    return tuple(f"{PARTS[part]}.{name}.{index}." for index in range(first, end))


def selected(model: PreTrainedModel, parts: Iterable[str], names: Collection[str]) -> set[str]:
    """The names of the parameters that the parts of a phase stand for; `model` is without adapters' wrapping.

    As for the flags, `text` takes a language modelling head with it and `fusion` all other heads.
    """
    found: set[str] = set()
    for selector in parts:
        match = SELECTOR.fullmatch(selector)
        assert match is not None
        part, detail, count = match.groups()
        prefixes = layer_prefixes(model, part, int(count)) if count else ()
        for name in names:
            owner = part_of(name)
            with_head = not detail and owner == "head" and part == ("text" if "lm_head" in name else "fusion")
            if owner != part and not with_head:
                continue
            if detail == "lora" and "lora_" not in name:
                continue
            if not prefixes or any(f".{prefix}" in f".{plain_name(name)}" for prefix in prefixes):
                found.add(name)
    return found


def set_scheduled(model: PreTrainedModel, phases: Iterable[Phase]) -> None:
    """Make all parameters trainable that any phase trains, and freeze the others; adapters come later.

    Raises:
        ValueError: a phase has parameters of no part.
    """
    parameters = dict(model.named_parameters())
    trained: set[str] = set()
    for phase in phases:
        for part in phase.parts:
            names = selected(model, [part], parameters)
            if not names and not part.endswith(".lora"):
                raise ValueError(f"--freeze_schedule names '{part}', but this model has no weights there")
            trained |= names
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)


class FreezeScheduleCallback(TrainerCallback):
    """Switches `requires_grad` from phase to phase.

    Args:
        phases: in their order.
        time_limit: shares are of its progress, else of all steps.
    """

    def __init__(self, phases: list[Phase], time_limit: TimeLimitCallback | None = None):
        self.phases, self.time_limit = phases, time_limit
        self.before_waking: Callable[[set[str]], None] | None = None  # called with the parts that the next step trains
        self.trained: dict[str, nn.Parameter] = {}
        self.current = -1

    def names(self, model: nn.Module, index: int) -> set[str]:
        """The names of the parameters that train in a phase."""
        base = without_adapters(model)
        return selected(base, self.phases[index].parts, self.trained or dict(model.named_parameters()))

    def phase_at(self, step: int, max_steps: int) -> int:
        """The index of the phase of a step, counted from 0."""
        reached = 0
        for index, phase in enumerate(self.phases):
            if isinstance(phase.start, int):
                begins = step >= phase.start
            elif self.time_limit is not None:
                begins = self.time_limit.progress >= phase.start
            else:
                begins = step >= math.ceil(phase.start * max_steps)
            reached = index if begins else reached
        return reached

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not self.trained:
            self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            self.check(model)
        if self.time_limit is not None and state.global_step:
            self.time_limit.update(state.global_step, state.max_steps)
        reached = self.phase_at(state.global_step, state.max_steps)
        if self.before_waking is not None:  # what an earlier phase trained is no longer as it was cached
            self.before_waking({part_of(name) for index in range(reached) for name in self.names(model, index)})
        self.current = -1
        self.enter(model, state)

    def check(self, model: nn.Module) -> None:
        """Refuse parts without weights, and weights that train in no phase.

        Raises:
            ValueError: names them.
        """
        base = without_adapters(model)
        named = {part: selected(base, [part], self.trained) for phase in self.phases for part in phase.parts}
        if empty := [part for part, names in named.items() if not names]:
            raise ValueError(f"--freeze_schedule names '{empty[0]}', which selects no trainable weights")
        if asleep := set(self.trained) - set().union(*named.values()):
            kinds = ", ".join(sorted({part_of(name) for name in asleep}))
            raise ValueError(
                f"--freeze_schedule trains {len(asleep)} parameters of {kinds}, such as {min(asleep)}, in no phase; "
                "add them to one, or leave their adapters out with --lora_parts"
            )

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.enter(model, state)
        following = self.phase_at(state.global_step + 1, state.max_steps)  # the loader is a batch ahead
        if following != self.current and self.before_waking is not None:
            self.before_waking({part_of(name) for name in self.names(model, following)})

    def enter(self, model: nn.Module, state) -> None:
        """Enter the phase of the next step, unless it is the present one."""
        index = self.phase_at(state.global_step, state.max_steps)
        if index == self.current:
            return
        self.current, phase, names = index, self.phases[index], self.names(model, index)
        for name, parameter in self.trained.items():
            parameter.requires_grad_(name in names)
            if name not in names:
                parameter.grad = None
        count = sum(self.trained[name].numel() for name in names)
        logger.warning(
            f"step {state.global_step}: phase {index + 1} of {len(self.phases)} trains {', '.join(phase.parts)} "
            f"({count:,} weights)"
        )
        if self.before_waking is not None:
            self.before_waking({part_of(name) for name in names})
