# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Targets: the label column of each task, how it is read, and the settings of the head that follow from it.

| task           | a cell                                             | in a batch                     |
| generation     | the answer                                         | tokens                         |
| classification | a label                                            | its id                         |
| multilabel     | `a|b|c` or a list; an empty list is no label       | 0 or 1 for each label          |
| regression     | a number, in one or several columns                | the numbers                    |
| matching       | no column; or a group, whose rows match each other | 0 or 1, made by `negatives.py` |
| retrieval      | no column; the text is the query for its image     | no labels                      |
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..tasks import TASKS
from .media import BadRow
from .text_files import as_written, parse_json


def label_columns(task: str, name: str | None) -> list[str]:
    """The columns of a target; only a regression has several, separated by commas."""
    if name is None:
        return []
    return [part.strip() for part in name.split(",")] if TASKS[task].numbers else [name]


def read_target(task: str, name: str, cells: dict[str, Any]) -> Any:
    """A row's target before encoding: a text, a list of labels, or a list of numbers; None if the cell is empty.

    Raises:
        BadRow: the cell has an unexpected type.
    """
    if TASKS[task].numbers:
        return read_numbers(cells, label_columns(task, name))
    cell = cells[name]
    if TASKS[task].several_labels:
        return read_labels(cell, name)
    if TASKS[task].generates and isinstance(cell, list):
        return next(iter(read_answers(cell, name)), None)
    if isinstance(cell, (list, dict)):
        raise BadRow(f"'{name}' holds a list or structure; expected one plain value")
    return None if cell is None else str(cell).strip() or None


def read_answers(cell: Any, name: str) -> list[str]:
    """The answers of several people to one question, the most frequent ones first; none if the cell is no list.

    Raises:
        BadRow: the list holds nested values.
    """
    if not isinstance(cell, list):
        return []
    if any(isinstance(part, (list, dict)) for part in cell):
        raise BadRow(f"'{name}' holds nested values; expected an answer or a list of answers")
    answers = [text for part in cell if part is not None and (text := str(part).strip())]
    return [answer for answer, count in Counter(answers).most_common() for _ in range(count)]


def read_numbers(cells: dict[str, Any], names: Sequence[str]) -> list[float] | None:
    """The number in each column; None if all are empty.

    Raises:
        BadRow: names the column without a finite number.
    """
    if all(cells[name] is None or str(cells[name]).strip() == "" for name in names):
        return None
    numbers = []
    for name in names:
        try:
            numbers.append(float(cells[name]))
        except (TypeError, ValueError):
            raise BadRow(f"'{name}' is {cells[name]!r:.60}; expected a number") from None
        if not math.isfinite(numbers[-1]):
            raise BadRow(f"'{name}' is {numbers[-1]}; expected a finite number")
    return numbers


def read_labels(cell: Any, name: str) -> list[str] | None:
    """The labels of a cell: a list, the JSON text of a list, or `a|b|c`; None if it is empty.

    Raises:
        BadRow: the list holds nested or empty values.
    """
    if isinstance(cell, str) and cell.strip().startswith("["):
        try:
            cell = as_written(parse_json(cell))
        except ValueError:
            raise BadRow(f"'{name}' is {cell!r:.60}; expected labels like a|b or a JSON list") from None
    if cell is None or cell == "":
        return None
    parts = cell if isinstance(cell, list) else str(cell).split("|")
    if any(isinstance(part, (list, dict)) or part is None for part in parts):
        raise BadRow(f"'{name}' holds nested or empty values; expected a list of labels")
    return sorted({label for label in (str(part).strip() for part in parts) if label})


def target_complaint(name: str, target: Any, labels: Sequence[str] | None) -> str | None:
    """The reason why a target cannot be used, None if it can; `labels` are the known ones, None before training."""
    if target is None:
        return f"'{name}' is empty; expected a value"
    for label in [target] if isinstance(target, str) else target:
        if labels is not None and isinstance(label, str) and label not in labels:
            return f"the label '{label}' is unknown; expected one of {', '.join(labels[:20])}"
    return None


def encode_target(task: str, target: Any, labels: Sequence[str] | None) -> Any:
    """A target as the collator expects it."""
    if TASKS[task].several_labels and labels is not None:
        return [float(label in target) for label in labels]
    return labels.index(target) if TASKS[task].has_classes and labels is not None else target


def known_names(task: str, targets: Sequence[Any], column: str | None, source: str) -> list[str] | None:
    """The names of a head's outputs, from the targets of the training rows; None for a generation or retrieval.

    Raises:
        ValueError: there are fewer than two labels.
    """
    if not TASKS[task].has_labels:
        return None
    if fixed := TASKS[task].labels:
        return list(fixed)
    if TASKS[task].numbers:
        return label_columns(task, column)
    names = sorted({name for target in targets for name in ([target] if isinstance(target, str) else target)})
    if len(names) < 2:
        found = f"only the label '{names[0]}'" if names else "no label at all"
        raise ValueError(f"'{source}' has {found}; expected at least two labels")
    return names


def head_options(
    task: str, names: Sequence[str] | None, targets: Sequence[Any], balanced: bool, source: str
) -> dict[str, Any]:
    """The fields of `MMConfig` for the head: names, loss, scale of numbers, class weights.

    Raises:
        ValueError: a column holds one number only, or class weights are asked of a task without classes.
    """
    if balanced and not TASKS[task].has_classes:
        known = " and ".join(name for name in TASKS if TASKS[name].has_classes)
        raise ValueError(f"--class_weights balanced is for {known}, not for {task}")
    if names is None:
        return {}
    options: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": TASKS[task].problem_type,
        "matching": TASKS[task].pairs,
    }
    if TASKS[task].numbers:
        numbers = np.array(targets, dtype=np.float64)  # (rows, columns)
        for name, scale, first in zip(names, numbers.std(axis=0), numbers[0], strict=True):
            if scale == 0:
                raise ValueError(f"'{source}' has only the number {first:g} in '{name}'; expected different numbers")
        options |= {"label_mean": numbers.mean(axis=0).tolist(), "label_scale": numbers.std(axis=0).tolist()}
    if balanced:
        options["class_weights"] = balanced_weights(task, names, targets)
    return options


def balanced_weights(task: str, names: Sequence[str], targets: Sequence[Any]) -> list[float]:
    """Class weights under which all classes count the same; for several labels, negatives per positive.

    A class that never occurs is weighted like one that occurs once.
    """
    counts = np.array([encode_target("multilabel", [t] if isinstance(t, str) else t, names) for t in targets])
    occurs = counts.sum(axis=0).clip(min=1)
    if TASKS[task].several_labels:
        return ((len(targets) - occurs).clip(min=1) / occurs).tolist()
    return (len(targets) / (len(names) * occurs)).tolist()


def normalize(answer: str) -> str:
    """An answer in lower case with single spaces, so that case and white space do not make it wrong."""
    return " ".join(answer.lower().split())
