# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The graphs of an exported model: thin modules, each with sample inputs for tracing and for checks.

A classifier, or the base model, is one graph. A generating model is three, so that an image is encoded once for any
number of tokens and questions: `media_encoder`, `media_start` and `decoder`. The library's own split for generation
(`export_for_generation`) records what `generate` passes to `forward`, where images are encoded already, and would
lose the vision tower; its exporters do the tracing of each module here.

Shapes: B rows, I distinct images, N images per row, P slots per image, S = N * P slots, T text tokens, D text width,
V vocabulary, L fusion layers, K key/value heads, E head width; C columns in the self-attention cache.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ..model.media_mm import media_start_from_markers
from ..model.processing_mm import MMProcessor

Inputs: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a batch: B, I, N, T and C of the legend."""

    rows: int
    images: int
    images_per_row: int
    tokens: int
    cached: int


TRACED = Sizes(rows=3, images=4, images_per_row=2, tokens=7, cached=5)
# a single row and token, an empty cache, more images than traced, a longer cache
CHECKED = (Sizes(1, 1, 1, 1, 9), Sizes(2, 3, 3, 9, 0), Sizes(1, 2, 1, 12, 0), Sizes(4, 2, 2, 1, 20))


class Graph(nn.Module):
    """A part of a model as a function of tensors only.

    Args:
        model: the model.
        image_shape: (channels, height, width) of prepared images.
    """

    def __init__(self, model: PreTrainedModel, image_shape: tuple[int, ...]):
        super().__init__()
        self.model = model
        self.image_shape = image_shape

    def images(self, sizes: Sizes) -> Inputs:
        """Random images; each row has at least one, and every other row of several lacks its last."""
        index = torch.arange(sizes.rows * sizes.images_per_row).view(sizes.rows, -1) % sizes.images
        if sizes.images_per_row > 1:
            index[1::2, -1] = -1
        return {"pixel_values": torch.randn(sizes.images, *self.image_shape), "image_index": index}

    def text(self, sizes: Sizes) -> torch.Tensor:
        """Random tokens (B, T); rows with even numbers have markers for their images if these fit."""
        config = self.model.config
        ids = torch.randint(config.text_config.vocab_size, (sizes.rows, sizes.tokens))
        marker = config.image_token_id
        if marker is not None:
            ids[ids == marker] = (marker + 1) % config.text_config.vocab_size
            if sizes.tokens > sizes.images_per_row:
                ids[::2, 1 : 1 + sizes.images_per_row] = marker
        return ids

    def sample(self, sizes: Sizes) -> Inputs:
        """Random inputs of `forward`."""
        raise NotImplementedError

    def dynamic_shapes(self) -> Any:
        """The dynamic axes of every input: those that differ between two samples of different sizes."""
        other = Sizes(*(2 * size for size in vars(TRACED).values()))
        axis = torch.export.Dim.DYNAMIC  # tracing fails if the graph would be valid for one size only

        def varying(tensor: torch.Tensor, larger: torch.Tensor) -> dict[int, Any]:
            return {i: axis for i, (m, n) in enumerate(zip(tensor.shape, larger.shape, strict=True)) if m != n}

        return torch.utils._pytree.tree_map(varying, self.sample(TRACED), self.sample(other))


class OneGraph(Graph):
    """Maps text, images and a table to a classifier's `logits` (B, labels) or to the `last_hidden_state` (B, T, D).

    The table (B, C) is an input of models that take one; rows without a cell have none.
    """

    def __init__(self, model: PreTrainedModel, image_shape: tuple[int, ...], output: str):
        super().__init__(model, image_shape)
        self.output = output
        # without it, a decoder would return its cache too
        self.options = {"use_cache": False} if model.config.is_text_decoder else {}

    def forward(self, input_ids, attention_mask, pixel_values, image_index, table_values=None):
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_index=image_index,
            table_values=table_values,
            return_dict=True,
            **self.options,
        )
        return {self.output: output[self.output]}

    def sample(self, sizes: Sizes) -> Inputs:
        ids = self.text(sizes)
        mask = torch.ones_like(ids)
        mask[1:, sizes.tokens - sizes.tokens // 3 :] = 0  # padding on the right in all rows but the first
        return {"input_ids": ids, "attention_mask": mask, **self.images(sizes), **self.table(sizes)}

    def table(self, sizes: Sizes) -> Inputs:
        """Random cells, some of them missing; nothing for a model without a table."""
        columns = self.model.config.table_columns
        if columns is None:
            return {}
        numbers = torch.tensor([column.get("mean", 0.0) for column in columns])
        scales = torch.tensor([column.get("scale", len(column.get("values", ()))) for column in columns])
        values = numbers + scales * torch.rand(sizes.rows, len(columns))
        values[1::2, ::2] = torch.nan
        return {"table_values": values}


class MediaEncoder(Graph):
    """Maps images to `media_key_values` (B, L, 2, K, S, E), which the decoder takes in their place."""

    def forward(self, pixel_values, image_index):
        return {"media_key_values": self.model.encode_media(pixel_values, image_index)}

    def sample(self, sizes: Sizes) -> Inputs:
        return self.images(sizes)


class MediaStart(Graph):
    """Maps text with markers to `media_start` (B, S), the first column that may attend to each slot."""

    def __init__(self, model: PreTrainedModel, image_shape: tuple[int, ...]):
        super().__init__(model, image_shape)
        inputs = {"pixel_values": torch.zeros(1, *image_shape), "image_index": torch.zeros(1, 1, dtype=torch.long)}
        self.slots = model.encode_media(**inputs).shape[4]

    def forward(self, input_ids, image_index):
        marker = self.model.config.image_token_id
        start = media_start_from_markers(None if marker is None else input_ids == marker, image_index)  # (B, N)
        return {"media_start": start[..., None].expand(-1, -1, self.slots).flatten(1)}

    def sample(self, sizes: Sizes) -> Inputs:
        return {"input_ids": self.text(sizes), "image_index": self.images(sizes)["image_index"]}


class Decoder(Graph):
    """Maps tokens and a cache to `logits` (B, T, V) and the extended cache `present`.

    Raises:
        ValueError: the backbone keeps a state other than keys and values.
    """

    def __init__(self, model: PreTrainedModel, image_shape: tuple[int, ...]):
        super().__init__(model, image_shape)
        layers = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True).past_key_values.layers
        if model._is_stateful or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            raise ValueError(
                f"the text backbone '{model.config.text_config.model_type}' keeps a recurrent state, which "
                "this export does not support; use a backbone with attention only, such as llama or qwen3"
            )
        self.cache_shapes = [tuple((t.shape[1], t.shape[3]) for t in (layer.keys, layer.values)) for layer in layers]
        config = model.config
        self.media_shape = (len(config.fusion_layers), 2, config.fusion_num_key_value_heads)

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, media_key_values, media_start):
        # Every layer keeps all columns, even with a sliding window, which is in its mask.
        cache = DynamicCache([(layer["key"], layer["value"]) for layer in past_key_values.values()])
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            media_key_values=media_key_values,
            media_start=media_start,
            use_cache=True,
            return_dict=True,
        )
        layers = output.past_key_values.layers
        # nested, so that the graph's names are those of other exports: past_key_values.0.key, present.0.key
        present = {str(index): {"key": layer.keys, "value": layer.values} for index, layer in enumerate(layers)}
        return {"logits": output.logits, "present": present}

    def sample(self, sizes: Sizes) -> Inputs:
        rows, columns = sizes.rows, sizes.cached + sizes.tokens
        mask = torch.ones(rows, columns, dtype=torch.long)
        mask[1:, : columns // 3] = 0  # padding on the left in all rows but the first
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, sizes.cached :]
        slots = 3 * sizes.images_per_row
        return {
            "input_ids": self.text(sizes),
            "attention_mask": mask,
            "position_ids": positions.contiguous(),
            "past_key_values": self.cache(rows, sizes.cached),
            "media_key_values": torch.randn(rows, *self.media_shape, slots, self.model.config.fusion_head_dim),
            "media_start": torch.randint(columns, (rows, slots)),
        }

    def cache(self, rows: int, columns: int) -> dict[str, dict[str, torch.Tensor]]:
        """Random keys and values of `columns` columns for every layer."""
        return {
            str(index): {
                name: torch.randn(rows, heads, columns, width)
                for name, (heads, width) in zip(("key", "value"), shapes, strict=True)
            }
            for index, shapes in enumerate(self.cache_shapes)
        }


def image_shape(processor: MMProcessor) -> tuple[int, ...]:
    """(channels, height, width) of a prepared image.

    Raises:
        ValueError: the tower takes more than pixels, because its images differ in shape.
    """
    prepared = processor.image_processor(Image.new("RGB", (64, 64)), return_tensors="pt")
    if others := sorted(set(prepared) - {"pixel_values"}):
        raise ValueError(
            f"the image processor {type(processor.image_processor).__name__} also gives {', '.join(others)}: its "
            "images differ in shape, which cannot be exported; use a tower of fixed size, like clip, siglip or resnet"
        )
    return tuple(prepared["pixel_values"].shape[1:])


def graphs_of(model: PreTrainedModel, processor: MMProcessor) -> dict[str, Graph]:
    """The graphs of a model by name: three for a generating model, a single `model` for a classifier or base model.

    Raises:
        ValueError: the tower or the backbone cannot be exported.
    """
    if model.config.audio_config is not None:
        raise ValueError("this model takes audio; only models of image and text can be exported")
    if model.config.num_frames is not None:
        raise ValueError("this model takes video; only models of image and text can be exported")
    shape = image_shape(processor)
    if model.can_generate() and model.config.table_columns is not None:
        raise ValueError("this model generates from a table; with a table, only classifiers can be exported")
    if model.can_generate():
        parts = {"media_encoder": MediaEncoder, "media_start": MediaStart, "decoder": Decoder}
        return {name: part(model, shape) for name, part in parts.items()}
    return {"model": OneGraph(model, shape, "last_hidden_state" if model.base_model is model else "logits")}
