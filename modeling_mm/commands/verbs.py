# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The verbs of `modeling-mm`, their arguments and their help pages.

Importing this file imports neither torch nor transformers, so that `--help` answers at once.
"""

import argparse
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, get_type_hints

from ..training.arguments import DataArguments, ModelArguments
from ..training.presets import DefaultsArguments
from ..training.retrieval_arguments import RetrievalArguments
from .shipped import recipes, recipes_module, shipped_folder

DEVICE = "device to run on, such as cpu or cuda:1; by default a GPU if there is one"
QUANTIZATION = "quantise the text backbone: int8 stores the weights of its linear layers as integers (needs torchao)"
QUANTIZATIONS = ["int8"]
ON_BAD_ROW = "stop at the first row that cannot be read, or skip such rows and list them in bad_rows.jsonl"


@dataclass
class EvaluateArguments:
    """Evaluation: the model, the rows and the scores."""

    model: str = field(metadata={"help": "trained folder or Hub id"})
    test_file: str | None = field(
        default=None, metadata={"help": "CSV, TSV, JSONL or Parquet file, or an image folder, to evaluate on"}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "name of a dataset of the Hub, or easy-vqa, in place of --test_file"}
    )
    split: str = field(default="test", metadata={"help": "split of --dataset to evaluate on"})
    train_file: str | None = field(
        default=None, metadata={"help": "training rows that simple baselines are fitted on, for comparison"}
    )
    validation_file: str | None = field(
        default=None,
        metadata={"help": "rows that choose the baselines' settings; by default a tenth of --train_file is held out"},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "folder for the results; the default is `evaluation` in the model's folder"}
    )
    image_column: str | None = field(
        default=None, metadata={"help": 'column with images; the default is that of training; "" for none'}
    )
    text_column: str | None = field(
        default=None, metadata={"help": 'column with texts; the default is that of training; "" for none'}
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "column with the expected output; the default is that of training; with it, a retrieval model is "
            "scored by zero-shot classification"
        },
    )
    prompt_templates: list[str] | None = field(
        default=None,
        metadata={"help": "zero-shot classification: sentences with {} for the class name; default: a photo of a {}"},
    )
    audio_column: str | None = field(
        default=None, metadata={"help": 'column with audio clips; the default is that of training; "" for none'}
    )
    video_column: str | None = field(
        default=None, metadata={"help": 'column with videos; the default is that of training; "" for none'}
    )
    decimal: str | None = field(
        default=None,
        metadata={
            "help": "decimal mark of the numbers in the table; the default is that of training",
            "choices": [".", ","],
        },
    )
    batch_size: int = field(default=32, metadata={"help": "rows per batch"})
    max_length: int = field(default=512, metadata={"help": "maximum number of tokens per row"})
    max_new_tokens: int = field(default=32, metadata={"help": "maximum number of tokens of a generated answer"})
    blind: bool = field(
        default=False, metadata={"help": "leave out all images, audio and video, to score the model on the text alone"}
    )
    modality_report: bool | None = field(
        default=None,
        metadata={"help": "also score without each modality and with each one alone; on by default for classifiers"},
    )
    answer_metrics: list[str] = field(
        default_factory=list,
        metadata={
            "help": "also score generated answers by vqa_accuracy, anls, bleu, rouge_l and cider; a label cell may "
            "hold a list, the answers of several people (needs the extra text_metrics)"
        },
    )
    rerank: int = field(
        default=0, metadata={"help": "retrieval: also score with the best N candidates reranked by the matching head"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the mismatched pairs that a matching model is scored on"})
    max_seconds: float | None = field(
        default=None,
        metadata={
            "help": "seconds of audio used per clip; clips more than twice as long are rejected; the default is the "
            "model's setting"
        },
    )
    on_bad_row: str = field(default="stop", metadata={"help": ON_BAD_ROW, "choices": ["stop", "skip"]})
    quantization: str | None = field(default=None, metadata={"help": QUANTIZATION, "choices": QUANTIZATIONS})
    device: str | None = field(default=None, metadata={"help": DEVICE})


@dataclass
class PredictArguments:
    """Prediction: the model, the media and the texts."""

    model: str = field(metadata={"help": "trained folder or Hub id"})
    image: list[str] = field(default_factory=list, metadata={"help": "image files to ask about"})
    audio: list[str] = field(default_factory=list, metadata={"help": "audio files to ask about"})
    video: list[str] = field(default_factory=list, metadata={"help": "video files or folders of frames to ask about"})
    text: list[str] = field(
        default_factory=list,
        metadata={
            "help": "questions or texts, each about all of the media; a retrieval model ranks the texts for each "
            "image and audio clip"
        },
    )
    table: str | None = field(
        default=None,
        metadata={"help": "numbers and categories by their columns, about which all texts are: '{\"age\": 61}'"},
    )
    explain: str | None = field(
        default=None, metadata={"help": "PNG file to write that shows the first text's cross-attention over the image"}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "maximum number of tokens of a generated answer"})
    quantization: str | None = field(default=None, metadata={"help": QUANTIZATION, "choices": QUANTIZATIONS})
    device: str | None = field(default=None, metadata={"help": DEVICE})


@dataclass
class ExportArguments:
    """Export: the model, the format and the folder."""

    model: str = field(metadata={"help": "trained folder or Hub id"})
    output_dir: str = field(metadata={"help": "folder for the graphs and the processor"})
    format: str = field(
        default="onnx", metadata={"help": "ONNX files or torch.export programs", "choices": ["onnx", "torch"]}
    )
    features: bool = field(
        default=False, metadata={"help": "export the base model, which returns hidden states, without its head"}
    )
    tolerance: float = field(
        default=1e-4,
        metadata={"help": "largest accepted difference from the model's outputs, relative for values above 1"},
    )


@dataclass
class IndexArguments:
    """Index: the images to add or remove, and the model that embeds them."""

    index: str = field(metadata={"help": "folder of the index, or s3://bucket/path; created if it does not exist"})
    model: str | None = field(
        default=None,
        metadata={"help": "model to use, a folder or Hub id; the default is the model that the index was made with"},
    )
    images: str | None = field(
        default=None, metadata={"help": "images to add: a folder, or a CSV, TSV, JSONL or Parquet file"}
    )
    image_column: str = field(default="image", metadata={"help": "column of the file that holds image paths"})
    id_column: str | None = field(
        default=None,
        metadata={"help": "column of the file that holds ids; the default is `id` if there is one, else the path"},
    )
    prune: bool = field(
        default=False,
        metadata={"help": "remove images added earlier from the same --images that are now missing or unreadable"},
    )
    remove: list[str] = field(default_factory=list, metadata={"help": "ids to remove from the index"})
    ann: bool = field(
        default=False, metadata={"help": "build an approximate nearest-neighbour index, for millions of images"}
    )
    ann_recall: float = field(
        default=0.95, metadata={"help": "recall@10, relative to exact search, that --ann must reach"}
    )
    batch_size: int = field(default=32, metadata={"help": "images per batch"})
    commit_rows: int = field(
        default=1024, metadata={"help": "images written at once; fewer are written if 30 seconds have passed"}
    )
    num_workers: int = field(default=4, metadata={"help": "threads that read images"})
    device: str | None = field(default=None, metadata={"help": DEVICE})

    def __post_init__(self):
        if not (self.images or self.remove or self.ann):
            raise ValueError("nothing to do; give --images, --remove or --ann")
        if self.prune and not self.images:
            raise ValueError("--prune removes images that --images no longer has; give --images too")
        for name in ("batch_size", "commit_rows", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 < self.ann_recall <= 1:
            raise ValueError(f"--ann_recall is {self.ann_recall}; expected more than 0 and at most 1")


@dataclass
class SearchArguments:
    """Search: the query and the index."""

    index: str = field(metadata={"help": "folder, or s3://bucket/path, of an index made by modeling-mm index"})
    text: str | None = field(default=None, metadata={"help": "description of the images to find"})
    image: str | None = field(default=None, metadata={"help": "image file to find similar images for"})
    image_weight: float = field(
        default=0.5, metadata={"help": "weight of --image where both are given, from 0 (text only) to 1 (image only)"}
    )
    where: str | None = field(
        default=None, metadata={"help": 'SQL condition on columns of the index, such as "price < 10"'}
    )
    top_k: int = field(default=10, metadata={"help": "number of images to show"})
    rerank: int | None = field(
        default=None, metadata={"help": "number of candidates to rerank by the model's matching head"}
    )
    json: bool = field(default=False, metadata={"help": "print one JSON line per image in place of a table"})
    html: str | None = field(default=None, metadata={"help": "HTML file to write that shows the images found"})
    exact: bool = field(
        default=False, metadata={"help": "compare with every image, even if the index was built with --ann"}
    )
    model: str | None = field(
        default=None,
        metadata={"help": "model to use, a folder or Hub id; the default is the model that the index was made with"},
    )
    device: str | None = field(default=None, metadata={"help": DEVICE})

    def __post_init__(self):
        if not (self.text or self.image):
            raise ValueError("the query is missing; give --text, --image or both")
        if not 0 <= self.image_weight <= 1:
            raise ValueError(f"--image_weight is {self.image_weight}; expected 0 to 1")
        if self.top_k < 1:
            raise ValueError(f"--top_k is {self.top_k}; expected 1 or more")
        if self.rerank is not None and (not self.text or self.rerank < self.top_k):
            raise ValueError("--rerank needs --text, and must be at least --top_k")


@dataclass
class PushArguments:
    """Push: the model and the repository."""

    model: str = field(metadata={"help": "trained folder, of a whole model or of a LoRA adapter"})
    repo_id: str = field(metadata={"help": "repository, user/name; created if it does not exist"})
    private: bool = field(
        default=False, metadata={"help": "create the repositories as private; an existing public one is refused"}
    )
    revision: str = field(default="main", metadata={"help": "branch to push to; created if it does not exist"})
    fusion_only: bool = field(
        default=False,
        metadata={
            "help": "leave out frozen towers that are on the Hub; loading the model downloads them at their revision"
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "write and verify the repository and list its files, but push nothing"}
    )
    space: str | None = field(default=None, metadata={"help": "Space to create for the model, user/name"})
    space_folder: str = field(
        default=str(shipped_folder("hub_space")),
        metadata={"help": "folder with the Space's app.py, requirements.txt and README.md; default: the shipped one"},
    )


@dataclass(frozen=True)
class Verb:
    """A verb: its summary, the dataclasses of its arguments, the extra with its requirements, and an example."""

    summary: str
    arguments: tuple[type, ...]
    extra: str
    example: str


TRAIN = (DefaultsArguments, ModelArguments, DataArguments, RetrievalArguments)
VERBS = {
    "demo": Verb(
        "train the easy-VQA example, evaluate it and answer three questions (minutes on two CPU cores)",
        TRAIN,
        "demo",
        "modeling-mm demo",
    ),
    "train": Verb(
        "train a model on a table, an image folder or a dataset",
        TRAIN,
        "train",
        "modeling-mm train --train_file my.csv --output_dir out",
    ),
    "evaluate": Verb(
        "score a trained model on a test file; writes metrics, an HTML report and all predictions",
        (EvaluateArguments,),
        "train",
        "modeling-mm evaluate --model out --test_file test.csv",
    ),
    "predict": Verb(
        "answer questions about images, audio and video, or classify them; --explain draws the attention",
        (PredictArguments,),
        "train",
        'modeling-mm predict --model out --image cat.jpg --text "what animal is this?"',
    ),
    "index": Verb(
        "embed a folder or a table of images for search; run again after an interruption, it continues",
        (IndexArguments,),
        "search",
        "modeling-mm index --model openai/clip-vit-base-patch32 --images photos/ --index gallery",
    ),
    "search": Verb(
        "find images of an index by text, by image or by both",
        (SearchArguments,),
        "search",
        'modeling-mm search --index gallery --text "a red circle"',
    ),
    "push": Verb(
        "upload a trained folder to the Hub, verified before and after, with a Space if wanted",
        (PushArguments,),
        "train",
        "modeling-mm push --model out --repo_id user/name --dry_run",
    ),
    "export": Verb(
        "export a trained model to ONNX or torch.export, checked against the original",
        (ExportArguments,),
        "export",
        "modeling-mm export --model out --output_dir graphs",
    ),
}


def usage() -> str:
    """The help page of `modeling-mm --help`."""
    lines = [f"  {name:<10}{verb.summary}" for name, verb in VERBS.items()]
    head = ["usage: modeling-mm <verb> [--config FILE.yaml] [--key value ...]", ""]
    return "\n".join([*head, *lines, "", "Arguments of a verb: modeling-mm <verb> --help"])


def help_page(name: str) -> str:
    """The help page of a verb, made without importing the packages that it needs."""
    verb = VERBS[name]
    parser = argparse.ArgumentParser(
        prog=f"modeling-mm {name}",
        usage=f"modeling-mm {name} [--config FILE.yaml] [--key value ...]",
        description=f"{verb.summary[0].upper()}{verb.summary[1:]}.\n\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("--config", metavar="FILE", help=literal(config_help(name)))
    for arguments in verb.arguments:
        hints = get_type_hints(arguments)
        group = parser.add_argument_group((arguments.__doc__ or "").split("\n")[0].rstrip("."))
        for entry in fields(arguments):
            group.add_argument(f"--{entry.name}", metavar=value_name(entry, hints), help=literal(help_of(entry)))
    if verb.arguments == TRAIN:
        parser.epilog = (
            "Every argument of transformers.TrainingArguments works as well, such as --output_dir runs/mine,\n"
            "--num_train_epochs 3, --learning_rate 1e-4, --per_device_train_batch_size 16 or --bf16 true."
        )
    return parser.format_help().rstrip()


def literal(text: str) -> str:
    """A text escaped for argparse, which formats help with `%`."""
    return text.replace("%", "%%")


def config_help(name: str) -> str:
    """The help text of `--config`."""
    text = "YAML file with arguments as `key: value`; arguments on the command line override it"
    if name == "demo":
        return f"{text} (default: the recipe easy_vqa)"
    if VERBS[name].arguments != TRAIN:
        return text
    return (
        f"{text}; or the name of a shipped recipe: {', '.join(recipes())} (easy_vqa includes its data; "
        f"`python -m {recipes_module()}.make_NAME` writes the data of another recipe)"
    )


def value_name(entry: Field, hints: dict[str, Any]) -> str:
    """The placeholder of an argument's value on the help page."""
    if choices := entry.metadata.get("choices"):
        return f"{{{','.join(choices)}}}"
    kind = str(hints[entry.name])
    if "bool" in kind:
        return "{true,false}"
    word = "N" if "int" in kind else "NUMBER" if "float" in kind else "TEXT"
    return f"{word} [{word} ...]" if "list" in kind else word


def help_of(entry: Field) -> str:
    """An argument's help text, with its default if the text does not name it."""
    text = entry.metadata.get("help", "")
    if entry.default is MISSING and entry.default_factory is MISSING:
        return f"{text} (required)"
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    if "default" in text or default in (None, "", []) or default is False:
        return text
    value = " ".join(default) if isinstance(default, list) else str(default).lower() if default is True else default
    return f"{text} (default: {value})"
