# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm export`: a trained model as ONNX or `torch.export` graphs, checked on other shapes before it is saved.

modeling-mm export --model DIR --output_dir OUT
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_checkpoint
from ..export.writer import export_model, exporter_of
from .arguments import MMParser
from .verbs import ExportArguments


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the verb; returns its results."""
    (args,) = MMParser(ExportArguments, prog="modeling-mm export").parse(argv)
    exporter_of(args.format)
    if Path(args.output_dir).resolve() == Path(args.model).resolve():
        raise ValueError(f"--output_dir is the model's folder '{args.model}'; choose another")
    model, processor = load_checkpoint(args.model, dtype=torch.float32)
    if args.features:
        model = model.base_model
    return export_model(model, processor, args.output_dir, args.format, args.tolerance)
