"""A stream of 100,000 rows through two workers: memory, throughput, and a kill in the middle; writes STREAMING.md.

    python benchmarks/streaming.py               # some minutes on two CPU cores
    python benchmarks/streaming.py --rows 10000  # smaller

- The rows are written first: Parquet shards, each row with an image of its own and its number in the text.
- One pass is trained by a small model with `MMTrainer` in a process of its own with two workers, which is killed
  (SIGKILL) in the middle and started again. Every batch that is trained on is noted with the numbers of its rows.
- Memory is the proportional set size of that process and its workers, asked for each second.
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
    """A PNG of noise that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, rows: int, shards: int, kind: str = "parquet", picture=picture) -> str:
    """`rows` rows in as many shards, with their numbers in order; returns the glob that names them.

    Columns of Parquet are image, text, label; members of a tar (WebDataset) png and json, with text and label.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard, numbers in enumerate(np.array_split(np.arange(rows), shards)):
        made = [(picture(int(n)), f"row {n} what is it", LABELS[n % 2]) for n in numbers]
        path = folder / f"train-{shard:04d}.{kind}"
        if kind == "parquet":
            write_parquet(path, made)
        else:
            write_tar(path, made)
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
    """The number of a row, which its text tells."""
    return int(text.split()[1])


class Numbered(MMCollator):
    """Batches that hold the numbers of their rows, too."""

    def __call__(self, rows):
        return {**super().__call__(rows), "numbers": torch.tensor([number_of(row.text) for row in rows])}


class Noting(MMTrainer):
    """Writes the numbers of each batch that it has trained on to a file."""

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
    """Rows per second that are read, checked, decoded and made into batches, without any training."""
    collator = MMCollator(processor_of_rows(), "classification")
    loader = StreamLoader(stream_of(source), BATCH, collator, num_workers=workers)
    for _ in itertools.islice(loader, rows // BATCH):
        pass
    return loader.rows_per_second()


def train(source: str, output: Path, rows: int, workers: int) -> None:
    """One pass, from the newest checkpoint in the output folder if there is one; leaves figures.json."""
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
    own = {"train_dataset": stream_of(source), "data_collator": Numbered(processor, "classification")}
    trainer = Noting(model=MMForSequenceClassification(config), args=arguments, **own)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(str(output)))
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    (output / "figures.json").write_text(json.dumps({"losses": losses, **trainer.stream_figures()}))


def tree_megabytes(pid: int) -> float:
    """What a process and those below it hold, shared pages counted in parts (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    own = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
    return own + sum(tree_megabytes(int(child)) for child in below)


def noted(output: Path) -> list[tuple[int, list[int]]]:
    """Steps before each batch that was trained on, and the numbers of its rows."""
    path = output / "noted.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [(step, numbers) for step, numbers in map(json.loads, lines)]


def watched(
    source: str, output: Path, rows: int, workers: int, kill_after: int | None = None
) -> list[tuple[float, float]]:
    """Train in a process of its own; seconds since its first batch and MB held, each second while it trains.

    Args:
        kill_after: batches after which it is killed.

    Raises:
        RuntimeError: it ended by itself, and not well.
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
        if done > latest and (held := tree_megabytes(process.pid)):  # it trains, and is not about to end
            curve.append((time.monotonic() - began, held))
        latest = done
        if kill_after is not None and done >= kill_after:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return curve
    if process.returncode:
        raise RuntimeError((output / "log").read_text()[-3000:])
    return curve


def seen_after_a_kill(source: str, output: Path, rows: int, workers: int) -> tuple[int, int, list[list[int]]]:
    """Kill a training in the middle and go on.

    Returns:
        steps it had done, the step that it went on from, and the numbers in all batches that made the model.
    """
    watched(source, output, rows, workers, kill_after=rows // BATCH // 2 + 7)
    killed, checkpoint = noted(output), last_checkpoint(str(output))
    assert checkpoint is not None
    step = int(Path(checkpoint).name.rpartition("-")[2])
    watched(source, output, rows, workers)
    kept = [numbers for before, numbers in killed if before < step]
    return len(killed), step, kept + [numbers for _, numbers in noted(output)[len(killed) :]]


def held_at(curve: list[tuple[float, float]], second: float) -> float:
    """MB at a time, the median of five seconds around it."""
    return statistics.median(held for _, held in sorted(curve, key=lambda point: abs(point[0] - second))[:5])


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
        killed, step, seen = seen_after_a_kill(source, folder / "killed", args.rows, args.workers)
        found = [json.loads((folder / run / "figures.json").read_text()) for run in ("whole", "killed")]
    counts = Counter(number for batch in seen for number in batch)
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
        "- Read, checked, decoded and made into batches, without training: "
        + ", ".join(f"{rate:,.0f} rows per second with {workers} workers" for workers, rate in alone.items())
        + ".",
        f"- {found[0]['rows_per_second']:,.0f} rows per second, trained on, {curve[-1][0]:,.0f} seconds for the pass.",
        f"- Uninterrupted: {len({n for b in batches for n in b}):,} different rows in {sum(map(len, batches)):,}.",
        f"- Killed (SIGKILL) after {killed} steps, gone on from step {step}: rows seen once "
        f"{sum(count == 1 for count in counts.values()):,}, seen more often {sum(c > 1 for c in counts.values())}, "
        f"never seen {args.rows - len(counts)}; the same batches as uninterrupted: {seen == batches}; the same "
        f"losses, to the bit: {found[0]['losses'] == found[1]['losses']}.",
        "",
        "Proportional set size of the training process and its workers:",
        "",
        "| seconds since the first batch | MB | of that after a minute |",
        "| --- | --- | --- |",
        *(f"| {t:.0f} | {held_at(curve, t):,.0f} | {held_at(curve, t) / held_at(curve, 60):.1%} |" for t in times),
    ]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
