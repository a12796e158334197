# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arguments of `modeling-mm train` for learning rates by part, and for parts that wake on a schedule.

Importing this file imports neither torch nor transformers, so that `--help` answers at once.
"""

import re
from dataclasses import dataclass, field

RATES = ("vision", "audio", "fusion", "text", "head")
PHASE = re.compile(r"(\d+|\d*\.\d+|\d+(?:\.\d+)?%)\s*:\s*(.+)")
SELECTOR = re.compile(rf"({'|'.join(RATES)})(?:\.(lora|last(\d+)))?")


@dataclass(frozen=True)
class Phase:
    """A phase of training.

    Args:
        start: the first step, or the share of all steps that come before.
        parts: what trains: `text`, `text.lora` (its adapters), `vision.last4` (its last four layers), ...
    """

    start: int | float
    parts: tuple[str, ...]


@dataclass
class PartArguments:
    """Learning rates by part, parts that wake on a schedule, and the precision of weights."""

    learning_rate_vision: float | None = field(
        default=None, metadata={"help": "learning rate of the vision tower; the default is --learning_rate"}
    )
    learning_rate_audio: float | None = field(
        default=None, metadata={"help": "learning rate of the audio tower; the default is --learning_rate"}
    )
    learning_rate_fusion: float | None = field(
        default=None, metadata={"help": "learning rate of the fusion; the default is --learning_rate"}
    )
    learning_rate_text: float | None = field(
        default=None, metadata={"help": "learning rate of the text backbone; the default is --learning_rate"}
    )
    learning_rate_head: float | None = field(
        default=None, metadata={"help": "learning rate of the heads; the default is --learning_rate"}
    )
    freeze_schedule: str | None = field(
        default=None,
        metadata={
            "help": 'what trains when, such as "0: fusion; 30%%: fusion,text.lora; 0.7: +vision.last4": phases with '
            "their first step, or the share of training before them, and the parts vision, audio, fusion, text and "
            "head, of which .lora takes adapters and .lastN the last N layers; + adds to the phase before"
        },
    )
    bf16_weights: bool = field(
        default=False,
        metadata={
            "help": "train weights in bfloat16, updated by AdamW with stochastic rounding (torchao, the extra "
            "quantization), in half of the memory; unlike --bf16 true, which keeps weights in float32"
        },
    )

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates that were given, by part."""
        rates = {part: getattr(self, f"learning_rate_{part}") for part in RATES}
        return {part: rate for part, rate in rates.items() if rate is not None}

    @property
    def phases(self) -> list[Phase]:
        """The phases of the schedule; empty without one.

        Raises:
            ValueError: names the phase and what was expected.
        """
        return [] if self.freeze_schedule is None else parse_schedule(self.freeze_schedule)


def parse_schedule(text: str) -> list[Phase]:
    """Phases from the words of `--freeze_schedule`.

    Raises:
        ValueError: names the phase and what was expected.
    """
    phases: list[Phase] = []
    for words in filter(None, (part.strip() for part in text.split(";"))):
        match = PHASE.fullmatch(words)
        if match is None:
            raise ValueError(f"--freeze_schedule has '{words}'; expected START: PARTS, such as 30%: fusion,text.lora")
        begin, parts = match.groups()
        share = float(begin.rstrip("%")) / (100 if begin.endswith("%") else 1)
        start = int(begin) if begin.isdigit() else share
        if isinstance(start, float) and start >= 1:
            raise ValueError(f"--freeze_schedule begins a phase at {begin}; expected a share of training below 1")
        added = parts.lstrip().startswith("+")
        chosen = tuple(dict.fromkeys(name.strip().lstrip("+").strip() for name in parts.split(",")))
        for name in chosen:
            if SELECTOR.fullmatch(name) is None:
                raise ValueError(
                    f"--freeze_schedule names '{name}'; expected {', '.join(RATES)}, with .lora or .lastN if wanted"
                )
        before = phases[-1].parts if added and phases else ()
        phases.append(Phase(start, tuple(dict.fromkeys((*before, *chosen)))))
    if not phases or phases[0].start != 0:
        raise ValueError(f"--freeze_schedule '{text}' says nothing about the first step; begin with 0: PARTS")
    kinds, starts = {type(phase.start) for phase in phases[1:]}, [phase.start for phase in phases]
    if len(kinds) > 1 or sorted(set(starts)) != starts:
        listed = ", ".join(map(str, starts))
        raise ValueError(f"--freeze_schedule begins phases at {listed}; expected rising steps, or rising shares")
    return phases
