# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm evaluate`: metrics.json, report.html with figures, and predictions.jsonl for a trained model.

modeling-mm evaluate --model DIR --test_file test.csv

Retrieval models get recall in both directions, or with --label_column zero-shot classification.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from ..checkpoint import load_checkpoint, quantized
from ..data.answer_turns import evaluation_rows
from ..data.collator import MMCollator, RetrievalCollator
from ..data.conversations import conversation_column, media_column
from ..data.dataset import MMDataset, write_bad_rows
from ..data.rows import Columns, media_markers
from ..data.table_columns import names_by_kind
from ..data.tables import read_table
from ..evaluation.baseline_scores import score_baselines
from ..evaluation.baselines import Parts
from ..evaluation.metrics import compute_metrics_for
from ..evaluation.modalities import (
    column_report,
    modality_report,
    modality_weights_results,
    weight_table,
    weights_of_rows,
)
from ..evaluation.predictions import (
    Evaluation,
    evaluate_rows,
    interval,
    label_names,
    scores_by_turn,
    shortened,
    with_intervals,
    write_predictions,
)
from ..evaluation.retrieval import evaluate_retrieval
from ..evaluation.text_metrics import text_metrics
from ..evaluation.zero_shot import TEMPLATE, check_templates, evaluate_zero_shot, labelled_images
from ..model.media_mm import MODALITIES
from ..model.processing_mm import MMProcessor
from ..report.html import write_report
from ..report.sections import (
    draw_examples,
    report_sections,
    search_section,
    skipped_section,
    zero_shot_sections,
)
from ..tasks import TASKS, task_of
from ..training.retrieval_trainer import RetrievalTrainer
from ..training.trainer import MMTrainer
from .arguments import MMParser
from .verbs import EvaluateArguments

logger = logging.getLogger(__name__)


def modality_markers(processor: MMProcessor, columns: Columns) -> dict[str, str]:
    """The markers of the modalities, other than text, that have a column."""
    return {name: marker for name, marker in media_markers(processor).items() if getattr(columns, name)}


def output_folder(args: EvaluateArguments) -> Path:
    """The folder for results, created; never one named like a Hub id, which the next run would take for the model."""
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
    """Recall, median rank and mAP in both directions, also after `--rerank`; None except on process 0."""
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


