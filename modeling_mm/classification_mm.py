# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMForSequenceClassification: a label, labels or a number for each row of text and media.

Shapes: B rows, N images per row, T text tokens, D text width.
"""

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_mm import MMConfig
from .media_mm import check_text
from .modeling_mm import MMModel, MMPreTrainedModel
from .outputs_mm import MMOutput, head_output


class MMForSequenceClassification(MMPreTrainedModel):
    """One label, several labels or a number for each row of text and media; the loss is a mean over rows.

    Args:
        config: the configuration; `num_labels` (or `id2label`), `problem_type` and `pooling` decide the head.
        towers: as for `MMModel`.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: MMConfig, **towers):
        super().__init__(config)
        self.model = MMModel(config, **towers)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.text_config.hidden_size, config.num_labels)
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMOutput | tuple:
        """Logits (B, num_labels).

        Args:
            labels: (B,) class ids, (B, num_labels) of 0 and 1 for several labels, or (B,) numbers for regression.
            The others are `MMModel.forward`'s.
        """
        check_text(input_ids, inputs_embeds)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_index=image_index,
            media_key_values=media_key_values,
            media_start=media_start,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(self.pool(output.last_hidden_state, attention_mask)))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return head_output(output, loss, logits)


__all__ = ["MMForSequenceClassification"]
