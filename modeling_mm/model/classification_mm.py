# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMForSequenceClassification: one label, several labels or numbers for each row of text and media.

With `late_fusion`, the pooled text is joined with one vector per other modality: the mean of its projected states, or
with "linear" its tower's class token, or the mean of the tower's states if there is none.

Shapes: B rows, I distinct images, N images per row, M modalities, P states per image, T text tokens, D text width.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .attention_maps_mm import MMAttentionMapsMixin
from .audio_towers_mm import audio_width
from .configuration_mm import MMConfig, tower_width
from .late_fusion_mm import MMLateFusion
from .media_mm import TABLE, Memory, check_text
from .modeling_mm import MMModel, MMPreTrainedModel
from .outputs_mm import MMOutput, head_output
from .packing_mm import check_not_packed
from .pooling_mm import pool_tokens

HEAD_INIT = 0.02  # of a head over "product_mlp", so that hundreds of features do not begin as noise


class MMForSequenceClassification(MMAttentionMapsMixin, MMPreTrainedModel):
    """One label, several labels or numbers for each row of text and media; the loss is a mean over rows.

    Args:
        config: the configuration; `num_labels` (or `id2label`), `problem_type`, `pooling` and `late_fusion` define
            the head.
        towers: as for `MMModel`.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: MMConfig, **towers):
        super().__init__(config)
        self.model = MMModel(config, **towers)
        self.dropout = nn.Dropout(config.classifier_dropout)
        width = config.text_config.hidden_size
        self.late_fusion: MMLateFusion | None = None
        if config.late_fusion is not None:
            modalities = ["text", "image"]
            modalities += ["audio"] if config.audio_config is not None else []
            modalities += ["video"] if config.num_frames is not None else []
            modalities += [TABLE] if config.table_columns is not None else []
            widths = dict.fromkeys(modalities, width)
            if config.late_fusion == "linear":
                widths |= {name: tower_width(config.vision_config) for name in ("image", "video") if name in widths}
                widths |= {"audio": audio_width(config.audio_config)} if "audio" in widths else {}
            self.late_fusion = MMLateFusion(config.late_fusion, width, widths)
            width = self.late_fusion.output_width
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if self.config.late_fusion == "product_mlp" and module is self.classifier:
            init.normal_(module.weight, std=HEAD_INIT)

    def pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, T, D) to (B, D): the first or last token that is not padding, or the mean of these tokens."""
        return pool_tokens(hidden_states, attention_mask, self.config.pooling)

    def late_fusion_inputs(
        self, media: dict[str, Any], input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> tuple[dict[str, Any], dict[str, Memory]]:
        """Run the towers once, for both late fusion and cross-attention.

        Returns:
            the media arguments for `MMModel`, and the memory of each modality in the batch.

        Raises:
            ValueError: the media are already encoded, which suits cross-attention only.
        """
        media = self.model.index_media(media, input_ids, inputs_embeds)
        if "media_key_values" in media:
            raise ValueError("late fusion pools the towers' states; pass `pixel_values` instead of `media_key_values`")
        memories = self.model.project_media(**media)
        if not memories or not self.config.cross_attention:
            return {}, memories
        key_values, start = self.model.attended(memories, input_ids, inputs_embeds)
        return {"media_key_values": key_values, "media_start": start}, memories

    def fuse(self, text: torch.Tensor, memories: dict[str, Memory], text_present: torch.Tensor | None) -> torch.Tensor:
        """The pooled text (B, D) and the embedding of each other modality, joined by late fusion."""
        assert self.late_fusion is not None
        in_no_row = torch.zeros(text.shape[0], dtype=torch.bool, device=text.device)
        states: list[torch.Tensor | None] = [text]
        present = [~in_no_row if text_present is None else text_present.bool()]
        for modality in self.late_fusion.modalities[1:]:
            pooled, has_items = memories[modality].pooled() if modality in memories else (None, in_no_row)
            states.append(pooled)
            present.append(has_items)
        return self.late_fusion(states, torch.stack(present, dim=1))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
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
        media_key_values: torch.Tensor | None = None,
        media_start: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_present: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMOutput | tuple:
        """Logits (B, num_labels) of classes, divided by the calibration temperature; or numbers in the label's unit.

        Args:
            labels: (B,) class ids, (B, num_labels) of 0 and 1 for several labels, or (B,) or (B, num_labels) numbers.
            text_present: (B,) bool for late fusion, False for rows without a text; default: all True.
            The others are those of `MMModel.forward`.
        """
        check_text(input_ids, inputs_embeds)
        check_not_packed(input_ids if inputs_embeds is None else inputs_embeds, attention_mask, **kwargs)
        media = {
            "pixel_values": pixel_values,
            "image_index": image_index,
            "pixel_attention_mask": pixel_attention_mask,
            "spatial_shapes": spatial_shapes,
            "input_features": input_features,
            "audio_index": audio_index,
            "input_features_mask": input_features_mask,
            "pixel_values_videos": pixel_values_videos,
            "video_index": video_index,
            "video_mask": video_mask,
            "image_states": image_states,
            "audio_states": audio_states,
            "table_values": table_values,
            "media_key_values": media_key_values,
            "media_start": media_start,
        }
        memories: dict[str, Memory] = {}
        if self.late_fusion is not None:
            media, memories = self.late_fusion_inputs(media, input_ids, inputs_embeds)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **media,
            **kwargs,
        )
        pooled = self.pool(output.last_hidden_state, attention_mask)
        if self.late_fusion is not None:
            pooled = self.fuse(pooled, memories, text_present)
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self.task_loss(logits, labels)
        return head_output(output, loss, self.calibrated_logits(logits))

    @torch.no_grad()
    def modality_weights(self, **inputs) -> dict[str, torch.Tensor] | None:
        """The weight of each modality in each row, (B,) by modality; `inputs` are those of `forward`.

        None for a model without late fusion, or with a kind of late fusion other than `weighted` and `gated`.
        """
        if self.late_fusion is None or self.late_fusion.kind not in ("weighted", "gated"):
            return None
        weights: list[torch.Tensor] = []
        hook = self.late_fusion.register_forward_hook(lambda head, args, _: weights.append(head.row_weights(*args)))
        try:
            self(**inputs)
        finally:
            hook.remove()
        return dict(zip(self.late_fusion.modalities, weights[0].unbind(dim=1), strict=True))

    def calibrated_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The head's logits (B, num_labels), calibrated or in the label's unit."""
        if self.config.label_scale is not None:
            scale = torch.tensor(self.config.label_scale, device=logits.device)
            return logits.float() * scale + torch.tensor(self.config.label_mean, device=logits.device)
        temperature = self.config.calibration_temperature
        return logits if temperature is None else logits / temperature

    def task_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of transformers, a mean over rows; `class_weights` weigh each row, or each positive label."""
        if self.config.label_scale is not None:
            mean, scale = labels.new_tensor(self.config.label_mean), labels.new_tensor(self.config.label_scale)
            labels = ((labels.view(logits.shape) - mean) / scale).to(logits.dtype)
        if self.config.class_weights is None:
            return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        weights = logits.new_tensor(self.config.class_weights)
        if self.config.problem_type == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
        # divided by the number of rows, not by their weights, so that accumulated batches equal one large batch
        return (nn.functional.cross_entropy(logits, labels, reduction="none") * weights[labels]).mean()


__all__ = ["MMForSequenceClassification"]
