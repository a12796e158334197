# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arguments of `modeling-mm train`, and the checks made before any row is read.

Importing this file imports neither torch nor transformers, so that `--help` answers at once.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..tasks import TASKS
from .conversation_arguments import ConversationArguments
from .part_arguments import PartArguments

if TYPE_CHECKING:
    from ..data.augmentation import Augmentation


RENAMED = {"keep_pictures": "image_cache_mb"}  # former names of arguments


@dataclass
class ModelArguments(PartArguments):
    """The model: its towers, its fusion and the parts that train."""

    model: str | None = field(
        default=None, metadata={"help": "trained folder or Hub id to continue from, in place of towers"}
    )
    vision_tower: str | None = field(
        default=None,
        metadata={"help": "vision tower: a Hub id, a folder, scratch-tiny or scratch-small (random weights)"},
    )
    text_model: str | None = field(
        default=None,
        metadata={"help": "text backbone: a Hub id, a folder, scratch-tiny or scratch-small (random weights)"},
    )
    text_layers: int | None = field(
        default=None,
        metadata={
            "help": "number of layers of a scratch text backbone; the default is 6 (scratch-small) or, for "
            "scratch-tiny, 3 of an encoder and 2 of a decoder"
        },
    )
    audio_tower: str | None = field(
        default=None,
        metadata={"help": "audio tower, if rows have audio: a Hub id, a folder, scratch-tiny or scratch-small"},
    )
    fusion_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "text layers, counted from 0, that attend to media; the default is all of a "
            "scratch text backbone, else the last layer and every fourth one before it"
        },
    )
    fusion_mlp: bool = field(
        default=False,
        metadata={
            "help": "end each fusion layer with a gated MLP, as in Flamingo; slower, with five times the weights"
        },
    )
    num_latents: int | None = field(
        default=None,
        metadata={
            "help": "number of vectors per image that a Perceiver resampler makes of the tower's states; without it "
            "there is no resampler"
        },
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "frames sampled from each video; without it the model takes no video"}
    )
    late_fusion: str | None = field(
        default=None,
        metadata={
            "help": "join pooled embeddings of the modalities before the head, in place of cross-attention; linear "
            "starts as a regression fitted to the towers' states",
            "choices": ["linear", "concat", "sum", "weighted", "gated", "product", "product_mlp"],
        },
    )
    cross_attention: bool | None = field(
        default=None,
        metadata={"help": "let text attend to media; on by default, except with --late_fusion, where true uses both"},
    )
    projector_norm: str | None = field(
        default=None, metadata={"help": "norm of the towers' states before fusion", "choices": ["layer", "batch"]}
    )
    config_overrides: list[str] = field(
        default_factory=list,
        metadata={"help": "fields of the config of a new model, such as fusion_gate_init=0,classifier_dropout=0.1"},
    )
    vision_trainable: bool | None = field(
        default=None, metadata={"help": "train the vision tower; by default it trains only if it starts from scratch"}
    )
    audio_trainable: bool | None = field(
        default=None, metadata={"help": "train the audio tower; by default it trains only if it starts from scratch"}
    )
    fusion_trainable: bool = field(default=True, metadata={"help": "train the fusion layers"})
    text_trainable: bool | None = field(
        default=None, metadata={"help": "train the text backbone; by default it trains only if it starts from scratch"}
    )
    use_peft: bool = field(
        default=False, metadata={"help": "train LoRA adapters in --lora_parts; other parts that train do so in full"}
    )
    lora_parts: list[str] = field(
        default_factory=lambda: ["text"],
        metadata={"help": "parts that get LoRA adapters: text, fusion, vision, audio or all"},
    )
    lora_r: int = field(default=16, metadata={"help": "rank of the LoRA matrices"})
    lora_alpha: int = field(default=32, metadata={"help": "scale of the LoRA update, divided by the rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout probability in the LoRA layers"})

    def trains(self, part: str) -> bool:
        """True if the part "vision", "audio" or "text" trains in full, by its flag or as it starts from scratch."""
        from .scratch import SIZES

        if self.freeze_schedule is not None:
            return any(name.startswith(part) and not name.endswith("lora") for p in self.phases for name in p.parts)
        flag = getattr(self, f"{part}_trainable")
        source = self.text_model if part == "text" else getattr(self, f"{part}_tower")
        return source in SIZES if flag is None else flag


