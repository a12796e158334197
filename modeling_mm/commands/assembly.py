# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The model of `modeling-mm train` with its collator, and the search for better arguments before it is trained."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments, set_seed

from ..checkpoint import BASE
from ..data.collator import MMCollator
from ..model.media_mm import MODALITIES, TABLE
from ..model.processing_mm import MMProcessor
from ..report import figures
from ..tasks import TASKS
from ..training.arguments import DataArguments, ModelArguments
from ..training.build import build_collator, build_model, choose_trainable
from ..training.hyperparameter_search import Search
from ..training.presets import Choice, DefaultsArguments, applied, is_sharded
from ..training.retrieval_arguments import RetrievalArguments
from ..training.search_results import best_trial, cell, importances, trial_rows, trials_table
from ..training.search_space import search_space
from ..training.splits import Splits
from ..training.time_limit import Clock
from ..training.trainable import add_lora, freeze_unused, lora_pattern

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """The arguments of a training, by group."""

    defaults: DefaultsArguments
    model: ModelArguments
    data: DataArguments
    retrieval: RetrievalArguments
    training: TrainingArguments


@dataclass(frozen=True)
class Found:
    """The results of a search.

    Args:
        choices: the values of the best trial.
        report: for report.json.
        processor: of all its models.
        used: seconds of the command up to the end of the last trial.
        has_run: False if an interrupted run had finished all trials.
    """

    choices: list[Choice]
    report: dict[str, Any]
    processor: MMProcessor
    used: float
    has_run: bool

    def summary(self) -> str:
        """A sentence for the model card."""
        values = ", ".join(f"{choice.name} {cell(choice.value)}" for choice in self.choices)
        trials, metric = len(self.report["trials"]), self.report["metric"]
        return f"Of {trials} trials, the best by {metric} of the validation rows chose {values or 'no values'}."


def assemble(
    arguments: Arguments, splits: Splits, earlier: MMProcessor | None = None
) -> tuple[PreTrainedModel, MMCollator]:
    """The model to train, without adapters, and its collator.

    Args:
        earlier: the processor of a model assembled for the same rows, whose lengths need no second check.
    """
    model_args, data = arguments.model, arguments.data
    tokenizer = None if earlier is None else earlier.tokenizer
    model, processor = build_model(model_args, data, splits.train, arguments.retrieval, tokenizer)
    choose_trainable(model, model_args)
    if model_args.bf16_weights:
        model.to(torch.bfloat16)
    if not is_sharded(arguments.training):
        model.to(memory_format=torch.channels_last)  # convolutions run up to twice as fast
    collator = build_collator(model, processor, data)
    for split in filter(None, (splits.train, splits.validation, splits.test)) if earlier is None else ():
        collator.check_lengths(split, data.on_bad_row == "skip")
    if splits.train.columns.conversation:
        end_answers(model, collator, splits)
    collator.negatives_seed = arguments.training.seed if TASKS[data.task].pairs else None
    return model, collator


def end_answers(model: PreTrainedModel, collator: MMCollator, splits: Splits) -> None:
    """Let generation stop at the token that ends an answer in the chat template, beside those that it stops at."""
    tokens = collator.tokens([splits.train[0]])[0]
    end = next(token for token, learned in zip(reversed(tokens.ids), reversed(tokens.learned), strict=True) if learned)
    known = model.generation_config.eos_token_id
    ends = known if isinstance(known, list) else [] if known is None else [known]
    if end in collator.processor.tokenizer.all_special_ids or not ends:
        model.generation_config.eos_token_id = list(dict.fromkeys([*ends, end]))


def with_adapters(
    model: PreTrainedModel, collator: MMCollator, splits: Splits, arguments: Arguments, saves: bool = True
) -> PreTrainedModel:
    """The model with LoRA adapters if there are to be any, without trainable parameters that cannot reach the loss.

    Args:
        saves: save the adapters' base, which those of a trial do without.
    """
    model_args, args = arguments.model, arguments.training
    output = Path(str(args.output_dir))
    if unused := freeze_unused(model, collator(rows_with_media(splits))):
        logger.warning(f"{len(unused)} parameters do not reach the loss and are frozen: {', '.join(unused[:8])}")
    if args.ddp_find_unused_parameters is None:
        # there are none unless parts sleep, and the search would cost a pass over the graph
        args.ddp_find_unused_parameters = model_args.freeze_schedule is not None
    if not model_args.use_peft:
        return model
    targets = lora_pattern(model, model_args)
    if args.should_save and saves:
        model.save_pretrained(output / BASE)
        collator.processor.save_pretrained(output / BASE)
        model.config.save_for_sentence_transformers(output)
    return add_lora(model, model_args, targets, output)


def rows_with_media(splits: Splits) -> list[Any]:
    """The first row with an image, audio, video, a table and several of these; without them, fusion and towers would
    seem unused. Modalities that the first rows of a stream lack are looked for in the validation rows."""
    rows = []
    for dataset in [splits.train] if splits.stream is None else [splits.train, splits.validation]:
        media = [{**row.media, TABLE: row.table} for row in map(dataset.row, dataset.kept)]
        firsts = [next((i for i, items in enumerate(media) if items[name]), None) for name in (*MODALITIES, TABLE)]
        counts = [sum(len(items[name]) for name in MODALITIES) for items in media]
        firsts.append(next((i for i, count in enumerate(counts) if count > 1), None))
        rows += [dataset[index] for index in dict.fromkeys(i for i in firsts if i is not None)]
    return rows or [splits.train[0]]


def search(arguments: Arguments, splits: Splits, explicit: Collection[str], clock: Clock | None) -> Found:
    """Search for better values of the arguments that no flag sets, and set them; prints the trials, draws search.png.

    Raises:
        ValueError: there is nothing to search, or see `Search.run`.
    """
    model, collator = assemble(arguments, splits)
    defaults, model_args, data, retrieval, args = vars(arguments).values()
    space = search_space(defaults, model_args, data, args, splits, model.config, explicit)
    layers = model.config.text_config.num_hidden_layers
    del model

    def build(changed: ModelArguments) -> PreTrainedModel:
        others = Arguments(defaults, changed, data, retrieval, args)
        return with_adapters(assemble(others, splits, collator.processor)[0], collator, splits, others, saves=False)

    groups = (defaults, model_args, data, retrieval, args)
    trials = Search(defaults.search, space, *groups, splits, collator, layers, build, explicit, clock)
    study, has_run = trials.run()
    best, metric = best_trial(study), trials.metric
    rows, shares = trial_rows(study, metric), importances(study, args.seed)
    number = None if best is None else best.number
    print(trials_table(rows, metric, number))
    figures.draw_search(rows, shares, metric, number, Path(str(args.output_dir)) / "search.png")
    report = {"metric": metric, "best_trial": number, "importance": shares, "trials": rows}
    choices = [] if best is None else trials.choices(best, f"trial {number} of the search")
    applied(choices, (), *groups)
    set_seed(args.seed)
    return Found(choices, report, collator.processor, study.user_attrs.get("used", 0.0), has_run)
