# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A trained model as ONNX or `torch.export` graphs, checked on other shapes before it is kept."""

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
NEW_TOKENS = 8  # that a generating model is compared over


def exporter_of(export_format: str) -> tuple[Any, Any]:
    """The library's exporter for a format, and the class of its config.

    Raises:
        ValueError: a package is missing or the library too old.
    """
    if missing := [name for name in PACKAGES[export_format] if importlib.util.find_spec(name) is None]:
        raise ValueError(f'an export to {export_format} needs {", ".join(missing)}; pip install "modeling-mm[export]"')
    try:
        from transformers.exporters import DynamoConfig, DynamoExporter, ExportedModel, OnnxConfig, OnnxExporter  # noqa: F401
    except ImportError:
        raise ValueError(f"an export needs transformers 5.23 or newer, not {transformers.__version__}") from None
    if export_format == "onnx":
        return OnnxExporter(), OnnxConfig
    return DynamoExporter(), DynamoConfig


def write_graphs(
    graphs: dict[str, Graph], model: PreTrainedModel, processor: MMProcessor, folder: str, export_format: str
) -> None:
    """Trace every graph and write them, with configs and processor.

    Raises:
        ValueError: a tower or backbone that cannot be traced.
    """
    from transformers.exporters import ExportedModel

    exporter, config_class = exporter_of(export_format)
    components = {}
    for name, graph in graphs.items():
        print(f"tracing {name}")
        config = config_class(dynamic_shapes=graph.dynamic_shapes())
        try:
            components[name] = exporter.export(graph, graph.sample(TRACED), config).components["model"]
        except Exception as error:  # whatever a tower or backbone does that no graph can say
            towers = f"'{model.config.vision_config.model_type}' and '{model.config.text_config.model_type}'"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"the graph '{name}' of {towers} cannot be traced: {reason}") from error
    generation_config = model.generation_config if model.can_generate() else None
    ExportedModel(components, exporter.export_format, model.config, generation_config).save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def check_graphs(graphs: dict[str, Graph], exported: ExportedMM, tolerance: float) -> dict[str, float]:
    """The largest difference of every written graph's outputs from its model's, over batches of other sizes.

    A difference is relative where values are larger than 1.

    Raises:
        ValueError: it is larger than `tolerance`.
    """
    largest = dict.fromkeys(graphs, 0.0)
    for name, graph in graphs.items():
        for sizes in CHECKED:
            inputs = graph.sample(sizes)
            expected = torch.utils._pytree.tree_leaves(graph(**copy.deepcopy(inputs)))
            given = torch.utils._pytree.tree_leaves(exported.runners[name](**inputs))
            for one, two in zip(expected, given, strict=True):
                difference = ((one.double() - two.double()).abs() / one.double().abs().clamp(min=1)).max().item()
                # the comparison is this way round so that a NaN fails
                if not difference <= tolerance:
                    raise ValueError(
                        f"the written graph '{name}' differs from the model by {difference:.2g} for {sizes}; expected "
                        f"at most {tolerance:g}, so nothing was kept"
                    )
                largest[name] = max(largest[name], difference)
        print(f"{name}: largest difference {largest[name]:.2g} over {len(CHECKED)} batches of other sizes")
    return largest


def check_tokens(model: PreTrainedModel, graph: Graph, exported: ExportedMM) -> None:
    """Compare plain greedy answers to random questions about random images, and to questions without any.

    Raises:
        ValueError: a token differs.
    """
    own = model.generation_config
    greedy = GenerationConfig(
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
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
        for pictures in (graph.pictures(sizes), {}):
            inputs = {"input_ids": ids, "attention_mask": mask, **pictures}
            expected = model.generate(**inputs, generation_config=greedy)
            given = exported.generate(**inputs, max_new_tokens=NEW_TOKENS)
            if not torch.equal(expected, given):
                raise ValueError(
                    f"the written graphs answer {given.tolist()} where the model answers {expected.tolist()}; "
                    "nothing was kept"
                )


@torch.no_grad()
def export_model(
    model: PreTrainedModel,
    processor: MMProcessor,
    output_dir: str,
    export_format: str = "onnx",
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """Write the graphs of a model, its configs and its processor, once the written files were found to agree with it.

    Args:
        model: a head or the base model, put into float32 and evaluation mode. export_format: `onnx` or `torch`.
        tolerance: largest difference from the model's outputs to accept, relative where these are larger than 1.

    Returns:
        the files with their sizes in bytes, and the largest difference of each graph.

    Raises:
        ValueError: something is missing, cannot be exported, or came out different.
    """
    exporter_of(export_format)
    if hasattr(model, "hf_quantizer"):
        raise ValueError("the model's weights are quantized; export the model that was quantized instead")
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
