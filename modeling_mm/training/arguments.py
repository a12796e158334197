# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arguments of `modeling-mm train`, and what is refused before any row is read.

Importing this file imports neither torch nor transformers, so that `--help` answers at once.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.augmentation import Augmentation

TASK_NAMES = ["generation", "retrieval", "classification", "multilabel", "regression", "matching"]


@dataclass
class ModelArguments:
    """What the model is made of and which parts train."""

    model: str | None = field(default=None, metadata={"help": "trained folder to go on from, in place of towers"})
    vision_tower: str | None = field(default=None, metadata={"help": "Hub id, folder, scratch-tiny or scratch-small"})
    text_model: str | None = field(default=None, metadata={"help": "Hub id, folder, scratch-tiny or scratch-small"})
    text_layers: int | None = field(default=None, metadata={"help": "of a scratch text model; default: 2 or 6"})
    audio_tower: str | None = field(default=None, metadata={"help": "the same, for rows with sound; default: none"})
    fusion_layers: list[int] | None = field(default=None, metadata={"help": "text layers with fusion before them"})
    fusion_mlp: bool = field(default=False, metadata={"help": "gated MLP in each fusion layer as well"})
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

    task: str = field(default="generation", metadata={"help": "what to learn", "choices": TASK_NAMES})
    streaming: bool = field(default=False, metadata={"help": "read Parquet or WebDataset shards while training"})
    shuffle_buffer: int = field(default=1000, metadata={"help": "streamed rows shuffled at a time; 1: in their order"})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV, JSONL or Parquet file, or a folder; with --streaming a glob or URL of shards too"
        },
    )
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
    calibrate: bool = field(
        default=False,
        metadata={"help": "fit a temperature (of retrieval, the matching head's weight) to the validation rows"},
    )
    audio_column: str = field(default="", metadata={"help": "column with sound, for instance audio; default: none"})
    video_column: str = field(default="", metadata={"help": "column with videos, for instance video; default: none"})
    concept_column: str = field(
        default="", metadata={"help": "rows of a retrieval that are alike there all match each other in training"}
    )
    validation_share: float = field(default=0.1, metadata={"help": "held out of training without a validation file"})
    group_by_image: bool = field(default=False, metadata={"help": "keep the rows about one picture in one batch"})
    group_size: int | None = field(default=None, metadata={"help": "with it, rows about one picture together at most"})
    max_length: int = field(default=512, metadata={"help": "tokens per row at most"})
    max_new_tokens: int = field(default=32, metadata={"help": "longest generated answer in evaluation"})
    max_seconds: float | None = field(
        default=None,
        metadata={"help": "of a sound that are used, twice as long is refused; default: 30, or --model's"},
    )
    augment_images: list[str] = field(
        default_factory=list,
        metadata={"help": "of training pictures: crop, rotate, color, flip (not for digits)"},
    )
    augment_audio: list[str] = field(
        default_factory=list, metadata={"help": "of training sounds: noise, shift, specaugment"}
    )
    word_dropout: float = field(default=0.0, metadata={"help": "probability that training leaves a word out"})
    modality_dropout: float = field(default=0.0, metadata={"help": "probability that training empties a cell"})
    cache_features: str | None = field(
        default=None, metadata={"help": "folder for what frozen towers give, computed once for all epochs and runs"}
    )
    cache_dtype: str = field(
        default="float32",
        metadata={"help": "of these; bfloat16 takes half, and rounds", "choices": ["float32", "bfloat16"]},
    )
    keep_pictures: int = field(default=0, metadata={"help": "megabytes of opened pictures in memory for later epochs"})
    on_bad_row: str = field(default="stop", metadata={"help": "stop or skip", "choices": ["stop", "skip"]})


