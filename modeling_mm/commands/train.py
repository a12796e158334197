# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm train`: train on a table of images and texts; writes a folder that `AutoModel` loads.

modeling-mm train --train_file t.csv --output_dir runs/mine
modeling-mm train --config recipes/easy_vqa.yaml
modeling-mm train --task classification --train_file t.csv --vision_tower scratch-tiny --text_model scratch-tiny \
    --output_dir runs/mine --num_train_epochs 10

The folder holds model, processor and code, curves.png, samples.png, report.json and a model card. Every argument of
`TrainingArguments` works. Two processes on CPUs: torchrun --nproc_per_node 2 -m modeling_mm.cli train ... --use_cpu
"""

import json
import logging
import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed

from ..checkpoint import BASE, last_checkpoint
from ..data.answer_turns import AnswerTurns, evaluation_rows
from ..data.collator import MMCollator
from ..data.dataset import MMDataset, write_bad_rows
from ..data.rows import joined_text, media_markers
from ..data.stream import MMStream
from ..evaluation.baseline_scores import num_fitted_rows, score_baselines
from ..evaluation.baselines import Parts
from ..evaluation.calibration import fit_temperature
from ..evaluation.metrics import format_answer
from ..evaluation.predictions import Evaluation, evaluate_rows, scores_by_turn, write_predictions
from ..evaluation.retrieval import CANDIDATES, evaluate_retrieval, rerank_weight
from ..hub.model_card import write_card
from ..model.adapters_mm import without_adapters
from ..model.audio_mm import MAX_SECONDS
from ..report import figures
from ..report.augmented import draw_augmented
from ..report.sections import draw_examples
from ..tasks import TASKS
from ..training.arguments import DataArguments, ModelArguments, augmentation_of, check_task
from ..training.build import build_trainer, use_cached_features
from ..training.columns import choose_columns
from ..training.hyperparameter_search import check_search, is_interrupted
from ..training.presets import EVALUATION, choices_table, choose_defaults, is_sharded
from ..training.retrieval_trainer import RetrievalTrainer
from ..training.smoothing import check_smoothing
from ..training.splits import Splits, known_labels, known_processor, load_splits, num_video_frames
from ..training.time_limit import Clock, TimeLimitCallback
from ..training.trainable import trainable_parameters
from ..training.trainer import MMTrainer
from .arguments import MMParser
from .assembly import Arguments, assemble, search, with_adapters
from .verbs import TRAIN

logger = logging.getLogger(__name__)


def resume_path(args: TrainingArguments, is_searching: bool) -> str | None:
    """The checkpoint to resume from: a path, or the newest complete one in the output folder for "true" or "last".

    Args:
        is_searching: a search was interrupted, perhaps before the first checkpoint.

    Raises:
        ValueError: there is no such checkpoint.
    """
    source = args.resume_from_checkpoint
    if source is None or str(source).lower() == "false":
        return None
    path = last_checkpoint(str(args.output_dir)) if str(source).lower() in ("true", "last") else str(source)
    if path is None and is_searching:
        return None
    if path is None or not Path(path, "trainer_state.json").is_file():
        raise ValueError(f"no complete checkpoint to resume from in '{path or args.output_dir}'")
    return path


def check_training(data: DataArguments, args: TrainingArguments) -> None:
    """Refuse arguments of the library's trainer that would silently have no or another effect here.

    Raises:
        ValueError: names the flag.
    """
    check_smoothing(data.task, args.label_smoothing_factor)
    if args.push_to_hub:
        raise ValueError(
            "--push_to_hub would upload unverified checkpoints; train first, then run: modeling-mm push "
            f"--model {args.output_dir} --repo_id USER/NAME"
        )
    if data.packing and (args.torch_compile or is_sharded(args)):
        raise ValueError(
            "--packing works neither with --torch_compile nor with FSDP or DeepSpeed; leave out one of them"
        )
    if data.early_stopping_patience is None:
        return
    if data.early_stopping_patience < 1:
        raise ValueError(f"--early_stopping_patience is {data.early_stopping_patience}; expected 1 or more")
    if not args.load_best_model_at_end:
        raise ValueError(
            "--early_stopping_patience needs to restore the best checkpoint; give --load_best_model_at_end true, "
            "--eval_strategy and --save_strategy (both epoch, or both steps) and --metric_for_best_model"
        )


def read_rows(model_args: ModelArguments, data_args: DataArguments, seed: int) -> Splits:
    """Read and check the rows, with labels, limits and markers of the model to continue from, or of a new one."""
    known = known_processor(model_args.model)
    data_args.max_seconds = data_args.max_seconds or (known.max_seconds if known else MAX_SECONDS)
    labels, num_frames = known_labels(model_args.model, data_args.task), num_video_frames(model_args)
    table = None if known is None else known.table_columns or []
    return load_splits(data_args, seed, labels, num_frames, media_markers(known), table)


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Run the verb; returns its results on the first process."""
    parser = MMParser((*TRAIN, TrainingArguments), prog="modeling-mm train")
    defaults, model_args, data_args, retrieval_args, args = parser.parse(argv)
    output = Path(args.output_dir)
    goes_on = defaults.search > 0 and is_interrupted(output)
    checkpoint = resume_path(args, goes_on)
    clock = command_clock(defaults.time_limit, output, goes_on or checkpoint is not None)
    set_seed(args.seed)
    columns = choose_columns(model_args, data_args, args.process_index == 0)
    check_task(model_args, data_args)
    check_training(data_args, args)
    check_search(defaults, model_args, data_args, args)
    augmentation_of(data_args, args.seed)  # refuses bad values before the rows are read
    splits = read_rows(model_args, data_args, args.seed)
    preset, choices = choose_defaults(defaults, model_args, data_args, retrieval_args, args, splits, parser.explicit)
    if args.process_index == 0 and choices:
        print(choices_table(preset, choices))
    arguments = Arguments(defaults, model_args, data_args, retrieval_args, args)
    found = search(arguments, splits, parser.explicit, clock) if defaults.search else None
    choices += found.choices if found else []
    checkpoint = None if found and found.has_run else checkpoint  # of other values, perhaps
    model, collator = assemble(arguments, splits, found.processor if found else None)
    model = with_adapters(model, collator, splits, arguments)
    if not any((counts := trainable_parameters(model)).values()):
        raise ValueError("every part is frozen; train one by --fusion_trainable, --text_trainable, ... or --use_peft")
    logger.warning(f"trainable parameters: {counts}")
    if splits.stream is not None:
        prepare_stream(splits.stream, collator, args, retrieval_args.contrastive_batch_size)
    callback = time_limit_callback(clock, splits, data_args, parser.explicit, args.seed, found.used if found else 0.0)
    rest = (splits, collator, data_args, retrieval_args, callback, defaults.muon_learning_rate, model_args)
    trainer = build_trainer(model, args, *rest)
    if data_args.cache_features is not None:
        use_cached_features(trainer, splits, Path(data_args.cache_features), data_args.cache_dtype)
    if trainer.data_collator.augmentation is not None and trainer.is_world_process_zero():
        draw_augmented(splits.train, trainer.data_collator, output / "augmented.png")
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = round(time.perf_counter() - started, 1)
    if data_args.calibrate:
        base = output / BASE if model_args.use_peft else None
        calibrate(trainer, data_args.task, retrieval_args.rerank or CANDIDATES, base)
    trainer.save_model()
    report = {"train_seconds": seconds, "train_rows": len(splits.train), **training_figures(trainer)}
    if isinstance(trainer, RetrievalTrainer):
        report |= evaluate_retrieval(trainer, splits.test or splits.validation, retrieval_args.rerank, output)
        report |= {"evaluated_on": "test" if splits.test else "validation"}
    else:
        report |= final_evaluation(trainer, data_args.task, splits, output, data_args.baselines)
    report |= {"skipped_rows": len(splits.bad_rows()) + report.get("skipped_rows", 0), "output_dir": str(output)}
    if not trainer.is_world_process_zero():
        return None
    write_bad_rows(splits.bad_rows(), output)
    chosen = {choice.name: {"value": choice.value, "why": choice.reason} for choice in choices}
    more = {**columns, "preset": preset, "defaults": chosen, **({"search": found.report} if found else {})}
    write_history(trainer.state.log_history, report | more, output)
    summary = {"search_summary": found.summary() if found else None}
    write_card(output, model, report, {**vars(model_args), **vars(data_args), **summary}, argv)
    if not TASKS[data_args.task].embeds:
        show_examples(splits.test or splits.validation, output)
    return report


