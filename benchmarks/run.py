# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Comparison of modeling_mm with transformers' models, with the same towers and work; writes RESULTS.md and a chart.

    make bench                              # about half an hour on two CPU cores
    python benchmarks/run.py --quick        # each kind of row once, at a small size: two minutes

Rounds alternate between the models, so that other load disturbs all of them equally. Times are medians; a ratio is the
other model's time divided by ours. Everything runs on a GPU if there is one.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import contrasting
import generating
import matplotlib
import overheads
import torch
import transformers
from measuring import Timing, arithmetic, interleaved, matrix_rate, memory_rate, peak_megabytes

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLOW = 3.0  # seconds; slower work gets fewer rounds
LAYOUTS = [(14, 1, 1), (14, 1, 8), (24, 1, 1), (24, 1, 8), (24, 4, 1)]  # patches per side, images, rows
HALF = [(24, 1, 1), (24, 1, 8)]  # in bfloat16 as well
QUICK, QUICK_HALF = [(4, 1, 1), (4, 1, 2), (4, 4, 1)], [(4, 1, 1)]
PEAK = {False: (24, 1, 8), True: (4, 1, 1)}  # the layout whose memory is measured, with --quick or not
CHARTED = ("training step", "prefill, text side", "decoding a token")  # in float32


@dataclass
class Line:
    """One row of a table: the work, the time of each model, and the arithmetic of ours."""

    work: str
    tokens: str
    batch: int
    dtype: str
    times: dict[str, Timing]
    flops: int = 0

    def cells(self, models: list[str], rates: dict[str, float]) -> list[str]:
        ours = self.times["ours"].median
        cells = [self.work, self.tokens, str(self.batch), self.dtype, milliseconds(self.times["ours"])]
        for name in models:
            time = self.times.get(name)
            cells.append("-" if time is None else f"{milliseconds(time)} ({time.median / ours:.2f}x)")
        share = self.flops / ours / rates[self.dtype]
        return [*cells, f"{self.flops / 1e9:,.1f}" if self.flops else "-", f"{share:.0%}" if self.flops else "-"]


def milliseconds(time: Timing) -> str:
    """The median in milliseconds, and half the interquartile range as a percentage of it."""
    spread = (time.high - time.low) / 2 / time.median
    return f"{1000 * time.median:,.{0 if time.median > 0.1 else 1}f} ±{spread:.0%}"


def rounds_for(works: dict, rounds: int) -> dict[str, Timing]:
    """Timings of alternating rounds; three for slow work, which is enough for a median."""
    first = interleaved(works, 1)
    slowest = max(time.median for time in first.values())
    return first if rounds == 1 else interleaved(works, min(rounds, 3) if slowest > SLOW else rounds)


def generation_lines(rounds: int, quick: bool) -> Iterator[Line]:
    """Lines of every work and layout; the time of one token is what 32 tokens add to a prefill, divided by 32."""
    whole, half = (QUICK, QUICK_HALF) if quick else (LAYOUTS, HALF)
    cases = [(layout, torch.float32) for layout in whole] + [(layout, torch.bfloat16) for layout in half]
    for (side, images, rows), dtype in cases:
        tokens = f"{images} x {side * side}" if images > 1 else str(side * side)
        lines = {}
        for work in generating.WORKS:
            names = [name for name in generating.MODELS if (name, work) not in generating.LEFT_OUT]
            works = {n: generating.work_of(n, work, side, images, rows, DEVICE, dtype) for n in names}
            times = rounds_for(works, rounds)
            lines[work] = Line(work, tokens, rows, str(dtype)[6:], times, arithmetic(works["ours"]))
            yield lines[work]
        yield decoding(lines["prefill"], lines["prefill and 32 tokens"])


def decoding(prefill: Line, answer: Line) -> Line:
    """The time of one new token: that of an answer minus its prefill, divided by the number of tokens."""

    def per_token(name: str) -> Timing:
        return Timing(*((answer.times[name].median - prefill.times[name].median) / generating.NEW_TOKENS,) * 3)

    times = {name: per_token(name) for name in answer.times}
    flops = (answer.flops - prefill.flops) // generating.NEW_TOKENS
    return Line("decoding a token", answer.tokens, answer.batch, answer.dtype, times, flops)


def contrastive_lines(rounds: int, quick: bool) -> Iterator[Line]:
    for pairs in (16,) if quick else (64, 256):
        works = {name: contrasting.work_of(name, pairs, DEVICE, torch.float32) for name in contrasting.MODELS}
        times = rounds_for(works, rounds)
        yield Line("contrastive step", "64", pairs, "float32", times, arithmetic(works["ours"]))


