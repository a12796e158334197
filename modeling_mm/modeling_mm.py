# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The base model: one text backbone that sees media through gated cross-attention. Heads are files of their own.

- `MMModel` runs each distinct image through the vision tower once, and hands its keys and values to the fusion layers
  that sit before some of the backbone's own layers. With gates at zero its output is the backbone's, bit for bit.
- Media are encoded before text: `encode_media` gives `media_key_values`, which `forward` and `generate` take in place
  of pixels. A second question about the same picture costs no vision work.

Shapes: B rows, I distinct images, N images per row, S = N * P memory slots, T text tokens, D text width,
V tower width, P states per image, L fusion layers, K key/value heads, E head width.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_mm import MMConfig
from .fusion_mm import FusionCall, MMFusion, MMResampler, add_fusion_hooks
from .media_mm import (
    NEVER,
    check_media_shapes,
    implied_image_index,
    media_start_from_markers,
    visible_slots,
)
from .outputs_mm import MMModelOutput

if TYPE_CHECKING:  # never runs; the library copies what these lines name, so every head travels with every class
    from .classification_mm import MMForSequenceClassification  # noqa: F401
    from .generation_mm import MMForConditionalGeneration  # noqa: F401
    from .late_fusion_mm import MMLateFusion  # noqa: F401


class MMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, common to every class here."""

    config: MMConfig
    config_class = MMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MMFusionLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: as "custom code" the library would initialise missing weights of borrowed towers by its own rule."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.text_model.set_input_embeddings(value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MMResampler):
            init.normal_(module.latents, mean=0.0, std=self.config.initializer_range)
        for gate in ("cross_attn_gate", "mlp_gate", "modality_logits"):
            if gate in module._parameters:
                init.zeros_(module._parameters[gate])

    @classmethod
    def from_towers(cls, vision, text, audio=None, **config):
        """Compose a model from pretrained towers; see `modeling_mm.compose.model_from_towers`."""
        try:
            from modeling_mm.compose import model_from_towers
        except ImportError as error:
            raise ImportError("from_towers needs the package itself: pip install modeling-mm") from error
        return model_from_towers(cls, vision=vision, text=text, audio=audio, **config)


class MMModel(MMPreTrainedModel):
    """Towers and fusion without a head.

    Args:
        config: the configuration.
        vision_tower, text_model: already built towers to use as they are, whose configs `config` must hold.

    Raises:
        ValueError: the config asks for an audio tower, or the backbone has no list of layers.
    """

    def __init__(
        self,
        config: MMConfig,
        vision_tower: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        if config.audio_config is not None:
            raise ValueError("`audio_config` is set, but this version has no audio tower yet; leave it None")
        self.vision_tower = AutoModel.from_config(config.vision_config) if vision_tower is None else vision_tower
        self.text_model = AutoModel.from_config(config.text_config) if text_model is None else text_model
        self.fusion = MMFusion(config)
        add_fusion_hooks(self.text_model)
        self.post_init()

    def train(self, mode: bool = True):
        """As usual, but a frozen vision tower stays in evaluation mode: its batch norms must not drift."""
        super().train(mode)
        if mode and not any(p.requires_grad for p in self.vision_tower.parameters()):
            self.vision_tower.eval()
        return self

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **vision_inputs) -> BaseModelOutputWithPooling:
        """What the vision tower sees in distinct images (I, C, H, W).

        `vision_inputs` are what else a tower takes (SigLIP2's `pixel_attention_mask` and `spatial_shapes`, flags).

        Returns:
            the tower's output; its `pooler_output` are the states (I, P, V) that fusion attends to, where the grid of
            a convolutional tower is flattened.
        """
        trained = any(p.requires_grad for p in self.vision_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and (trained or pixel_values.requires_grad)):
            output = self.vision_tower(
                pixel_values=pixel_values.to(self.vision_tower.dtype), return_dict=True, **vision_inputs
            )
        states = output.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=states.flatten(2).transpose(1, 2) if states.dim() == 4 else states,
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
        vision_inputs = {}
        if pixel_attention_mask is not None:
            vision_inputs = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        states = self.get_image_features(pixel_values, return_dict=True, **vision_inputs).pooler_output  # (I, P, V)
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
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What fusion needs of the media: `media_key_values` (B, L, 2, K, S, E) and `media_start` (B, S).

        Encoded media pass through, and so does a given `media_start`; otherwise it follows from the markers in
        `input_ids` (B, T) and from `image_index` (by default as many images per row as the most markers in a row).

        Raises:
            ValueError: text and media differ in rows, or encoded media do not divide among the images.
        """
        if pixel_values is None and media_key_values is None:
            return None, None
        check_media_shapes(self.config, image_index, media_key_values, media_start)
        markers = None
        if input_ids is not None and self.config.image_token_id is not None:
            markers = input_ids == self.config.image_token_id
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
        if input_ids is not None and input_ids.shape[0] != rows or image_index.shape[0] != rows:
            raise ValueError(
                f"the media have {rows} rows, `image_index` {image_index.shape[0]} and `input_ids` "
                f"{rows if input_ids is None else input_ids.shape[0]}; expected one row of each per text"
            )
        if slots % image_index.shape[1]:
            raise ValueError(
                f"`media_key_values` holds {slots} slots per row, which {image_index.shape[1]} images do not share "
                "evenly; pass the `image_index` (B, N) that they were encoded with"
            )
        start = media_start_from_markers(markers, image_index)  # (B, N)
        start = start[..., None].expand(-1, -1, slots // image_index.shape[1])
        if pixel_attention_mask is not None and self.config.num_latents is None:
            start = torch.where(pixel_attention_mask.bool()[image_index.clamp(min=0)], start, NEVER)
        return media_key_values, start.flatten(1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        media_key_values: torch.Tensor | None = None,
        media_start: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> MMModelOutput | tuple:
        """Text (B, T), with or without media, to hidden states (B, T, D).

        Args:
            pixel_values, image_index, pixel_attention_mask, spatial_shapes: media, as `encode_media` takes them.
            media_key_values: media encoded before, (B, L, 2, K, S, E), in place of pixels.
            media_start: (B, S), the text column from which each slot may be seen; by default from the markers.
            The others are the text backbone's own.
        """
        media_key_values, media_start = self.prepare_media(
            input_ids,
            pixel_values,
            image_index,
            media_key_values,
            media_start,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
        )
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        call = None
        if media_key_values is not None:
            tokens = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            visible = visible_slots(media_start, tokens, past_key_values)
            attentions: list | None = [] if output_attentions else None
            call = FusionCall(self.fusion, tuple(self.config.fusion_layers), media_key_values, visible, attentions)
        inputs = {
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "output_attentions": output_attentions or None,
            "fusion_call": call,
        }
        text = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            return_dict=True,
            **{name: value for name, value in inputs.items() if value is not None},
            **kwargs,
        )
        last_hidden_state = text.last_hidden_state
        if call is not None:
            self.check_entered(call)
        elif self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            last_hidden_state = last_hidden_state + self.touch_unused_parts().to(last_hidden_state.dtype)
        return MMModelOutput(
            last_hidden_state=last_hidden_state,
            past_key_values=text.get("past_key_values"),
            hidden_states=text.get("hidden_states"),
            attentions=text.get("attentions"),
            cross_attentions=tuple(call.attentions) if call is not None and call.attentions is not None else None,
            media_key_values=media_key_values,
        )

    def check_entered(self, call: FusionCall) -> None:
        """Refuse a backbone that swallowed the call.

        Raises:
            ValueError: no fusion layer ran.
        """
        if not call.entered:
            raise ValueError(
                f"the text backbone '{self.config.text_config.model_type}' does not pass keyword arguments down to "
                "its layers, so that fusion cannot enter it; use a backbone like bert, modernbert, llama or qwen3"
            )


__all__ = ["MMPreTrainedModel", "MMModel"]
