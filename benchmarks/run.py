# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""modeling_mm beside the library's own models, over the same towers and the same work; writes RESULTS.md and a chart.

    make bench                              # about half an hour on two CPU cores
    python benchmarks/run.py --quick        # each kind of row once, in small: two minutes

Rounds alternate between the models, so that a noisy machine disturbs all alike; times are medians, and a ratio says
how many times ours that of the other is. On a GPU, where there is one, all of it runs there.
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
SLOW = 3.0  # seconds; of longer work fewer rounds
LAYOUTS = [(14, 1, 1), (14, 1, 8), (24, 1, 1), (24, 1, 8), (24, 4, 1)]  # patches per side, images, rows
HALF = [(24, 1, 1), (24, 1, 8)]  # in bfloat16 as well
QUICK, QUICK_HALF = [(4, 1, 1), (4, 1, 2), (4, 4, 1)], [(4, 1, 1)]
PEAK = {False: (24, 1, 8), True: (4, 1, 1)}  # whose memory is measured, quick or not
CHARTED = ("training step", "prefill, text side", "decoding a token")  # in float32


@dataclass
class Line:
    """One row: what was done, by whom in how many seconds, and how much arithmetic ours takes."""

    work: str
    tokens: str
    batch: int
    dtype: str
    times: dict[str, Timing]
    flops: int = 0

    def cells(self, models: list[str], rates: dict[str, float]) -> list[str]:
        ours = self.times["ours"].median
        found = [self.work, self.tokens, str(self.batch), self.dtype, milliseconds(self.times["ours"])]
        for name in models:
            time = self.times.get(name)
            found.append("-" if time is None else f"{milliseconds(time)} ({time.median / ours:.2f}x)")
        share = self.flops / ours / rates[self.dtype]
        return [*found, f"{self.flops / 1e9:,.1f}" if self.flops else "-", f"{share:.0%}" if self.flops else "-"]


def milliseconds(time: Timing) -> str:
    """The median, and half of the distance between the quartiles as a share of it."""
    spread = (time.high - time.low) / 2 / time.median
    return f"{1000 * time.median:,.{0 if time.median > 0.1 else 1}f} ±{spread:.0%}"


def rounds_for(works: dict, rounds: int) -> dict[str, Timing]:
    """Alternating rounds; of slow work three, which is enough to see a median."""
    first = interleaved(works, 1)
    slowest = max(time.median for time in first.values())
    return first if rounds == 1 else interleaved(works, min(rounds, 3) if slowest > SLOW else rounds)


def generation_lines(rounds: int, quick: bool) -> Iterator[Line]:
    """Every work of every layout; how long a token takes is what 32 of them add to a prefill."""
    whole, half = (QUICK, QUICK_HALF) if quick else (LAYOUTS, HALF)
    cases = [(layout, torch.float32) for layout in whole] + [(layout, torch.bfloat16) for layout in half]
    for (side, pictures, rows), dtype in cases:
        tokens = f"{pictures} x {side * side}" if pictures > 1 else str(side * side)
        lines = {}
        for work in generating.WORKS:
            names = [name for name in generating.MODELS if (name, work) not in generating.LEFT_OUT]
            works = {n: generating.work_of(n, work, side, pictures, rows, DEVICE, dtype) for n in names}
            times = rounds_for(works, rounds)
            lines[work] = Line(work, tokens, rows, str(dtype)[6:], times, arithmetic(works["ours"]))
            yield lines[work]
        yield decoding(lines["prefill"], lines["prefill and 32 tokens"])