def command_clock(limit: float | None, output: Path, resumed: bool) -> Clock | None:
    """The clock of the command, if it has a time limit."""
    return None if limit is None else Clock(limit, output, resumed)


def time_limit_callback(
    clock: Clock | None, splits: Splits, data: DataArguments, explicit: Collection[str], seed: int, before: float
) -> TimeLimitCallback | None:
    """The callback that keeps training within the limit, with an estimate of the evaluations that follow it.

    Args:
        clock: of the limit; None without one.
        seed: draws the rows that baselines are fitted to, if they are many.
        before: seconds that a search had used before the training.
    """
    if clock is None:
        return None
    validation = len(splits.validation)
    evaluated = 2 * len(splits.test or splits.validation) + (validation if data.calibrate else 0)
    if data.baselines and splits.stream is None:
        evaluated += num_fitted_rows(data.task, splits.train, splits.validation, seed)
    return TimeLimitCallback(clock, evaluated / validation, not set(EVALUATION) & set(explicit), before)


def prepare_stream(
    stream: MMStream, collator: MMCollator, args: TrainingArguments, contrastive_batch_size: int | None
) -> None:
    """Set the stream's limit of row length, and `max_steps` from the number of epochs.

    Raises:
        ValueError: the number of rows is unknown.
    """
    stream.background = collator.processor.image_background
    if TASKS[collator.task].generates:
        stream.too_long = collator.length_complaint
    if args.max_steps > 0:
        return
    rows = stream.known_rows = stream.known_rows or stream.shards.count_rows()
    if rows is None:
        raise ValueError(
            f"the number of rows of '{stream.source}' is not known before they are read; give --max_steps"
        )
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    args.max_steps = math.ceil(args.num_train_epochs * rows / (contrastive_batch_size or rows_per_step))


