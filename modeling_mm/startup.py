# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Registration of the package's classes with transformers, delayed for the command line: its import takes seconds."""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import PurePath


def is_command_line() -> bool:
    """True if this process is `modeling-mm` or `python -m modeling_mm.cli`, which calls `register` later by itself."""
    program = "".join(sys.orig_argv[-len(sys.argv) :][:1])  # the word before the arguments
    return program == "modeling_mm.cli" or PurePath(program).name in ("modeling-mm", "modeling-mm.exe")


def register() -> None:
    """Register the classes with transformers; a second call changes nothing."""
    # transformers imports torchao wherever it is installed, used or not, and torchao logs about itself
    with muted("torchao", "torch.utils._pytree"):
        importlib.import_module("modeling_mm.registration")


@contextlib.contextmanager
def muted(*names: str) -> Iterator[None]:
    """Drop the records of the loggers with these names."""
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(drop)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(drop)


def drop(record: logging.LogRecord) -> bool:
    """Logging filter that no record passes."""
    return False
