# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm evaluate`: metrics as JSON, report.html, its pictures and predictions.jsonl of a trained model.

modeling-mm evaluate --model DIR --test_file test.csv
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainingArguments

from . import figures, uncertainty
from .arguments import MMParser
from .calibration import confidence, expected_calibration_error, reliability
from .checkpoint import load_checkpoint, task_of
from .collator import MMCollator
from .data import Columns, MMDataset
from .images import open_image
from .learned import learned_results, learned_sections, weight_table, weights_of_rows
from .matching import MatchingPairs
from .metrics import MAIN, compute_metrics_for, in_words, normalize, per_class, predictions_in_words
from .modalities import modality_report
from .processing_mm import MMProcessor
from .quantization import QUANTIZATIONS, quantized
from .report import Section, write_report
from .retrieval import RetrievalCollator, evaluate_retrieval
from .retrieval_trainer import RetrievalTrainer
from .tables import read_table
from .targets import COLUMNS
from .trainer import MMTrainer
from .video_mm import read_video

logger = logging.getLogger(__name__)
LISTED = 20  # bad rows that a warning lists; the file has all


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
    label_column: str | None = field(default=None, metadata={"help": "default: answer of a generation, else label"})
    audio_column: str = field(default="", metadata={"help": "column with sound, for instance audio; default: none"})
    video_column: str = field(default="", metadata={"help": "column with videos, for instance video; default: none"})
    batch_size: int = 32
    max_length: int = 512
    max_new_tokens: int = 32
    blind: bool = field(
        default=False, metadata={"help": "leave pictures and sounds out, to see what the text alone tells"}
    )
    modality_report: bool | None = field(
        default=None, metadata={"help": "score without each modality and with each alone; default: not for generation"}
    )
    rerank: int = field(default=0, metadata={"help": "of a retrieval, rank the best k by the matching head as well"})
    seed: int = field(default=0, metadata={"help": "chooses the wrong texts of a matching"})
    max_seconds: float | None = field(
        default=None, metadata={"help": "of a sound that are used, twice as long is refused; default: as in training"}
    )
    on_bad_row: str = field(default="stop", metadata={"help": "stop or skip", "choices": ["stop", "skip"]})
    quantization: str | None = field(
        default=None, metadata={"help": "int8: linear layers with int8 weights (torchao)", "choices": QUANTIZATIONS}
    )
    device: str | None = field(default=None, metadata={"help": "default: a GPU where there is one"})


@dataclass
class Evaluation:
    """Metrics of a data set, and for each row prediction and truth in words; of a head also what it gave and should.

    logits: (R, C). label_ids: (R,) class ids or (R, C). Both are empty for a generation.
    """

    metrics: dict[str, float | None]
    predictions: list[Any]
    truths: list[Any]
    logits: np.ndarray = field(default_factory=lambda: np.zeros(0))
    label_ids: np.ndarray = field(default_factory=lambda: np.zeros(0))


def rounded(metrics: dict[str, float]) -> dict[str, float | None]:
    """For JSON, which has no NaN: a metric that says nothing is None."""
    return {name: round(float(value), 6) if np.isfinite(value) else None for name, value in metrics.items()}


def label_names(model: PreTrainedModel, task: str) -> list[str] | None:
    """What the head's outputs are called, in their order; None for a generation."""
    return None if task == "generation" else [model.config.id2label[i] for i in range(model.config.num_labels)]