def training_figures(trainer: MMTrainer) -> dict[str, Any]:
    """Results for the report of a training on a stream, or of one that had a fitted start; empty for others."""
    if trainer.loader is None:
        return trainer.warm_start.report()
    state, args = trainer.state, trainer.args
    rows = state.global_step * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    last = next(log for log in reversed(state.log_history) if "train_loss" in log)
    return {"train_rows": rows, **{name: last[name] for name in ("rows_per_second", "skipped_rows")}}


def write_history(history: list[dict[str, float]], report: dict[str, Any], output: Path) -> None:
    """Write curves.png and report.json, which holds the report and all logged training losses."""
    figures.draw_curves(history, output / "curves.png")
    losses = {"loss_history": [log["loss"] for log in history if "loss" in log]}
    (output / "report.json").write_text(json.dumps(report | losses, indent=2), encoding="utf-8")


def show_examples(dataset: MMDataset, output: Path, count: int = 3) -> None:
    """Print the model's answers for a few rows about one image, and how to use the model."""
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    group = max(dataset.groups(), key=len)
    row, rows = dataset.row(dataset.kept[group[0]]), group
    if row.turns:  # a line for each answer
        rows = [i for i, (index, _) in enumerate(AnswerTurns(dataset).places) if index == group[0]]
    kind, media = ("Video", row.videos) if row.videos and not row.images else ("Image", row.images)
    print(f"\n{kind}: {media[0].path or '(embedded)'}" if media else "")
    by_truth = {format_answer(line["truth"]): line for line in (json.loads(lines[i]) for i in rows)}
    for line in list(by_truth.values())[:count]:
        text = " | ".join(line["text"].splitlines())
        print(f"  {text}  ->  {format_answer(line['prediction'])}  (truth: {format_answer(line['truth'])})")
    print(f"\nLoad the model in Python as in {output / 'README.md'}, or ask it more:")
    flags = "--video VIDEO" if kind == "Video" else "--image IMAGE --explain look.png" if media else ""
    flags = f"{flags} --table '{json.dumps(row.table)}'".strip() if row.table else flags
    texts = dataset.reader.names["text"]
    text = f"$'{joined_text(dict.fromkeys(texts, '...'))}'".replace("\n", r"\n") if len(texts) > 1 else '"..."'
    flags += f" --text {text}" if texts else ""
    print(f"  modeling-mm predict --model {output} {flags}\n")


