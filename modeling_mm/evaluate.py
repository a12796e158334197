# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm evaluate`: metrics as JSON, report.png, samples.png and predictions.jsonl of a trained model.

modeling-mm evaluate --model DIR --test_file test.csv
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from . import figures
from .arguments import MMParser
from .checkpoint import load_checkpoint, task_of
from .collator import MMCollator
from .data import Columns, MMDataset
from .images import open_image
from .metrics import compute_metrics_for, normalize, predictions_as_text
from .tables import read_table
from .trainer import MMTrainer

logger = logging.getLogger(__name__)
TARGETS = {"generation": "answer", "classification": "label"}


@dataclass
class EvaluateArguments:
    """What to evaluate, on what."""

    model: str = field(metadata={"help": "trained folder or Hub id"})
    test_file: str | None = field(default=None, metadata={"help": "CSV, TSV, JSONL or Parquet file, or a folder"})
    dataset: str | None = field(default=None, metadata={"help": "name of a data set in place of a file"})
    split: str = field(default="test", metadata={"help": "split of the data set"})
    output_dir: str | None = field(default=None, metadata={"help": "where results go, default MODEL/evaluation"})
    image_column: str = "image"
    text_column: str = "text"
    audio_column: str = field(default="", metadata={"help": "column with sound, for instance audio; default: none"})
    label_column: str | None = field(default=None, metadata={"help": "default: answer, or label of a classification"})
    batch_size: int = 32
    max_length: int = 512
    max_new_tokens: int = 32
    blind: bool = field(default=False, metadata={"help": "leave the pictures out, to see what the text alone tells"})
    max_seconds: float = field(default=30.0, metadata={"help": "of a sound that are used; twice as long is refused"})
    on_bad_row: str = field(default="stop", metadata={"help": "stop or skip", "choices": ["stop", "skip"]})
    device: str | None = field(default=None, metadata={"help": "default: a GPU where there is one"})


def predict_texts(trainer: MMTrainer, dataset: MMDataset) -> tuple[dict[str, float], list[str]]:
    """Metrics of a data set, and the answer or label for each of its rows."""
    output = trainer.predict(dataset, metric_key_prefix="test")
    texts = predictions_as_text(output.predictions, trainer.processing_class.tokenizer, dataset.labels)
    metrics = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
    return {name: round(metrics[name], 6) for name in ("accuracy", "macro_f1", "loss") if name in metrics}, texts


def write_predictions(dataset: MMDataset, texts: Sequence[str], path: Path) -> None:
    """One JSON line per row: number, text, truth and prediction."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in zip(dataset.kept, texts, strict=True):
            row = dataset.row(number)
            shown = {"row": row.number, "text": row.text, "truth": row.target, "prediction": text}
            file.write(json.dumps({**shown, "correct": normalize(text) == normalize(row.target)}) + "\n")


def draw_some(dataset: MMDataset, texts: Sequence[str], path: Path, count: int = 12) -> None:
    """samples.png: rows spread evenly over the data set, with prediction and truth."""
    step = max(1, len(dataset) // count)
    samples = []
    for index in range(0, len(dataset), step)[:count]:
        row = dataset.row(dataset.kept[index])
        image = open_image(row.images[0]) if row.images else None
        samples.append({"image": image, "text": row.text, "truth": row.target, "prediction": texts[index]})
    figures.draw_samples(samples, path)


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Run the verb; returns its results on the first process."""
    (args,) = MMParser(EvaluateArguments, prog="modeling-mm evaluate").parse(argv)
    if (args.test_file is None) == (args.dataset is None):
        raise ValueError("give either --test_file or --dataset")
    model, processor = load_checkpoint(args.model)
    task = task_of(model)
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)] if task == "classification" else None
    source = args.test_file or args.dataset
    table, folder = read_table(source, args.split)
    columns = Columns(args.image_column, args.text_column, args.label_column or TARGETS[task], args.audio_column)
    dataset = MMDataset(source, table, folder, columns, labels)
    dataset = dataset.check(args.on_bad_row == "skip", processor.image_token, max_seconds=args.max_seconds)
    collator = MMCollator(processor, task, args.max_length, task == "generation", args.blind)
    collator.check_lengths(dataset, args.on_bad_row == "skip")
    # a Hub id must not become a folder here, or the next run would take that for the model
    output = Path(args.output_dir or (Path(args.model) / "evaluation" if Path(args.model).is_dir() else "evaluation"))
    output.mkdir(parents=True, exist_ok=True)
    trainer = MMTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            per_device_eval_batch_size=args.batch_size,
            use_cpu=args.device == "cpu" or not torch.cuda.is_available(),
        ),
        processing_class=processor,
        eval_collator=collator,
        compute_metrics=compute_metrics_for(processor.tokenizer, labels),
        max_new_tokens=args.max_new_tokens,
    )
    metrics, texts = predict_texts(trainer, dataset)
    if not trainer.is_world_process_zero():
        return None
    truths = [dataset.row(number).target for number in dataset.kept]
    write_predictions(dataset, texts, output / "predictions.jsonl")
    figures.draw_confusion(texts, truths, output / "report.png")
    draw_some(dataset, texts, output / "samples.png")
    write_bad_rows(dataset.bad_rows, output)
    result = {**metrics, "rows": len(dataset), "skipped_rows": len(dataset.bad_rows), "output_dir": str(output)}
    (output / "metrics.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def write_bad_rows(bad_rows: list[dict[str, Any]], output: Path) -> None:
    """bad_rows.jsonl: source, row and reason of what was skipped."""
    path = output / "bad_rows.jsonl"
    path.unlink(missing_ok=True)
    if bad_rows:
        path.write_text("".join(json.dumps(bad) + "\n" for bad in bad_rows), encoding="utf-8")
        logger.warning(f"{len(bad_rows)} bad rows were skipped; they are listed in {path}")
