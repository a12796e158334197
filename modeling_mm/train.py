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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments, ViTImageProcessorPil, set_seed

from . import figures, scratch
from .arguments import MMParser
from .card import write_card
from .checkpoint import BASE, TASKS, last_checkpoint, load_checkpoint, read_config
from .collator import MMCollator
from .data import Columns, MMDataset
from .evaluate import TARGETS, draw_some, predict_texts, write_bad_rows, write_predictions
from .metrics import compute_metrics_for
from .processing_mm import MMProcessor
from .tables import read_table
from .trainer import MMTrainer, freeze_unused, set_trainable, trainable_parameters

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """What the model is made of and which parts train."""

    model: str | None = field(default=None, metadata={"help": "trained folder to go on from, in place of towers"})
    vision_tower: str | None = field(default=None, metadata={"help": "Hub id, folder, scratch-tiny or scratch-small"})
    text_model: str | None = field(default=None, metadata={"help": "Hub id, folder, scratch-tiny or scratch-small"})
    fusion_layers: list[int] | None = field(default=None, metadata={"help": "text layers with fusion before them"})
    fusion_mlp: bool = field(default=True, metadata={"help": "gated MLP in each fusion layer"})
    num_latents: int | None = field(default=None, metadata={"help": "slots per picture after a resampler"})
    vision_trainable: bool | None = field(default=None, metadata={"help": "default: only a scratch tower trains"})
    fusion_trainable: bool = True
    text_trainable: bool | None = field(default=None, metadata={"help": "default: only a scratch backbone trains"})
    use_peft: bool = field(default=False, metadata={"help": "LoRA on the text backbone, fusion trained in full"})
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
    audio_column: str = field(default="", metadata={"help": "column with sound, for instance audio; default: none"})
    label_column: str | None = field(default=None, metadata={"help": "default: answer, or label of a classification"})
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


def known_labels(source: str | None) -> list[str] | None:
    """The labels of the model to go on from, in the order of its classifier; None without one."""
    if source is None:
        return None
    config = read_config(source if not Path(source, BASE).is_dir() else str(Path(source, BASE)))
    return [config.id2label[i] for i in range(config.num_labels)]


def load_splits(data: DataArguments, seed: int, labels: list[str] | None = None) -> Splits:
    """Read and check all rows before anything is trained; `labels` are those a trained model already has.

    Raises:
        ValueError: no source or two of them, a missing column, a bad row.
    """
    if (data.train_file is None) == (data.dataset is None):
        raise ValueError("give either --train_file or --dataset")
    target = data.label_column or TARGETS[data.task]
    columns = Columns(data.image_column, data.text_column, target, data.audio_column)
    skip = data.on_bad_row == "skip"

    def read(source: str, split: str, labels: list[str] | None) -> MMDataset:
        dataset = MMDataset(source, *read_table(source, split), columns, labels)
        return dataset.check(skip, max_seconds=data.max_seconds)

    labels = labels if data.task == "classification" else None
    train = read(data.train_file or str(data.dataset), "train", labels)
    if data.task == "classification" and labels is None:
        train.labels = sorted({str(train.row(number).target) for number in train.kept})
        if len(train.labels) < 2:
            raise ValueError(f"'{train.source}' has only the label '{train.labels[0]}'; expected at least two labels")
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
    if args.model is not None:
        if args.vision_tower or args.text_model:
            raise ValueError("give either --model or the two towers")
        model, processor = load_checkpoint(args.model, dtype=torch.float32)
        if not isinstance(model, TASKS[data.task]):
            raise ValueError(f"'{args.model}' was not trained for {data.task}")
        return model, processor
    if args.vision_tower is None or args.text_model is None:
        raise ValueError("give --vision_tower and --text_model (ids, folders or scratch-tiny), or --model")
    vision: Any = args.vision_tower
    text: Any = args.text_model
    image_processor = tokenizer = None
    if vision in scratch.SIZES:
        side = scratch.SIZES[vision]["image_size"]
        image_processor = ViTImageProcessorPil(size={"height": side, "width": side})
        vision = scratch.vision_config(vision)
    if text in scratch.SIZES:
        rows = [train.row(number) for number in train.kept]
        tokenizer = scratch.train_tokenizer([part for r in rows for part in (r.text, str(r.target))], text)
        text = scratch.text_config(text, tokenizer, decoder=data.task == "generation")
    processor = MMProcessor.from_towers(image_processor or vision, tokenizer or text)
    options: dict[str, Any] = {"fusion_mlp": args.fusion_mlp, "num_latents": args.num_latents}
    if args.fusion_layers is not None:
        options["fusion_layers"] = args.fusion_layers
    if data.task == "classification" and train.labels is not None:
        options["id2label"] = dict(enumerate(train.labels))
        options["label2id"] = {label: i for i, label in enumerate(train.labels)}
        options["problem_type"] = "single_label_classification"
    model = TASKS[data.task].from_towers(vision, text, processor=processor, dtype=torch.float32, **options)
    return model, processor