def calibrate(trainer: MMTrainer, task: str, candidates: int, base: Path | None) -> None:
    """Fit the temperature of classes, or the weight of the matching head, on validation rows; sets it in the config
    and in that of an adapter's base."""
    config = trainer.accelerator.unwrap_model(trainer.model).config
    if isinstance(trainer, RetrievalTrainer):
        config.rerank_weight = rerank_weight(trainer, trainer.eval_dataset, candidates)
        logger.warning(f"weight of the matching head in reranking: {config.rerank_weight:.4g}")
    else:
        evaluation = evaluate_rows(trainer, task, trainer.eval_dataset)
        config.calibration_temperature = fit_temperature(task, evaluation.logits, evaluation.label_ids)
        logger.warning(f"calibration temperature: {config.calibration_temperature:.4g}")
    if base is not None and trainer.is_world_process_zero():
        config.save_pretrained(base)


def final_evaluation(trainer: MMTrainer, task: str, splits: Splits, output: Path, baselines: bool) -> dict[str, Any]:
    """Metrics on the test rows, or on the validation rows if there are none; once with and once without media, and
    beside those of simple baselines."""
    dataset: Any = splits.test or splits.validation
    metric = TASKS[task].main_metric
    dataset = evaluation_rows(dataset, trainer.args.seed)
    evaluation = evaluate_rows(trainer, task, dataset)
    trainer.eval_collator.blind = True
    try:
        blind = evaluate_rows(trainer, task, dataset).metrics[metric]
    except ValueError as error:  # rows without text would be empty
        logger.warning(f"no blind {metric}: {error}")
        blind = None
    trainer.eval_collator.blind = False
    if trainer.is_world_process_zero():
        write_predictions(dataset, evaluation, output / "predictions.jsonl")
        draw_examples(dataset, evaluation, output / "samples.png")
    share: dict[str, Any] = {"evaluated_on": "test" if splits.test else "validation", "evaluated_rows": len(dataset)}
    if baselines and trainer.is_world_process_zero():
        share["baselines"] = baseline_results(trainer, task, splits, dataset, evaluation)
    return {**evaluation.metrics, f"blind_{metric}": blind, **share, **scores_by_turn(dataset, evaluation)}


def baseline_results(
    trainer: MMTrainer, task: str, splits: Splits, dataset: Any, evaluation: Evaluation
) -> dict[str, Any]:
    """The scores of simple baselines on the evaluated rows, beside the model's."""
    if splits.stream is not None or trainer.is_fsdp_enabled:
        kind = "a stream" if splits.stream is not None else "a sharded model"
        return {"table": [], "verdict": f"Simple baselines are not fitted for {kind}."}
    head = trainer.accelerator.unwrap_model(trainer.model)
    base = without_adapters(head).base_model
    towers = {part: getattr(base, part) for part in ("vision_tower", "audio_tower", "text_model")}
    towers = {part: tower for part, tower in towers.items() if tower is not None}
    trained = [part for part, tower in towers.items() if any(p.requires_grad for p in tower.parameters())]
    datasets = Parts(splits.train, splits.validation, dataset)
    return score_baselines(trainer, task, datasets, evaluation, splits.train.labels, trained)
