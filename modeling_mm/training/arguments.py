# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arguments of `modeling-mm train`, and what is refused before any row is read.

Importing this file imports neither torch nor transformers, so that `--help` answers at once.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..tasks import TASKS

if TYPE_CHECKING:
    from ..data.augmentation import Augmentation


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

    task: str = field(default="generation", metadata={"help": "what to learn", "choices": list(TASKS)})
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
    refusals = {**(streaming_refusals(data) if data.streaming else {}), **task_refusals(model, data)}
    for sentence, refused in refusals.items():
        if refused:
            raise ValueError(sentence)


def named(**values: object) -> str:
    """Those of the flags that have a value."""
    return " and ".join(f"--{name}" for name, value in values.items() if value)


def task_refusals(model: ModelArguments, data: DataArguments) -> dict[str, object]:
    """What is said of flags that the task has no use for or that lack another one, and when."""
    from .scratch import SIZES

    task, name, new = TASKS[data.task], data.task, model.model is None
    audio, video = (data.audio_column, model.audio_tower), (data.video_column, model.num_frames)
    fusion, attention, grouped = model.late_fusion, model.cross_attention, data.group_by_image
    others = named(
        late_fusion=fusion, audio_column=audio[0], audio_tower=audio[1], video_column=video[0], num_frames=video[1]
    )
    return {
        f"--text_layers is for a scratch text model, but --text_model is {model.text_model}": (
            model.text_layers is not None and model.text_model not in SIZES
        ),
        f"--late_fusion is for tasks with a label; a {name} needs cross-attention": (
            task.generates and (fusion or attention is False)
        ),
        f"--task {name} learns from pictures and texts alone; leave out {others}": task.embeds and others,
        f"--concept_column says which pairs of a retrieval match; {name} has no use for it": (
            data.concept_column and not task.embeds
        ),
        f"--group_size {data.group_size} needs --group_by_image true, and is 1 or more": (
            data.group_size is not None and not (grouped and data.group_size > 0)
        ),
        f"--keep_pictures is {data.keep_pictures}; expected megabytes, 0 or more": data.keep_pictures < 0,
        f"--calibrate makes probabilities honest, but a {name} gives none": (
            data.calibrate and not task.gives_probabilities
        ),
        f"--modality_dropout empties cells, but {name} needs a picture and a text in each row": (
            data.modality_dropout and task.needs_image_and_text
        ),
        "sound needs both: --audio_column for where it is and --audio_tower for who hears it": (
            new and (audio[0] == "") != (audio[1] is None)
        ),
        "video needs both: --video_column for where it is and --num_frames for how much of it is seen": (
            new and (video[0] == "") != (video[1] is None)
        ),
        "--late_fusion and --cross_attention are for new models; that of --model keeps its own": (
            not new and (fusion or attention is not None)
        ),
    }


def streaming_refusals(data: DataArguments) -> dict[str, object]:
    """What is said of flags by which a stream would have to look at all rows before training, and when."""
    ahead = named(
        class_weights=data.class_weights, group_by_image=data.group_by_image, cache_features=data.cache_features
    )
    return {
        "--streaming true can hold no rows out of training; give --validation_file": data.validation_file is None,
        f"{ahead} must look at all rows first, which --streaming true does not do": ahead,
        f"--shuffle_buffer is {data.shuffle_buffer}; expected a number of rows, 0 or more": data.shuffle_buffer < 0,
    }


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
