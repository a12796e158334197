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
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments, ViTImageProcessorPil, set_seed

from . import figures, scratch
from .adapters_mm import gates_are_closed
from .arguments import MMParser
from .calibration import fit_temperature
from .card import write_card
from .checkpoint import BASE, TASKS, last_checkpoint, load_checkpoint, read_config, task_of
from .collator import MMCollator
from .compose import add_video
from .data import Columns, MMDataset
from .evaluate import draw_some, evaluate_rows, write_bad_rows, write_predictions
from .matching import MatchingPairs
from .metrics import MAIN, compute_metrics_for, in_words
from .processing_mm import MMProcessor
from .tables import read_table
from .targets import COLUMNS, head_options, known_names
from .trainer import MMTrainer, freeze_unused, set_trainable, trainable_parameters

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """What the model is made of and which parts train."""

    model: str | None = field(default=None, metadata={"help": "trained folder to go on from, in place of towers"})
    vision_tower: str | None = field(default=None, metadata={"help": "Hub id, folder, scratch-tiny or scratch-small"})
    text_model: str | None = field(default=None, metadata={"help": "Hub id, folder, scratch-tiny or scratch-small"})
    audio_tower: str | None = field(default=None, metadata={"help": "the same, for rows with sound; default: none"})
    fusion_layers: list[int] | None = field(default=None, metadata={"help": "text layers with fusion before them"})
    fusion_mlp: bool = field(default=True, metadata={"help": "gated MLP in each fusion layer"})
    num_latents: int | None = field(default=None, metadata={"help": "slots per picture after a resampler"})
    num_frames: int | None = field(default=None, metadata={"help": "frames taken of a video; default: takes no video"})
    late_fusion: str | None = field(
        default=None,
        metadata={
            "help": "join pooled embeddings, in place of cross-attention or beside it",
            "choices": ["concat", "sum", "weighted", "gated", "product"],
        },
    )
    cross_attention: bool | None = field(default=None, metadata={"help": "default: only without late fusion"})
    vision_trainable: bool | None = field(default=None, metadata={"help": "default: only a scratch tower trains"})
    audio_trainable: bool | None = field(default=None, metadata={"help": "default: only a scratch tower trains"})
    fusion_trainable: bool = True
    text_trainable: bool | None = field(default=None, metadata={"help": "default: only a scratch backbone trains"})
    use_peft: bool = field(default=False, metadata={"help": "LoRA; other parts that train do so in full"})
    lora_parts: list[str] = field(
        default_factory=lambda: ["text"], metadata={"help": "parts with LoRA: text, fusion, vision or all"}
    )
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0


@dataclass
class DataArguments:
    """Where the rows are and what their columns mean."""

    task: str = field(default="generation", metadata={"help": "what to learn", "choices": list(TASKS)})
    train_file: str | None = field(default=None, metadata={"help": "CSV, TSV, JSONL or Parquet file, or a folder"})
    validation_file: str | None = field(default=None, metadata={"help": "default: rows held out of training"})
    test_file: str | None = field(default=None, metadata={"help": "evaluated once, after training"})
    dataset: str | None = field(default=None, metadata={"help": "data set name, or easy-vqa, in place of files"})
    test_split: str | None = field(default=None, metadata={"help": "split of the data set to evaluate after training"})
    image_column: str = "image"
    text_column: str = "text"
    label_column: str | None = field(
        default=None,
        metadata={"help": "default: answer of a generation, else label; a,b for two numbers; a matching needs none"},
    )
    class_weights: str | None = field(
        default=None,
        metadata={"help": "balanced: rare classes count as much as frequent ones", "choices": ["balanced"]},
    )
    calibrate: bool = field(default=False, metadata={"help": "fit a temperature to the validation rows"})
    audio_column: str = field(default="", metadata={"help": "column with sound, for instance audio; default: none"})
    video_column: str = field(default="", metadata={"help": "column with videos, for instance video; default: none"})
    validation_share: float = field(default=0.1, metadata={"help": "held out of training without a validation file"})
    group_by_image: bool = field(default=False, metadata={"help": "keep the rows about one picture in one batch"})
    max_length: int = field(default=512, metadata={"help": "tokens per row at most"})
    max_new_tokens: int = field(default=32, metadata={"help": "longest generated answer in evaluation"})
    max_seconds: float = field(default=30.0, metadata={"help": "of a sound that are used; twice as long is refused"})
    on_bad_row: str = field(default="stop", metadata={"help": "stop or skip", "choices": ["stop", "skip"]})


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