def memory_lines(quick: bool) -> list[str]:
    """Peak memory of a training step; each model runs in a separate process."""
    lines, ours = [], 0.0
    for name in generating.MODELS:
        command = [sys.executable, __file__, "--peak", name, *(["--quick"] if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"measuring the memory of {name} failed: {done.stderr[-2000:]}")
        peak = json.loads(done.stdout.splitlines()[-1])
        ours = ours or peak
        lines.append(f"| {name} | {peak:,.0f} | {peak / ours:.2f}x |")
        print(lines[-1], flush=True)
    return lines


def overhead_lines(rounds: int) -> list[str]:
    """Lines of a table: the work, our time, the other time, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        imported, loaded = overheads.importing(rounds), overheads.loading(folder, rounds)
        dataset, collator = overheads.drawn_data(folder)
        rate = overheads.reading(dataset, collator, rounds)
        trained = overheads.around_a_loop(dataset, collator, folder / "run", rounds)
    pairs = [
        ("import, compared with transformers and its Auto classes", imported["ours"], imported["transformers"]),
        ("`from_pretrained`, compared with LLaVA", loaded["ours"], loaded["LLaVA"]),
        (
            "an epoch of `MMTrainer` (scratch-tiny), compared with a bare loop",
            trained["MMTrainer"],
            trained["bare loop"],
        ),
    ]
    lines = [
        f"| {work} | {milliseconds(ours)} | {milliseconds(other)} | {ours.median / other.median:.2f}x |"
        for work, ours, other in pairs
    ]
    return [*lines, f"| rows read, decoded, resized and tokenised by one process | {rate:,.0f} per second | - | - |"]


def table(lines: list[Line], rates: dict[str, float]) -> list[str]:
    models = [name for name in dict.fromkeys(n for line in lines for n in line.times) if name != "ours"]
    heads = ["work", "image tokens", "rows", "dtype", "ours, ms", *models, "GFLOP", "of the matrix rate"]
    return [
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
        *[f"| {' | '.join(line.cells(models, rates))} |" for line in lines],
    ]


def chart(lines: list[Line], path: Path) -> None:
    """Draw each model's time divided by ours, by work and number of image tokens."""
    charted = [line for work in CHARTED for line in lines if (line.work, line.dtype) == (work, "float32")]
    largest = max(line.batch for line in charted)
    charted = [line for line in charted if line.batch == largest]
    models = [name for name in charted[0].times if name != "ours"]
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / len(models)
    for place, name in enumerate(models):
        bars = [
            (i + width * place, line.times[name].median / line.times["ours"].median)
            for i, line in enumerate(charted)
            if name in line.times
        ]
        container = axes.bar([x for x, _ in bars], [y for _, y in bars], width, label=name)
        axes.bar_label(container, fmt="%.1f", fontsize=7)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(charted))])
    axes.set_xticklabels([f"{line.work}\n{line.tokens} image tokens" for line in charted], fontsize=8)
    axes.set_ylabel("time relative to ours (above 1: ours is faster)")
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(models))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def machine() -> str:
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{platform.machine()} CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}, {torch.get_num_threads()} threads, {versions}"


def measured(lines: Iterator[Line], rates: dict[str, float]) -> list[Line]:
    """The lines, each printed when it is measured."""
    finished = []
    for line in lines:
        finished.append(line)
        cells = line.cells(list(line.times)[1:], rates)
        print(" ".join(cells[:4]), "|", ", ".join(cells[4:]), flush=True)
    return finished


def heading(flags: str, rates: dict[str, float]) -> list[str]:
    """Lines with the command, the machine and its peak rates."""
    load, commit = os.getloadavg()[0], git_commit()
    best = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    return [
        "# modeling_mm compared with transformers' models",
        "",
        f"`python benchmarks/run.py {flags}` at commit {commit}, {date.today()}: {machine()}; load average {load:.1f} "
        f"on {os.cpu_count()} cores at the start. A large matrix product reaches {best}; memory is read at "
        f"{memory_rate(DEVICE) / 1e9:.0f} GB/s.",
        "",
        "Medians of alternating rounds, ± half the interquartile range. In brackets, the time divided by ours:",
        "above 1, ours is faster.",
    ]


def page(rounds: int, quick: bool, rates: dict[str, float], generation: list[Line]) -> list[str]:
    """The lines of generation as a table, and all other measurements."""
    side, _, rows = PEAK[quick]
    return [
        "",
        "## Generation from images",
        "",
        f"{generating.TOKENS} text tokens in each row. {generating.__doc__.split(chr(10), 2)[2].strip()}",
        "",
        *table(generation, rates),
        "",
        "![time relative to ours](RESULTS.png)",
        "",
        "## Peak memory of a training step",
        "",
        f"{side * side} image tokens, {rows} rows, float32, above the model itself.",
        "",
        "| model | MB | relative to ours |",
        "| --- | --- | --- |",
        *memory_lines(quick),
        "",
        "## Contrastive training step",
        "",
        f"Pairs of {contrasting.SIDE} x {contrasting.SIDE} pixels and {contrasting.TOKENS} tokens, all different.",
        "open_clip is not included: it needs torchvision.",
        "",
        *table(measured(contrastive_lines(rounds, quick), rates), rates),
        "",
        "## Overhead",
        "",
        "| work | ours, ms | other, ms | ratio |",
        "| --- | --- | --- | --- |",
        *overhead_lines(min(rounds, 5)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument(
        "--quick", action="store_true", help="one round with small images, as a check that every row works"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder; default: %(default)s")
    parser.add_argument("--peak", choices=generating.MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        side, images, rows = PEAK[args.quick]
        work = generating.work_of(args.peak, "training step", side, images, rows, DEVICE, torch.float32)
        return print(peak_megabytes(work))
    rounds = 1 if args.quick else args.rounds
    rates = {str(dtype)[6:]: matrix_rate(DEVICE, dtype) for dtype in (torch.float32, torch.bfloat16)}
    lines = heading("--quick" if args.quick else f"--rounds {args.rounds}", rates)
    generation = measured(generation_lines(rounds, args.quick), rates)
    lines += page(rounds, args.quick, rates, generation)
    (args.output / "RESULTS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    chart(generation, args.output / "RESULTS.png")


def git_commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
