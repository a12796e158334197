# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Attention maps: the cross-attention weights of each word over the places of an image.

The words are those of the answer for a model that generates, and those of the input text for any other model.

Shapes: L fusion layers, H heads, T text tokens, S slots of the image, h and w height and width of their grid.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from .table_mm import table_tensor

LEADING = (0, 1, 5)  # slots before the grid: none, a class token, or a class token and four registers


class AttentionMaps(NamedTuple):
    """Attention maps of the words of a text over an image.

    text: the answer, or the input text. image: the image as the model sees it, after any crop. words: each word with
    its weights as an (h, w) grid, whose sum is below 1 where class and register tokens have a share.
    """

    text: str
    image: Image.Image
    words: list[tuple[str, np.ndarray]]


class MMAttentionMapsMixin:
    """Attention maps of a model with cross-attention, over a single image."""

    def check_attention_maps(self: Any) -> None:
        """Refuse a model whose attention weights do not belong to places in an image.

        Raises:
            ValueError: the model has no cross-attention, or has a resampler in front of it.
        """
        if self.config.num_latents:
            raise ValueError(
                "an attention map needs slots that each have a place in the image; this model's resampler mixes them"
            )
        if not self.config.cross_attention:
            raise ValueError(
                "an attention map shows cross-attention weights; this model has `late_fusion` without cross-attention"
            )

    @torch.no_grad()
    def attention_maps(
        self: Any,
        processor: Any,
        image: Any,
        text: str,
        max_new_tokens: int = 32,
        max_words: int = 8,
        table: dict[str, Any] | None = None,
    ) -> AttentionMaps:
        """Mean weights over layers, heads and the tokens of each word; fusion must use "eager" attention.

        Args:
            image: any image source that `MMProcessor.open_image` takes.
            text: the question, or the text to classify; may hold the image's marker.
            max_words: maximum number of words that get a map, from the first.
            table: cells of the row, for a model that takes them; their slots are left out of the maps.

        Raises:
            ValueError: the model has no attention maps, the text leaves no room for an answer, or the slots do not
                form a square.
        """
        self.check_attention_maps()
        image = processor.open_image(image)
        media = {name: value.to(self.device) for name, value in processor.flat_images([[image]]).items()}
        slots = None
        if table:
            media["table_values"] = table_tensor(table, processor.table_columns).to(self.device)
            slots = -len(processor.table_columns)
        ids, start = mapped_tokens(self, processor, media, text, max_new_tokens)
        attentions = self(
            input_ids=ids, attention_mask=torch.ones_like(ids), **media, output_attentions=True
        ).cross_attentions
        weights = torch.stack(attentions).mean(dim=(0, 2))[0, :, :slots].float().cpu()  # (L, 1, H, T, S) to (T, S)
        if self.can_generate():
            weights = weights.roll(1, dims=0)  # a generated token is predicted one column before its own
        row, special = ids[0].tolist(), {*processor.tokenizer.all_special_ids, processor.image_token_id}
        columns = [column for column in range(start, len(row)) if row[column] not in special]
        words = spelled_words(processor.tokenizer, row, columns)
        maps = [(word, attention_grid(weights[places].mean(dim=0)).numpy()) for word, places in words[:max_words]]
        cropped = cropped_image(processor.image_processor, media["pixel_values"])
        return AttentionMaps(" ".join(word for word, _ in words), cropped or image, maps)


def mapped_tokens(
    model: PreTrainedModel, processor: Any, media: dict[str, torch.Tensor], text: str, max_new_tokens: int
) -> tuple[torch.Tensor, int]:
    """Token ids (1, T) of a text, with the generated answer if the model generates, and the first column to map."""
    if model.can_generate():
        ids = torch.tensor(processor.encode_prompts([text], [1]))
    else:
        ids = processor.tokenizer(processor.with_markers(text, 1), return_tensors="pt")["input_ids"]
    positions = model.config.text_config.to_dict().get("max_position_embeddings") or 2**20
    longest, length = min(positions, processor.tokenizer.model_max_length), ids.shape[1]
    if length >= longest:
        raise ValueError(f"the text has {length} tokens; expected fewer than the {longest} that the model can read")
    ids = ids.to(model.device)
    if not model.can_generate():
        return ids, 0
    room = {"max_new_tokens": min(max_new_tokens, longest - length), "do_sample": False}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **media, **room), length


def attention_grid(weights: torch.Tensor) -> torch.Tensor:
    """Weights (S,) of one image's slots as an (h, w) grid; leading class and register tokens are left out.

    Raises:
        ValueError: the slots do not form a square grid.
    """
    for skipped in LEADING:
        side = round(max(0, len(weights) - skipped) ** 0.5)
        if side > 1 and side * side == len(weights) - skipped:
            return weights[skipped:].view(side, side)
    raise ValueError(f"an attention map needs slots that form a square grid, but the image has {len(weights)} slots")


def cropped_image(image_processor: Any, pixel_values: torch.Tensor) -> Image.Image | None:
    """The first image as its processor cropped it; None for a processor that does not crop."""
    if pixel_values.dim() != 4 or not image_processor.to_dict().get("do_center_crop"):
        return None
    pixels = pixel_values[0].float().cpu().permute(1, 2, 0)  # (H, W, C)
    if image_processor.do_normalize:
        pixels = pixels * torch.tensor(image_processor.image_std) + torch.tensor(image_processor.image_mean)
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def spelled_words(tokenizer: Any, ids: list[int], columns: list[int]) -> list[tuple[str, list[int]]]:
    """The words of a text, each with the columns of its tokens."""
    words: list[tuple[str, list[int]]] = []
    before = ""
    for place, column in enumerate(columns):
        text = tokenizer.decode([ids[earlier] for earlier in columns[: place + 1]])
        piece, before = text[len(before) :], text
        if words and not piece[:1].isspace():
            words[-1] = (words[-1][0] + piece, [*words[-1][1], column])
        else:
            words.append((piece, [column]))
    return [(word.strip(), places) for word, places in words if word.strip()]


__all__ = ["AttentionMaps", "MMAttentionMapsMixin"]