def frames_of(args: ModelArguments) -> int | None:
    """How many frames of a video the model will take: those asked for, or those that the model to go on from takes."""
    if args.num_frames is not None or args.model is None:
        return args.num_frames
    return read_config(args.model if not Path(args.model, BASE).is_dir() else str(Path(args.model, BASE))).num_frames


def load_splits(
    data: DataArguments, seed: int, labels: list[str] | None = None, num_frames: int | None = None
) -> Splits:
    """Read and check all rows before anything is trained; `labels` are those a trained model already has.

    Raises:
        ValueError: no source or two of them, a missing column, a bad row.
    """
    if (data.train_file is None) == (data.dataset is None):
        raise ValueError("give either --train_file or --dataset")
    target = data.label_column or COLUMNS[data.task]
    columns = Columns(data.image_column, data.text_column, target, data.audio_column, data.video_column)
    skip = data.on_bad_row == "skip"

    def read(source: str, split: str, labels: list[str] | None) -> MMDataset:
        dataset = MMDataset(source, *read_table(source, split), columns, labels, task=data.task)
        return dataset.check(skip, max_seconds=data.max_seconds, num_frames=num_frames)

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
        if task_of(model) != data.task:
            raise ValueError(f"'{args.model}' was not trained for {data.task} but for {task_of(model)}")
        if args.num_frames is not None:
            add_video(model, processor, args.num_frames)
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
        tokenizer = scratch.train_tokenizer(words, text, args.audio_tower is not None, args.num_frames is not None)
        text = scratch.text_config(text, tokenizer, decoder=data.task == "generation")
    audio: Any = args.audio_tower
    if audio in scratch.SIZES:
        audio, extractor = scratch.audio_config(audio), scratch.feature_extractor(data.max_seconds)
    sources = (image_processor or vision, tokenizer or text, extractor or audio)
    processor = MMProcessor.from_towers(*sources, max_seconds=data.max_seconds, num_frames=args.num_frames)
    options |= {"fusion_mlp": args.fusion_mlp, "num_latents": args.num_latents, "num_frames": args.num_frames}
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


def lora_pattern(model: PreTrainedModel, args: ModelArguments) -> str:
    """The layers that `--lora_parts` asks for.

    Raises:
        ValueError: a part that the model lacks, or a fusion in which LoRA could not learn.
    """
    parts = [part for word in args.lora_parts for part in word.split(",")]
    if {"fusion", "all"} & set(parts) and gates_are_closed(model):
        raise ValueError(
            f"--lora_parts {' '.join(parts)} puts LoRA into a fusion whose gates are still zero, where it cannot "
            "learn; leave the fusion out, so that it trains in full, or go on from a trained --model"
        )
    return model.lora_targets(*parts)


