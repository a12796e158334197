# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm train`: from a table of pictures and texts to a trained folder that `AutoModel` loads.

modeling-mm train --config recipes/easy_vqa.yaml
modeling-mm train --task classification --train_file t.csv --vision_tower scratch-tiny --text_model scratch-tiny \
    --output_dir runs/mine --num_train_epochs 10

The folder holds model, processor and code, curves.png, samples.png, report.json and a model card. Every argument of
`TrainingArguments` works. Two processes on CPUs: torchrun --nproc_per_node 2 -m modeling_mm.cli train ... --use_cpu
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments, ViTImageProcessorPil, set_seed

from . import figures, scratch
from .arguments import MMParser
from .audio_mm import MAX_SECONDS, window_seconds
from .calibration import fit_temperature
from .card import write_card
from .checkpoint import BASE, TASKS, last_checkpoint, load_checkpoint, read_config, task_of
from .collator import MMCollator
from .contact_sheet import draw_augmented
from .data import Columns, MMDataset
from .evaluate import draw_some, evaluate_rows, write_bad_rows, write_predictions
from .lora import add_lora, lora_pattern
from .matching import MatchingPairs
from .metrics import MAIN, compute_metrics_for, in_words
from .processing_mm import MMProcessor
from .tables import read_table
from .targets import COLUMNS, head_options, known_names
from .train_arguments import DataArguments, ModelArguments, augmentation_of, check_task
from .trainer import MMTrainer, freeze_unused, set_trainable, trainable_parameters

logger = logging.getLogger(__name__)


@dataclass
class Splits:
    """The data sets of a run; `test` may be absent."""

    train: MMDataset
    validation: MMDataset
    test: MMDataset | None = None

    def bad_rows(self) -> list[dict[str, Any]]:
        return [bad for split in (self.train, self.validation, self.test) if split for bad in split.bad_rows]


def known_labels(source: str | None, task: str) -> list[str] | None:
    """The labels of the model to go on from, in the order of its classifier; None without one."""
    if source is None or task == "generation":
        return None
    config = read_config(source if not Path(source, BASE).is_dir() else str(Path(source, BASE)))
    return [config.id2label[i] for i in range(config.num_labels)]


def seconds_heard(source: str | None) -> float:
    """How much of a sound the model to go on from hears, or a new one does."""
    if source is None:
        return MAX_SECONDS
    folder = Path(source, BASE)
    return MMProcessor.from_pretrained(str(folder) if folder.is_dir() else source).max_seconds


def load_splits(data: DataArguments, seed: int, labels: list[str] | None = None) -> Splits:
    """Read and check all rows before anything is trained; `labels` are those a trained model already has.

    Raises:
        ValueError: no source or two of them, a missing column, a bad row.
    """
    if (data.train_file is None) == (data.dataset is None):
        raise ValueError("give either --train_file or --dataset")
    target = data.label_column or COLUMNS[data.task]
    columns = Columns(data.image_column, data.text_column, target, data.audio_column)
    skip = data.on_bad_row == "skip"

    def read(source: str, split: str, labels: list[str] | None) -> MMDataset:
        dataset = MMDataset(source, *read_table(source, split), columns, labels, task=data.task)
        return dataset.check(skip, max_seconds=data.max_seconds or MAX_SECONDS)

    train = read(data.train_file or str(data.dataset), "train", labels)
    if labels is None:
        train.labels = known_names(data.task, train.targets(), columns.target, train.source)
    test = None
    if data.test_file is not None:
        test = read(data.test_file, "test", train.labels)
    elif data.test_split is not None and data.dataset is None:
        raise ValueError("--test_split names a split of --dataset; for a file give --test_file")
    elif data.test_split is not None:
        test = read(train.source, data.test_split, train.labels)
    if data.validation_file is not None:
        return Splits(train, read(data.validation_file, "validation", train.labels), test)
    bad_rows = train.bad_rows
    rest, held = train.hold_out(data.validation_share, seed)
    rest.bad_rows = bad_rows
    return Splits(rest, held, test)


