# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Assembly of a training run from its flags: model, collator, trainer."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    ViTImageProcessorPil,
)

from ..checkpoint import load_checkpoint
from ..data.answer_turns import evaluation_rows
from ..data.collator import MMCollator, RetrievalCollator
from ..data.dataset import MMDataset
from ..data.feature_cache import CACHED, FrozenTower, build_cache, check_cacheable, sources_of
from ..data.media import MediaCache
from ..data.packing import PackedRows
from ..data.table_columns import table_columns
from ..data.targets import head_options
from ..evaluation.metrics import compute_metrics_for, format_answer
from ..evaluation.retrieval import compute_retrieval_metrics
from ..model.adapters_mm import without_adapters
from ..model.audio_mm import MAX_SECONDS, window_seconds
from ..model.compose_mm import add_video
from ..model.media_mm import MODALITIES
from ..model.packing_mm import ATTENTION
from ..model.processing_mm import MMProcessor
from ..tasks import TASKS, task_of
from . import scratch
from .arguments import DataArguments, ModelArguments, augmentation_of, words
from .freeze_schedule import set_scheduled
from .part_arguments import PartArguments
from .retrieval_arguments import RetrievalArguments
from .retrieval_trainer import RetrievalTrainer
from .splits import Splits
from .time_limit import TimeLimitCallback
from .trainable import set_trainable
from .trainer import MMTrainer

logger = logging.getLogger(__name__)
TOWER_PARTS = {"image": "vision", "audio": "audio"}  # whose states are cached
RECENCY_RANKS = 4  # of new models that answer: the latest medium of a conversation, and three before it
OVERRIDABLE = (  # fields of `MMConfig` that have no flag of their own and do not follow from the data
    "fusion_num_attention_heads",
    "fusion_num_key_value_heads",
    "fusion_head_dim",
    "fusion_intermediate_size",
    "fusion_memory_size",
    "fusion_dropout",
    "fusion_gate_init",
    "image_positions",
    "recency_ranks",
    "resampler_layers",
    "pooling",
    "classifier_dropout",
    "table_cell_size",
    "table_dropout",
    "initializer_range",
)


def build_model(
    args: ModelArguments,
    data: DataArguments,
    train: MMDataset,
    retrieval: RetrievalArguments,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, MMProcessor]:
    """The model to train, in float32, and its processor: loaded from a trained folder or composed from towers.

    A scratch text backbone has this tokenizer, or a new one of the texts of `train`.

    Raises:
        ValueError: towers are missing or given beside a model, or the model was trained for another task.
    """
    balanced = data.class_weights == "balanced"
    options = head_options(data.task, train.labels, train.targets(), balanced, train.source)
    options["columns"] = asdict(train.columns)
    if TASKS[data.task].embeds:
        options |= retrieval.config()
    if args.model is not None:
        if args.vision_tower or args.text_model or args.audio_tower or args.config_overrides:
            raise ValueError("give either --model, or the towers and --config_overrides of a new model")
        model, processor = load_checkpoint(args.model, dtype=torch.float32)
        processor.max_seconds = data.max_seconds or processor.max_seconds
        if args.num_frames is not None:
            add_video(model, processor, args.num_frames)
        if task_of(model) != data.task:
            raise ValueError(f"'{args.model}' was not trained for {data.task} but for {task_of(model)}")
        # labels and their scale stay; class weights, temperature and rerank weight are those of this run
        model.config.class_weights, model.config.calibration_temperature = options.get("class_weights"), None
        model.config.rerank_weight, model.config.columns = 1.0, options["columns"]
        return model, processor
    if args.vision_tower is None or args.text_model is None:
        raise ValueError("give --vision_tower and --text_model (ids, folders or scratch-tiny), or --model")
    vision: Any = args.vision_tower
    text: Any = args.text_model
    image_processor = extractor = None
    tokenizer = tokenizer if text in scratch.SIZES else None
    if vision in scratch.SIZES:
        side = scratch.SIZES[vision]["image_size"]
        image_processor = ViTImageProcessorPil(size={"height": side, "width": side})
        vision = scratch.vision_config(vision)
    if text in scratch.SIZES:
        tokenizer = tokenizer or scratch_tokenizer(args, train)
        decoder = TASKS[data.task].generates or bool(retrieval.language_weight)
        text = scratch.text_config(text, tokenizer, decoder, args.text_layers)
    audio: Any = args.audio_tower
    if audio in scratch.SIZES:
        audio, extractor = scratch.audio_config(audio), scratch.feature_extractor(data.max_seconds or MAX_SECONDS)
    if train.columns.table:
        options["table_columns"] = table_columns(train)
    sources = (image_processor or vision, tokenizer or text, extractor or audio)
    more = {"max_frames": args.num_frames, "table_columns": options.get("table_columns")}
    processor = MMProcessor.from_towers(*sources, max_seconds=data.max_seconds or MAX_SECONDS, **more)
    flags = ("fusion_mlp", "num_latents", "num_frames", "late_fusion", "cross_attention")
    options |= {name: getattr(args, name) for name in flags} | {"image_positions": args.vision_tower in scratch.SIZES}
    options["projector_norm"] = args.projector_norm or ("batch" if args.late_fusion == "product_mlp" else "layer")
    if args.fusion_layers is not None:
        options["fusion_layers"] = args.fusion_layers
    elif args.text_model in scratch.SIZES and args.cross_attention is not False:
        options["fusion_layers"] = list(range(text.num_hidden_layers))  # as few as they are, all attend
    if TASKS[data.task].generates:  # `generate` needs it, for those who load the saved folder
        pad_left(processor.tokenizer)
        options["recency_ranks"] = RECENCY_RANKS
    options |= overrides(args.config_overrides)
    head = TASKS[data.task].head_class()
    return head.from_towers(vision, text, audio, processor=processor, dtype=torch.float32, **options), processor


