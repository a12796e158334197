# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMForSequenceClassification: a label, labels or a number for each row of text and media.

With `late_fusion` the text's vector is joined by one for each other modality, the mean of its projected states.

Shapes: B rows, I distinct images, N images per row, M modalities, P states per image, T text tokens, D text width.
"""

from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_mm import MMConfig
from .late_fusion_mm import MMLateFusion
from .media_mm import check_text, implied_image_index
from .modeling_mm import MMModel, MMPreTrainedModel
from .outputs_mm import MMOutput, head_output


class MMForSequenceClassification(MMPreTrainedModel):
    """One label, several labels or a number for each row of text and media; the loss is a mean over rows.

    Args:
        config: the configuration; `num_labels` (or `id2label`), `problem_type`, `pooling` and `late_fusion` decide
            the head.
        towers: as for `MMModel`.
    """

    accepts_loss_kwargs = False
    modalities = ("text", "image")  # in the order of late fusion

    def __init__(self, config: MMConfig, **towers):
        super().__init__(config)
        self.model = MMModel(config, **towers)
        self.dropout = nn.Dropout(config.classifier_dropout)
        width = config.text_config.hidden_size
        self.late_fusion: MMLateFusion | None = None
        if config.late_fusion is not None:
            self.late_fusion = MMLateFusion(config.late_fusion, width, self.modalities)
            width = self.late_fusion.output_width
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, T, D) to (B, D): the first or last token that is not padding, or the mean of all that are not."""
        rows, tokens, _ = hidden_states.shape
        if attention_mask is None:
            attention_mask = torch.ones(rows, tokens, device=hidden_states.device)
        if self.config.pooling == "mean":
            weight = attention_mask[..., None].to(hidden_states.dtype)
            return (hidden_states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        column = torch.arange(tokens, device=hidden_states.device)
        real = attention_mask > 0
        if self.config.pooling == "first":
            chosen = torch.where(real, column, tokens - 1).amin(dim=1)
        else:
            chosen = torch.where(real, column, 0).amax(dim=1)
        return hidden_states[torch.arange(rows, device=hidden_states.device), chosen]

    def late_images(self, media: dict[str, Any]) -> tuple[dict[str, Any], list[torch.Tensor | None]]:
        """Run the vision tower once, for late fusion and for cross-attention.

        Returns:
            `media` as `MMModel` then takes them; each row's picture embedding (B, D) and whether it has one (B,), or
            None and None.

        Raises:
            ValueError: the media come encoded, which is for cross-attention only.
        """
        if media["media_key_values"] is not None:
            raise ValueError("late fusion pools the states of the pictures; pass `pixel_values`, no encoded media")
        pixel_values, image_index = media["pixel_values"], media["image_index"]
        if pixel_values is None:
            return media, [None, None]
        if image_index is None:
            image_index = implied_image_index(pixel_values)
            pixel_values = pixel_values.flatten(0, 1) if pixel_values.dim() == 5 else pixel_values
        mask, shapes = media.pop("pixel_attention_mask", None), media.pop("spatial_shapes", None)
        vision_inputs = {} if mask is None else {"pixel_attention_mask": mask, "spatial_shapes": shapes}
        states = self.model.get_image_features(pixel_values, return_dict=True, **vision_inputs).pooler_output
        memory = self.model.fusion.project(states, None if mask is None else mask.bool())  # (I, P, D)
        media |= {"pixel_values": None, "image_index": image_index}
        if self.config.cross_attention:
            key_values = self.model.fusion.gather(self.model.fusion.key_values(memory), image_index)
            media |= {"media_key_values": key_values, "pixel_attention_mask": mask}
        return media, [*self.pool_images(memory, image_index, mask)]

    def pool_images(
        self, memory: torch.Tensor, image_index: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean (B, D) over all images of a row of each one's mean state, and (B,) bool, whether it has any."""
        if mask is None or self.config.num_latents is not None:
            pooled = memory.mean(dim=1)  # (I, D)
        else:
            weight = mask[..., None].to(memory.dtype)
            pooled = (memory * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        real = image_index >= 0  # (B, N)
        own = pooled[image_index.clamp(min=0)] * real[..., None]  # (B, N, D)
        return own.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1), real.any(dim=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        media_key_values: torch.Tensor | None = None,
        media_start: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_present: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMOutput | tuple:
        """Logits (B, num_labels): of classes, divided by the calibration temperature, or numbers in the label's unit.

        Args:
            labels: (B,) class ids, (B, num_labels) of 0 and 1 for several labels, or (B,) or (B, num_labels) numbers.
            text_present: (B,) bool for late fusion, whether a row has a text of its own; default: all have.
            The others are `MMModel.forward`'s.
        """
        check_text(input_ids, inputs_embeds)
        media = {"pixel_values": pixel_values, "image_index": image_index, **kwargs}
        media |= {"media_key_values": media_key_values, "media_start": media_start}
        if self.late_fusion is not None:
            media, (images, has_images) = self.late_images(media)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **media,
        )
        pooled = self.pool(output.last_hidden_state, attention_mask)
        if self.late_fusion is not None:
            nowhere = torch.zeros(pooled.shape[0], dtype=torch.bool, device=pooled.device)
            has_text = ~nowhere if text_present is None else text_present.bool()
            present = torch.stack([has_text, nowhere if has_images is None else has_images], dim=1)
            pooled = self.late_fusion([pooled, images], present)
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self.task_loss(logits, labels)
        return head_output(output, loss, self.readable(logits))

    def readable(self, logits: torch.Tensor) -> torch.Tensor:
        """What the head computes (B, num_labels), calibrated or in the label's unit."""
        if self.config.label_scale is not None:
            scale = torch.tensor(self.config.label_scale, device=logits.device)
            return logits.float() * scale + torch.tensor(self.config.label_mean, device=logits.device)
        temperature = self.config.calibration_temperature
        return logits if temperature is None else logits / temperature

    def task_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over rows, as the library has it; with `class_weights` each row, or positive label, counts so much."""
        if self.config.label_scale is not None:
            mean, scale = labels.new_tensor(self.config.label_mean), labels.new_tensor(self.config.label_scale)
            labels = ((labels.view(logits.shape) - mean) / scale).to(logits.dtype)
        if self.config.class_weights is None:
            return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        weights = logits.new_tensor(self.config.class_weights)
        if self.config.problem_type == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
        # divided by the rows, not by their weights, so that small batches accumulated are one large batch
        return (nn.functional.cross_entropy(logits, labels, reduction="none") * weights[labels]).mean()


__all__ = ["MMForSequenceClassification"]
