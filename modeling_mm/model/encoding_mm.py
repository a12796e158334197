# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""How media become what text attends to: through their tower and the fusion's projector once per distinct image or
clip of sound (`Memory`), then as keys and values beside each other in the rows that show or play them.

Shapes: B rows, I distinct images or clips, N of them per row, P states each, S memory slots of a row, all modalities',
T text tokens, D text width, V tower width, L fusion layers, K key/value heads, E head width.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .audio_towers_mm import audio_states as hear
from .audio_towers_mm import audio_width
from .configuration_mm import MMConfig, tower_width
from .dealing_mm import check_stacked, dealt_index, is_flat
from .fusion_mm import MMFusion
from .media_mm import (
    MODALITIES,
    RAW,
    Memory,
    check_media,
    check_states,
    check_told_apart,
    check_videos,
    encoded_starts,
    find_markers,
    implied_image_index,
    one_per_row,
)
from .outputs_mm import MMAudioOutput, MMImageOutput


class MMEncodingMixin:
    """What `MMModel` does with media before its text backbone runs."""

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
        """What the vision tower sees in distinct images (I, C, H, W), or once saw: then it does not run.

        `vision_inputs` are what else a tower takes (SigLIP2's `pixel_attention_mask` and `spatial_shapes`, flags);
        `image_states` and `image_pooled` an earlier output's `pooler_output` and `pooled`, in place of the images.

        Returns:
            the tower's output; its `pooler_output` are the states (I, P, V) that fusion attends to, where the grid of
            a convolutional tower is flattened; `pooled` is the tower's own pooled output, if it has one.

        Raises:
            ValueError: the tower's states are not P of width V for each image.
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
                f"the vision tower '{self.config.vision_config.model_type}' gives states of shape "
                f"{tuple(states.shape)} for {images} images, where fusion expects ({images}, states, {width})"
            )
        asked = {name: output.get(name) for name in ("hidden_states", "attentions")}
        return MMImageOutput(states, flat, pooled=output.get("pooler_output"), **asked)

    @can_return_tuple
    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_mask: torch.Tensor | None = None, **vision_inputs
    ) -> MMImageOutput:
        """What the vision tower sees in the frames of distinct videos (I, F, C, H, W); unreal ones it is not shown.

        Args:
            video_mask: (I, F), 1 where a frame is real.

        Returns:
            `last_hidden_state` and `pooler_output`, both the states (I, F * P, V) frame by frame, zero of unreal ones;
            `pooled`, `hidden_states` and `attentions` are the tower's own of the real frames.

        Raises:
            ValueError: the model takes no video, fewer frames, or frames of another shape.
        """
        check_videos(self.config, pixel_values_videos, video_mask)
        if video_mask is None:  # the only way that compiles: how many frames are real is data
            output = self.get_image_features(pixel_values_videos.flatten(0, 1), return_dict=True, **vision_inputs)
            states = output.pooler_output.unflatten(0, pixel_values_videos.shape[:2])  # (I, F, P, V)
        else:
            real = video_mask.bool()
            output = self.get_image_features(pixel_values_videos[real], return_dict=True, **vision_inputs)
            seen = output.pooler_output
            states = seen.new_zeros(*real.shape, *seen.shape[1:]).index_put((real,), seen)
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
        """What the audio tower hears in distinct clips (I, ...), as the processor prepares them, or once heard.

        `input_features_mask` (I, T) is 1 where the sound is real; `flags` are the tower's own. In place of clips
        `audio_states` are an earlier output's `pooler_output`, the mask its `attention_mask`.

        Returns:
            the tower's output; its `pooler_output` are the states (I, P, V) that fusion attends to, where the grid of
            a convolutional tower is flattened, its `attention_mask` (I, P) bool says which are real; None where all.

        Raises:
            ValueError: the model has no audio tower.
        """
        if self.audio_tower is None:
            raise ValueError("sound came as `input_features`, but this model has no audio tower; compose it with one")
        if audio_states is not None:
            check_states("audio_states", audio_states, audio_width(self.config.audio_config), input_features)
            return MMAudioOutput(audio_states, audio_states, attention_mask=input_features_mask)
        with torch.set_grad_enabled(self.needs_grad(self.audio_tower, input_features)):
            return hear(self.audio_tower, input_features, input_features_mask, **flags)

    def needs_grad(self, tower: PreTrainedModel, inputs: torch.Tensor) -> bool:
        """A frozen tower is run without a graph, unless its inputs want gradients."""
        trained = any(p.requires_grad for p in tower.parameters())
        return torch.is_grad_enabled() and (trained or inputs.requires_grad)

    def touch_unused_parts(self) -> torch.Tensor:
        """Zero, with a zero gradient for every trained weight.

        A process whose batch has no image or no sound, or that LayerDrop makes skip a layer, takes part in the
        gradient exchange of the others. FSDP's shards are left alone: they are exchanged by blocks, not by weights.
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
    ) -> dict[str, Memory]:
        """The memory of each modality that came; arguments as of `encode_media`."""
        memories = {}
        resampled = self.config.num_latents is not None
        orders = image_index is None, audio_index is None
        if pixel_values is not None or image_states is not None:
            if image_index is None and pixel_values is not None and pixel_attention_mask is None:
                image_index = implied_image_index(pixel_values)
                pixel_values = pixel_values.flatten(0, 1) if pixel_values.dim() == 5 else pixel_values
            patches = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
            seen = self.get_image_features(pixel_values, image_states, return_dict=True, **patches)
            states = seen.pooler_output  # (I, P, V)
            image_index = one_per_row(states) if image_index is None else image_index
            present = None if pixel_attention_mask is None else pixel_attention_mask.bool()
            memory = self.fusion.project(states, present)
            memories["image"] = Memory(memory, image_index, None if resampled else present, orders[0])
        if input_features is not None or audio_states is not None:
            heard = self.get_audio_features(input_features, input_features_mask, audio_states, return_dict=True)
            audio_index = one_per_row(heard.pooler_output) if audio_index is None else audio_index
            memory = self.fusion.project(heard.pooler_output, heard.attention_mask, "audio")
            present = None if resampled else heard.attention_mask
            memories["audio"] = Memory(memory, audio_index, present, orders[1])
        if pixel_values_videos is not None:
            memories["video"] = self.video_memory(pixel_values_videos, video_index, video_mask)
        return memories

    def video_memory(
        self, pixel_values_videos: torch.Tensor, video_index: torch.Tensor | None, video_mask: torch.Tensor | None
    ) -> Memory:
        """The memory of videos: F * P states each, or as many as the resampler's latents."""
        states = self.get_video_features(pixel_values_videos, video_mask, return_dict=True).pooler_output
        states = states.unflatten(1, (pixel_values_videos.shape[1], -1))  # (I, F, P, V)
        present = None if video_mask is None else video_mask.bool().repeat_interleave(states.shape[2], dim=1)
        video_index = one_per_row(states) if video_index is None else video_index
        memory = self.fusion.project(states, present, "video")
        return Memory(memory, video_index, None if self.config.num_latents is not None else present)

    def encode_media(self, pixel_values: torch.Tensor | None = None, *args, **media) -> torch.Tensor:
        """Run the towers and the fusion's key/value projection, once per distinct image and clip.

        Args:
            pixel_values: (I, C, H, W) with `image_index`; without it (B, C, H, W) for one image per row or
                (B, N, C, H, W) for N per row. SigLIP2 takes (I, P, C * p * p) with its two arguments below.
            image_index: (B, N) integers into the images, -1 where a row has fewer than N.
            pixel_attention_mask: (I, P), 1 where a patch is real. spatial_shapes: (I, 2), patches per side.
            input_features: (I, ...) clips of sound, with audio_index (B, N), by default one clip per row;
                input_features_mask: (I, T), 1 where the sound is real.
            pixel_values_videos: (I, F, C, H, W) frames of videos, with video_index (B, N), by default one video per
                row; video_mask: (I, F), 1 where a frame is real.
            image_states, audio_states: (I, P, V) of the towers, in place of images and clips; masks are (I, P) then.

        Returns:
            `media_key_values` (B, L, 2, K, S, E), the images' slots, then those of sound, then those of video.

        Raises:
            ValueError: `pixel_values` has another number of dimensions, or there is no tower for what came.
        """
        return self.key_values(self.project_media(pixel_values, *args, **media))

    def key_values(self, memories: dict[str, Memory]) -> torch.Tensor:
        """Keys and values of each row's media side by side: (B, L, 2, K, S, E)."""
        each = [self.fusion.key_values(memory.states, memory.index, memory.in_order) for memory in memories.values()]
        together = each[0] if len(each) == 1 else torch.cat(each, dim=1)  # (B, S, L, 2, K, E)
        return together.permute(0, 2, 3, 4, 1, 5)

    def markers(
        self, modality: str, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(B, T) bool, where the markers of a modality are; None where the text can have none."""
        marker = getattr(self.config, MODALITIES[modality].marker_id)
        return find_markers(marker, input_ids, inputs_embeds, self.get_input_embeddings)

    def deal_media(
        self,
        media: dict[str, Any],
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        before: int | torch.Tensor = 0,
    ) -> dict[str, Any]:
        """The media that came, with an index where they came flat, without one and not one per row.

        Flat media belong to the markers of the texts, in their order (see `dealt_index`), so that rows which were
        prepared alone can be stacked by anyone. Modalities of which no item came are left out.

        Raises:
            ValueError: media and markers differ in number, or an index is that of rows that were prepared alone.
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
                markers = self.markers(modality.name, input_ids, inputs_embeds)
                index = dealt_index(modality, items.shape[0], text.shape[0], markers, before)
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
        """`media_key_values` (B, L, 2, K, S, E) and `media_start` (B, S) of what `project_media` gave.

        For another text about the same media there is `media_starts`, which costs no encoding.

        Raises:
            ValueError: text and media differ in rows.
        """
        return self.key_values(memories), self.media_starts(memories, input_ids, inputs_embeds, before)

    def media_starts(
        self,
        memories: dict[str, Memory],
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        before: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """(B, S), the column of this text, after `before` cached ones, from which each slot may be seen.

        Raises:
            ValueError: text and media differ in rows.
        """
        text = input_ids if input_ids is not None else inputs_embeds
        for modality, memory in memories.items():
            if text is not None and text.shape[0] != memory.index.shape[0]:
                raise ValueError(
                    f"the media have {memory.index.shape[0]} rows (`{modality}_index`) and the text {text.shape[0]}; "
                    "expected one row of each per text"
                )
        texts: dict[str, Any] = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        starts = [memory.starts(self.markers(name, **texts), before) for name, memory in memories.items()]
        return torch.cat(starts, dim=1)

    def prepare_media(
        self,
        input_ids: torch.Tensor | None = None,
        media_key_values: torch.Tensor | None = None,
        media_start: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        before: int | torch.Tensor = 0,
        **media,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What fusion needs of the media: `media_key_values` (B, L, 2, K, S, E) and `media_start` (B, S).

        Encoded media pass through, and so does a given `media_start`; otherwise it follows from the markers in
        `input_ids` (B, T) or `inputs_embeds` (B, T, D), which stand after `before` cached columns, and from the index
        of the media. `media` are the arguments of `encode_media`.

        Raises:
            ValueError: text and media differ in rows, pixels came beside encoded media, or it cannot be told from
                which column encoded media are to be seen.
        """
        media = self.deal_media(media, input_ids, inputs_embeds, before)
        raw = [name for name in RAW if name in media]
        if not raw and media_key_values is None:
            return None, None
        check_media(self.config, raw, media, media_key_values, media_start)
        if media_key_values is None:
            memories = self.project_media(**media)
            media_key_values, start = self.attended(memories, input_ids, inputs_embeds, before)
            return media_key_values, start if media_start is None else media_start
        if media_start is None:
            check_told_apart(self.config, media)
            text = input_ids if input_ids is not None else inputs_embeds
            present = media.get("pixel_attention_mask") if self.config.num_latents is None else None
            rows = None if text is None else text.shape[0]
            markers = {name: self.markers(name, input_ids, inputs_embeds) for name in MODALITIES}
            indices = {name: media[f"{name}_index"] for name in markers if media.get(f"{name}_index") is not None}
            media_start = encoded_starts(media_key_values, indices, markers, before, rows, present)
        return media_key_values, media_start


__all__ = ["MMEncodingMixin"]
