# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Shared code of `make_*.py`: a folder with one CSV per split, files written atomically and in parallel.

Every `make_*.py` has a function `make(folder, seed, ...)`; run as a command, it prints one line of JSON at the end.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

SPLITS = ("train", "validation", "test")


def save(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write` with a new file that is renamed to `path` when complete, so that no partial file remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        write(file)
    part.replace(path)


def write_table(folder: Path, split: str, columns: list[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Write `folder/split.csv`; paths in the rows are relative to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_in_parallel(write: Callable[[Any], None], items: Iterable[Any], description: str) -> int:
    """Call `write` once for each distinct item, on all cores, with a progress bar; return the number of calls.

    Threads are sufficient, because each sentence is spoken by a separate espeak-ng process.
    """
    distinct = list(dict.fromkeys(items))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(write, distinct), total=len(distinct), desc=description):
            pass
    return len(distinct)


def command(make: Callable[..., dict[str, Any]], description: str, **numbers: float) -> None:
    """Run `make` from the command line and print its result; `numbers` are the numeric options with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path("runs/data") / Path(sys.argv[0]).stem.removeprefix("make_")
    parser.add_argument("--output_dir", type=Path, default=folder, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=type(default), default=default, help="default: %(default)s")
    options = vars(parser.parse_args())
    try:
        result = make(options.pop("output_dir"), **options)
    except ValueError as error:
        sys.exit(f"{error}")
    print(json.dumps(result))
