# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Columns, task and towers that no flag names, chosen from the training table and printed before training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from ..checkpoint import BASE, read_config
from ..data.column_kinds import FORCED, MEDIA, Column, column_kinds, plain
from ..data.conversations import FORMATS, conversation_column, media_column
from ..data.rows import split_names, undecoded
from ..data.shards import open_shards
from ..data.tables import read_table
from ..model.table_mm import NUMBER
from ..tasks import TASKS
from .arguments import DataArguments, ModelArguments, fill_defaults

LABEL_NAMES = ("label", "labels", "target", "class", "answer", "y")
FEW = 20  # different whole numbers, at most, that are classes
FLAGS = {"image": "image_column", "audio": "audio_column", "video": "video_column", "text": "text_column"}
FLAGS |= {"label": "label_column", "number": "number_columns", "category": "category_columns"}
NUM_FRAMES = 8


def choose_columns(model: ModelArguments, data: DataArguments, is_first_process: bool = True) -> dict[str, Any]:
    """Set the columns, the task and, if there are none, the towers; print the columns if they were inferred.

    Returns:
        the columns with kinds and reasons, for the report; empty if none was inferred.

    Raises:
        ValueError: a column, the label or the task is in doubt; names the candidates and the flag.
    """
    if names := conversation_names(data):
        choose_conversation(data, names)
        choose_towers(model, data)
        if is_first_process:
            print(f"\n{described(data)}\n")
        return {"conversations": data.conversation_column}
    columns, reason = inferred_columns(model, data)
    if model.model is not None and not columns:
        fill_as_trained(model.model, data)
    fill_defaults(data)
    if columns and is_first_process:
        print(
            f"\n{printed(columns)}\n\ntask: {data.task}, {reason}\n"
            'Other kinds by --columns "name=kind,...", another task by --task.\n'
        )
    if columns:
        choose_towers(model, data)
    entries = {c.name: {"kind": c.kind, "why": c.why, "examples": c.examples, "missing": c.missing} for c in columns}
    return {"columns": entries} if columns else {}


def conversation_names(data: DataArguments) -> list[str]:
    """The names of the table's columns if it holds conversations; empty if it does not, or flags say otherwise."""
    source, flags = data.train_file or data.dataset, (data.text_column, data.label_column, data.columns)
    answers = not data.task or TASKS[data.task].generates
    if source is None or not answers or any(flags) or data.conversation_column == "":
        return []
    try:
        if data.streaming:
            names = list(open_shards(source, None if data.train_file else "train").features)
        else:
            names = read_table(source, "train")[0].column_names
    except ValueError:  # which comes again when the rows are read, after the flags were checked
        return []
    return names if data.conversation_column or conversation_column(names) else []


def choose_conversation(data: DataArguments, names: Sequence[str]) -> None:
    """Set the task and the columns of conversations and of their media."""
    data.task, data.text_column = "generation", ""
    data.conversation_column = data.conversation_column or conversation_column(names)
    for modality in MEDIA:
        if getattr(data, f"{modality}_column") is None:
            setattr(data, f"{modality}_column", media_column(names, modality))
    data.baselines = False  # they predict labels


def described(data: DataArguments) -> str:
    """A sentence that tells the user how the table of conversations is read."""
    media = [f"{name} in '{column}'" for name in MEDIA if (column := getattr(data, f"{name}_column"))]
    form = FORMATS.get(str(data.conversation_column), "turns")
    return (
        f"conversations in '{data.conversation_column}' (format: {form}), {', '.join(media) or 'media in parts'}; "
        'for a plain table give --conversation_column ""'
    )


