# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm demo`: train on the questions of easy-VQA, evaluate on its test split, answer three questions.

modeling-mm demo

Runs `modeling-mm train --config easy_vqa`; arguments of `train` may follow.
"""

from collections.abc import Sequence
from typing import Any

from . import train


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Run the verb; returns its results on the first process."""
    has_config = any(word == "--config" or word.startswith("--config=") for word in argv)
    return train.main([*(() if has_config else ("--config", "easy_vqa")), *argv])