def zero_shot_results(
    args: EvaluateArguments, model: PreTrainedModel, processor: MMProcessor
) -> dict[str, Any] | None:
    """Zero-shot classification of images by a retrieval model; None except on process 0, which does all the work."""
    output, templates = output_folder(args), args.prompt_templates or [TEMPLATE]
    arguments = trainer_arguments(args, output)
    if arguments.process_index:
        return None
    source = args.test_file or str(args.dataset)
    columns = known_columns(args, model, "retrieval", processor)
    rows = labelled_images(source, args.split, columns.image, str(columns.target), args.on_bad_row == "skip")
    collator = RetrievalCollator(processor, "retrieval", args.max_length)
    evaluation = evaluate_zero_shot(model.to(arguments.device), collator, rows, templates, args.batch_size)
    write_predictions(rows, evaluation, output / "predictions.jsonl")
    draw_examples(rows, evaluation, output / "samples.png")
    sections = zero_shot_sections(evaluation, rows.labels or [], templates, output) + skipped_section(rows.bad_rows)
    subtitle = f"{len(rows)} rows of {source}, {len(rows.bad_rows)} bad rows left out"
    write_report(output / "report.html", f"{Path(args.model).name}: zero-shot", subtitle, sections)
    write_bad_rows(rows.bad_rows, output)
    result = results("classification", evaluation) | {
        "classes": len(rows.labels or []),
        "templates": templates,
    }
    result |= {"skipped_rows": len(rows.bad_rows), "output_dir": str(output)}
    (output / "metrics.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def check_flags(args: EvaluateArguments, task: str) -> None:
    """Refuse flags that do not fit the model's task.

    Raises:
        ValueError: names the flag.
    """
    zero_shot = TASKS[task].embeds and args.label_column is not None
    if args.prompt_templates is not None and not zero_shot:
        raise ValueError("--prompt_templates is for retrieval models with a --label_column, whose values fill the {}")
    check_templates(args.prompt_templates or [])
    if zero_shot and args.rerank:
        raise ValueError("--rerank is for retrieval; leave it out with --label_column")
    if args.answer_metrics and not TASKS[task].generates:
        raise ValueError(f"--answer_metrics is for generated answers, and --task {task} gives none; leave it out")
    text_metrics(args.answer_metrics, ["a"], [["a"]])  # refuses unknown names and missing libraries at once
    if args.validation_file is not None and args.train_file is None:
        raise ValueError("--validation_file chooses the settings of baselines; give their --train_file too")
    if args.train_file is not None and TASKS[task].embeds:
        raise ValueError("--train_file is for simple baselines, of which retrieval has none; leave it out")
    if TASKS[task].embeds and (args.audio_column or args.video_column):
        raise ValueError(
            "retrieval models are evaluated on images and texts; leave out --audio_column and --video_column"
        )


def known_columns(args: EvaluateArguments, model: PreTrainedModel, task: str, processor: MMProcessor) -> Columns:
    """The columns of training, where the model knows them and no flag names others."""
    numbers, categories = names_by_kind(processor.table_columns or [])
    columns = Columns(**model.config.columns) if model.config.columns else Columns(target=TASKS[task].label_column)
    names = ("image", "text", "audio", "video")
    flags = {name: getattr(args, f"{name}_column") for name in names} | {"target": args.label_column}
    flags |= {"decimal": args.decimal, "numbers": numbers, "categories": categories}
    return replace(columns, concept="", **{name: value for name, value in flags.items() if value is not None})


def columns_of_answers(args: EvaluateArguments, columns: Columns, names: Sequence[str]) -> Columns:
    """The columns of a table that may hold conversations where training had a plain one, or the other way round."""
    flags = {name: getattr(args, f"{name}_column") for name in MODALITIES}
    found = columns.conversation if set(columns.conversation.split(",")) <= set(names) else conversation_column(names)
    if args.label_column is not None or columns.target in names:
        found = ""
    usual = {name: media_column(names, name) for name in MODALITIES}
    usual = {name: column if (column := getattr(columns, name)) in names else usual[name] for name in MODALITIES}
    media: dict[str, Any] = {name: usual[name] if flags[name] is None else flags[name] for name in MODALITIES}
    if found:
        return replace(columns, conversation=found, text="", target=None, **media)
    if not columns.conversation:
        return columns
    text = "text" if args.text_column is None else args.text_column
    target = args.label_column or TASKS["generation"].label_column
    return replace(columns, conversation="", text=text, target=target, **media)


def checked_rows(
    args: EvaluateArguments, model: PreTrainedModel, processor: MMProcessor, task: str, source: str, split: str
) -> MMDataset:
    """Read and check the rows of a file or dataset.

    Raises:
        ValueError: a missing column, a bad row.
    """
    table, folder = read_table(source, split)
    columns = known_columns(args, model, task, processor)
    if TASKS[task].generates:
        columns = columns_of_answers(args, columns, table.column_names)
    dataset = MMDataset(source, table, folder, columns, label_names(model, task), task=task)
    if args.max_seconds is not None:
        processor.max_seconds = args.max_seconds
    if model.config.audio_config is not None and not columns.audio:
        logger.warning("this model takes audio, but without --audio_column it is evaluated without")
    options = {"max_seconds": processor.max_seconds, "num_frames": processor.max_frames}
    return dataset.check(args.on_bad_row == "skip", media_markers(processor), **options)


def baseline_rows(
    args: EvaluateArguments, model: PreTrainedModel, processor: MMProcessor, task: str
) -> tuple[MMDataset, MMDataset] | None:
    """The rows of --train_file and --validation_file, or a tenth of the former; None without them.

    Raises:
        ValueError: a missing column, a bad row.
    """
    if args.train_file is None:
        return None
    train = checked_rows(args, model, processor, task, args.train_file, "train")
    if args.validation_file is None:
        return train.hold_out(0.1, args.seed)
    return train, checked_rows(args, model, processor, task, args.validation_file, "validation")


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Run the verb; returns its results on the first process."""
    (args,) = MMParser(EvaluateArguments, prog="modeling-mm evaluate").parse(argv)
    if (args.test_file is None) == (args.dataset is None):
        raise ValueError("give either --test_file or --dataset")
    model, processor = load_checkpoint(args.model, **quantized(args.quantization))
    model.is_quantized = False  # Trainer refuses int8 weights, even where nothing is trained
    task = task_of(model)
    check_flags(args, task)
    if TASKS[task].embeds and args.label_column is not None:
        return zero_shot_results(args, model, processor)
    dataset = checked_rows(args, model, processor, task, args.test_file or str(args.dataset), args.split)
    others = baseline_rows(args, model, processor, task)
    collator = MMCollator(processor, task, args.max_length, TASKS[task].generates, args.blind)
    if TASKS[task].embeds:
        return retrieval_results(args, model, RetrievalCollator(processor, task, args.max_length), dataset)
    collator.check_lengths(dataset, args.on_bad_row == "skip")
    rows = evaluation_rows(dataset, args.seed)
    output = output_folder(args)
    trainer = MMTrainer(
        model=model,
        args=trainer_arguments(args, output),
        processing_class=processor,
        eval_collator=collator,
        compute_metrics=compute_metrics_for(processor.tokenizer, label_names(model, task), task),
        max_new_tokens=args.max_new_tokens,
    )
    with weights_of_rows(trainer) as collected:
        evaluation = evaluate_rows(trainer, task, rows, args.answer_metrics)
    scores: list[dict[str, Any]] = []
    columns: list[dict[str, Any]] = []
    if (not TASKS[task].generates) if args.modality_report is None else args.modality_report:

        def score(subset: Any) -> dict[str, Any]:  # all modalities together are scored already
            scored = evaluation if subset is rows else evaluate_rows(trainer, task, subset)
            return with_intervals(task, scored, evaluation)

        table = dataset.columns.table
        scores = modality_report(score, rows, modality_markers(processor, dataset.columns), bool(table))
        columns = column_report(score, rows, table)
    if not trainer.is_world_process_zero():
        return None
    write_predictions(rows, evaluation, output / "predictions.jsonl")
    draw_examples(rows, evaluation, output / "samples.png")
    weights = weight_table(model, collected)
    baselines = None
    if others is not None:
        baselines = score_baselines(trainer, task, Parts(*others, rows), evaluation, label_names(model, task))
    sections = report_sections(trainer, task, evaluation, scores, weights, columns, output, baselines)
    sections += search_section(Path(args.model)) + skipped_section(dataset.bad_rows)
    subtitle = f"{len(rows)} rows of {dataset.source}, {len(dataset.bad_rows)} bad rows left out"
    write_report(output / "report.html", f"{Path(args.model).name}: {task}", subtitle, sections)
    write_bad_rows(dataset.bad_rows, output)
    result = results(task, evaluation, scores, columns) | scores_by_turn(rows, evaluation)
    result |= {"skipped_rows": len(dataset.bad_rows), "output_dir": str(output)}
    result |= modality_weights_results(model, weights) | ({} if baselines is None else {"baselines": baselines})
    (output / "metrics.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def results(
    task: str,
    evaluation: Evaluation,
    modalities: Sequence[dict[str, Any]] = (),
    columns: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The scores for metrics.json."""
    result: dict[str, Any] = {**evaluation.metrics, "rows": len(evaluation.predictions)}
    result["interval"] = {TASKS[task].main_metric: shortened(interval(task, evaluation))}
    if modalities:
        result["modalities"] = {row["modalities"]: row[TASKS[task].main_metric] for row in modalities}
        result["modality_intervals"] = {row["modalities"]: shortened(row["interval"]) for row in modalities}
    if columns:
        result["without_columns"] = {row["without"]: row[TASKS[task].main_metric] for row in columns}
    return result
