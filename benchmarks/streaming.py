"""Streaming 100,000 rows through two workers: memory, throughput, and a kill in the middle; writes STREAMING.md.

    python benchmarks/streaming.py               # some minutes on two CPU cores
    python benchmarks/streaming.py --rows 10000  # smaller

- The rows are written first: Parquet shards, in which each row has a distinct image, and its number in the text.
- A small model trains for one pass with `MMTrainer`, in a separate process with two workers, which is killed
  (SIGKILL) in the middle and started again. The row numbers of every batch that is trained on are logged.
- Memory is the proportional set size of that process and its workers, sampled every second.
"""

import argparse
import io
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import transformers
from PIL import Image
from transformers import BertConfig, CLIPImageProcessorPil, CLIPVisionConfig, PrinterCallback, TrainingArguments

from modeling_mm import MMConfig, MMForSequenceClassification, MMProcessor
from modeling_mm.checkpoint import last_checkpoint
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.rows import Columns
from modeling_mm.data.shards import open_shards
from modeling_mm.data.stream import MMStream
from modeling_mm.data.stream_loader import StreamLoader
from modeling_mm.training.scratch import train_tokenizer
from modeling_mm.training.trainer import MMTrainer

ROOT = Path(__file__).parent.parent
SIDE, BATCH = 32, 50
LABELS = ["even", "odd"]
COLUMNS = Columns(target="label")
IN_TAR = Columns("png", "json.text", "json.label")


def picture(number: int) -> bytes:
    """A PNG of noise, distinct for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, rows: int, shards: int, kind: str = "parquet", picture=picture) -> str:
    """Write `rows` rows, numbered in order, into `shards` shards; return the glob that matches them.

    Columns of Parquet are image, text, label; members of a tar (WebDataset) png and json, with text and label.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard, numbers in enumerate(np.array_split(np.arange(rows), shards)):
        written = [(picture(int(n)), f"row {n} what is it", LABELS[n % 2]) for n in numbers]
        path = folder / f"train-{shard:04d}.{kind}"
        if kind == "parquet":
            write_parquet(path, written)
        else:
            write_tar(path, written)
    return str(folder / f"train-*.{kind}")


def write_parquet(path: Path, rows: list[tuple[bytes | None, str, str]]) -> None:
    images = [None if image is None else {"bytes": image, "path": None} for image, _, _ in rows]
    table = {"text": [text for _, text, _ in rows], "label": [label for _, _, label in rows]}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    pyarrow.parquet.write_table(
        pyarrow.table({"image": pyarrow.array(images, kind), **table}), path, row_group_size=500
    )


