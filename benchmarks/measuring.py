# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""How things are measured: alternating rounds, the arithmetic done, and what this machine can do at best."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]


class Timing(NamedTuple):
    """Seconds of one piece of work: the median of its rounds, and a quarter of them are below and above the others."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: list[float]) -> "Timing":
        low, median, high = statistics.quantiles(rounds * 2 if len(rounds) == 1 else rounds, n=4, method="inclusive")
        return cls(median, low, high)


def wait() -> None:
    """Until a GPU, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Work) -> float:
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def interleaved(works: dict[str, Work], rounds: int) -> dict[str, Timing]:
    """Each work once to warm up and then once in each round, so that a noisy machine disturbs all alike."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: Timing.of(own) for name, own in times.items()}


def arithmetic(work: Work) -> int:
    """Floating point operations of the matrix products, convolutions and attention that the work does."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    """Floating point operations per second of a large square matrix product, the best of ten."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: one @ other) for _ in range(10))


def memory_rate(device: torch.device, size: int = 2**26) -> float:
    """Bytes per second that a sum over far more than the caches reads, the best of ten."""
    numbers = torch.ones(size, device=device)
    return 4 * size / min(seconds(lambda: numbers.sum()) for _ in range(10))


def peak_megabytes(work: Work) -> float:
    """The most memory that the work held above what there was before it; best in a process of its own, as what an
    earlier work has freed is not seen when it is used again."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (Linux)
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A line of the kernel's account of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