def inferred_columns(model: ModelArguments, data: DataArguments) -> tuple[list[Column], str]:
    """The columns of the training table and the reason for the task, where inference is wanted; sets the flags."""
    source = data.train_file or data.dataset
    if not wanted(model, data) or source is None:
        return [], ""
    table, folder = read_table(source, "train")
    if not data.columns and has_towers(model) and "answer" in table.column_names:
        return [], ""
    chosen = chosen_kinds(data, source, table.column_names)
    labels = chosen_labels(data, source, table, chosen)
    because = "named by a flag" if labels and labels[0] in chosen else "named so"
    kinds = chosen | {name: ("label", because) for name in labels}
    columns = [narrowed(column, data, kinds) for column in column_kinds(source, table, folder, kinds)]
    if not labels and (not data.task or TASKS[data.task].label_column is not None):
        raise ValueError(no_label(source, columns))
    if all(column.kind in ("label", "ignore") for column in columns):
        ignored = next((f'"{column.name}=category"' for column in columns if column.kind == "ignore"), '"NAME=KIND"')
        raise ValueError(f"'{source}' has no column to predict from; to read an ignored one give --columns {ignored}")
    reason = "by its flag"
    if not data.task:
        data.task, reason = inferred_task(source, table, labels)
    elif labels:
        refuse_unique(data.task, source, labels[0], table[labels[0]][:])
    for kind in FLAGS:
        names = [column.name for column in columns if column.kind in (kind, "date" if kind == "number" else kind)]
        if kind in ("number", "category"):
            setattr(data, FLAGS[kind], names)
        elif getattr(data, FLAGS[kind]) is None and (kind != "label" or names):
            setattr(data, FLAGS[kind], ",".join(names))
    data.number_forms = {column.name: column.form for column in columns if column.kind in ("number", "date")}
    return columns, reason


def fill_as_trained(source: str, data: DataArguments) -> None:
    """Set the columns that no flag names to those that a model was trained on, if it knows them."""
    folder = Path(source, BASE)
    columns = read_config(str(folder) if folder.is_dir() else source).columns or {}
    if columns.get("conversation"):  # and this table has none
        return
    for name in ("image", "text", "audio", "video"):
        if getattr(data, f"{name}_column") is None:
            setattr(data, f"{name}_column", columns.get(name))
    data.label_column = data.label_column or columns.get("target")
    data.number_forms = columns.get("forms", {})


def has_towers(model: ModelArguments) -> bool:
    """True if a tower is given."""
    return any((model.vision_tower, model.text_model, model.audio_tower))


def wanted(model: ModelArguments, data: DataArguments) -> bool:
    """True if columns are to be inferred; see the help of `--columns`.

    Raises:
        ValueError: `--columns` does not fit streaming.
    """
    if data.columns and data.streaming:
        raise ValueError(
            "--columns reads the table before training; with --streaming true name columns by their flags"
        )
    if data.columns:
        return True
    if data.streaming or model.model is not None:
        return False
    flags = [data.task, *(getattr(data, flag) for flag in FLAGS.values()), data.concept_column]
    return not has_towers(model) or all(flag in (None, "", []) for flag in flags)