def write_tar(path: Path, rows: list[tuple[bytes | None, str, str]]) -> None:
    with tarfile.open(path, "w") as archive:
        for place, (image, text, label) in enumerate(rows):
            members = {"png": image, "json": json.dumps({"text": text, "label": label}).encode()}
            for kind, data in members.items():
                if data is not None:
                    info = tarfile.TarInfo(f"{place:06d}.{kind}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def number_of(text: str) -> int:
    """The number of a row, read from its text."""
    return int(text.split()[1])


class NumberingCollator(MMCollator):
    """A collator whose batches also hold the numbers of their rows."""

    def __call__(self, rows):
        return {**super().__call__(rows), "numbers": torch.tensor([number_of(row.text) for row in rows])}


class LoggingTrainer(MMTrainer):
    """A trainer that logs the row numbers of each batch to a file."""

    def training_step(self, model, inputs, *args, **kwargs):
        line = json.dumps([self.state.global_step, inputs.pop("numbers").tolist()])
        loss = super().training_step(model, inputs, *args, **kwargs)
        with Path(self.args.output_dir, "noted.jsonl").open("a") as file:
            file.write(line + "\n")
        return loss


def processor_of_rows() -> MMProcessor:
    side = {"height": SIDE, "width": SIDE}
    tokenizer = train_tokenizer([f"row {n} what is it" for n in range(100)], "scratch-tiny")
    images = CLIPImageProcessorPil(size=side, crop_size=side, do_convert_rgb=True)
    return MMProcessor(image_processor=images, tokenizer=tokenizer)


def stream_of(source: str) -> MMStream:
    return MMStream(open_shards(source), COLUMNS if source.endswith(".parquet") else IN_TAR, "classification", LABELS)


def reading(source: str, rows: int, workers: int) -> float:
    """Rows per second that are read, checked, decoded and collated, without training."""
    collator = MMCollator(processor_of_rows(), "classification")
    loader = StreamLoader(stream_of(source), BATCH, collator, num_workers=workers)
    for _ in itertools.islice(loader, rows // BATCH):
        pass
    return loader.rows_per_second()


def train(source: str, output: Path, rows: int, workers: int) -> None:
    """Train for one pass, from the newest checkpoint in the output folder if there is one, and write figures.json."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    processor = processor_of_rows()
    size = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    text = BertConfig(vocab_size=len(processor.tokenizer), **size)
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=16, **size)
    config = MMConfig(text_config=text, vision_config=vision, image_token_id=processor.image_token_id, num_labels=2)
    arguments = TrainingArguments(
        output_dir=str(output), per_device_train_batch_size=BATCH, max_steps=rows // BATCH, use_cpu=True,
        dataloader_num_workers=workers, save_steps=max(1, rows // BATCH // 20), save_total_limit=2, logging_steps=1,
        report_to=[], disable_tqdm=True,
    )  # fmt: skip
    data = {"train_dataset": stream_of(source), "data_collator": NumberingCollator(processor, "classification")}
    trainer = LoggingTrainer(model=MMForSequenceClassification(config), args=arguments, **data)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(str(output)))
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    (output / "figures.json").write_text(json.dumps({"losses": losses, **trainer.stream_figures()}))


def tree_megabytes(pid: int) -> float:
    """Memory of a process and its descendants in MB, with shared pages counted proportionally (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    process = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
    return process + sum(tree_megabytes(int(child)) for child in children)


def noted(output: Path) -> list[tuple[int, list[int]]]:
    """Pairs of the steps before a batch that was trained on and the numbers of its rows."""
    path = output / "noted.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [(step, numbers) for step, numbers in map(json.loads, lines)]


def watched(
    source: str, output: Path, rows: int, workers: int, kill_after: int | None = None
) -> list[tuple[float, float]]:
    """Train in a separate process; return (seconds since its first batch, MB) for each second of training.

    Args:
        kill_after: number of batches after which the process is killed.

    Raises:
        RuntimeError: the process failed.
    """
    output.mkdir(parents=True, exist_ok=True)
    before, curve, began, latest = len(noted(output)), [], 0.0, 0
    argv = [sys.executable, __file__, "--rows", rows, "--workers", workers, "--train", source, output]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (output / "log").open("a") as log:
        process = subprocess.Popen(list(map(str, argv)), stderr=log, stdout=log, env=environment)
    path = output / "noted.jsonl"
    while process.poll() is None:
        time.sleep(1)
        done = path.read_bytes().count(b"\n") - before if path.is_file() else 0
        began = began or (time.monotonic() if done else 0.0)
        if done > latest and (megabytes := tree_megabytes(process.pid)):  # it trains, and is not about to end
            curve.append((time.monotonic() - began, megabytes))
        latest = done
        if kill_after is not None and done >= kill_after:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return curve
    if process.returncode:
        raise RuntimeError((output / "log").read_text()[-3000:])
    return curve


def seen_after_a_kill(source: str, output: Path, rows: int, workers: int) -> tuple[int, int, list[list[int]]]:
    """Kill a training in the middle and resume it.

    Returns:
        steps before the kill, the step of the checkpoint, and the row numbers of all batches that shaped the model.
    """
    watched(source, output, rows, workers, kill_after=rows // BATCH // 2 + 7)
    killed, checkpoint = noted(output), last_checkpoint(str(output))
    assert checkpoint is not None
    step = int(Path(checkpoint).name.rpartition("-")[2])
    watched(source, output, rows, workers)
    kept = [numbers for before, numbers in killed if before < step]
    return len(killed), step, kept + [numbers for _, numbers in noted(output)[len(killed) :]]


def held_at(curve: list[tuple[float, float]], second: float) -> float:
    """MB at a time, as the median of the five nearest samples."""
    return statistics.median(megabytes for _, megabytes in sorted(curve, key=lambda point: abs(point[0] - second))[:5])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kind", choices=["parquet", "tar"], default="parquet")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "STREAMING.md")
    parser.add_argument("--train", nargs=2, metavar=("SOURCE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        return train(args.train[0], Path(args.train[1]), args.rows, args.workers)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_shards(folder / "shards", args.rows, args.shards, args.kind)
        alone = {workers: reading(source, args.rows // 5, workers) for workers in range(args.workers + 1)}
        size = sum(path.stat().st_size for path in (folder / "shards").iterdir()) / 2**20
        curve = watched(source, folder / "whole", args.rows, args.workers)
        batches = [numbers for _, numbers in noted(folder / "whole")]
        killed, step, resumed = seen_after_a_kill(source, folder / "killed", args.rows, args.workers)
        figures = [json.loads((folder / run / "figures.json").read_text()) for run in ("whole", "killed")]
    counts = Counter(number for batch in resumed for number in batch)
    times = sorted({min(60.0, curve[-1][0]), *(share * curve[-1][0] for share in (0.1, 0.25, 0.5, 0.75, 1.0))})
    lines = [
        f"# {args.rows:,} rows streamed through {args.workers} workers",
        "",
        f"`python benchmarks/streaming.py --rows {args.rows} --shards {args.shards} --workers {args.workers} "
        f"--kind {args.kind}`",
        "",
        f"{args.shards} {args.kind} shards of {size:,.0f} MB in all, PNGs of {SIDE} x {SIDE}, one pass in batches of "
        f"{BATCH}, `--shuffle_buffer 1000`; a model of width 64 with four layers for each modality. On "
        f"a CPU ({platform.machine()}, load average {load:.1f} on {os.cpu_count()} cores at the start), torch "
        f"{torch.__version__}, transformers {transformers.__version__}, datasets {datasets.__version__}.",
        "",
        "- Read, checked, decoded and collated, without training: "
        + ", ".join(f"{rate:,.0f} rows per second with {workers} workers" for workers, rate in alone.items())
        + ".",
        f"- Training: {figures[0]['rows_per_second']:,.0f} rows per second, {curve[-1][0]:,.0f} seconds for the pass.",
        f"- Uninterrupted: {len({n for b in batches for n in b}):,} distinct rows among {sum(map(len, batches)):,}.",
        f"- Killed (SIGKILL) after {killed} steps, resumed from step {step}: rows used once "
        f"{sum(count == 1 for count in counts.values()):,}, more often {sum(c > 1 for c in counts.values())}, "
        f"never {args.rows - len(counts)}; the same batches as uninterrupted: {resumed == batches}; the same "
        f"losses, bit for bit: {figures[0]['losses'] == figures[1]['losses']}.",
        "",
        "Proportional set size of the training process and its workers:",
        "",
        "| seconds since the first batch | MB | relative to one minute |",
        "| --- | --- | --- |",
        *(f"| {t:.0f} | {held_at(curve, t):,.0f} | {held_at(curve, t) / held_at(curve, 60):.1%} |" for t in times),
    ]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
