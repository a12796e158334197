# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The sections of report.html, and the figures in them."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer

from ..data.media import open_image
from ..evaluation.calibration import confidence, reliability
from ..evaluation.metrics import format_answer, per_class
from ..evaluation.predictions import Evaluation, interval, is_right, label_names
from ..model.video_mm import read_video
from ..tasks import TASKS
from . import figures
from .html import Section


def draw_examples(dataset: Any, evaluation: Evaluation, path: Path, count: int = 12) -> None:
    """Draw samples.png: rows spread evenly over the dataset, with prediction and truth."""
    step = max(1, len(dataset) // count)
    samples = []
    for index in range(0, len(dataset), step)[:count]:
        row, prediction, truth = dataset[index], evaluation.predictions[index], evaluation.truths[index]
        image = None
        if row.images:
            image = open_image(row.images[0].source)
        elif row.videos:
            image = read_video(row.videos[0].source, 1)[0]
        clips = ["an audio clip" if clip.path is None else os.path.basename(clip.path) for clip in row.audio]
        words = {
            "audio": f"♪ {', '.join(clips)}" if clips else "",
            "prediction": format_answer(prediction),
            "truth": format_answer(truth),
            "correct": is_right(prediction, truth),
        }
        samples.append({"image": image, "text": row.text, **words})
    figures.draw_samples(samples, path)


def draw_report(task: str, evaluation: Evaluation, labels: Sequence[str] | None, path: Path) -> str:
    """Draw report.png, the main figure about predictions of this task, and return its heading."""
    if TASKS[task].numbers:
        figures.draw_scatter(evaluation.logits, evaluation.label_ids, labels or [], path)
        return "Predictions and truth"
    if TASKS[task].several_labels:
        scores = per_class(task, evaluation.logits, evaluation.label_ids, labels or [])
        figures.draw_bars([(row["label"], row["f1"]) for row in scores], "F1", path)
        return "F1 by label"
    figures.draw_confusion(evaluation.predictions, evaluation.truths, path, order=labels)
    return "Confusion"


def describe_scores(task: str, evaluation: Evaluation, rows: int) -> str:
    """Text about the scores: number of rows, interval of the main metric, share of the most frequent label."""
    main, ends = TASKS[task].main_metric, interval(task, evaluation)
    kind = "pairs" if TASKS[task].pairs else "rows"
    text = f"Scores of {rows} {kind}."
    if ends is not None:
        text += f" The 95 % interval of {main.replace('_', ' ')} is {ends[0]:.3f} to {ends[1]:.3f}, if the {kind} are"
        text += " independent of each other (several rows about one image are not)."
    if TASKS[task].has_classes and not TASKS[task].several_labels and evaluation.truths:
        name, count = Counter(evaluation.truths).most_common(1)[0]
        text += f" The most frequent label, '{name}', has a share of {count / rows:.3f}."
    return text


def report_sections(
    trainer: Trainer,
    task: str,
    evaluation: Evaluation,
    table: list[dict[str, Any]],
    weights: list[dict[str, Any]],
    columns: list[dict[str, Any]],
    output: Path,
    baselines: dict[str, Any] | None = None,
) -> list[Section]:
    """The sections of report.html; draws their figures into `output`."""
    model, labels, rows = trainer.model, label_names(trainer.model, task), len(evaluation.predictions)
    sections = [Section("Scores", describe_scores(task, evaluation, rows), [evaluation.metrics])]
    if baselines is not None:
        sections.append(baseline_section(task, baselines, output))
    if table:
        main = TASKS[task].main_metric
        bars = [(row["modalities"], row[main] or 0.0) for row in table]
        quantity = f"{main} of {rows} rows, with 95 % intervals"
        figures.draw_bars(bars, quantity, output / "modalities.png", ends=[row["interval"] for row in table])
        text = (
            "Scores of the same rows with these modalities only, with 95 % intervals. The drop without a modality is "
            "its value to this model; a model trained without it might score higher."
        )
        sections.append(Section("Modalities", text, table, output / "modalities.png"))
    if columns:
        main = TASKS[task].main_metric
        bars = [(f"without {row['without']}", row[main] or 0.0) for row in columns]
        ends = [row["interval"] for row in columns]
        figures.draw_bars(bars, f"{main} of {rows} rows, with 95 % intervals", output / "columns.png", ends=ends)
        text = (
            "Scores of the same rows with one column of the table left empty. A small drop does not mean that the "
            "column tells nothing: another column may tell the same."
        )
        sections.append(Section("Columns of the table", text, columns, output / "columns.png"))
    sections += learned_sections(model, weights, output)
    heading = draw_report(task, evaluation, labels, output / "report.png")
    sections.append(Section(heading, image=output / "report.png"))
    if TASKS[task].gives_probabilities:
        if TASKS[task].has_classes:
            scores = per_class(task, evaluation.logits, evaluation.label_ids, labels or [])
            sections.append(Section("Scores by label", table=scores))
        curves = {"": reliability(*confidence(task, evaluation.logits, evaluation.label_ids))}
        if temperature := model.config.calibration_temperature:
            before = confidence(task, evaluation.logits * temperature, evaluation.label_ids)
            curves = {"calibrated": curves[""], "uncalibrated": reliability(*before)}
        figures.draw_reliability(curves, output / "calibration.png")
        text = "Share of true predictions by confidence; on the diagonal both are equal."
        sections.append(Section("Calibration", text, image=output / "calibration.png"))
    return [*sections, Section("Samples", image=output / "samples.png")]


def baseline_section(task: str, baselines: dict[str, Any], output: Path) -> Section:
    """The section about simple baselines of the same rows; draws their figure into `output`."""
    heading, table, main = "Simple baselines", baselines["table"], TASKS[task].main_metric
    if not table:
        return Section(heading, baselines["verdict"])
    text = f"{baselines['verdict']} The baselines were fitted in {baselines['seconds']:.0f} s on "
    text += f"{baselines['fitted_rows']} of {baselines['train_rows']} training rows; "
    text += f"{baselines['validation_rows']} validation rows chose their settings."
    drawn = [row for row in table if row[main] is not None]
    path = output / "baselines.png"
    bars = [(row["model"], row[main]) for row in drawn]
    figures.draw_bars(bars, f"{main}, with 95 % intervals", path, ends=[row["interval"] for row in drawn])
    return Section(heading, text, table, path)


def search_section(model: Path) -> list[Section]:
    """The section about the search (`train --search`) that a model in this folder came from; none for others."""
    try:
        search = json.loads((model / "report.json").read_text(encoding="utf-8"))["search"]
    except (OSError, ValueError, KeyError):  # no search, or a report that was not written to its end
        return []
    trials = [{**{k: v for k, v in row.items() if k != "values"}, **row["values"]} for row in search["trials"]]
    best, metric = search["best_trial"], search["metric"].replace("_", " ")
    text = f"Trials of other values for arguments, by {metric} of the validation rows."
    text += "" if best is None else f" Trial {best} was trained in full; the first has the defaults."
    picture = model / "search.png"
    return [Section("Search", text, trials, picture if picture.is_file() else None)]


def skipped_section(bad_rows: list[dict[str, Any]], most: int = 50) -> list[Section]:
    """The section about rows that were left out, with reasons; none without such rows."""
    if not bad_rows:
        return []
    listed = f", of which the first {most} are listed" if len(bad_rows) > most else ""
    text = f"{len(bad_rows)} row{'s' if len(bad_rows) > 1 else ''}{listed}"
    return [Section("Rows left out", f"{text}.", bad_rows[:most])]


def learned_sections(model: PreTrainedModel, table: list[dict[str, Any]], output: Path) -> list[Section]:
    """The sections about late fusion weights and gates; draws their figures into `output`."""
    sections = []
    if table:
        text = "Weights in late fusion, over the rows that have the modality; the weights of a row add up to one."
        if model.late_fusion.kind == "gated":
            text += " Each is the mean of a gate over features, and depends on the row."
        else:
            text += " The learned weight is that in rows with all modalities; other rows renormalise the weights."
        present = [row for row in table if row["rows"]]
        bars = [(f"{row['modality']} ({row['rows']} rows)", row["mean"]) for row in present]
        ends = [(row["mean"] - row["standard_deviation"], row["mean"] + row["standard_deviation"]) for row in present]
        path = output / "weights.png"
        figures.draw_bars(bars, "mean weight and its standard deviation over rows", path, ends=ends)
        sections.append(Section("Learned weights of the modalities", text, table, path))
    if model.config.cross_attention:
        gates = model.fusion_gates()
        bars = [
            (f"{name.replace('_', '-')} before text layer {gate['before_text_layer']}", value)
            for gate in gates
            for name, value in gate.items()
            if name != "before_text_layer"
        ]
        text = (
            "Tanh of each gate, 0 before training. It scales the output that a fusion layer adds to the text's hidden "
            "states; the gate alone does not show the sign of that output or its size relative to the hidden states."
        )
        figures.draw_bars(bars, "tanh of the gate", output / "gates.png", signed=True)
        sections.append(Section("Gates of cross-attention", text, gates, output / "gates.png"))
    return sections


def zero_shot_sections(
    evaluation: Evaluation, names: Sequence[str], templates: Sequence[str], output: Path
) -> list[Section]:
    """The sections of report.html for zero-shot classification; draws report.png into `output`."""
    text = describe_scores("classification", evaluation, len(evaluation.truths))
    text += f" Prompts: the names of {len(names)} classes in: {'; '.join(templates)}."
    figures.draw_confusion(evaluation.predictions, evaluation.truths, output / "report.png", order=names)
    return [
        Section("Scores", text, [evaluation.metrics]),
        Section("Confusion", image=output / "report.png"),
        Section("Scores by label", table=per_class("classification", evaluation.logits, evaluation.label_ids, names)),
        Section("Samples", image=output / "samples.png"),
    ]
