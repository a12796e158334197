# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Export of a trained model to ONNX or `torch.export` graphs, checked on other shapes before they are saved."""

import copy
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel

from ..model.processing_mm import MMProcessor
from .graphs import CHECKED, TRACED, Graph, graphs_of
from .runtime import ExportedMM

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
NEW_TOKENS = 8  # number of generated tokens to compare


def exporter_of(export_format: str) -> tuple[Any, Any]:
    """The library's exporter for a format, and the class of its config.

    Raises:
        ValueError: a package is missing or the library too old.
    """
    if missing := [name for name in PACKAGES[export_format] if importlib.util.find_spec(name) is None]:
        raise ValueError(f'export to {export_format} needs {", ".join(missing)}; pip install "modeling-mm[export]"')
    try:
        from transformers.exporters import DynamoConfig, DynamoExporter, ExportedModel, OnnxConfig, OnnxExporter  # noqa: F401
    except ImportError:
        raise ValueError(f"export needs transformers 5.23 or newer, not {transformers.__version__}") from None
    if export_format == "onnx":
        return OnnxExporter(), OnnxConfig
    return DynamoExporter(), DynamoConfig


def write_graphs(
    graphs: dict[str, Graph], model: PreTrainedModel, processor: MMProcessor, folder: str, export_format: str
) -> None:
    """Trace all graphs and write them, with configs and processor.

    Raises:
        ValueError: a tower or backbone cannot be traced.
    """
    from transformers.exporters import ExportedModel

    exporter, config_class = exporter_of(export_format)
    components = {}
    for name, graph in graphs.items():
        print(f"tracing {name}")
        config = config_class(dynamic_shapes=graph.dynamic_shapes())
        try:
            components[name] = exporter.export(graph, graph.sample(TRACED), config).components["model"]
        except Exception as error:  # towers and backbones fail to be traced in many ways
            towers = f"'{model.config.vision_config.model_type}' and '{model.config.text_config.model_type}'"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"the graph '{name}' of {towers} cannot be traced: {reason}") from error
    generation_config = model.generation_config if model.can_generate() else None
    ExportedModel(components, exporter.export_format, model.config, generation_config).save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def check_graphs(graphs: dict[str, Graph], exported: ExportedMM, tolerance: float) -> dict[str, float]:
    """The largest difference between each written graph's outputs and the model's, over batches of other sizes.

    Differences are relative for values above 1.

    Raises:
        ValueError: a difference is larger than `tolerance`.
    """
    largest = dict.fromkeys(graphs, 0.0)
    for name, graph in graphs.items():
        for sizes in CHECKED:
            inputs = graph.sample(sizes)
            expected = torch.utils._pytree.tree_leaves(graph(**copy.deepcopy(inputs)))
            written = torch.utils._pytree.tree_leaves(exported.runners[name](**inputs))
            for value, output in zip(expected, written, strict=True):
                gap = (value.double() - output.double()).abs()
                difference = (gap / value.double().abs().clamp(min=1)).max().item()
                # compared in this direction, so that NaN fails
                if not difference <= tolerance:
                    raise ValueError(
                        f"the written graph '{name}' differs from the model by {difference:.2g} for {sizes}; expected "
                        f"at most {tolerance:g}, so nothing was saved"
                    )
                largest[name] = max(largest[name], difference)
        print(f"{name}: largest difference {largest[name]:.2g} over {len(CHECKED)} batches of other sizes")
    return largest


def check_tokens(model: PreTrainedModel, graph: Graph, exported: ExportedMM) -> None:
    """Compare greedy answers to random questions about random images, and to questions without images.

    Raises:
        ValueError: a token differs.
    """
    config = model.generation_config
    greedy = GenerationConfig(
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )
    for sizes in (each for each in CHECKED if each.tokens > 1):
        ids = graph.text(sizes)
        mask = torch.ones_like(ids)
        mask[1:, : sizes.tokens // 3] = 0
        for images in (graph.images(sizes), {}):
            inputs = {"input_ids": ids, "attention_mask": mask, **images}
            expected = model.generate(**inputs, generation_config=greedy)
            answers = exported.generate(**inputs, max_new_tokens=NEW_TOKENS)
            if not torch.equal(expected, answers):
                raise ValueError(
                    f"the written graphs answer {answers.tolist()} where the model answers {expected.tolist()}; "
                    "nothing was saved"
                )


@torch.no_grad()
def export_model(
    model: PreTrainedModel,
    processor: MMProcessor,
    output_dir: str,
    export_format: str = "onnx",
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """Write the graphs of a model, its configs and its processor, after a check of the written files against it.

    Args:
        model: a head or the base model; it is put into float32 and evaluation mode.
        export_format: `onnx` or `torch`.
        tolerance: largest accepted difference from the model's outputs, relative for values above 1.

    Returns:
        the files with their sizes in bytes, and the largest difference of each graph.

    Raises:
        ValueError: a package is missing, the model cannot be exported, or the outputs differ.
    """
    exporter_of(export_format)
    if hasattr(model, "hf_quantizer"):
        raise ValueError("the model's weights are quantised; export the original model instead")
    model = model.float().eval()
    graphs = graphs_of(model, processor)
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        write_graphs(graphs, model, processor, folder, export_format)
        exported = ExportedMM.from_pretrained(folder)
        differences = check_graphs(graphs, exported, tolerance)
        if "decoder" in graphs:
            check_tokens(model, graphs["decoder"], exported)
        files = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir())}
        for name in files:
            os.replace(Path(folder) / name, output / name)
    return {"format": export_format, "files": files, "max_difference": differences, "output_dir": str(output)}