@dataclass
class DataArguments(ConversationArguments):
    """The data: its files, its columns and how rows are read."""

    task: str = field(
        default="",
        metadata={
            "help": "what the model learns to do; inferred from the label column, or generation by default (see "
            "--columns)",
            "choices": list(TASKS),
        },
    )
    columns: str = field(
        default="",
        metadata={
            "help": 'kinds of columns, such as "price=number,notes=text,id=ignore", or auto; all others are inferred. '
            "Without towers and --model, what no flag names is inferred anyway; with towers, only if neither a task "
            "nor a column is given and the table has no column `answer`. Kinds: image, audio, video, text, number, "
            "comma_number (1.234,5), category, date, day_first and month_first (dates), label, ignore"
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "read Parquet or WebDataset shards during training, without loading the dataset first"},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "number of streamed rows that are shuffled together; 1 keeps their order"}
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "training rows: CSV, TSV, JSONL or Parquet file, or an image folder; with --streaming a "
            "glob or URL of shards too"
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "validation rows; by default some training rows are held out"}
    )
    test_file: str | None = field(default=None, metadata={"help": "test rows, evaluated once after training"})
    dataset: str | None = field(
        default=None, metadata={"help": "name of a dataset of the Hub, or easy-vqa, in place of files"}
    )
    test_split: str | None = field(default=None, metadata={"help": "split of --dataset to evaluate after training"})
    image_column: str | None = field(
        default=None,
        metadata={"help": "column with images, or several as a,b; inferred, or `image` by default (see --columns)"},
    )
    text_column: str | None = field(
        default=None,
        metadata={
            "help": "column with texts, or several as a,b, which are joined as lines `a: text`; inferred, or `text` "
            "by default (see --columns)"
        },
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "column with the expected output, or several columns of numbers as a,b; the default is `answer` "
            "for generation, none for matching and retrieval, and `label` otherwise"
        },
    )
    class_weights: str | None = field(
        default=None,
        metadata={"help": "balanced: weight classes in the loss by their inverse frequency", "choices": ["balanced"]},
    )
    calibrate: bool = field(
        default=False,
        metadata={
            "help": "after training, fit the temperature of the probabilities (for retrieval, the weight of the "
            "matching head) on the validation rows"
        },
    )
    audio_column: str | None = field(
        default=None,
        metadata={"help": "column with audio clips, or several as a,b; inferred, or none by default (see --columns)"},
    )
    video_column: str | None = field(
        default=None,
        metadata={"help": "column with videos, or several as a,b; inferred, or none by default (see --columns)"},
    )
    concept_column: str = field(
        default="",
        metadata={"help": "retrieval: rows with equal values in this column are positives of each other in training"},
    )
    number_columns: list[str] = field(
        default_factory=list, metadata={"help": "columns with numbers, read as a modality of their own"}
    )
    category_columns: list[str] = field(
        default_factory=list, metadata={"help": "columns with categories, read as a modality of their own"}
    )
    decimal: str = field(
        default=".", metadata={"help": "decimal mark of the numbers in --number_columns", "choices": [".", ","]}
    )
    validation_share: float = field(
        default=0.1,
        metadata={"help": "share of the training rows held out for validation if there is no --validation_file"},
    )
    group_by_image: bool = field(
        default=False, metadata={"help": "put rows about the same image into the same batch, where it is encoded once"}
    )
    group_size: int | None = field(
        default=None, metadata={"help": "maximum number of rows about one image that --group_by_image puts together"}
    )
    max_length: int = field(default=512, metadata={"help": "maximum number of tokens per row"})
    max_new_tokens: int = field(
        default=32, metadata={"help": "maximum number of tokens of an answer generated in evaluation"}
    )
    max_seconds: float | None = field(
        default=None,
        metadata={
            "help": "seconds of audio used per clip; clips more than twice as long are rejected; the default "
            "is 30, or the setting of --model"
        },
    )
    augment_images: list[str] = field(
        default_factory=list,
        metadata={"help": "random changes of training images: crop, rotate, color, flip (not for digits or text)"},
    )
    augment_audio: list[str] = field(
        default_factory=list,
        metadata={"help": "random changes of training audio: speed, noise, shift, vtlp, specaugment"},
    )
    word_dropout: float = field(default=0.0, metadata={"help": "probability of dropping each word of a training text"})
    modality_dropout: float = field(
        default=0.0, metadata={"help": "probability of dropping each modality of a training row; never its last one"}
    )
    cache_features: str | None = field(
        default=None, metadata={"help": "folder for features of frozen towers, computed once for all epochs and runs"}
    )
    cache_dtype: str = field(
        default="float32",
        metadata={
            "help": "data type of cached features; bfloat16 halves the size at lower precision",
            "choices": ["float32", "bfloat16"],
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "stop after this many evaluations without a better --metric_for_best_model; needs "
            "--load_best_model_at_end true"
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "how much better an evaluation must be to count for --early_stopping_patience"}
    )
    image_cache_mb: int = field(
        default=0, metadata={"help": "cache up to this many megabytes of decoded images in memory"}
    )
    audio_cache_mb: int = field(
        default=0, metadata={"help": "cache up to this many megabytes of decoded audio in memory"}
    )
    baselines: bool = field(
        default=True,
        metadata={"help": "after training, score simple baselines on the same rows, for report.json"},
    )
    on_bad_row: str = field(
        default="stop",
        metadata={
            "help": "stop at the first row that cannot be read, or skip such rows and list them in bad_rows.jsonl",
            "choices": ["stop", "skip"],
        },
    )

    def __post_init__(self):
        for flag, megabytes in (("image_cache_mb", self.image_cache_mb), ("audio_cache_mb", self.audio_cache_mb)):
            if megabytes < 0:
                raise ValueError(f"--{flag} is {megabytes}; expected megabytes, 0 or more")
        self.number_forms: dict[str, str] = {}  # of number columns with dates, signs or commas; inferred, no flag


