# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Encoding of media: tower and projector once per distinct item (`Memory`), then keys and values for each row.

Shapes: B rows, I distinct images, audio clips or videos, N of them per row, P states each, S memory slots per row over
all modalities, F frames, T text tokens, D text width, V tower width, L fusion layers, K key/value heads, E head width.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .audio_towers_mm import audio_width, run_audio_tower
from .configuration_mm import MMConfig, tower_width
from .dealing_mm import check_stacked, index_from_markers, is_flat
from .fusion_mm import MMFusion
from .media_mm import (
    MODALITIES,
    RAW,
    TABLE,
    Memory,
    check_media,
    check_states,
    check_unambiguous,
    check_videos,
    encoded_starts,
    implied_image_index,
    one_per_row,
)
from .outputs_mm import MMAudioOutput, MMImageOutput
from .pooling_mm import masked_mean
from .towers_mm import has_class_token


class MMEncodingMixin:
    """The encoding of media in `MMModel`, before its text backbone runs."""

    config: MMConfig
    vision_tower: PreTrainedModel
    audio_tower: PreTrainedModel | None
    fusion: MMFusion
    device: torch.device
    parameters: Callable[[], Iterator[torch.nn.Parameter]]
    get_input_embeddings: Callable[[], torch.nn.Module]

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        image_pooled: torch.Tensor | None = None,
        **vision_inputs,
    ) -> MMImageOutput:
        """Image features of distinct images (I, C, H, W).

        Args:
            image_states, image_pooled: `pooler_output` and `pooled` of an earlier output; the tower does not run then.
            vision_inputs: other inputs of the tower (SigLIP2's `pixel_attention_mask` and `spatial_shapes`, flags).

        Returns:
            the tower's output; `pooler_output` holds the states (I, P, V) that fusion attends to, a convolutional
            tower's grid flattened; `pooled` is the tower's own pooled output, if it has one.

        Raises:
            ValueError: the tower's states are not (I, P, V).
        """
        if image_states is not None:
            check_states("image_states", image_states, tower_width(self.config.vision_config), pixel_values)
            return MMImageOutput(image_states, image_states, pooled=image_pooled)
        vision_inputs = {name: value for name, value in vision_inputs.items() if value is not None}
        with torch.set_grad_enabled(self.needs_grad(self.vision_tower, pixel_values)):
            pixels = pixel_values.to(self.vision_tower.dtype)
            output = self.vision_tower(pixel_values=pixels, return_dict=True, **vision_inputs)
        states = output.last_hidden_state
        flat = states.flatten(2).transpose(1, 2) if states.dim() == 4 else states  # (I, P, V)
        images, width = pixel_values.shape[0], tower_width(self.config.vision_config)
        if (flat.shape[0], flat.shape[-1]) != (images, width):
            raise ValueError(
                f"the vision tower '{self.config.vision_config.model_type}' returns states of shape "
                f"{tuple(states.shape)} for {images} images, where fusion expects ({images}, states, {width})"
            )
        optional = {name: output.get(name) for name in ("hidden_states", "attentions")}
        return MMImageOutput(states, flat, pooled=output.get("pooler_output"), **optional)

    @can_return_tuple
    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_mask: torch.Tensor | None = None, **vision_inputs
    ) -> MMImageOutput:
        """Image features of the frames of distinct videos (I, F, C, H, W); the tower skips padding frames.

        Args:
            video_mask: (I, F), 0 for padding frames.

        Returns:
            `last_hidden_state` and `pooler_output`, both the states (I, F * P, V) frame by frame, zero for padding
            frames; `pooled`, `hidden_states` and `attentions` are the tower's outputs for the other frames.

        Raises:
            ValueError: the model takes no video, fewer frames, or frames of another shape.
        """
        check_videos(self.config, pixel_values_videos, video_mask)
        if video_mask is None:  # the only branch that compiles: with a mask, the number of real frames is data
            output = self.get_image_features(pixel_values_videos.flatten(0, 1), return_dict=True, **vision_inputs)
            states = output.pooler_output.unflatten(0, pixel_values_videos.shape[:2])  # (I, F, P, V)
        else:
            real = video_mask.bool()
            output = self.get_image_features(pixel_values_videos[real], return_dict=True, **vision_inputs)
            frame_states = output.pooler_output  # of the real frames
            padded = frame_states.new_zeros(*real.shape, *frame_states.shape[1:])
            states = padded.index_put((real,), frame_states)
        output.last_hidden_state = output.pooler_output = states.flatten(1, 2)
        return output

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        **flags,
    ) -> MMAudioOutput:
        """Audio features of distinct clips (I, ...), as the processor prepares them.

        Args:
            input_features_mask: (I, T), 0 in the padding behind a clip.
            audio_states: `pooler_output` of an earlier output, with its `attention_mask` as `input_features_mask`;
                the tower does not run then.
            flags: options of the tower.

        Returns:
            the tower's output; `pooler_output` holds the states (I, P, V) that fusion attends to, a convolutional
            tower's grid flattened; `attention_mask` (I, P) bool is False for padding, or None without padding.

        Raises:
            ValueError: the model has no audio tower.
        """
        if self.audio_tower is None:
            raise ValueError("audio came as `input_features`, but this model has no audio tower; compose it with one")
        if audio_states is not None:
            check_states("audio_states", audio_states, audio_width(self.config.audio_config), input_features)
            return MMAudioOutput(audio_states, audio_states, attention_mask=input_features_mask)
        with torch.set_grad_enabled(self.needs_grad(self.audio_tower, input_features)):
            return run_audio_tower(self.audio_tower, input_features, input_features_mask, **flags)

    def needs_grad(self, tower: PreTrainedModel, inputs: torch.Tensor) -> bool:
        """True if the tower is trained or its inputs need gradients; otherwise it runs without a graph."""
        trained = any(p.requires_grad for p in tower.parameters())
        return torch.is_grad_enabled() and (trained or inputs.requires_grad)

    def touch_unused_parts(self) -> torch.Tensor:
        """Zero, with a zero gradient for every trained weight.

        Needed for gradient synchronisation: the batch of a process may have no image or no audio, and LayerDrop may
        skip a layer. FSDP's shards are left alone: they are synchronised by blocks, not by weights.
        """
        from torch.distributed.tensor import DTensor

        whole = (p for p in self.parameters() if p.requires_grad and not isinstance(p, DTensor))
        trained = [p.flatten()[:0].sum() for p in whole]
        return torch.stack(trained).sum() if trained else torch.zeros((), device=self.device)

    def project_media(
        self,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_index: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_index: torch.Tensor | None = None,
        video_mask: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        table_values: torch.Tensor | None = None,
    ) -> dict[str, Memory]:
        """The memory of each modality in the batch; arguments as for `encode_media`."""
        memories = {}
        if pixel_values is not None or image_states is not None:
            in_order = image_index is None
            if image_index is None and pixel_values is not None and pixel_attention_mask is None:
                image_index = implied_image_index(pixel_values)
                pixel_values = pixel_values.flatten(0, 1) if pixel_values.dim() == 5 else pixel_values
            patches = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
            images = self.get_image_features(pixel_values, image_states, return_dict=True, **patches)
            present = None if pixel_attention_mask is None else pixel_attention_mask.bool()
            memories["image"] = self.project_states("image", images.pooler_output, present, image_index, in_order)
        if input_features is not None or audio_states is not None:
            audio = self.get_audio_features(input_features, input_features_mask, audio_states, return_dict=True)
            memories["audio"] = self.project_states("audio", audio.pooler_output, audio.attention_mask, audio_index)
        if pixel_values_videos is not None:
            videos = self.get_video_features(pixel_values_videos, video_mask, return_dict=True)
            states = videos.pooler_output.unflatten(1, (pixel_values_videos.shape[1], -1))  # (I, F, P, V)
            present = None if video_mask is None else video_mask.bool().repeat_interleave(states.shape[2], dim=1)
            memories["video"] = self.project_states("video", states, present, video_index)
        if table_values is not None:
            memories[TABLE] = self.fusion.table_memory(table_values)
        return memories

    def project_states(
        self,
        modality: str,
        states: torch.Tensor,
        present: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        in_order: bool = False,
    ) -> Memory:
        """The memory of one modality, from the states of its tower.

        Args:
            states: (I, P, V), or (I, F, P, V) for video. present: (I, P) bool, False for padding.
            index: (B, N) into the items, by default one per row. in_order: the index counts from 0 to I - 1.
        """
        memory = self.fusion.project(states, present, modality)
        vectors = self.tower_vectors(modality, states, present) if self.config.late_fusion == "linear" else None
        present = present if self.config.num_latents is None else None
        in_order = in_order or index is None
        return Memory(memory, one_per_row(states) if index is None else index, present, in_order, vectors)

    def tower_vectors(self, modality: str, states: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
        """Embeddings (I, V) of items for linear late fusion: a vision tower's class token if it has one, otherwise
        the mean of an item's states; arguments as for `project_states`."""
        if modality == "image" and has_class_token(self.vision_tower):
            return states[:, 0]
        return masked_mean(states.flatten(1, 2) if modality == "video" else states, present)

    def encode_media(self, pixel_values: torch.Tensor | None = None, *args, **media) -> torch.Tensor:
        """Run the towers and the fusion's key/value projection, once per distinct image and clip.

        Args:
            pixel_values: (I, C, H, W) with `image_index`; without it (B, C, H, W) for one image per row or
                (B, N, C, H, W) for N per row. SigLIP2 takes (I, P, C * p * p) with its two arguments below.
            image_index: (B, N) integers into the images, -1 where a row has fewer than N.
            pixel_attention_mask: (I, P), 0 for padding patches. spatial_shapes: (I, 2), patches per side.
            input_features: (I, ...) audio clips, with audio_index (B, N), by default one clip per row;
                input_features_mask: (I, T), 0 in the padding behind a clip.
            pixel_values_videos: (I, F, C, H, W) frames of videos, with video_index (B, N), by default one video per
                row; video_mask: (I, F), 0 for padding frames.
            image_states, audio_states: (I, P, V) of the towers, in place of images and clips; masks are (I, P) then.
            table_values: (B, C) numbers, and indices of categories; NaN for a missing cell.

        Returns:
            `media_key_values` (B, L, 2, K, S, E): the slots of images, then of audio clips, videos and the table.

        Raises:
            ValueError: `pixel_values` has another number of dimensions, or the model has no tower for a modality.
        """
        return self.fusion.key_values(self.project_media(pixel_values, *args, **media).values())

    def marker_mask(
        self, modality: str, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(B, T) bool, True at the markers of a modality, found by their id, or by their embedding without ids.

        None if the text can have no markers.
        """
        marker_id = None if modality == TABLE else getattr(self.config, MODALITIES[modality].marker_id)
        if marker_id is None:
            return None
        if input_ids is not None:
            return input_ids == marker_id
        if inputs_embeds is None:
            return None
        marker = self.get_input_embeddings()(torch.full((1,), marker_id, device=inputs_embeds.device))
        return (inputs_embeds == marker.to(inputs_embeds.dtype)).all(dim=-1)

    def index_media(
        self,
        media: dict[str, Any],
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        before: int | torch.Tensor = 0,
    ) -> dict[str, Any]:
        """The media arguments without empty ones, and with an index for flat media that are not one per row.

        Flat media without an index belong to the markers of the texts, in their order (see `index_from_markers`), so
        that rows which were prepared alone can be stacked.

        Raises:
            ValueError: media and markers differ in number, or an index is the one of rows that were prepared alone.
        """
        text = input_ids if input_ids is not None else inputs_embeds
        media = {name: value for name, value in media.items() if value is not None}
        for modality in MODALITIES.values():
            items = next((media[name] for name in modality.raw if name in media), None)
            if items is None or text is None:
                continue
            index = media.get(modality.index)
            if index is not None and index.dim() == 2:
                check_stacked(modality, items.shape[0], index)
            elif index is None and is_flat(modality, media):
                markers = self.marker_mask(modality.name, input_ids, inputs_embeds)
                index = index_from_markers(modality, items.shape[0], text.shape[0], markers, before)
                media |= {} if index is None else {modality.index: index}
            if items.shape[0] == 0:
                media = {name: value for name, value in media.items() if name not in modality.arguments}
        return media

    def attended(
        self,
        memories: dict[str, Memory],
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        before: int | torch.Tensor = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`media_key_values` (B, L, 2, K, S, E) and `media_start` (B, S) for a text and the memories of its media.

        For another text about the same media, call `media_starts`.

        Raises:
            ValueError: text and media differ in rows.
        """
        return self.fusion.key_values(memories.values()), self.media_starts(memories, input_ids, inputs_embeds, before)

    def media_starts(
        self,
        memories: dict[str, Memory],
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        before: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """`media_start` (B, S): the first column of a text, after `before` cached ones, that sees each slot.

        Raises:
            ValueError: text and media differ in rows.
        """
        text = input_ids if input_ids is not None else inputs_embeds
        for modality, memory in memories.items():
            if text is not None and text.shape[0] != memory.index.shape[0]:
                raise ValueError(
                    f"the media have {memory.index.shape[0]} rows "
                    f"(`{'table_values' if modality == TABLE else f'{modality}_index'}`) and the text "
                    f"{text.shape[0]}; expected one row of each per text"
                )
        masks = {name: self.marker_mask(name, input_ids, inputs_embeds) for name in memories}
        return torch.cat([memory.starts(masks[name], before) for name, memory in memories.items()], dim=1)

    def cross_attention_inputs(
        self,
        input_ids: torch.Tensor | None = None,
        media_key_values: torch.Tensor | None = None,
        media_start: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        before: int | torch.Tensor = 0,
        **media,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The inputs of cross-attention: `media_key_values` (B, L, 2, K, S, E) and `media_start` (B, S), or two Nones.

        Media are encoded unless `media_key_values` is given. `media_start`, unless given, follows from the markers in
        `input_ids` (B, T) or `inputs_embeds` (B, T, D), which follow `before` cached columns, and from the index of
        the media. `media` are the arguments of `encode_media`.

        Raises:
            ValueError: text and media differ in rows, raw media came beside encoded ones, or the `media_start` of
                encoded media is ambiguous.
        """
        media = self.index_media(media, input_ids, inputs_embeds, before)
        raw = [name for name in RAW if name in media]
        if not raw and media_key_values is None:
            return None, None
        check_media(self.config, raw, media, media_key_values, media_start)
        default_start = None
        if media_key_values is None:
            memories = self.project_media(**media)
            media_key_values, default_start = self.attended(memories, input_ids, inputs_embeds, before)
        elif media_start is None:
            default_start = self.starts_of_encoded(media_key_values, media, input_ids, inputs_embeds, before)
        return media_key_values, default_start if media_start is None else media_start

    def starts_of_encoded(
        self,
        media_key_values: torch.Tensor,
        media: dict[str, Any],
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        before: int | torch.Tensor,
    ) -> torch.Tensor:
        """`media_start` (B, S) of encoded media, from the markers of the text and the index of each modality.

        Raises:
            ValueError: text and media differ in rows, or the slots of the media cannot be told apart.
        """
        check_unambiguous(self.config, media)
        text = input_ids if input_ids is not None else inputs_embeds
        rows = None if text is None else text.shape[0]
        present = media.get("pixel_attention_mask") if self.config.num_latents is None else None
        masks = {name: self.marker_mask(name, input_ids, inputs_embeds) for name in MODALITIES}
        indices = {name: media[f"{name}_index"] for name in masks if media.get(f"{name}_index") is not None}
        return encoded_starts(media_key_values, indices, masks, before, rows, present)


__all__ = ["MMEncodingMixin"]