def pad_left(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer pad on the left, also when it is loaded again; transformers saves what it was made with only."""
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"


def overrides(flag: list[str]) -> dict[str, Any]:
    """Fields of `MMConfig` and their values, from `--config_overrides`; a value is JSON, or a word.

    Raises:
        ValueError: a word is not FIELD=VALUE, or the field has a flag, follows from the data, or is unknown.
    """
    fields: dict[str, Any] = {}
    for word in words(flag):
        name, separator, value = word.partition("=")
        if not separator or name not in OVERRIDABLE:
            expected = f"FIELD=VALUE, the field one of {', '.join(OVERRIDABLE)}"
            raise ValueError(f"--config_overrides '{word}': expected {expected}")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields


def scratch_tokenizer(args: ModelArguments, train: MMDataset) -> PreTrainedTokenizerBase:
    """The tokenizer of a scratch text backbone, trained on the texts of the rows."""
    rows = [train.row(number) for number in train.kept]
    words = [format_answer(part) for row in rows for part in (row.text, row.target) if part is not None]
    markers = (args.audio_tower is not None, args.num_frames is not None)
    return scratch.train_tokenizer(words, str(args.text_model), *markers)


def choose_trainable(model: PreTrainedModel, args: ModelArguments) -> None:
    """Set the trainable parts by their flags or schedule; a tower without one trains if it starts from scratch."""
    if args.freeze_schedule is not None:
        return set_scheduled(model, args.phases)
    set_trainable(model, args.trains("vision"), args.fusion_trainable, args.trains("text"), args.trains("audio"))


def build_collator(model: PreTrainedModel, processor: MMProcessor, data: DataArguments) -> MMCollator:
    """The collator of this task, without augmentation."""
    window = window_seconds(processor.feature_extractor) if hasattr(processor, "feature_extractor") else None
    if window is not None and window < (data.max_seconds or MAX_SECONDS):
        logger.warning(f"the audio tower encodes {window:.4g} s of audio; the rest of longer clips is not used")
    if not TASKS[data.task].embeds:
        return MMCollator(processor, data.task, data.max_length, learned=data.learned_turns)
    return RetrievalCollator(processor, data.task, data.max_length, captions=model.config.language_weight > 0)


def build_trainer(
    model: PreTrainedModel,
    args: TrainingArguments,
    splits: Splits,
    collator: MMCollator,
    data: DataArguments,
    retrieval: RetrievalArguments,
    time_limit: TimeLimitCallback | None = None,
    muon_learning_rate: float = 0.0,
    parts: PartArguments | None = None,
    model_init: Callable[..., PreTrainedModel] | None = None,
) -> MMTrainer:
    """The trainer of this task, with its data, collators, augmentation and metrics.

    With `model_init`, as in a search, that makes the models, and `model` is the first of them. `parts` holds learning
    rates and the schedule of parts.
    """
    processor, task = collator.processor, TASKS[data.task]
    if data.packing and model.config.text_config._attn_implementation == "sdpa" and args.device.type == "cpu":
        model.set_attn_implementation({"text_config": ATTENTION})
    parts = parts or PartArguments()
    options: dict[str, Any] = {
        "model": model if model_init is None else None,
        "model_init": model_init,
        "args": args,
        "train_dataset": packed(splits.train, collator, data, args) if data.packing else splits.stream or splits.train,
        "eval_dataset": evaluation_rows(splits.validation, args.seed),
        "processing_class": processor,
        "data_collator": replace(
            collator,
            augmentation=augmentation_of(data, args.seed),
            image_cache=MediaCache(data.image_cache_mb),
            audio_cache=MediaCache(data.audio_cache_mb),
        ),
        "group_by_image": data.group_by_image,
        "group_size": data.group_size,
        "time_limit": time_limit,
        "muon_learning_rate": muon_learning_rate,
        "part_learning_rates": parts.rates,
        "bf16_weights": parts.bf16_weights,
        "phases": parts.phases,
    }
    if data.early_stopping_patience is not None:
        stopping = EarlyStoppingCallback(data.early_stopping_patience, data.early_stopping_threshold)
        options["callbacks"] = [stopping]
    if task.embeds:
        if (data.calibrate or retrieval.rerank) and model.matching_head is None:
            raise ValueError("--rerank and --calibrate need a matching head; train with a --matching_weight above 0")
        size = retrieval.contrastive_batch_size
        return RetrievalTrainer(**options, compute_metrics=compute_retrieval_metrics, contrastive_batch_size=size)
    return MMTrainer(
        **options,
        eval_collator=MMCollator(processor, data.task, data.max_length, with_prompts=task.generates),
        compute_metrics=compute_metrics_for(processor.tokenizer, splits.train.labels, data.task),
        max_new_tokens=data.max_new_tokens,
    )


def packed(train: MMDataset, collator: MMCollator, data: DataArguments, args: TrainingArguments) -> PackedRows:
    """Packs of the training rows; those about one image share packs with `--group_by_image`."""
    groups = train.groups() if data.group_by_image else None
    packs = PackedRows(train, collator.lengths(train), data.max_length, args.seed, groups)
    logger.warning(f"{len(train)} rows are packed in {len(packs)} of {data.max_length} tokens, {packs.fill:.1%} full")
    return packs


def use_cached_features(trainer: MMTrainer, splits: Splits, folder: Path, dtype: str) -> None:
    """Put cached features of frozen towers into the trainer's batches; those that the folder lacks are computed first.

    Raises:
        ValueError: the features cannot be cached, or the disk has too little room.
    """
    model, collator, accelerator = trainer.model, trainer.data_collator, trainer.accelerator
    head = without_adapters(model)
    tables = [split for split in (splits.train, splits.validation, splits.test) if split]
    sources = {modality: sources_of(tables, modality) for modality in CACHED}
    videos, augmentation = bool(sources_of(tables, "video")), collator.augmentation
    with asleep_towers(trainer):
        modalities = check_cacheable(head.base_model, sources, videos, augmentation)
    cached = {}
    for modality in modalities:
        getattr(head.base_model, MODALITIES[modality].tower).to(trainer.args.device)
        parts_of_tower = (modality, head.base_model, collator.processor, getattr(torch, dtype), accelerator.autocast)
        pooled = isinstance(trainer, RetrievalTrainer) and modality == "image" and head.config.image_pooling == "tower"
        tower = FrozenTower(*parts_of_tower, precision=accelerator.mixed_precision, pooled=pooled)
        quiet = not trainer.is_world_process_zero()
        size = trainer.args.per_device_eval_batch_size
        cached[modality] = build_cache(tower, sources[modality], folder, size, quiet)
    for each in filter(None, (collator, trainer.eval_collator)):
        each.cached = cached
    if trainer.freeze_schedule is not None:
        trainer.freeze_schedule.before_waking = partial(end_cache, trainer)


@contextmanager
def asleep_towers(trainer: MMTrainer) -> Iterator[None]:
    """Freezes the parameters that a schedule does not train in its first phase, for a while.

    Raises:
        ValueError: a loader has workers, whose copies of a cache would outlive a tower's sleep.
    """
    if trainer.freeze_schedule is None:
        yield
        return
    if trainer.args.dataloader_num_workers:
        raise ValueError("--cache_features with --freeze_schedule needs --dataloader_num_workers 0")
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    names = trainer.freeze_schedule.names(trainer.model, 0)
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in names)
    yield
    for parameter in trained:
        parameter.requires_grad_(True)


def end_cache(trainer: MMTrainer, parts: set[str]) -> None:
    """Let batches have media in place of the cached features of towers that wake."""
    for collator in filter(None, (trainer.data_collator, trainer.eval_collator)):
        collator.cached = {name: media for name, media in collator.cached.items() if TOWER_PARTS[name] not in parts}
