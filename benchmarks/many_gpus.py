# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The calculation for docs/many-gpus.md: GiB on each GPU, by model, GPUs and batch; nothing is measured.

    python benchmarks/many_gpus.py     # prints the table

Parameters are counted on the meta device; the rest are the formulas of the document, one function each.
"""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, SiglipVisionConfig

from modeling_mm import MMConfig, MMForConditionalGeneration

GIB = 2**30
TEXT, IMAGE = 512, 256  # tokens of a row, states of its image

SO400M = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
LARGE = {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}
# hidden size, layers, heads, width of the MLP
MODELS = {
    "SigLIP2-so400m + SmolLM2-1.7B": (SO400M, (2048, 24, 32, 8192), {"vocab_size": 49152}),
    "SigLIP2-so400m + Llama-3.1-8B": (SO400M, (4096, 32, 32, 14336), LARGE),
    "SigLIP2-so400m + Llama-3.1-70B": (SO400M, (8192, 80, 64, 28672), LARGE),
}
LAYOUTS = [(1, "one"), (8, "DDP"), (8, "FSDP2"), (64, "FSDP2")]


@dataclass
class ParameterCounts:
    """Parameters of a model: all, in the fusion, in the largest block, outside of blocks; and its config."""

    everything: int
    fusion: int
    block: int
    root: int
    config: MMConfig


def count_parameters(vision: dict, shape: tuple[int, int, int, int], others: dict) -> ParameterCounts:
    """Parameters of a model with a Llama backbone, built without allocating memory."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    text = LlamaConfig(**dict(zip(names, shape, strict=True)), **{"tie_word_embeddings": True, **others})
    config = MMConfig(text_config=text, vision_config=SiglipVisionConfig(**vision, image_size=224, patch_size=14))
    with torch.device("meta"):
        model = MMForConditionalGeneration(config)
    model.tie_weights()
    blocks = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    everything = sum(p.numel() for p in model.parameters())
    fusion = sum(p.numel() for p in model.model.fusion.parameters())
    return ParameterCounts(everything, fusion, max(sizes), everything - sum(sizes), config)


def state_bytes(model: ParameterCounts, trained: int, gpus: int, way: str) -> float:
    """Bytes of weights, gradients and Adam's two moments in fp32, plus bf16 copies and communication buffers."""
    whole = 4 * model.everything + (4 + 8) * trained
    if way == "FSDP2":
        largest = model.block if trained < model.everything else max(model.block, model.root)
        return whole / gpus + 2 * (model.root + 2 * model.block) + (2 + 4) * largest
    return whole + 2 * trained + (4 * trained if way == "DDP" else 0)


def activation_bytes(config: MMConfig, rows: int, vision_trained: bool, checkpointed: bool) -> float:
    """Bytes of activations stored for the backward pass of `rows` rows with one image each."""
    text, vision, fused = config.text_config, config.vision_config, len(config.fusion_layers)
    token, patch = rows * TEXT * text.hidden_size, rows * IMAGE * vision.hidden_size
    layers = text.num_hidden_layers + fused
    text_bytes = ((2 * layers + 34) if checkpointed else 34 * text.num_hidden_layers + 13 * fused) * token
    vision_bytes = 34 * patch
    if vision_trained:
        layer_bytes = 2 * vision.num_hidden_layers + 34 if checkpointed else 34 * vision.num_hidden_layers
        vision_bytes = layer_bytes * patch
    key_values = 2 * 2 * 2 * rows * IMAGE * fused * config.fusion_num_key_value_heads * config.fusion_head_dim
    return text_bytes + vision_bytes + key_values + 10 * rows * TEXT * text.vocab_size


def line(name: str, model: ParameterCounts, part: str, gpus: int, way: str) -> str:
    """One row of the table."""
    trained = model.fusion if part == "fusion" else model.everything
    state = state_bytes(model, trained, gpus, way)
    sums = [state]
    for rows, checkpointed in ((1, True), (8, True), (32, True), (8, False)):
        sums.append(state + activation_bytes(model.config, rows, part == "all", checkpointed))
    sizes = " | ".join(f"{size / GIB:.1f}" if size < 100 * GIB else f"{size / GIB:.0f}" for size in sums)
    kind = f"{gpus}, {way}" if gpus > 1 else "1"
    return f"| {name} | {model.everything / 1e9:.2f} | {part}, {trained / 1e9:.2f} | {kind} | {sizes} |"


def table() -> list[str]:
    """The lines of the table."""
    lines = [
        "| model | parameters, 10⁹ | trained, 10⁹ | GPUs | state "
        "| batch 1 | batch 8 | batch 32 | batch 8, no checkpointing |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (vision, shape, others) in MODELS.items():
        model = count_parameters(vision, shape, others)
        lines += [line(name, model, part, gpus, way) for part in ("fusion", "all") for gpus, way in LAYOUTS]
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