def build_model(args: ModelArguments, data: DataArguments, train: MMDataset) -> tuple[PreTrainedModel, MMProcessor]:
    """The model to train and its processor: a trained folder's, or composed from towers, in float32.

    Raises:
        ValueError: towers are missing, or given beside a model.
    """
    balanced = data.class_weights == "balanced"
    options = head_options(data.task, train.labels, train.targets(), balanced, train.source)
    if args.model is not None:
        if args.vision_tower or args.text_model or args.audio_tower:
            raise ValueError("give either --model or the towers")
        model, processor = load_checkpoint(args.model, dtype=torch.float32)
        processor.max_seconds = data.max_seconds or processor.max_seconds
        if task_of(model) != data.task:
            raise ValueError(f"'{args.model}' was not trained for {data.task} but for {task_of(model)}")
        # the labels and their scale stay, what this run's rows and flags say of the loss does not
        model.config.class_weights, model.config.calibration_temperature = options.get("class_weights"), None
        return model, processor
    if args.vision_tower is None or args.text_model is None:
        raise ValueError("give --vision_tower and --text_model (ids, folders or scratch-tiny), or --model")
    vision: Any = args.vision_tower
    text: Any = args.text_model
    image_processor = tokenizer = extractor = None
    if vision in scratch.SIZES:
        side = scratch.SIZES[vision]["image_size"]
        image_processor = ViTImageProcessorPil(size={"height": side, "width": side})
        vision = scratch.vision_config(vision)
    if text in scratch.SIZES:
        rows = [train.row(number) for number in train.kept]
        words = [in_words(part) for r in rows for part in (r.text, r.target) if part is not None]
        tokenizer = scratch.train_tokenizer(words, text, args.audio_tower is not None)
        text = scratch.text_config(text, tokenizer, decoder=data.task == "generation")
    audio: Any = args.audio_tower
    if audio in scratch.SIZES:
        audio, extractor = scratch.audio_config(audio), scratch.feature_extractor(data.max_seconds or MAX_SECONDS)
    processor = MMProcessor.from_towers(
        image_processor or vision, tokenizer or text, extractor or audio, max_seconds=data.max_seconds or MAX_SECONDS
    )
    options |= {"fusion_mlp": args.fusion_mlp, "num_latents": args.num_latents}
    options |= {"late_fusion": args.late_fusion, "cross_attention": args.cross_attention}
    if args.fusion_layers is not None:
        options["fusion_layers"] = args.fusion_layers
    model = TASKS[data.task].from_towers(vision, text, audio, processor=processor, dtype=torch.float32, **options)
    return model, processor


def choose_trainable(model: PreTrainedModel, args: ModelArguments) -> None:
    """Freeze and train the parts as asked; a part that is not mentioned trains when it is new."""
    vision = args.vision_tower in scratch.SIZES if args.vision_trainable is None else args.vision_trainable
    text = args.text_model in scratch.SIZES if args.text_trainable is None else args.text_trainable
    audio = args.audio_tower in scratch.SIZES if args.audio_trainable is None else args.audio_trainable
    set_trainable(model, vision, args.fusion_trainable, text, audio)


def resume_path(args: TrainingArguments) -> str | None:
    """The checkpoint to resume from: a path, or the newest complete one in the output folder for "true" or "last".

    Raises:
        ValueError: there is no such checkpoint.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    path = last_checkpoint(str(args.output_dir)) if str(wanted).lower() in ("true", "last") else str(wanted)
    if path is None or not Path(path, "trainer_state.json").is_file():
        raise ValueError(f"no complete checkpoint to resume from in '{path or args.output_dir}'")
    return path


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Run the verb; returns its results on the first process."""
    parser = MMParser((ModelArguments, DataArguments, TrainingArguments), prog="modeling-mm train")
    model_args, data_args, args = parser.parse(argv)
    output = Path(args.output_dir)
    checkpoint = resume_path(args)
    set_seed(args.seed)
    check_task(model_args, data_args)
    augmentation = augmentation_of(data_args, args.seed)
    data_args.max_seconds = data_args.max_seconds or seconds_heard(model_args.model)
    splits = load_splits(data_args, args.seed, known_labels(model_args.model, data_args.task))
    model, processor = build_model(model_args, data_args, splits.train)
    choose_trainable(model, model_args)
    window = None if processor.audio is None else window_seconds(processor.audio)
    if window is not None and window < data_args.max_seconds:
        logger.warning(f"the audio tower hears {window:.4g} s of a sound; of longer ones the rest is not used")
    matches = data_args.task == "matching"
    collator = MMCollator(processor, data_args.task, data_args.max_length)
    for split in filter(None, (splits.train, splits.validation, splits.test)):
        collator.check_lengths(split, data_args.on_bad_row == "skip")
    collator.negatives_seed = args.seed if matches else None
    if unused := freeze_unused(model, collator(rows_with_media(splits.train))):
        logger.warning(f"{len(unused)} parameters do not reach the loss and stay as they are: {', '.join(unused[:8])}")
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # none is left, and the search would cost a pass over the graph
    if model_args.use_peft:
        targets = lora_pattern(model, model_args)
        if args.should_save:
            model.save_pretrained(output / BASE)
            processor.save_pretrained(output / BASE)
        model = add_lora(model, model_args, targets, output)
    if not any((counts := trainable_parameters(model)).values()):
        raise ValueError("every part is frozen; train one by --fusion_trainable, --text_trainable, ... or --use_peft")
    logger.warning(f"trainable parameters: {counts}")
    generates = data_args.task == "generation"
    trainer = MMTrainer(
        model=model,
        args=args,
        train_dataset=splits.train,
        eval_dataset=MatchingPairs(splits.validation, args.seed) if matches else splits.validation,
        processing_class=processor,
        data_collator=replace(collator, augmentation=augmentation),
        eval_collator=MMCollator(processor, data_args.task, data_args.max_length, with_prompts=generates),
        compute_metrics=compute_metrics_for(processor.tokenizer, splits.train.labels, data_args.task),
        group_by_image=data_args.group_by_image,
        max_new_tokens=data_args.max_new_tokens,
    )
    if augmentation is not None and trainer.is_world_process_zero():
        draw_augmented(splits.train, trainer.data_collator, output / "augmented.png")
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = round(time.perf_counter() - started, 1)
    if data_args.calibrate:
        calibrate(trainer, data_args.task, output / BASE if model_args.use_peft else None)
    trainer.save_model()
    report: dict[str, Any] = {"train_seconds": seconds, "train_rows": len(splits.train)}
    report |= final_evaluation(trainer, data_args.task, splits, output)
    report |= {"skipped_rows": len(splits.bad_rows()), "output_dir": str(output)}
    if not trainer.is_world_process_zero():
        return None
    write_bad_rows(splits.bad_rows(), output)
    write_history(trainer.state.log_history, report, output)
    write_card(output, model, report, {**vars(model_args), **vars(data_args)}, argv)
    show_some(splits.test or splits.validation, output)
    return report