def check_task(model: ModelArguments, data: DataArguments) -> None:
    """Refuse what the task has no use for, before any row is read.

    Raises:
        ValueError: names the flag.
    """
    from .scratch import SIZES

    if data.streaming:
        check_streaming(data)
    if model.text_layers is not None and model.text_model not in SIZES:
        raise ValueError(f"--text_layers is for a scratch text model, but --text_model is {model.text_model}")
    if data.task == "generation" and (model.late_fusion or model.cross_attention is False):
        raise ValueError("--late_fusion is for tasks with a label; a generation needs cross-attention")
    others: dict[str, object] = {
        "--late_fusion": model.late_fusion,
        "--audio_column": data.audio_column,
        "--audio_tower": model.audio_tower,
        "--video_column": data.video_column,
        "--num_frames": model.num_frames,
    }
    if data.task == "retrieval" and (given := [flag for flag, value in others.items() if value]):
        raise ValueError(f"--task retrieval learns from pictures and texts alone; leave out {' and '.join(given)}")
    if data.concept_column and data.task != "retrieval":
        raise ValueError(f"--concept_column says which pairs of a retrieval match; {data.task} has no use for it")
    if data.group_size is not None and not (data.group_by_image and data.group_size > 0):
        raise ValueError(f"--group_size {data.group_size} needs --group_by_image true, and is 1 or more")
    if data.keep_pictures < 0:
        raise ValueError(f"--keep_pictures is {data.keep_pictures}; expected megabytes, 0 or more")
    if data.calibrate and data.task in ("generation", "regression"):
        raise ValueError(f"--calibrate makes probabilities honest, but a {data.task} gives none")
    if data.task in ("matching", "retrieval") and data.modality_dropout:
        raise ValueError(f"--modality_dropout empties cells, but {data.task} needs a picture and a text in each row")
    if (model.audio_tower is None) != (data.audio_column == "") and model.model is None:
        raise ValueError("sound needs both: --audio_column for where it is and --audio_tower for who hears it")
    if (model.num_frames is None) != (data.video_column == "") and model.model is None:
        raise ValueError(
            "video needs both: --video_column for where it is and --num_frames for how much of it is seen"
        )
    if model.model is not None and (model.late_fusion or model.cross_attention is not None):
        raise ValueError("--late_fusion and --cross_attention are for new models; that of --model keeps its own")


def check_streaming(data: DataArguments) -> None:
    """Refuse what needs to look at all rows before training, which a stream never does.

    Raises:
        ValueError: names the flag.
    """
    if data.validation_file is None:
        raise ValueError("--streaming true can hold no rows out of training; give --validation_file")
    others: dict[str, object] = {
        "--class_weights": data.class_weights,
        "--group_by_image": data.group_by_image,
        "--cache_features": data.cache_features,
    }
    if given := [flag for flag, value in others.items() if value]:
        raise ValueError(f"{' and '.join(given)} must look at all rows first, which --streaming true does not do")
    if data.shuffle_buffer < 0:
        raise ValueError(f"--shuffle_buffer is {data.shuffle_buffer}; expected a number of rows, 0 or more")


def augmentation_of(data: DataArguments, seed: int) -> "Augmentation | None":
    """How training rows are to be changed; None where they stay as they are.

    Raises:
        ValueError: names the flag.
    """
    images = [name for word in data.augment_images for name in word.split(",") if name]
    audio = [name for word in data.augment_audio for name in word.split(",") if name]
    if not (images or audio or data.word_dropout or data.modality_dropout):
        return None
    from ..data.augmentation import Augmentation

    return Augmentation(images, audio, data.word_dropout, data.modality_dropout, seed)


@dataclass
class RetrievalArguments:
    """What --task retrieval learns; the other tasks have no use for these."""

    contrastive_loss: str = field(
        default="infonce", metadata={"help": "softmax over the batch, or each pair", "choices": ["infonce", "sigmoid"]}
    )
    contrastive_weight: float = 1.0
    matching_weight: float = field(default=1.0, metadata={"help": "of the head that ranks again; 0: none"})
    matching_rows: int | None = field(
        default=None, metadata={"help": "of a batch that this head learns from, at random; default: all"}
    )
    language_weight: float = field(default=0.0, metadata={"help": "of captioning, by a decoder; 0: none"})
    embedding_size: int | None = field(default=None, metadata={"help": "default: the text backbone's width, or 512"})
    image_pooling: str = field(default="mean", metadata={"help": "of states", "choices": ["mean", "first", "tower"]})
    text_pooling: str | None = field(
        default=None,
        metadata={"help": "default: first of an encoder, last of a decoder", "choices": ["first", "mean", "last"]},
    )
    contrastive_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "rows compared with each other, a multiple of the batch size (GradCache); batch norms that train, "
            "as those of scratch towers, still normalise by the batch size"
        },
    )
    rerank: int = field(default=0, metadata={"help": "also score the best k candidates ranked by the matching head"})

    def config(self) -> dict[str, Any]:
        """Fields of `MMConfig`."""
        fields = dict(vars(self))
        for name in ("contrastive_batch_size", "rerank"):
            del fields[name]
        return {**fields, "pooling": fields.pop("text_pooling")}
