# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tables from files, folders and datasets, their cells as they were written.

CSV, TSV, JSON, Parquet, a folder of images or of audio, any name the `datasets` library knows, and `easy-vqa` (the
PyPI package).
"""

import logging
import re
from collections.abc import Collection
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder

from .text_files import read_delimited, read_json, refuse

FILE_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SPLITS = ("train", "validation", "test")


def read_table(source: str, split: str = "train") -> tuple[datasets.Dataset, Path]:
    """A table from a file, folder or name, and the folder that relative paths in it start from.

    Raises:
        ValueError: the table cannot be found or read, or holds no rows.
    """
    path = Path(source)
    try:
        if source == "easy-vqa":
            return read_easy_vqa(split), Path()
        if path.suffix.lower() in FILE_READERS:
            if not path.is_file():
                raise ValueError(f"the file '{source}' does not exist")
            table = read_file(path)
        elif path.is_dir():
            return read_folder(path, split)
        else:
            table = datasets.load_dataset(source, split=split)
    except DatasetGenerationError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"'{source}' cannot be read as a table: {reason}") from error
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"'{source}' is neither a file, a folder nor a known dataset: {reason}") from error
    if len(table) == 0:
        raise ValueError(f"'{source}' holds no rows; expected at least one")
    return table, path.parent


def read_folder(path: Path, split: str) -> tuple[datasets.Dataset, Path]:
    """A folder of images or audio, with metadata or one folder per class; `split` selects one of several.

    Raises:
        ValueError: the folder holds several splits, but not this one.
    """
    for folder in (path / split, path):
        # `imagefolder` would read 007 as 7.0, None as missing, and 2024-01-01 as a time
        for metadata in (folder / "metadata.csv", folder / "metadata.jsonl"):
            if metadata.is_file():
                table = read_file(metadata)
                if "file_name" in table.column_names:
                    table = table.rename_column(
                        "file_name", "audio" if is_audio_file(table[0]["file_name"]) else "image"
                    )
                elif metadata.suffix == ".jsonl":
                    table = table.rename_columns({name: modality_of_folder(name) for name in table.column_names})
                return table, folder
    if any(is_audio_file(file.name) for file in path.rglob("*")):
        return read_audio_folder(path, split)
    splits = datasets.load_dataset("imagefolder", data_dir=str(path))
    if split not in splits and len(splits) > 1:
        raise ValueError(f"'{path}' has the splits {', '.join(splits)}, not '{split}'")
    return splits[split] if split in splits else next(iter(splits.values())), path


def modality_of_folder(name: str) -> str:
    """The name that `imagefolder` gives to a column of file names: `image` for `image_file_name`, `images` for
    `file_names`."""
    return "images" if name == "file_names" else re.sub("_file_names?$", "", name)


def read_audio_folder(path: Path, split: str) -> tuple[datasets.Dataset, Path]:
    """A folder of audio files, or of one folder per class; `audiofolder` would need torchcodec.

    Raises:
        ValueError: the folder holds several splits, but not this one.
    """
    splits = sorted(folder.name for folder in path.iterdir() if folder.name in SPLITS)
    if splits and split not in splits:
        raise ValueError(f"'{path}' has the splits {', '.join(splits)}, not '{split}'")
    folder = path / split if splits else path
    files = sorted(file for file in folder.rglob("*") if is_audio_file(file.name))
    columns = {"audio": [str(file.relative_to(folder)) for file in files]}
    if len({file.parent for file in files}) > 1:
        columns["label"] = [file.parent.name for file in files]
    return datasets.Dataset.from_dict(columns), folder


def is_audio_file(name: str | None) -> bool:
    """True if a file's suffix is that of audio."""
    return name is not None and Path(name).suffix.lower() in AudioFolder.EXTENSIONS


def read_file(path: Path, text_columns: Collection[str] | None = None) -> datasets.Dataset:
    """The table of a CSV, TSV, JSON or Parquet file; see `text_files` for the first three; Parquet keeps its types.

    Args:
        text_columns: columns of JSON that hold text; the others keep numbers and booleans. None: all hold text.

    Raises:
        ValueError: the file is not a table, or empty.
    """
    reader, table = FILE_READERS[path.suffix.lower()], None
    if reader == "csv":
        table = read_delimited(path, "\t" if path.suffix.lower() == ".tsv" else ",")
    elif reader == "json":
        table = read_json(path, text_columns)
    elif path.stat().st_size > 0:
        table = read_parquet(path)
    if not table:
        raise ValueError(f"'{path}' holds no rows; expected at least one")
    return table


def read_parquet(path: Path) -> datasets.Dataset:
    """The table of a Parquet file.

    Raises:
        ValueError: two of its columns have the same name.
    """
    log = logging.getLogger("datasets.packaged_modules")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it would log the traceback of what the error says in one sentence
    try:
        names = pyarrow.parquet.read_schema(path).names
        if twice := next((name for name in names if names.count(name) > 1), None):
            refuse(path, f"two columns have the name '{twice}'; expected different ones")
        return datasets.load_dataset("parquet", data_files=str(path), split="train")
    except pyarrow.ArrowInvalid as error:
        refuse(path, str(error).strip().splitlines()[0])
    finally:
        log.setLevel(level)


def read_easy_vqa(split: str) -> datasets.Dataset:
    """The easy-VQA questions (Zhou 2019) of the installed PyPI package: split `train` or `test`.

    Raises:
        ValueError: the package is not installed, or there is no such split.
    """
    try:
        import easy_vqa
    except ImportError:
        raise ValueError("the dataset 'easy-vqa' needs the package: pip install easy-vqa") from None
    if split not in ("train", "test"):
        raise ValueError(f"'easy-vqa' has the splits 'train' and 'test', not '{split}'")
    questions, images = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }[split]
    texts, answers, image_ids = questions()
    paths = images()
    return datasets.Dataset.from_dict({"image": [paths[i] for i in image_ids], "text": texts, "answer": answers})
