# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Load a checkpoint with int8 weights (torchao, weight-only). `adapters_mm` says which layers: the text backbone's.

Activations keep their dtype. docs/export.md has the measurements.
"""

import importlib.util
from typing import Any

QUANTIZATIONS = ["int8"]


def quantized(kind: str | None) -> dict[str, Any]:
    """Arguments of `load_checkpoint` or `from_pretrained` for one of `QUANTIZATIONS`; none at all for None.

    Raises:
        ValueError: torchao is not installed.
    """
    if kind is None:
        return {}
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(f'--quantization {kind} needs torchao; pip install "modeling-mm[quantization]"')
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