def evaluate_rows(trainer: MMTrainer, task: str, dataset: Any) -> Evaluation:
    """Predict all rows of a data set (or of matching pairs), and score them."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    output = trainer.predict(dataset, metric_key_prefix="test")
    timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    metrics = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
    metrics = {name: value for name, value in metrics.items() if name not in timing}
    loss = metrics.pop("loss")
    tokenizer, labels = trainer.processing_class.tokenizer, label_names(model, task)
    predictions = predictions_in_words(task, output.predictions, tokenizer, labels)
    if task == "generation":
        truths = [dataset[i].target for i in range(len(dataset))]
        return Evaluation(rounded({**metrics, "loss": loss}), predictions, truths)
    logits, label_ids = np.asarray(output.predictions, dtype=np.float64), output.label_ids
    if task != "regression":
        metrics["ece"] = expected_calibration_error(task, logits, label_ids)
        if temperature := model.config.calibration_temperature:
            metrics["ece_uncalibrated"] = expected_calibration_error(task, logits * temperature, label_ids)
    as_logits = label_ids if task in ("regression", "multilabel") else np.eye(len(labels or []))[label_ids]
    truths = predictions_in_words(task, as_logits, tokenizer, labels)
    return Evaluation(rounded({**metrics, "loss": loss}), predictions, truths, logits, label_ids)


def is_right(prediction: Any, truth: Any) -> bool | None:
    """Whether a prediction equals the truth; None for numbers."""
    if isinstance(truth, list):
        return None if any(isinstance(part, float) for part in truth) else prediction == truth
    return normalize(prediction) == normalize(truth)


def drawn_scores(task: str, evaluation: Evaluation) -> np.ndarray:
    """Main scores of rows drawn again from those evaluated."""
    if task in ("regression", "multilabel"):
        outputs = (np.reshape(values, (len(values), -1)) for values in (evaluation.logits, evaluation.label_ids))
        return uncertainty.drawn(task, *outputs)
    right = right_rows(evaluation)
    return uncertainty.drawn(task, right, np.ones_like(right))


def right_rows(evaluation: Evaluation) -> np.ndarray:
    """(R,) 1 where a label or an answer is right, 0 where it is wrong."""
    if len(evaluation.logits):
        return (evaluation.logits.argmax(axis=-1) == evaluation.label_ids).astype(float)
    pairs = zip(evaluation.predictions, evaluation.truths, strict=True)
    return np.array([float(bool(is_right(prediction, truth))) for prediction, truth in pairs])


def interval(task: str, evaluation: Evaluation) -> tuple[float, float] | None:
    """Where the main score of all such rows is likely to be; None where it says nothing."""
    if MAIN[task] == "accuracy":
        return uncertainty.wilson(int(right_rows(evaluation).sum()), len(evaluation.predictions))
    return uncertainty.spread(drawn_scores(task, evaluation))


def with_intervals(task: str, evaluation: Evaluation, whole: Evaluation) -> dict[str, Any]:
    """A row of the modality table: main score, its interval, what it is above the `whole` and how far that may be."""
    main = evaluation.metrics[MAIN[task]]
    row: dict[str, Any] = {
        MAIN[task]: main,
        "interval": interval(task, evaluation),
        "change": None,
        "its interval": None,
    }
    if evaluation is not whole and main is not None:
        row["change"] = round(main - (whole.metrics[MAIN[task]] or 0.0), 6)
        row["its interval"] = uncertainty.spread(drawn_scores(task, evaluation) - drawn_scores(task, whole))
    return row | {name: value for name, value in evaluation.metrics.items() if name != MAIN[task]}


def write_predictions(dataset: Any, evaluation: Evaluation, path: Path) -> None:
    """One JSON line per row: number, text, truth, prediction, and whether it is correct."""
    with path.open("w", encoding="utf-8") as file:
        for i, (prediction, truth) in enumerate(zip(evaluation.predictions, evaluation.truths, strict=True)):
            row, right = dataset[i], is_right(prediction, truth)
            shown = {"row": row.number, "text": row.text, "truth": truth, "prediction": prediction}
            file.write(json.dumps(shown if right is None else {**shown, "correct": right}) + "\n")


def modality_markers(processor: MMProcessor, columns: Columns) -> dict[str, str]:
    """The marker of each modality beside the text that there is a column for."""
    used = {"image": columns.image, "audio": columns.audio, "video": columns.video}
    return {name: getattr(processor, f"{name}_token") for name, column in used.items() if column}


def draw_some(dataset: Any, evaluation: Evaluation, path: Path, count: int = 12) -> None:
    """samples.png: rows spread evenly over the data set, with prediction and truth."""
    step = max(1, len(dataset) // count)
    samples = []
    for index in range(0, len(dataset), step)[:count]:
        row, prediction, truth = dataset[index], evaluation.predictions[index], evaluation.truths[index]
        image = open_image(row.images[0]) if row.images else read_video(row.videos[0], 1)[0] if row.videos else None
        sounds = [os.path.basename(sound) if isinstance(sound, str) else "a sound" for sound in row.audio]
        words = {
            "sound": f"♪ {', '.join(sounds)}" if sounds else "",
            "prediction": in_words(prediction),
            "truth": in_words(truth),
            "correct": is_right(prediction, truth),
        }
        samples.append({"image": image, "text": row.text, **words})
    figures.draw_samples(samples, path)


def draw_report(task: str, evaluation: Evaluation, labels: Sequence[str] | None, path: Path) -> None:
    """report.png: what a look at the predictions of this task should start with."""
    if task == "regression":
        figures.draw_scatter(evaluation.logits, evaluation.label_ids, labels or [], path)
    elif task == "multilabel":
        scores = per_class(task, evaluation.logits, evaluation.label_ids, labels or [])
        figures.draw_bars([(row["label"], row["f1"]) for row in scores], "F1", path)
    else:
        figures.draw_confusion(evaluation.predictions, evaluation.truths, path, order=labels)


def scores_said(task: str, evaluation: Evaluation, rows: int) -> str:
    """What the scores are of, and how far they may be from those of other such rows."""
    main, ends = MAIN[task], interval(task, evaluation)
    said = f"Of {rows} {'pairs' if task == 'matching' else 'rows'}."
    if ends is not None:
        said += f" {main.replace('_', ' ')} lies between {ends[0]:.3f} and {ends[1]:.3f} at a level of 95 %, if these"
        said += " are independent of each other (several rows about one picture are not)."
    if task == "classification" and evaluation.truths:
        name, count = Counter(evaluation.truths).most_common(1)[0]
        said += f" The most frequent label, '{name}', is {count / rows:.3f} of them."
    return said


def report_sections(
    trainer: MMTrainer,
    task: str,
    evaluation: Evaluation,
    table: list[dict[str, Any]],
    weights: list[dict[str, Any]],
    output: Path,
) -> list[Section]:
    """What report.html shows, its pictures drawn into `output`."""
    model, labels, rows = trainer.model, label_names(trainer.model, task), len(evaluation.predictions)
    sections = [Section("Scores", scores_said(task, evaluation, rows), [evaluation.metrics])]
    if table:
        main = MAIN[task]
        bars = [(row["modalities"], row[main] or 0.0) for row in table]
        what = f"{main}, with 95 % intervals, of {rows} rows"
        figures.draw_bars(bars, what, output / "modalities.png", ends=[row["interval"] for row in table])
        said = (
            "Scores of the same rows when the other modalities' cells are emptied, intervals at 95 %. What a modality "
            "brings to this model is the change without it; a model trained without it might make do better."
        )
        sections.append(Section("Modalities", said, table, output / "modalities.png"))
    sections += learned_sections(model, weights, output)
    draw_report(task, evaluation, labels, output / "report.png")
    heading = {"regression": "Predictions against truth", "multilabel": "F1 of each label"}
    sections.append(Section(heading.get(task, "Confusion"), picture=output / "report.png"))
    if task not in ("generation", "regression"):
        if task != "matching":
            each = per_class(task, evaluation.logits, evaluation.label_ids, labels or [])
            sections.append(Section("Each label", table=each))
        curves = {"": reliability(*confidence(task, evaluation.logits, evaluation.label_ids))}
        if temperature := model.config.calibration_temperature:
            before = confidence(task, evaluation.logits * temperature, evaluation.label_ids)
            curves = {"calibrated": curves[""], "uncalibrated": reliability(*before)}
        figures.draw_reliability(curves, output / "calibration.png")
        said = "Of predictions made with some confidence, the share that is true; on the diagonal it can be believed."
        sections.append(Section("Calibration", said, picture=output / "calibration.png"))
    return [*sections, Section("Samples", picture=output / "samples.png")]


def output_folder(args: EvaluateArguments) -> Path:
    """Where results go; a Hub id must not become a folder here, or the next run would take that for the model."""
    output = Path(args.output_dir or (Path(args.model) / "evaluation" if Path(args.model).is_dir() else "evaluation"))
    output.mkdir(parents=True, exist_ok=True)
    return output


def trainer_arguments(args: EvaluateArguments, output: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(output),
        per_device_eval_batch_size=args.batch_size,
        use_cpu=args.device == "cpu" or not torch.cuda.is_available(),
    )


def retrieval_results(
    args: EvaluateArguments, model: PreTrainedModel, collator: RetrievalCollator, dataset: MMDataset
) -> dict[str, Any] | None:
    """Recall, median rank and mAP both ways, with `--rerank k` also after a second look; on the first process."""
    output = output_folder(args)
    trainer = RetrievalTrainer(
        model=model,
        args=trainer_arguments(args, output),
        processing_class=collator.processor,
        data_collator=collator,
    )
    result = evaluate_retrieval(trainer, dataset, args.rerank, output)
    if not trainer.is_world_process_zero():
        return None
    write_bad_rows(dataset.bad_rows, output)
    result |= {"skipped_rows": len(dataset.bad_rows), "output_dir": str(output)}
    (output / "metrics.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Run the verb; returns its results on the first process."""
    (args,) = MMParser(EvaluateArguments, prog="modeling-mm evaluate").parse(argv)
    if (args.test_file is None) == (args.dataset is None):
        raise ValueError("give either --test_file or --dataset")
    model, processor = load_checkpoint(args.model, **quantized(args.quantization))
    model.is_quantized = False  # Trainer would refuse int8 weights, though an evaluation trains nothing
    task = task_of(model)
    labels = label_names(model, task)
    source = args.test_file or args.dataset
    table, folder = read_table(source, args.split)
    target = args.label_column or COLUMNS[task]
    columns = Columns(args.image_column, args.text_column, target, args.audio_column, args.video_column)
    dataset = MMDataset(source, table, folder, columns, labels, task=task)
    if args.max_seconds is not None:
        processor.max_seconds = args.max_seconds
    if model.config.audio_config is not None and not args.audio_column:
        logger.warning("this model hears, but without --audio_column it is evaluated without sound")
    options = {"max_seconds": processor.max_seconds, "num_frames": processor.max_frames}
    dataset = dataset.check(args.on_bad_row == "skip", processor.image_token, **options)
    collator = MMCollator(processor, task, args.max_length, task == "generation", args.blind)
    if task == "retrieval":
        return retrieval_results(args, model, RetrievalCollator(processor, task, args.max_length), dataset)
    collator.check_lengths(dataset, args.on_bad_row == "skip")
    rows = MatchingPairs(dataset, args.seed) if task == "matching" else dataset
    output = output_folder(args)
    trainer = MMTrainer(
        model=model,
        args=trainer_arguments(args, output),
        processing_class=processor,
        eval_collator=collator,
        compute_metrics=compute_metrics_for(processor.tokenizer, labels, task),
        max_new_tokens=args.max_new_tokens,
    )
    with weights_of_rows(trainer) as collected:
        evaluation = evaluate_rows(trainer, task, rows)
    scores: list[dict[str, Any]] = []
    if (task != "generation") if args.modality_report is None else args.modality_report:
        # all of them are scored already
        scores = modality_report(
            lambda some: with_intervals(
                task, evaluation if some is rows else evaluate_rows(trainer, task, some), evaluation
            ),
            rows,
            modality_markers(processor, columns),
        )
    if not trainer.is_world_process_zero():
        return None
    write_predictions(rows, evaluation, output / "predictions.jsonl")
    draw_some(rows, evaluation, output / "samples.png")
    weights = weight_table(model, collected)
    sections = report_sections(trainer, task, evaluation, scores, weights, output)
    sections += skipped_section(dataset.bad_rows)
    said = f"{len(rows)} rows of {source}, {len(dataset.bad_rows)} bad ones left out"
    write_report(output / "report.html", f"{Path(args.model).name}: {task}", said, sections)
    write_bad_rows(dataset.bad_rows, output)
    result: dict[str, Any] = {**evaluation.metrics, "rows": len(rows), "skipped_rows": len(dataset.bad_rows)}
    result["interval"] = {MAIN[task]: shortened(interval(task, evaluation))}
    result["output_dir"] = str(output)
    if scores:
        result["modalities"] = {row["modalities"]: row[MAIN[task]] for row in scores}
        result["modality_intervals"] = {row["modalities"]: shortened(row["interval"]) for row in scores}
    result |= learned_results(model, weights)
    (output / "metrics.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def shortened(ends: tuple[float, float] | None) -> list[float] | None:
    """The ends of an interval for JSON."""
    return None if ends is None else [round(end, 6) for end in ends]


def skipped_section(bad_rows: list[dict[str, Any]], most: int = 50) -> list[Section]:
    """What was left out and why, if anything was."""
    if not bad_rows:
        return []
    said = f"{len(bad_rows)} in all" + (f", the first {most} here" if len(bad_rows) > most else "")
    return [Section("Rows left out", f"{said}.", bad_rows[:most])]


def write_bad_rows(bad_rows: list[dict[str, Any]], output: Path) -> None:
    """bad_rows.jsonl: source, row and reason of what was skipped."""
    path = output / "bad_rows.jsonl"
    path.unlink(missing_ok=True)
    if bad_rows:
        path.write_text("".join(json.dumps(bad) + "\n" for bad in bad_rows), encoding="utf-8")
        counts = ", ".join(f"{count} of {name}" for name, count in Counter(bad["source"] for bad in bad_rows).items())
        listed = [f"  {bad['source']}, row {bad['row']}: {bad['reason']}" for bad in bad_rows[:LISTED]]
        more = [f"  and {len(bad_rows) - LISTED} more"] if len(bad_rows) > LISTED else []
        heading = f"{len(bad_rows)} bad rows were skipped ({counts}); they are listed in {path}"
        logger.warning("\n".join([heading, *listed, *more]))