def choose_trainable(model: PreTrainedModel, args: ModelArguments) -> None:
    """Freeze and train the parts as asked; a part that is not mentioned trains when it is new."""
    vision = args.vision_tower in scratch.SIZES if args.vision_trainable is None else args.vision_trainable
    text = args.text_model in scratch.SIZES if args.text_trainable is None else args.text_trainable
    set_trainable(model, vision, args.fusion_trainable, text)


def add_lora(model: PreTrainedModel, args: ModelArguments, output: Path) -> PreTrainedModel:
    """LoRA on every linear layer of the text backbone; other parts that train, do so in full and are saved with it.

    The adapter is to be loaded over the composed base in `output/base`.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    modules = model.base_model.text_model.named_modules()
    whole = ("fusion", "vision_tower", "classifier")
    names = {name.rpartition(".")[2] for name, module in modules if isinstance(module, (torch.nn.Linear, Conv1D))}
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=rf"(.*\.)?text_model\..*\.({'|'.join(sorted(names))})",
        modules_to_save=[part for part in whole if any(f".{part}." in f".{name}" for name in trained)],
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
    splits = load_splits(data_args, args.seed, known_labels(model_args.model))
    model, processor = build_model(model_args, data_args, splits.train)
    choose_trainable(model, model_args)
    collator = MMCollator(processor, data_args.task, data_args.max_length)
    for split in filter(None, (splits.train, splits.validation, splits.test)):
        collator.check_lengths(split, data_args.on_bad_row == "skip")
    # with a picture where any row has one: of rows without, fusion and tower would seem unused
    rows = (splits.train[i] for i in range(len(splits.train)))
    first = next((row for row in rows if row.images), splits.train[0])
    if unused := freeze_unused(model, collator([first])):
        logger.warning(f"{len(unused)} parameters do not reach the loss and stay as they are: {', '.join(unused[:8])}")
    if model_args.use_peft:
        if args.should_save:
            model.save_pretrained(output / BASE)
            processor.save_pretrained(output / BASE)
        model = add_lora(model, model_args, output)
    logger.warning(f"trainable parameters: {trainable_parameters(model)}")
    generates = data_args.task == "generation"
    trainer = MMTrainer(
        model=model,
        args=args,
        train_dataset=splits.train,
        eval_dataset=splits.validation,
        processing_class=processor,
        data_collator=collator,
        eval_collator=MMCollator(processor, data_args.task, data_args.max_length, with_prompts=generates),
        compute_metrics=compute_metrics_for(processor.tokenizer, splits.train.labels),
        group_by_image=data_args.group_by_image,
        max_new_tokens=data_args.max_new_tokens,
    )
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = round(time.perf_counter() - started, 1)
    trainer.save_model()
    report = {"train_seconds": seconds, "train_rows": len(splits.train), **final_evaluation(trainer, splits, output)}
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


def show_some(dataset: MMDataset, output: Path, count: int = 3) -> None:
    """Print what the model says to a few rows about one picture, and how to open it."""
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = max(dataset.groups(), key=len)
    picture = dataset.row(dataset.kept[rows[0]]).images
    print("\nPicture:", picture[0] if picture and isinstance(picture[0], str) else "(embedded)")
    by_truth = {said["truth"]: said for said in (json.loads(lines[i]) for i in rows)}
    for said in list(by_truth.values())[:count]:
        print(f"  {said['text']}  ->  {said['prediction']}  (truth: {said['truth']})")
    print(f"\nOpen it in Python, as in {output / 'README.md'}, or ask it more:")
    print(f'  modeling-mm predict --model {output} --image PICTURE --text "..." --explain look.png\n')


def final_evaluation(trainer: MMTrainer, splits: Splits, output: Path) -> dict[str, Any]:
    """Metrics on the test set, or on validation without one, once with and once without the pictures."""
    dataset = splits.test or splits.validation
    metrics, texts = predict_texts(trainer, dataset)
    trainer.eval_collator.blind = True
    try:
        blind = predict_texts(trainer, dataset)[0]["accuracy"]
    except ValueError as error:  # rows without any text have nothing left
        logger.warning(f"no blind accuracy: {error}")
        blind = None
    trainer.eval_collator.blind = False
    if trainer.is_world_process_zero():
        write_predictions(dataset, texts, output / "predictions.jsonl")
        draw_some(dataset, texts, output / "samples.png")
    share = {"evaluated_on": "test" if splits.test else "validation", "evaluated_rows": len(dataset)}
    return {**metrics, "blind_accuracy": blind, **share}
