# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Attention maps: where in an image a model looks for each word, by the weights of its cross-attention.

Of a model that generates these are the words of its answer, of any other the words of the text beside the image.

Shapes: L fusion layers, H heads, T text tokens, S slots of the image, h and w the grid of their places.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

LEADING = (0, 1, 5)  # slots before those of places: none, a class token, or one and four registers


class AttentionMaps(NamedTuple):
    """The maps of a text over an image.

    text: the answer, or the text as read. image: what the model saw of the image. words: each word with its weights
    as an (h, w) grid; less than 1 in all where class and register tokens have a share.
    """

    text: str
    image: Image.Image
    words: list[tuple[str, np.ndarray]]


class MMAttentionMapsMixin:
    """Attention maps of a model with cross-attention, over a single image."""

    def check_attention_maps(self: Any) -> None:
        """Refuse a model whose attention has no place in an image.

        Raises:
            ValueError: it has no cross-attention, or a resampler in front of it.
        """
        if self.config.num_latents:
            raise ValueError("a map needs slots that have a place; this model's resampler mixes the whole image")
        if not self.config.cross_attention:
            raise ValueError("a map draws cross-attention, of which this model with `late_fusion` has none")

    @torch.no_grad()
    def attention_maps(
        self: Any, processor: Any, image: Any, text: str, max_new_tokens: int = 32, max_words: int = 8
    ) -> AttentionMaps:
        """Mean weights over layers, heads and the tokens of each word; fusion must use attention "eager".

        Args:
            image: whatever `MMProcessor.open_image` takes.
            text: the question, or the text to classify; may hold the image's marker.
            max_words: how many words get a map, the first ones.

        Raises:
            ValueError: the model has no maps, the text leaves no room for an answer, or the slots form no square.
        """
        self.check_attention_maps()
        image = processor.open_image(image)
        media = {name: value.to(self.device) for name, value in processor.flat_images([[image]]).items()}
        ids, start = words_to_look_for(self, processor, media, text, max_new_tokens)
        attentions = self(
            input_ids=ids, attention_mask=torch.ones_like(ids), **media, output_attentions=True
        ).cross_attentions
        weights = torch.stack(attentions).mean(dim=(0, 2))[0].float().cpu()  # (L, 1, H, T, S) to (T, S)
        if self.can_generate():
            weights = weights.roll(1, dims=0)  # a generated token is chosen one column before it stands
        row, special = ids[0].tolist(), {*processor.tokenizer.all_special_ids, processor.image_token_id}
        columns = [column for column in range(start, len(row)) if row[column] not in special]
        words = spelled_words(processor.tokenizer, row, columns)
        maps = [(word, attention_grid(weights[places].mean(dim=0)).numpy()) for word, places in words[:max_words]]
        seen = seen_image(processor.image_processor, media["pixel_values"])
        return AttentionMaps(" ".join(word for word, _ in words), seen or image, maps)


def words_to_look_for(
    model: PreTrainedModel, processor: Any, media: dict[str, torch.Tensor], text: str, max_new_tokens: int
) -> tuple[torch.Tensor, int]:
    """Token ids (1, T) of a text, with the answer where the model generates, and the column of the first word."""
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
        ValueError: the slots are no square grid.
    """
    for skipped in LEADING:
        side = round(max(0, len(weights) - skipped) ** 0.5)
        if side > 1 and side * side == len(weights) - skipped:
            return weights[skipped:].view(side, side)
    raise ValueError(f"a map needs an image whose slots form a square grid, but it has {len(weights)} slots")


def seen_image(image_processor: Any, pixel_values: torch.Tensor) -> Image.Image | None:
    """The first image as the model saw it, where its processor crops; None where it sees the whole image."""
    if pixel_values.dim() != 4 or not image_processor.to_dict().get("do_center_crop"):
        return None
    pixels = pixel_values[0].float().cpu().permute(1, 2, 0)  # (H, W, C)
    if image_processor.do_normalize:
        pixels = pixels * torch.tensor(image_processor.image_std) + torch.tensor(image_processor.image_mean)
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def spelled_words(tokenizer: Any, ids: list[int], columns: list[int]) -> list[tuple[str, list[int]]]:
    """Words, each with the columns of the tokens that spell it."""
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
