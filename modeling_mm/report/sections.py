# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""What report.html says of an evaluation, and the images that go with it."""

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
    """samples.png: rows spread evenly over the data set, with prediction and truth."""
    step = max(1, len(dataset) // count)
    samples = []
    for index in range(0, len(dataset), step)[:count]:
        row, prediction, truth = dataset[index], evaluation.predictions[index], evaluation.truths[index]
        image = None
        if row.images:
            image = open_image(row.images[0].source)
        elif row.videos:
            image = read_video(row.videos[0].source, 1)[0]
        sounds = ["a sound" if sound.path is None else os.path.basename(sound.path) for sound in row.audio]
        words = {
            "sound": f"♪ {', '.join(sounds)}" if sounds else "",
            "prediction": format_answer(prediction),
            "truth": format_answer(truth),
            "correct": is_right(prediction, truth),
        }
        samples.append({"image": image, "text": row.text, **words})
    figures.draw_samples(samples, path)


def draw_report(task: str, evaluation: Evaluation, labels: Sequence[str] | None, path: Path) -> str:
    """Draw report.png, what a look at the predictions of this task should start with; returns its heading."""
    if TASKS[task].numbers:
        figures.draw_scatter(evaluation.logits, evaluation.label_ids, labels or [], path)
        return "Predictions against truth"
    if TASKS[task].several_labels:
        scores = per_class(task, evaluation.logits, evaluation.label_ids, labels or [])
        figures.draw_bars([(row["label"], row["f1"]) for row in scores], "F1", path)
        return "F1 of each label"
    figures.draw_confusion(evaluation.predictions, evaluation.truths, path, order=labels)
    return "Confusion"


def describe_scores(task: str, evaluation: Evaluation, rows: int) -> str:
    """What the scores are of, and how far they may be from those of other such rows."""
    main, ends = TASKS[task].main_metric, interval(task, evaluation)
    said = f"Of {rows} {'pairs' if TASKS[task].pairs else 'rows'}."
    if ends is not None:
        said += f" {main.replace('_', ' ')} lies between {ends[0]:.3f} and {ends[1]:.3f} at a level of 95 %, if these"
        said += " are independent of each other (several rows about one image are not)."
    if TASKS[task].has_classes and not TASKS[task].several_labels and evaluation.truths:
        name, count = Counter(evaluation.truths).most_common(1)[0]
        said += f" The most frequent label, '{name}', is {count / rows:.3f} of them."
    return said


def report_sections(
    trainer: Trainer,
    task: str,
    evaluation: Evaluation,
    table: list[dict[str, Any]],
    weights: list[dict[str, Any]],
    output: Path,
) -> list[Section]:
    """What report.html shows, its images drawn into `output`."""
    model, labels, rows = trainer.model, label_names(trainer.model, task), len(evaluation.predictions)
    sections = [Section("Scores", describe_scores(task, evaluation, rows), [evaluation.metrics])]
    if table:
        main = TASKS[task].main_metric
        bars = [(row["modalities"], row[main] or 0.0) for row in table]
        what = f"{main}, with 95 % intervals, of {rows} rows"
        figures.draw_bars(bars, what, output / "modalities.png", ends=[row["interval"] for row in table])
        said = (
            "Scores of the same rows when the other modalities' cells are emptied, intervals at 95 %. What a modality "
            "brings to this model is the change without it; a model trained without it might make do better."
        )
        sections.append(Section("Modalities", said, table, output / "modalities.png"))
    sections += learned_sections(model, weights, output)
    heading = draw_report(task, evaluation, labels, output / "report.png")
    sections.append(Section(heading, picture=output / "report.png"))
    if TASKS[task].gives_probabilities:
        if TASKS[task].has_classes:
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


def skipped_section(bad_rows: list[dict[str, Any]], most: int = 50) -> list[Section]:
    """What was left out and why, if anything was."""
    if not bad_rows:
        return []
    said = f"{len(bad_rows)} in all" + (f", the first {most} here" if len(bad_rows) > most else "")
    return [Section("Rows left out", f"{said}.", bad_rows[:most])]


def learned_sections(model: PreTrainedModel, table: list[dict[str, Any]], output: Path) -> list[Section]:
    """For report.html, with images drawn into `output`."""
    sections = []
    if table:
        said = "Of late fusion, over the rows that have the modality; the weights of a row add up to one."
        if model.late_fusion.kind == "gated":
            said += " Each is the mean of a gate over features, and depends on the row."
        else:
            said += " The learned weight is that of a row which has all; others share out what they have."
        known = [row for row in table if row["rows"]]
        bars = [(f"{row['modality']} ({row['rows']} rows)", row["mean"]) for row in known]
        ends = [(row["mean"] - row["standard_deviation"], row["mean"] + row["standard_deviation"]) for row in known]
        path = output / "weights.png"
        figures.draw_bars(bars, "mean weight, and its standard deviation over rows", path, ends=ends)
        sections.append(Section("Learned weights of the modalities", said, table, path))
    if model.config.cross_attention:
        gates = model.fusion_gates()
        bars = [
            (f"{name.replace('_', '-')} before text layer {gate['before_text_layer']}", value)
            for gate in gates
            for name, value in gate.items()
            if name != "before_text_layer"
        ]
        said = (
            "Tanh of each gate, 0 before training. It scales what a fusion layer adds to the text's states; of which "
            "sign, and how large beside the states, the gate alone does not tell."
        )
        figures.draw_bars(bars, "tanh of the gate", output / "gates.png", signed=True)
        sections.append(Section("Gates of cross-attention", said, gates, output / "gates.png"))
    return sections


def zero_shot_sections(
    evaluation: Evaluation, names: Sequence[str], templates: Sequence[str], output: Path
) -> list[Section]:
    """What report.html shows; report.png is drawn into `output`, where samples.png is."""
    said = (
        f"{describe_scores('classification', evaluation, len(evaluation.truths))} By the names of {len(names)} classes"
    )
    said += f" in: {'; '.join(templates)}."
    figures.draw_confusion(evaluation.predictions, evaluation.truths, output / "report.png", order=names)
    return [
        Section("Scores", said, [evaluation.metrics]),
        Section("Confusion", picture=output / "report.png"),
        Section("Each label", table=per_class("classification", evaluation.logits, evaluation.label_ids, names)),
        Section("Samples", picture=output / "samples.png"),
    ]
