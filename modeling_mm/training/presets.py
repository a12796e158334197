# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Presets: values for the arguments of `modeling-mm train` that a run leaves open, chosen by its situation.

The situation is that of the text backbone and its towers: untrained (`scratch`), pretrained and frozen (`frozen`),
adapted by LoRA (`lora`) or trained in full (`full`). Every value can be overridden by its flag. Importing this file
imports neither torch nor transformers.
"""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..tasks import TASKS
from .arguments import DataArguments, ModelArguments, words
from .retrieval_arguments import RetrievalArguments

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from .splits import Splits

PRESETS = ("scratch", "frozen", "lora", "full")
STEPS = {"scratch": 4000, "frozen": 1500, "lora": 1500, "full": 1500}  # optimiser steps of a run without a limit
EPOCHS = (3, 60)  # fewest and most epochs for those steps
TABLE_EPOCHS = 20  # most epochs of rows that are numbers and categories alone: more overfit a few hundred rows
MODALITY_DROPOUT = 0.15
EVALUATION = ("eval_strategy", "eval_steps", "save_strategy", "save_steps", "load_best_model_at_end")
NEVER = 10**9  # steps; the callback of the time limit decides when to evaluate
CALIBRATION_ROWS = 100  # fewer validation rows may all be right, and tell nothing about probabilities
MARGIN = 0.1  # seconds beyond the longest clip, which augmentation shifts by as much
AUGMENTED = 10_000  # most rows with a label that are augmented: more show enough by themselves, in fewer epochs
PACKED = 8  # rows in a pack, about
UNEVEN = 10.0  # ratio of the most frequent class to the rarest from which classes are weighted


@dataclass
class DefaultsArguments:
    """Overall: defaults for all other arguments, a time limit, a search, and Muon."""

    preset: str | None = field(
        default=None,
        metadata={
            "help": "values for the arguments left out: for untrained towers (scratch), frozen pretrained ones "
            "(frozen), LoRA adapters (lora) or full training (full); chosen by the towers if left out itself",
            "choices": list(PRESETS),
        },
    )
    time_limit: float | None = field(
        default=None,
        metadata={
            "help": "seconds that the whole command may take; the number of epochs and the schedule of the learning "
            "rate follow"
        },
    )
    search: int = field(
        default=0,
        metadata={
            "help": "number of trials of other learning rates, regularisation, layers and augmentation, as far as no "
            "flag sets them; the best by the validation rows is trained in full (needs the extra search_hp)"
        },
    )
    muon_learning_rate: float = field(
        default=0.0,
        metadata={
            "help": "learning rate of the Muon optimiser, which then trains matrices and convolutions, and AdamW the "
            "rest; 0 leaves all to the optimiser of --optim"
        },
    )


@dataclass(frozen=True)
class Choice:
    """A value chosen for an argument, and the reason in a few words."""

    name: str
    value: Any
    reason: str


def preset_for(model: ModelArguments, preset: str | None) -> str:
    """The preset of this run: the one asked for, or that of its towers.

    Raises:
        ValueError: the preset asked for does not fit the towers.
    """
    from .scratch import SIZES

    untrained = model.model is None and model.text_model in (None, *SIZES)
    if preset is None:
        if untrained:
            return "scratch"
        if model.use_peft:
            return "lora"
        return "full" if model.vision_trainable and model.text_trainable else "frozen"
    if untrained and preset != "scratch":
        raise ValueError(
            f"--preset {preset} is for pretrained towers, but the text model is "
            f"{'not set' if model.text_model is None else model.text_model}; give --text_model and --vision_tower"
        )
    if not untrained and preset == "scratch":
        raise ValueError(
            f"--preset scratch is for untrained towers, but the text model is {model.text_model or model.model}"
        )
    return preset


def late_fusion_kind(preset: str, task: str, model: ModelArguments, fits: bool) -> str:
    """The late fusion of a new model with labels: products for towers that learn with it or pairs that are compared,
    a fitted linear one for frozen towers.

    Args:
        fits: all rows and all weights are at hand before training, so that it can be fitted.
    """
    if preset == "scratch" or TASKS[task].pairs:
        return "product_mlp" if preset == "scratch" else "product"
    trains = any(model.trains(part) for part in ("vision", "text", "audio"))
    return "linear" if preset == "frozen" and fits and not trains else "concat"


def model_choices(preset: str, task: str, model: ModelArguments, present: Collection[str], fits: bool) -> list[Choice]:
    """Choices about parts of the model and their training, made before it is built; `fits` as above."""
    choices = list[Choice]()
    if preset == "lora":
        choices.append(Choice("use_peft", True, "preset lora"))
    if preset == "full":
        choices += [Choice(f"{part}_trainable", True, "preset full") for part in ("vision", "text")]
        choices += [Choice("audio_trainable", True, "preset full")] if model.audio_tower else []
    if model.model is not None:
        return choices
    if preset == "scratch" and not TASKS[task].embeds:
        choices.append(Choice("fusion_mlp", True, "an untrained text model"))
    kind = late_fusion_kind(preset, task, model, fits)
    fuses = "video" not in present or kind == "linear"  # towers that learn with it lose the order of frames
    if TASKS[task].has_labels and fuses and model.cross_attention is None and model.late_fusion is None:
        reason = "labels are predicted from the towers' pooled states too"
        choices += [Choice("late_fusion", kind, reason)]
        choices += [Choice("cross_attention", True, "beside late fusion")]
        dropout = Choice("modality_dropout", MODALITY_DROPOUT, "each modality is to tell what it can by itself")
        choices += [dropout] if kind == "linear" else []
    return choices


def table_choices() -> list[Choice]:
    """Choices about the model of rows that are numbers and categories alone: only the tower of the table trains."""
    reason = "rows are a table alone"
    chosen = {"late_fusion": "sum", "cross_attention": False, "text_layers": 1}
    chosen |= {"text_trainable": False, "vision_trainable": False}
    return [Choice(name, value, reason) for name, value in chosen.items()]


def data_choices(
    preset: str, model: ModelArguments, data: DataArguments, present: Collection[str], splits: "Splits", output: str
) -> list[Choice]:
    """Choices about the rows: augmentation for towers that train on few of them, a feature cache for frozen ones."""
    from .scratch import SIZES

    task, choices = TASKS[data.task], list[Choice]()
    if task.has_labels and task.gives_probabilities and len(splits.validation) >= CALIBRATION_ROWS:
        choices.append(Choice("calibrate", True, "probabilities are to be trusted"))
    changed = model.trains("vision") or preset == "full" or {"vision", "all"} & set(words(model.lora_parts))
    if "image" in present and not (changed or data.augment_images or data.augment_audio or data.streaming):
        choices.append(Choice("cache_features", f"{output}/features", "a frozen vision tower"))
    if splits.longest_clip and model.audio_tower in SIZES:
        seconds = max(1.0, math.ceil(10 * (splits.longest_clip + MARGIN)) / 10)
        choices.append(Choice("max_seconds", seconds, f"the longest audio clip lasts {splits.longest_clip:.3g} s"))
    if preset != "scratch" or data.cache_features is not None:
        return choices
    if "image" in present and not data.streaming:
        choices.append(Choice("image_cache_mb", 512, "images are decoded once"))
    if "audio" in present and not data.streaming:
        choices.append(Choice("audio_cache_mb", 512, "audio is decoded once"))
    few = task.has_labels and (splits.stream is not None or len(splits.train) <= AUGMENTED)
    if "image" in present and model.trains("vision") and (few or task.embeds):
        changes = ["rotate"] if task.embeds else ["crop", "rotate"]
        choices.append(Choice("augment_images", changes, "an untrained vision tower"))
    if "audio" in present and model.trains("audio") and few:
        changes = ["speed", "shift", "noise", "vtlp", "specaugment"]
        choices.append(Choice("augment_audio", changes, "an untrained audio tower"))
    return choices


def retrieval_choices(preset: str, task: str) -> list[Choice]:
    """Choices about retrieval: beside untrained towers, the matching loss at full weight spoils the embeddings."""
    if preset != "scratch" or not TASKS[task].embeds:
        return []
    reason = "untrained towers"
    return [
        Choice("matching_weight", 0.1, reason),
        Choice("matching_rows", 16, reason),
        Choice("text_pooling", "mean", reason),
    ]


def training_choices(
    preset: str,
    task: str,
    rows: int | None,
    limited: bool,
    explicit: Collection[str],
    muon: bool = False,
    table_only: bool = False,
    by_loss: bool = False,
    packing: bool = False,
) -> list[Choice]:
    """Choices about optimisation.

    Args:
        rows: number of training rows, None for a stream. limited: there is a time limit. muon: Muon is used.
        table_only: rows are numbers and categories alone. by_loss: the best checkpoint is that of least loss.
        packing: a batch is of packs, which hold several rows.
    """
    facts, because = TASKS[task], f"preset {preset}"
    batch = 128 if facts.embeds else 64 if preset == "scratch" else 32
    if rows is not None:
        batch = max(8, min(batch, 2 ** round(math.log2(max(1, rows / 16)))))
    sized = because if rows is None else f"{rows} training rows{' in packs' if packing else ''}"
    rate = {"scratch": 1.5e-3, "frozen": 1e-3, "lora": 3e-4, "full": 3e-5}[preset]
    choices = [Choice("muon_learning_rate", 2e-3, "untrained weights of layers")] if muon else []
    choices += [
        Choice("learning_rate", rate, because),
        Choice("lr_scheduler_type", "cosine", because),
        Choice("warmup_steps", 0.1, "share of all steps"),
        Choice("weight_decay", 0.05 if facts.has_labels else 0.01, because),
        Choice("per_device_train_batch_size", max(1, batch // PACKED) if packing else batch, sized),
        Choice("per_device_eval_batch_size", 4 * batch, "no gradients in evaluation"),
    ]
    if facts.has_labels and not facts.numbers and not facts.several_labels:
        choices.append(Choice("label_smoothing_factor", 0.05, "one label per row"))
    if rows is not None and "max_steps" not in explicit:
        more = 3 if limited else 1  # the limit ends most runs before
        steps, fewest, most = more * STEPS[preset], EPOCHS[0], TABLE_EPOCHS if table_only else more * EPOCHS[1]
        epochs = max(fewest, min(most, round(steps * batch / rows)))
        choices.append(Choice("num_train_epochs", epochs, f"about {steps} steps, {fewest} to {most} epochs"))
    if "logging_steps" not in explicit:
        choices.append(Choice("logging_strategy", "epoch", "a point of the curves per epoch"))
    if not set(EVALUATION) & set(explicit):
        choices += best_checkpoint(task, "steps" if limited else "epoch", by_loss) if rows is not None else []
    return choices


def is_sharded(args: "TrainingArguments") -> bool:
    """True if FSDP or DeepSpeed divides the model among processes."""
    launcher = (os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() for name in ("FSDP", "DEEPSPEED"))
    return bool(args.fsdp or args.deepspeed) or "true" in launcher


def uses_muon(
    preset: str,
    task: str,
    model: ModelArguments,
    args: "TrainingArguments",
    present: Collection[str],
    explicit: Collection[str] = (),
) -> bool:
    """True if Muon is to train the weights of layers: whole ones, without adapters, of an untrained model.

    Rows with video are left out: there, AdamW learns more (docs/defaults.md); and so is retrieval.

    Args:
        explicit: names of the arguments that a flag or a file sets; a learning rate or an optimiser is that of AdamW.
    """
    fits = not TASKS[task].embeds and "video" not in present and not {"learning_rate", "optim"} & set(explicit)
    fits = fits and not (model.rates or model.bf16_weights)
    return preset == "scratch" and fits and not (model.use_peft or is_sharded(args))


def best_checkpoint(task: str, when: str, by_loss: bool = False) -> list[Choice]:
    """Evaluation after each epoch, or whenever a time limit allows it; the best checkpoint is restored at the end.

    Args:
        by_loss: the best is that of least loss, else that of the best main metric.
    """
    reason = "the best checkpoint is kept"
    return [
        Choice("eval_strategy", when, reason),
        Choice("save_strategy", when, reason),
        *([Choice(name, NEVER, "as time allows") for name in ("eval_steps", "save_steps")] if when == "steps" else []),
        Choice("save_total_limit", 1, reason),
        Choice("load_best_model_at_end", True, reason),
        Choice("metric_for_best_model", "loss" if by_loss else TASKS[task].main_metric, reason),
        Choice("greater_is_better", not by_loss, reason),
    ]


def choose_defaults(
    defaults: DefaultsArguments,
    model: ModelArguments,
    data: DataArguments,
    retrieval: RetrievalArguments,
    args: "TrainingArguments",
    splits: "Splits",
    explicit: Collection[str],
) -> tuple[str, list[Choice]]:
    """Set all arguments that no flag sets, by the situation of the run; returns the preset and what was chosen.

    Args:
        explicit: names of the arguments that a flag or a file sets.

    Raises:
        ValueError: the preset asked for does not fit the towers.
    """
    preset = preset_for(model, defaults.preset)
    train, is_stream = splits.train, splits.stream is not None
    present = train.present_media()
    table_only = preset == "scratch" and TASKS[data.task].has_labels and train.is_table_only
    table_only &= not model.cross_attention
    fits = not (is_stream or is_sharded(args))
    choices = table_choices() if table_only else model_choices(preset, data.task, model, present, fits)
    choices += data_choices(preset, model, data, present, splits, str(args.output_dir))
    choices += retrieval_choices(preset, data.task)
    size, limited = None if is_stream else len(train), defaults.time_limit is not None
    muon = uses_muon(preset, data.task, model, args, present, explicit)
    if muon and TASKS[data.task].generates and model.model is None:
        choices.append(Choice("projector_norm", "batch", "untrained towers, trained by Muon"))
    by_loss = table_only and len(splits.validation) < CALIBRATION_ROWS  # all may be right before the model is sure
    choices += training_choices(preset, data.task, size, limited, explicit, muon, table_only, by_loss, data.packing)
    choices += [] if is_stream or model.model is not None else uneven_classes(data.task, train.targets())
    return preset, applied(choices, explicit, defaults, model, data, retrieval, args)


def uneven_classes(task: str, targets: Collection[Any]) -> list[Choice]:
    """Class weights, if the classes of one label per row are uneven."""
    if not TASKS[task].has_classes or TASKS[task].several_labels:
        return []
    counts: dict[Any, int] = {}
    for target in targets:
        counts[target] = counts.get(target, 0) + 1
    most, least = max(counts.values()), min(counts.values())
    if most < UNEVEN * least:
        return []
    return [Choice("class_weights", "balanced", f"classes have {least} to {most} rows")]


def applied(choices: Collection[Choice], explicit: Collection[str], *targets: Any) -> list[Choice]:
    """Set each choice on the arguments that have its field, unless it was set explicitly; returns those that were."""
    used = []
    for choice in choices:
        if choice.name in explicit:
            continue
        target = next(each for each in targets if hasattr(each, choice.name))
        kind = type(getattr(target, choice.name))
        value = kind(choice.value) if kind.__module__.startswith("transformers") else choice.value  # its enumerations
        setattr(target, choice.name, value)
        used.append(choice)
    return used


def choices_table(preset: str, choices: Collection[Choice]) -> str:
    """The choices as lines to print."""
    rows = [(choice.name, str(choice.value), choice.reason) for choice in choices]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n  ".join([f"\nDefaults of preset {preset}, for arguments that are not set:", *lines]) + "\n"
