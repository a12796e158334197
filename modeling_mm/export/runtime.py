# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Runtime of exported models: one call of a classifier, greedy generation by a generating model.

Shapes: B rows, I distinct images, N images per row, T text tokens; for the graphs see `graphs`.
"""

from typing import Any

import torch

from ..model.dealing_mm import index_from_markers
from ..model.media_mm import MODALITIES, implied_image_index


class ExportedMM:
    """An exported model with torch tensors as inputs and outputs.

    Args:
        exported: the library's `ExportedModel` over the folder's graphs.
    """

    def __init__(self, exported):
        self.exported = exported
        self.runners = exported.runners

    @classmethod
    def from_pretrained(cls, folder: str, **kwargs: Any) -> "ExportedMM":
        """Load a folder or Hub id; `kwargs` are those of `ExportedModel.from_pretrained`, such as `device`."""
        from transformers.exporters import ExportedModel

        return cls(ExportedModel.from_pretrained(folder, **kwargs))

    def image_inputs(
        self,
        graph: str,
        input_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image_index: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """The image inputs of a graph, assigned to markers if there is no index; without images, a blank image that no
        row has."""
        rows = 0 if input_ids is None else len(input_ids)
        if pixel_values is None or len(pixel_values) == 0:
            shape = self.runners[graph].metadata.kwargs["pixel_values"]["shape"]
            return {"pixel_values": torch.zeros(1, *shape[1:]), "image_index": torch.full((rows, 1), -1)}
        marker = self.exported.config.image_token_id
        if image_index is None and input_ids is not None and marker is not None and pixel_values.dim() == 4:
            image_index = index_from_markers(MODALITIES["image"], len(pixel_values), rows, input_ids == marker)
        if image_index is None:
            image_index = implied_image_index(pixel_values)
            pixel_values = pixel_values.flatten(0, 1) if pixel_values.dim() == 5 else pixel_values
        return {"pixel_values": pixel_values, "image_index": image_index}

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        table_values: torch.Tensor | None = None,
        **others: Any,
    ) -> dict[str, torch.Tensor]:
        """`logits` of a classifier or `last_hidden_state` of a base model; `others` from a tokenizer are not used.

        Raises:
            ValueError: the folder holds a generating model.
        """
        if "model" not in self.runners:
            raise ValueError(
                f"this folder holds the graphs {', '.join(self.runners)} of a generating model; use generate"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        media = self.image_inputs("model", input_ids, pixel_values, image_index)
        if columns := self.exported.config.table_columns:
            missing = torch.full((len(input_ids), len(columns)), torch.nan)
            media["table_values"] = missing if table_values is None else table_values
        return self.runners["model"](input_ids=input_ids, attention_mask=attention_mask, **media)

    def encode_media(self, pixel_values: torch.Tensor, image_index: torch.Tensor | None = None) -> torch.Tensor:
        """`media_key_values`, which `generate` takes in place of pixels for further questions about the images."""
        inputs = self.image_inputs("media_encoder", None, pixel_values, image_index)
        return self.runners["media_encoder"](**inputs)["media_key_values"]

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        media_key_values: torch.Tensor | None = None,
        max_new_tokens: int = 32,
        **others: Any,
    ) -> torch.Tensor:
        """Generate greedily: prompts (B, T), padded on the left, followed by at most `max_new_tokens` tokens.

        The tokens are those of `MMForConditionalGeneration.generate(..., do_sample=False)`. Only the end and padding
        tokens of the generation config are used.

        Args:
            media_key_values: from `encode_media`, with the same `image_index`.
            others: not used.
        """
        rows = len(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if media_key_values is None:
            images = self.image_inputs("media_encoder", input_ids, pixel_values, image_index)
            image_index = images["image_index"]
            media_key_values = self.runners["media_encoder"](**images)["media_key_values"]
        elif image_index is None:
            image_index = torch.zeros(rows, 1, dtype=torch.long)
        media = {
            "media_key_values": media_key_values,
            **self.runners["media_start"](input_ids=input_ids, image_index=image_index),
        }
        ends, pad = self.special_tokens()
        done = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        step, cache = input_ids, self.empty_cache(rows)
        for _ in range(max_new_tokens):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :].contiguous()
            inputs = {"input_ids": step, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
            output = self.runners["decoder"](**inputs, **media)
            cache = output["present"]
            chosen = output["logits"][:, -1].argmax(dim=-1).to(done.device).masked_fill(done, pad)
            step = chosen[:, None]
            input_ids, mask = torch.cat([input_ids, step], dim=1), torch.cat([mask, torch.ones_like(step)], dim=1)
            done |= torch.isin(chosen, ends.to(done.device))
            if done.all():
                break
        return input_ids

    def special_tokens(self) -> tuple[torch.Tensor, int]:
        """The tokens that end an answer, and the padding token for rows that ended earlier than others."""
        config = self.exported.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        ends = [end for end in ends if end is not None]
        pad = config.pad_token_id if config.pad_token_id is not None else next(iter(ends), 0)
        return torch.tensor(ends, dtype=torch.long), pad

    def empty_cache(self, rows: int) -> dict[str, dict[str, torch.Tensor]]:
        """Keys and values without columns, in the shapes of the traced decoder."""
        shapes = self.runners["decoder"].metadata.kwargs["past_key_values"]["leaves"]
        return {
            layer: {
                name: torch.zeros(rows, leaf["shape"][1], 0, leaf["shape"][3])
                for name, leaf in parts["leaves"].items()
            }
            for layer, parts in shapes.items()
        }