def write_history(history: list[dict[str, float]], report: dict[str, Any], output: Path) -> None:
    """curves.png and report.json, which holds the report and the loss of each step that was logged."""
    figures.draw_curves(history, output / "curves.png")
    losses = {"loss_history": [log["loss"] for log in history if "loss" in log]}
    (output / "report.json").write_text(json.dumps(report | losses, indent=2), encoding="utf-8")


def rows_with_media(dataset: MMDataset) -> list[Any]:
    """A first row with a picture and a first one with sound, where there are any: of rows without, fusion and towers
    would seem unused."""
    rows = [dataset.row(number) for number in dataset.kept]
    image = next((i for i, row in enumerate(rows) if row.images), 0)
    audio = next((i for i, row in enumerate(rows) if row.audio), image)
    return [dataset[index] for index in dict.fromkeys((image, audio))]


def show_some(dataset: MMDataset, output: Path, count: int = 3) -> None:
    """Print what the model says to a few rows about one picture, and how to open it."""
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = max(dataset.groups(), key=len)
    picture = dataset.row(dataset.kept[rows[0]]).images
    print("\nPicture:", picture[0] if picture and isinstance(picture[0], str) else "(embedded)")
    by_truth = {in_words(said["truth"]): said for said in (json.loads(lines[i]) for i in rows)}
    for said in list(by_truth.values())[:count]:
        print(f"  {said['text']}  ->  {in_words(said['prediction'])}  (truth: {in_words(said['truth'])})")
    print(f"\nOpen it in Python, as in {output / 'README.md'}, or ask it more:")
    print(f'  modeling-mm predict --model {output} --image PICTURE --text "..." --explain look.png\n')


def calibrate(trainer: MMTrainer, task: str, base: Path | None) -> None:
    """Put the temperature that fits the validation rows into the config, and into that of an adapter's base."""
    evaluation = evaluate_rows(trainer, task, trainer.eval_dataset)
    config = trainer.accelerator.unwrap_model(trainer.model).config
    config.calibration_temperature = fit_temperature(task, evaluation.logits, evaluation.label_ids)
    logger.warning(f"calibration temperature: {config.calibration_temperature:.4g}")
    if base is not None and trainer.is_world_process_zero():
        config.save_pretrained(base)


def final_evaluation(trainer: MMTrainer, task: str, splits: Splits, output: Path) -> dict[str, Any]:
    """Metrics on the test set, or on validation without one, once with and once without the pictures."""
    dataset: Any = splits.test or splits.validation
    if task == "matching":
        dataset = MatchingPairs(dataset, trainer.args.seed)
    evaluation = evaluate_rows(trainer, task, dataset)
    trainer.eval_collator.blind = True
    try:
        blind = evaluate_rows(trainer, task, dataset).metrics[MAIN[task]]
    except ValueError as error:  # rows without any text have nothing left
        logger.warning(f"no blind {MAIN[task]}: {error}")
        blind = None
    trainer.eval_collator.blind = False
    if trainer.is_world_process_zero():
        write_predictions(dataset, evaluation, output / "predictions.jsonl")
        draw_some(dataset, evaluation, output / "samples.png")
    share = {"evaluated_on": "test" if splits.test else "validation", "evaluated_rows": len(dataset)}
    return {**evaluation.metrics, f"blind_{MAIN[task]}": blind, **share}
