# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Load a checkpoint with int8 weights (torchao, weight-only): the linear layers of the text backbone.

That is where most weights are. Tower, fusion and heads keep their dtype, and so do all activations: the fusion is what
goes on training, which integers cannot. docs/export.md has the measurements.
"""

import importlib.util
from typing import Any

QUANTIZATIONS = ["int8"]
NOT_QUANTIZED = [r"(model\.)?(vision_tower|audio_tower|fusion)", "lm_head", "classifier"]  # matched from the start


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

    return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=NOT_QUANTIZED)}
