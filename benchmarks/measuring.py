# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Measuring: timings in alternating rounds, floating point operations, and peak rates of this machine."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]


class Timing(NamedTuple):
    """Seconds of one piece of work: the median of its rounds, and the lower and upper quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def from_rounds(cls, rounds: list[float]) -> "Timing":
        low, median, high = statistics.quantiles(rounds * 2 if len(rounds) == 1 else rounds, n=4, method="inclusive")
        return cls(median, low, high)


def wait() -> None:
    """Wait until the GPU, if there is one, has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Work) -> float:
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def interleaved(works: dict[str, Work], rounds: int) -> dict[str, Timing]:
    """Time each work once in each round, after a warm-up, so that other load disturbs all of them equally."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: Timing.from_rounds(seconds) for name, seconds in times.items()}


def arithmetic(work: Work) -> int:
    """Floating point operations of the matrix products, convolutions and attention in the work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    """Floating point operations per second of a large square matrix product, the best of ten."""
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: first @ second) for _ in range(10))


def memory_rate(device: torch.device, size: int = 2**26) -> float:
    """Bytes per second read by a sum over far more data than fits the caches, the best of ten."""
    numbers = torch.ones(size, device=device)
    return 4 * size / min(seconds(lambda: numbers.sum()) for _ in range(10))


def peak_megabytes(work: Work) -> float:
    """Peak memory of the work above the memory before it.

    Run it in a separate process: memory that earlier work has freed is reused without being counted.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux)
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A field of this process in /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