def decoding(prefill: Line, answer: Line) -> Line:
    """A token's share of what an answer takes beyond its prefill."""

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
    """The most memory of a training step, of each model in a process of its own."""
    lines, ours = [], 0.0
    for name in generating.MODELS:
        own = [sys.executable, __file__, "--peak", name, *(["--quick"] if quick else [])]
        done = subprocess.run(own, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the memory of {name} was not measured: {done.stderr[-2000:]}")
        peak = json.loads(done.stdout.splitlines()[-1])
        ours = ours or peak
        lines.append(f"| {name} | {peak:,.0f} | {peak / ours:.2f}x |")
        print(lines[-1], flush=True)
    return lines


def overhead_lines(rounds: int) -> list[str]:
    """Lines of a table: what, ours, beside what, ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        imported, loaded = overheads.importing(rounds), overheads.loading(folder, rounds)
        dataset, collator = overheads.drawn_data(folder)
        rate = overheads.reading(dataset, collator, rounds)
        trained = overheads.around_a_loop(dataset, collator, folder / "run", rounds)
    pairs = [
        ("import, beside transformers with the Auto classes", imported["ours"], imported["transformers"]),
        ("`from_pretrained`, beside LLaVA", loaded["ours"], loaded["LLaVA"]),
        ("an epoch of `MMTrainer` (scratch-tiny), beside a bare loop", trained["MMTrainer"], trained["bare loop"]),
    ]
    lines = [
        f"| {what} | {milliseconds(one)} | {milliseconds(other)} | {one.median / other.median:.2f}x |"
        for what, one, other in pairs
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
    """How many times ours each model's time is, by work and number of image tokens."""
    wanted = [line for work in CHARTED for line in lines if (line.work, line.dtype) == (work, "float32")]
    most = max(line.batch for line in wanted)
    wanted = [line for line in wanted if line.batch == most]
    models = [name for name in wanted[0].times if name != "ours"]
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / len(models)
    for place, name in enumerate(models):
        bars = [
            (i + width * place, line.times[name].median / line.times["ours"].median)
            for i, line in enumerate(wanted)
            if name in line.times
        ]
        drawn = axes.bar([x for x, _ in bars], [y for _, y in bars], width, label=name)
        axes.bar_label(drawn, fmt="%.1f", fontsize=7)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(wanted))])
    axes.set_xticklabels([f"{line.work}\n{line.tokens} image tokens" for line in wanted], fontsize=8)
    axes.set_ylabel("times ours (more: ours is faster)")
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(models))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def machine() -> str:
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{platform.machine()} CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}, {torch.get_num_threads()} threads, {versions}"


def measured(lines: Iterator[Line], rates: dict[str, float]) -> list[Line]:
    """The lines, told as they come."""
    found = []
    for line in lines:
        found.append(line)
        told = line.cells(list(line.times)[1:], rates)
        print(" ".join(told[:4]), "|", ", ".join(told[4:]), flush=True)
    return found


def heading(flags: str, rates: dict[str, float]) -> list[str]:
    """What was run, where, and what the machine can do at best."""
    load, commit = os.getloadavg()[0], git_commit()
    best = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    return [
        "# modeling_mm beside the library's own models",
        "",
        f"`python benchmarks/run.py {flags}` at commit {commit}, {date.today()}: {machine()}; load average {load:.1f} "
        f"on {os.cpu_count()} cores at the start. A large matrix product reaches {best}; memory is read at "
        f"{memory_rate(DEVICE) / 1e9:.0f} GB/s.",
        "",
        "Medians of alternating rounds, ± half of the distance between the quartiles; in brackets how many times ours",
        "the other's time is, so more than 1 means that ours is faster.",
    ]


def page(rounds: int, quick: bool, rates: dict[str, float], generation: list[Line]) -> list[str]:
    """The lines of generation as tables, and all else that is measured."""
    side, _, rows = PEAK[quick]
    return [
        "",
        "## Answering about images",
        "",
        f"{generating.TOKENS} text tokens in each row. {generating.__doc__.split(chr(10), 2)[2].strip()}",
        "",
        *table(generation, rates),
        "",
        "![times ours](RESULTS.png)",
        "",
        "## Peak memory of a training step",
        "",
        f"{side * side} image tokens, {rows} rows, float32, above the model itself.",
        "",
        "| model | MB | of ours |",
        "| --- | --- | --- |",
        *memory_lines(quick),
        "",
        "## Contrastive training step",
        "",
        f"Pairs of {contrasting.SIDE} x {contrasting.SIDE} pixels and {contrasting.TOKENS} tokens, all different.",
        "open_clip is not here: it needs torchvision.",
        "",
        *table(measured(contrastive_lines(rounds, quick), rates), rates),
        "",
        "## Beside the arithmetic",
        "",
        "| what | ours, ms | the other, ms | ratio |",
        "| --- | --- | --- | --- |",
        *overhead_lines(min(rounds, 5)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument(
        "--quick", action="store_true", help="one round of small images, to see that each row is there"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder; default: %(default)s")
    parser.add_argument("--peak", choices=generating.MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        side, pictures, rows = PEAK[args.quick]
        work = generating.work_of(args.peak, "training step", side, pictures, rows, DEVICE, torch.float32)
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