def fill_defaults(data: DataArguments) -> None:
    """Set the task and the columns that are neither given nor inferred."""
    data.task = data.task or "generation"
    for name, column in {"image": "image", "text": "text", "audio": "", "video": ""}.items():
        if getattr(data, f"{name}_column") is None:
            setattr(data, f"{name}_column", column)


def check_task(model: ModelArguments, data: DataArguments) -> None:
    """Refuse flags that do not fit the task or each other, before any row is read.

    Raises:
        ValueError: names the flag.
    """
    refusals = {**(streaming_refusals(data) if data.streaming else {}), **task_refusals(model, data)}
    for sentence, refused in refusals.items():
        if refused:
            raise ValueError(sentence)


def named(**values: object) -> str:
    """The names of the flags that have a value, joined by "and"."""
    return " and ".join(f"--{name}" for name, value in values.items() if value)


def task_refusals(model: ModelArguments, data: DataArguments) -> dict[str, object]:
    """Error messages about flags that do not fit the task or lack another flag, each with its condition."""
    from .scratch import SIZES

    task, name, new = TASKS[data.task], data.task, model.model is None
    audio, video = (data.audio_column, model.audio_tower), (data.video_column, model.num_frames)
    chat = data.conversation_column
    fusion, attention, grouped = model.late_fusion, model.cross_attention, data.group_by_image
    tables = {"number_columns": data.number_columns, "category_columns": data.category_columns}
    others = named(
        late_fusion=fusion,
        audio_column=audio[0],
        audio_tower=audio[1],
        video_column=video[0],
        num_frames=video[1],
        **tables,
    )
    return {
        f"--text_layers is for a scratch text model, but --text_model is {model.text_model}": (
            model.text_layers is not None and model.text_model not in SIZES
        ),
        f"--late_fusion is for tasks with a label; --task {name} needs cross-attention": (
            task.generates and (fusion or attention is False)
        ),
        "--late_fusion linear starts as a fitted regression, which suits neither --use_peft nor --streaming nor "
        "--task matching; use concat": (fusion == "linear" and (model.use_peft or data.streaming or task.pairs)),
        f"--task {name} uses images and texts only; leave out {others}": task.embeds and others,
        f"--concept_column sets which pairs match in retrieval; --task {name} does not use it": (
            data.concept_column and not task.embeds
        ),
        f"--group_size {data.group_size} needs --group_by_image true, and is 1 or more": (
            data.group_size is not None and not (grouped and data.group_size > 0)
        ),
        f"--calibrate is for probabilities, and --task {name} predicts none": (
            data.calibrate and not task.gives_probabilities
        ),
        f"--modality_dropout drops images and texts, but --task {name} needs both in each row": (
            data.modality_dropout and task.needs_image_and_text
        ),
        "audio needs both --audio_column, the column with the clips, and --audio_tower, the model that encodes them": (
            new and (audio[0] == "") != (audio[1] is None) and not (chat and audio[1])
        ),
        "video needs both --video_column, the column with the videos, and --num_frames, the frames taken from each": (
            new and (video[0] == "") != (video[1] is None) and not (chat and video[1])
        ),
        "--freeze_schedule trains adapters, but there are none; give --use_peft true": (
            not model.use_peft and any(part.endswith(".lora") for phase in model.phases for part in phase.parts)
        ),
        "--freeze_schedule says which parts train; leave out --vision_trainable and the like": (
            model.freeze_schedule
            and any(getattr(model, f"{part}_trainable") is not None for part in ("vision", "audio", "text"))
        ),
        "--word_dropout and --modality_dropout change a text beside its answer, and conversations have none": (
            chat and (data.word_dropout or data.modality_dropout)
        ),
        f"--packing is for --task generation without --streaming; --task {name} pads its rows": (
            data.packing and (data.streaming or not task.generates)
        ),
        "--late_fusion, --cross_attention and --projector_norm are for new models; the fusion of --model cannot be "
        "changed": (not new and (fusion or attention is not None or model.projector_norm)),
    }


def streaming_refusals(data: DataArguments) -> dict[str, object]:
    """Error messages about flags that do not fit a stream, each with its condition."""
    all_rows = named(
        class_weights=data.class_weights, group_by_image=data.group_by_image, cache_features=data.cache_features
    )
    return {
        "--streaming true cannot hold out training rows; give --validation_file": data.validation_file is None,
        f"--streaming true does not read all rows before training; leave out {all_rows}": all_rows,
        f"--shuffle_buffer is {data.shuffle_buffer}; expected a number of rows, 0 or more": data.shuffle_buffer < 0,
    }


def words(values: list[str]) -> tuple[str, ...]:
    """The words of a flag, which may be joined by commas."""
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())


def augmentation_of(data: DataArguments, seed: int) -> "Augmentation | None":
    """The augmentation of training rows; None without any.

    Raises:
        ValueError: names the flag.
    """
    images, audio = words(data.augment_images), words(data.augment_audio)
    if not (images or audio or data.word_dropout or data.modality_dropout):
        return None
    from ..data.augmentation import Augmentation

    return Augmentation(images, audio, data.word_dropout, data.modality_dropout, seed)