def add_lora(model: PreTrainedModel, args: ModelArguments, targets: str, output: Path) -> PreTrainedModel:
    """LoRA on the target layers; other parts that train, do so in full and are saved with it.

    The adapter is to be loaded over the composed base in `output/base`.
    """
    from peft import LoraConfig, get_peft_model

    def hold(names: Iterable[str], part: str) -> bool:
        return any(f".{part}." in f".{name}" for name in names)

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapted = [name for name, _ in model.named_modules() if re.fullmatch(targets, name)]
    whole = ("fusion", "vision_tower", "audio_tower", "late_fusion", "classifier")
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        modules_to_save=[part for part in whole if hold(trained, part) and not hold(adapted, part)],
    )
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        # peft would train all of a part, with what does not reach the loss
        if ".modules_to_save." in name:
            own = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            parameter.requires_grad_(own in trained)
    # get_peft_model has put the name of a model that has none there
    config.base_model_name_or_path = str((output / BASE).resolve())
    return wrapped


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
    labels, num_frames = known_labels(model_args.model, data_args.task), frames_of(model_args)
    splits = load_splits(data_args, args.seed, labels, num_frames)
    model, processor = build_model(model_args, data_args, splits.train)
    choose_trainable(model, model_args)
    matches = data_args.task == "matching"
    collator = MMCollator(processor, data_args.task, data_args.max_length)
    for split in filter(None, (splits.train, splits.validation, splits.test)):
        collator.check_lengths(split, data_args.on_bad_row == "skip")
    collator.negatives_seed = args.seed if matches else None
    if unused := freeze_unused(model, collator(rows_with_media(splits.train))):
        logger.warning(f"{len(unused)} parameters do not reach the loss and stay as they are: {', '.join(unused[:8])}")
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
        data_collator=collator,
        eval_collator=MMCollator(processor, data_args.task, data_args.max_length, with_prompts=generates),
        compute_metrics=compute_metrics_for(processor.tokenizer, splits.train.labels, data_args.task),
        group_by_image=data_args.group_by_image,
        max_new_tokens=data_args.max_new_tokens,
    )
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
    figures.draw_curves(trainer.state.log_history, output / "curves.png")
    losses = {"loss_history": [log["loss"] for log in trainer.state.log_history if "loss" in log]}
    (output / "report.json").write_text(json.dumps(report | losses, indent=2), encoding="utf-8")
    write_card(output, model, report, {**vars(model_args), **vars(data_args)}, argv)
    show_some(splits.test or splits.validation, output)
    return report


def rows_with_media(dataset: MMDataset) -> list[Any]:
    """A first row with a picture, one with sound and one with video, where there are any: of rows without, fusion and
    towers would seem unused."""
    media = [dataset.row(number).media for number in dataset.kept]
    firsts = [next((i for i, own in enumerate(media) if own[kind]), None) for kind in range(3)]
    return [dataset[index] for index in dict.fromkeys(i for i in firsts if i is not None)] or [dataset[0]]


def show_some(dataset: MMDataset, output: Path, count: int = 3) -> None:
    """Print what the model says to a few rows about one picture, and how to open it."""
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = max(dataset.groups(), key=len)
    row = dataset.row(dataset.kept[rows[0]])
    kind, media = ("Video", row.videos) if row.videos and not row.images else ("Picture", row.images)
    print(f"\n{kind}:", media[0] if media and isinstance(media[0], str) else "(embedded)")
    by_truth = {in_words(said["truth"]): said for said in (json.loads(lines[i]) for i in rows)}
    for said in list(by_truth.values())[:count]:
        print(f"  {said['text']}  ->  {in_words(said['prediction'])}  (truth: {in_words(said['truth'])})")
    print(f"\nOpen it in Python, as in {output / 'README.md'}, or ask it more:")
    asked = "--video VIDEO" if kind == "Video" else "--image PICTURE --explain look.png"
    print(f'  modeling-mm predict --model {output} {asked} --text "..."\n')


def check_task(model: ModelArguments, data: DataArguments) -> None:
    """Refuse what the task has no use for, before any row is read.

    Raises:
        ValueError: names the flag.
    """
    if data.task == "generation" and (model.late_fusion or model.cross_attention is False):
        raise ValueError("--late_fusion is for tasks with a label; a generation needs cross-attention")
    if data.calibrate and data.task in ("generation", "regression"):
        raise ValueError(f"--calibrate makes probabilities honest, but a {data.task} gives none")
    if (model.audio_tower is None) != (data.audio_column == "") and model.model is None:
        raise ValueError("sound needs both: --audio_column for where it is and --audio_tower for who hears it")
    if (model.num_frames is None) != (data.video_column == "") and model.model is None:
        raise ValueError(
            "video needs both: --video_column for where it is and --num_frames for how much of it is seen"
        )
    if model.model is not None and (model.late_fusion or model.cross_attention is not None):
        raise ValueError("--late_fusion and --cross_attention are for new models; that of --model keeps its own")


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
