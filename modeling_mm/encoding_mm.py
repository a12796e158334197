# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""How media become what text attends to: through their tower and the fusion's key/value projection, once per distinct
image, then to the rows that show them.

Shapes: B rows, I distinct images, N images per row, P states per image, S = N * P memory slots, T text tokens,
D text width, V tower width, L fusion layers, K key/value heads, E head width.
"""

from collections.abc import Callable

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_mm import MMConfig, tower_width
from .fusion_mm import MMFusion
from .media_mm import NEVER, check_media, find_markers, implied_image_index, media_start_from_markers


class MMEncodingMixin:
    """What `MMModel` does with media before its text backbone runs."""

    config: MMConfig
    vision_tower: PreTrainedModel
    fusion: MMFusion
    device: torch.device
    get_input_embeddings: Callable[[], torch.nn.Module]

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **vision_inputs) -> BaseModelOutputWithPooling:
        """What the vision tower sees in distinct images (I, C, H, W).

        `vision_inputs` are what else a tower takes (SigLIP2's `pixel_attention_mask` and `spatial_shapes`, flags).

        Returns:
            the tower's output; its `pooler_output` are the states (I, P, V) that fusion attends to, where the grid of
            a convolutional tower is flattened.

        Raises:
            ValueError: the tower's states are not P of width V for each image.
        """
        vision_inputs = {name: value for name, value in vision_inputs.items() if value is not None}
        trained = any(p.requires_grad for p in self.vision_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and (trained or pixel_values.requires_grad)):
            output = self.vision_tower(
                pixel_values=pixel_values.to(self.vision_tower.dtype), return_dict=True, **vision_inputs
            )
        states = output.last_hidden_state
        flat = states.flatten(2).transpose(1, 2) if states.dim() == 4 else states  # (I, P, V)
        images, width = pixel_values.shape[0], tower_width(self.config.vision_config)
        if (flat.shape[0], flat.shape[-1]) != (images, width):
            raise ValueError(
                f"the vision tower '{self.config.vision_config.model_type}' gives states of shape "
                f"{tuple(states.shape)} for {images} images, where fusion expects ({images}, states, {width})"
            )
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=flat,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    def touch_unused_parts(self) -> torch.Tensor:
        """Zero, with a zero gradient for every trained weight of tower and fusion.

        A process whose batch has no picture takes part in the gradient exchange of those that have one.
        """
        parts = (self.vision_tower, self.fusion)
        trained = [p.flatten()[:0].sum() for part in parts for p in part.parameters() if p.requires_grad]
        return torch.stack(trained).sum() if trained else torch.zeros((), device=self.device)

    def encode_media(
        self,
        pixel_values: torch.Tensor,
        image_index: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the vision tower and the fusion's key/value projection, once per distinct image.

        Args:
            pixel_values: (I, C, H, W) with `image_index`; without it (B, C, H, W) for one image per row or
                (B, N, C, H, W) for N per row. SigLIP2 takes (I, P, C * p * p) with the two arguments below.
            image_index: (B, N) integers into the images, -1 where a row has fewer than N.
            pixel_attention_mask: (I, P), 1 where a patch is real. spatial_shapes: (I, 2), patches per side.

        Returns:
            `media_key_values` (B, L, 2, K, S, E).

        Raises:
            ValueError: `pixel_values` has another number of dimensions.
        """
        if image_index is None:
            image_index = implied_image_index(pixel_values)
            pixel_values = pixel_values.flatten(0, 1) if pixel_values.dim() == 5 else pixel_values
        patches = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        states = self.get_image_features(pixel_values, return_dict=True, **patches).pooler_output  # (I, P, V)
        present = None if pixel_attention_mask is None else pixel_attention_mask.bool()
        key_values = self.fusion.encode(states, present)  # (I, L, 2, K, P, E)
        return self.fusion.gather(key_values, image_index)

    def prepare_media(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        media_key_values: torch.Tensor | None = None,
        media_start: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        before: int | torch.Tensor = 0,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What fusion needs of the media: `media_key_values` (B, L, 2, K, S, E) and `media_start` (B, S).

        Encoded media pass through, and so does a given `media_start`; otherwise it follows from the markers in
        `input_ids` (B, T) or `inputs_embeds` (B, T, D), which stand after `before` cached columns, and from
        `image_index` (by default as many images per row as the most markers in a row).

        Raises:
            ValueError: text and media differ in rows, pixels came beside encoded media, or those do not divide among
                the images.
        """
        if pixel_values is None and media_key_values is None:
            return None, None
        check_media(self.config, pixel_values, image_index, media_key_values, media_start)
        markers = find_markers(self.config.image_token_id, input_ids, inputs_embeds, self.get_input_embeddings)
        if image_index is None and pixel_values is not None:
            image_index = implied_image_index(pixel_values)
            pixel_values = pixel_values.flatten(0, 1) if pixel_values.dim() == 5 else pixel_values
        if media_key_values is None:
            media_key_values = self.encode_media(pixel_values, image_index, pixel_attention_mask, spatial_shapes)
        if media_start is not None:
            return media_key_values, media_start
        rows, slots = media_key_values.shape[0], media_key_values.shape[4]
        if image_index is None:
            images = 1 if markers is None else max(1, int(markers.sum(dim=1).max()))
            image_index = torch.zeros(rows, images, dtype=torch.long, device=media_key_values.device)
        text_rows = next((text.shape[0] for text in (input_ids, inputs_embeds) if text is not None), rows)
        if text_rows != rows or image_index.shape[0] != rows:
            raise ValueError(
                f"the media have {rows} rows, `image_index` {image_index.shape[0]} and the text {text_rows}; "
                "expected one row of each per text"
            )
        if slots % image_index.shape[1]:
            raise ValueError(
                f"`media_key_values` holds {slots} slots per row, which {image_index.shape[1]} images do not share "
                "evenly; pass the `image_index` (B, N) that they were encoded with"
            )
        start = media_start_from_markers(markers, image_index, before)  # (B, N)
        start = start[..., None].expand(-1, -1, slots // image_index.shape[1])
        if pixel_attention_mask is not None and self.config.num_latents is None:
            start = torch.where(pixel_attention_mask.bool()[image_index.clamp(min=0)], start, NEVER)
        return media_key_values, start.flatten(1)


__all__ = ["MMEncodingMixin"]