def chosen_kinds(data: DataArguments, source: str, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Kind and reason of the columns that flags name.

    Raises:
        ValueError: `--columns` names an unknown column or kind, or two flags name a column.
    """
    chosen: dict[str, tuple[str, str]] = {}
    for part in split_names(data.columns) if data.columns != "auto" else []:
        name, _, kind = (word.strip() for word in part.rpartition("="))
        if kind not in FORCED:
            raise ValueError(f"--columns gives '{part}'; expected name=kind with a kind of {', '.join(FORCED)}")
        if name not in names:
            raise ValueError(f"--columns names '{name}', but '{source}' has the columns {', '.join(names)}")
        if name in chosen:
            raise ValueError(f"--columns names '{name}' twice")
        chosen[name] = (kind, "by --columns")
    for kind, flag in FLAGS.items():
        for name in named_by(getattr(data, flag), names):
            if name in chosen:
                raise ValueError(f"--{flag} names '{name}', which {chosen[name][1].removeprefix('by ')} names too")
            if name in names:
                chosen[name] = (kind, f"by --{flag}")
    if data.concept_column in names:
        chosen[data.concept_column] = ("ignore", "by --concept_column")
    return chosen


def named_by(value: Any, names: Sequence[str]) -> list[str]:
    """The columns that the value of a flag names."""
    words = value if isinstance(value, list) else [value or ""]
    return [name for word in words for name in ([word] if word in names else split_names(word))]


def chosen_labels(
    data: DataArguments, source: str, table: datasets.Dataset, chosen: Mapping[str, tuple[str, str]]
) -> list[str]:
    """The label columns: those that flags name, else the only one with a usual name; empty if there is none.

    Raises:
        ValueError: two columns have a usual name.
    """
    labels = [name for name, (kind, _) in chosen.items() if kind == "label"]
    if missing := [name for name in named_by(data.label_column, table.column_names) if name not in labels]:
        raise ValueError(f"'{source}' has no column '{missing[0]}'; it has {', '.join(table.column_names)}")
    if len(labels) > len(named_by(data.label_column, table.column_names)) > 0:
        raise ValueError(f"--label_column is {data.label_column}, but --columns names another label; give one of them")
    if labels:
        return labels
    if data.task and TASKS[data.task].label_column is None:
        return []
    usual = [
        name
        for name, feature in table.features.items()
        if name.lower().strip() in LABEL_NAMES and name not in chosen and undecoded(feature) == feature
    ]
    found = [name for name in usual if len({str(plain(cell)) for cell in table[name][:]} - {"None"}) > 1]
    if len(found) > 1:
        first, *others = found
        rest = ",".join(f"{name}=ignore" for name in others)
        raise ValueError(
            f"'{source}' has {len(found)} columns that may be the label, {' and '.join(found)}; name it, for example "
            f'by --columns "{first}=label,{rest}"'
        )
    if usual and not found:
        raise ValueError(f"the label column '{usual[0]}' of '{source}' has fewer than two different values")
    return found


def no_label(source: str, columns: Sequence[Column]) -> str:
    """The question for the label, with candidates."""
    candidates = [c.name for kind in ("category", "number", "ignore") for c in columns if c.kind == kind]
    likely = [c for c in candidates if not next(d for d in columns if d.name == c).why.startswith(("all", "only"))][:5]
    name = likely[0] if likely else columns[0].name
    names = f" (perhaps {', '.join(likely)})" if likely else ""
    question = (
        f"'{source}' has no column named {', '.join(LABEL_NAMES[:-1])} or {LABEL_NAMES[-1]}; name the one to predict"
        f'{names}, for example by --columns "{name}=label"'
    )
    if {"image", "text"} <= {column.kind for column in columns}:
        question += ", or give --task retrieval (find images by text) or --task matching (tell true pairs from false)"
    return question


def narrowed(column: Column, data: DataArguments, chosen: Mapping[str, tuple[str, str]]) -> Column:
    """A column, ignored where a flag names all columns of its kind, or where retrieval cannot use it."""
    flag = FLAGS.get(column.kind, "")
    if column.name in chosen:
        return column
    if flag and getattr(data, flag) not in (None, []):
        return replace(column, kind="ignore", why=f"{column.kind}, but --{flag} names the columns of this kind")
    pairs = data.task and TASKS[data.task].needs_image_and_text
    if pairs and column.kind not in ("image", "text", "ignore", *(() if TASKS[data.task].embeds else MEDIA)):
        return replace(column, kind="ignore", why=f"{column.kind}, which {data.task} does not use")
    return column


def inferred_task(source: str, table: datasets.Dataset, labels: Sequence[str]) -> tuple[str, str]:
    """The task that a label column is for, and why.

    Raises:
        ValueError: two tasks are possible, or the values cannot be a label.
    """
    name = labels[0]
    if len(labels) > 1:
        return "regression", f"because {' and '.join(labels)} are its numbers"
    if name.lower().strip() == "answer":
        return "generation", f"because the label is named '{name}'"
    cells = [value for cell in table[name][:] if (value := plain(cell)) is not None]
    if any(isinstance(cell, list) or cell.strip().startswith("[") for cell in cells):
        return "multilabel", f"because '{name}' holds lists"
    different, count = set(cells), len(cells)
    is_class = isinstance(table.features[name], datasets.ClassLabel)
    if not is_class and all(NUMBER.fullmatch(cell.strip()) for cell in different):
        return numeric_task(source, name, [float(cell) for cell in cells])
    joined = [cell for cell in different if "|" in cell]
    if joined and not is_class:
        parts = {part.strip() for cell in different for part in cell.split("|")}
        if len(parts) < len(different) or len(joined) < len(different):
            return "multilabel", f"because '{name}' joins labels by |, as in '{joined[0]:.40}'"
        raise ValueError(
            f"the label '{name}' of '{source}' holds values such as '{joined[0]:.40}'; give --task multilabel if | "
            "separates labels, else --task classification"
        )
    refuse_unique("classification", source, name, cells)
    return "classification", f"because '{name}' has {len(different)} different values in {count} rows"


def numeric_task(source: str, name: str, numbers: Sequence[float]) -> tuple[str, str]:
    """Classification for a few whole numbers, regression for quantities, and why.

    Raises:
        ValueError: the numbers may be classes or quantities, or the numbers of the rows.
    """
    different, count = sorted(set(numbers)), len(numbers)
    whole = all(number.is_integer() for number in different)
    codes = whole and different[0] in (0, 1) and different[-1] - different[0] + 1 == len(different)
    if codes and len(different) == count > 2:
        raise ValueError(f"the label '{name}' of '{source}' numbers the rows; expected values that recur")
    if whole and len(different) <= FEW and count >= 3 * len(different):
        return "classification", f"because '{name}' has {len(different)} different whole numbers in {count} rows"
    if whole and (len(different) <= FEW or (codes and count >= 3 * len(different))):
        raise ValueError(
            f"the label '{name}' of '{source}' has {len(different)} different whole numbers in {count} rows; give "
            "--task classification if they are classes, --task regression if they are quantities"
        )
    return "regression", f"because '{name}' has {len(different)} different numbers in {count} rows"


def refuse_unique(task: str, source: str, name: str, cells: Sequence[Any]) -> None:
    """Refuse a label of a classification whose values hardly recur.

    Raises:
        ValueError: names the column.
    """
    if not TASKS[task].has_classes or TASKS[task].several_labels:
        return
    different, count = len({str(cell) for cell in cells}), len(cells)
    if count > 2 and (different == count or (different > FEW and different > count / 2)):
        raise ValueError(
            f"the label '{name}' of '{source}' has {different} different values in {count} rows; classes recur, so "
            "name another label, or give --task generation for texts or --task regression for numbers"
        )


def choose_towers(model: ModelArguments, data: DataArguments) -> None:
    """Set small towers from scratch for the modalities of the columns, if no tower and no model is given.

    Raises:
        ValueError: towers are given, but none for a modality that was found.
    """
    if model.model is None and not has_towers(model):
        model.vision_tower = model.text_model = "scratch-tiny"
        model.audio_tower = "scratch-tiny" if data.audio_column else None
        model.num_frames = model.num_frames or (NUM_FRAMES if data.video_column else None)
    for column, flag, value in (
        (data.audio_column, "audio_tower scratch-tiny", model.audio_tower),
        (data.video_column, f"num_frames {NUM_FRAMES}", model.num_frames),
    ):
        if model.model is None and column and value is None:
            ignored = ",".join(f"{name}=ignore" for name in split_names(column))
            raise ValueError(
                f"the column '{column}' needs --{flag}; give it, or leave it out by --columns \"{ignored}\""
            )


def printed(columns: Sequence[Column]) -> str:
    """The columns as a table of text."""
    heads = ["column", "kind", "missing", "examples", "why"]
    rows = [[c.name, c.kind, f"{c.missing:.0%}" if c.missing else "", " | ".join(c.examples), c.why] for c in columns]
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [heads, *rows]]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])
