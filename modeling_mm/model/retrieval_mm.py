# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMForImageTextRetrieval: retrieval between text and images or audio, in two stages from one checkpoint.

- Embeddings of text and of media, computed independently of each other, can be compared by the thousand.
- A matching head on the fused text reranks the best candidates.
- Contrastive, matching and language modelling losses are trained in one pass (Li et al. 2022, "BLIP"; Yu et al. 2022,
  "CoCa"), weighted by the config, so that the checkpoint serves the other heads too.

Shapes: B texts, I distinct images, A distinct clips, N images per row, T text tokens, E embedding width.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .audio_towers_mm import audio_width
from .configuration_mm import MMConfig, tower_width
from .embedding_mm import EmbeddedMedia
from .generation_mm import scaled_logits
from .losses_mm import Pairs, contrastive_loss, local_keys, with_absent_modalities
from .losses_mm import text_keys as token_keys
from .matching_mm import MMMatchingHead, MMMatchingMixin
from .media_mm import Memory, check_text
from .modeling_mm import MMModel, MMPreTrainedModel, base_method
from .outputs_mm import MMRetrievalOutput
from .token_loss_mm import shifted_labels, token_loss

MAX_LOGIT_SCALE = math.log(100)
SIGMOID_BIAS = -10.0  # at first nearly all pairs are false (Zhai et al. 2023)


class MMTemperature(nn.Module):
    """The learned scale of similarities, and a bias for the sigmoid loss; a module, so that peft can train it too."""

    def __init__(self, config: MMConfig):
        super().__init__()
        # of one dimension: FSDP shards no scalars
        self.logit_scale = nn.Parameter(torch.tensor([float(config.logit_scale_init)]))
        self.logit_bias = nn.Parameter(torch.tensor([SIGMOID_BIAS])) if config.contrastive_loss == "sigmoid" else None

    def forward(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The scale, at most 100 because larger ones only sharpen mistakes, and the bias, if there is one."""
        if self.training:  # clamp the weight itself, so that it does not drift far beyond the limit
            self.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
        scale = self.logit_scale[0]
        # FSDP shards cannot be clamped in place; subtracting the detached excess clamps the value, keeps the gradient
        scale = scale - (scale - MAX_LOGIT_SCALE).clamp(min=0).detach()
        return scale.exp(), None if self.logit_bias is None else self.logit_bias[0]


class MMForImageTextRetrieval(MMMatchingMixin, MMPreTrainedModel):
    """Embeddings of text, images and audio, their similarities, and match logits of a text and an image.

    Args:
        config: the configuration; `embedding_size`, `pooling`, `image_pooling`, `contrastive_loss` and the weights of
            the losses define the heads.
        lm_head: with `language_weight`, an already built language modelling head to use as it is.
        towers: as for `MMModel`.

    Raises:
        ValueError: the model does not support a loss whose weight is not 0.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: MMConfig, lm_head: nn.Linear | None = None, **towers):
        super().__init__(config)
        text = config.text_config
        if config.language_weight and not (config.is_text_decoder and config.cross_attention):
            raise ValueError(
                f"`language_weight` is {config.language_weight}, but captioning needs a decoder with cross-attention, "
                f"and the text backbone of this model is '{text.model_type}'; set it to 0"
            )
        if config.matching_weight and not config.cross_attention:
            raise ValueError("`matching_weight` needs `cross_attention`, which fuses text and image; set it to 0")
        if config.table_columns is not None:
            raise ValueError(
                "retrieval compares texts with images or audio and takes no table; leave out `table_columns`"
            )
        self.model = MMModel(config, **towers)
        self.text_projection = nn.Linear(text.hidden_size, config.embedding_size, bias=False)
        self.image_projection = nn.Linear(tower_width(config.vision_config), config.embedding_size, bias=False)
        if config.audio_config is not None:
            self.audio_projection = nn.Linear(audio_width(config.audio_config), config.embedding_size, bias=False)
        self.temperature = MMTemperature(config)
        self.matching_head = MMMatchingHead(config) if config.matching_weight else None
        self.lm_head: nn.Linear | None = None
        if config.language_weight:
            self.lm_head = lm_head or nn.Linear(text.hidden_size, text.vocab_size, config.lm_head_bias)
            embeddings = self.get_input_embeddings()
            path = next(name for name, module in self.named_modules() if module is embeddings)
            self._tied_weights_keys = {"lm_head.weight": f"{path}.weight"}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MMTemperature):
            init.constant_(module.logit_scale, self.config.logit_scale_init)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, SIGMOID_BIAS)

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    encode_media = base_method("encode_media")

    def similarities(self, queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Logits (Q, K) of embeddings (Q, E) and (K, E)."""
        scale, bias = self.temperature()
        logits = scale * queries @ candidates.T
        return logits if bias is None else logits + bias

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
        image_states: torch.Tensor | None = None,
        image_pooled: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        image_keys: torch.Tensor | None = None,
        audio_keys: torch.Tensor | None = None,
        text_keys: torch.Tensor | None = None,
        caption_ids: torch.Tensor | None = None,
        caption_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool | None = None,
        embed_gradients: dict[str, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMRetrievalOutput | tuple:
        """Similarities of all texts and all media, or with `return_loss` the losses of the pairs in each row.

        Args:
            image_index, audio_index: (B, N), the media of each text, of which the losses pair the first with it; by
                default one per text.
            image_keys, audio_keys: (I,) integers from 0, equal for equal images or audio clips, for losses over
                several batches or processes; by default all differ.
            text_keys: (B,) integers from 0, equal for texts of equal meaning, so that each matches the media of all
                of them; by default equal for equal tokens.
            caption_ids, caption_mask: (B, T) prompt and caption as `MMForConditionalGeneration` takes them, with
                `labels` (B, T); without them, the labels belong to `input_ids`.
            embed_gradients: gradients of the contrastive loss of a larger batch, by the names in `compared`, used
                instead of this batch's (GradCache).
            image_states, image_pooled, audio_states: earlier outputs of the towers, in place of raw media, as
                `MMModel.get_image_features` and `get_audio_features` take them.
            The others are those of `MMModel.forward`.
        """
        check_text(input_ids, inputs_embeds)
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds, **kwargs}
        text_features = self.get_text_features(**{**text, "return_dict": True})
        patches = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        media = dict[str, EmbeddedMedia]()
        if pixel_values is not None or image_states is not None:
            patches |= {"image_states": image_states, "image_pooled": image_pooled}
            media["image"] = self.embed_images(pixel_values, patches, image_index, image_keys)
        if input_features is not None or audio_states is not None:
            audio = {"input_features_mask": input_features_mask, "audio_states": audio_states}
            media["audio"] = self.embed_audio(input_features, audio, audio_index, audio_keys)
        embeds = {f"{name}_embeds": medium.embeds for name, medium in media.items()}
        output = MMRetrievalOutput(text_embeds=text_features.pooler_output, **embeds)
        output.hidden_states, output.attentions = text_features.hidden_states, text_features.attentions
        if not return_loss:
            return self.with_logits(output)
        if text_keys is None and input_ids is not None:
            text_keys = token_keys(input_ids, attention_mask)
        keys = local_keys(output.text_embeds) if text_keys is None else text_keys
        pairs = {name: medium.pairs(keys) for name, medium in media.items()}
        output.contrastive_loss = self.contrastive_loss(self.compared(output), pairs, embed_gradients)
        if self.matching_head is not None:
            output.matching_loss = self.matching_loss(text, output, pairs, media)
        if self.lm_head is not None and labels is not None:
            caption = text if caption_ids is None else {"input_ids": caption_ids, "attention_mask": caption_mask}
            memories = {name: self.memory(medium) for name, medium in media.items()}
            output.language_loss = self.captioning_loss(caption, memories, labels)
        output.loss = self.total_loss(output)
        return output

    def with_logits(self, output: MMRetrievalOutput) -> MMRetrievalOutput:
        """Add the similarities of all embeddings to an output."""
        if output.image_embeds is not None:
            output.logits_per_text = self.similarities(output.text_embeds, output.image_embeds)
            output.logits_per_image = output.logits_per_text.T
        if output.audio_embeds is not None:
            output.logits_per_audio = self.similarities(output.audio_embeds, output.text_embeds)
        return output

    def compared(self, output: MMRetrievalOutput) -> dict[str, torch.Tensor]:
        """The inputs of the contrastive loss: embeddings by "text" and modality, "scale" and "bias" of the logits."""
        scale, bias = self.temperature()
        inputs = {"text": output.text_embeds, "image": output.image_embeds, "audio": output.audio_embeds}
        inputs |= {"scale": scale, "bias": bias}
        return {name: value for name, value in inputs.items() if value is not None}

    def contrastive_loss(
        self,
        compared: dict[str, torch.Tensor],
        pairs: dict[str, Pairs],
        gradients: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The contrastive loss, averaged over modalities; in training, across processes.

        Args:
            compared: the result of `compared`.
            pairs: the positive pairs of each modality.
            gradients: by the names in `compared`; the result then has these gradients and no meaningful value.

        Raises:
            ValueError: there are no media.
        """
        if gradients is not None:
            return torch.stack([(compared[name] * gradient).sum() for name, gradient in gradients.items()]).sum()
        if not pairs:
            raise ValueError("a loss needs media beside the texts: pass `pixel_values` or `input_features`")
        across = self.is_trained_across_processes()
        if across and self.config.audio_config is not None:
            compared, pairs = with_absent_modalities(compared, pairs)
        kind, texts, scale, bias = self.config.contrastive_loss, *(compared.get(k) for k in ("text", "scale", "bias"))
        losses = [
            contrastive_loss(kind, texts, compared[name], positives, scale, bias, across)
            for name, positives in pairs.items()
        ]
        return torch.stack(losses).mean()

    def is_trained_across_processes(self) -> bool:
        """True if other processes train on other rows of the same batch."""
        return self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def matching_loss(
        self, text: dict[str, Any], output: MMRetrievalOutput, pairs: dict[str, Pairs], media: dict[str, EmbeddedMedia]
    ) -> torch.Tensor:
        """The matching loss, averaged over modalities, each fused with the text alone; `text` holds its arguments."""
        losses = []
        for name, medium in media.items():
            with torch.no_grad():
                similar = self.similarities(output.text_embeds, medium.embeds).float()
            losses.append(self.medium_matching_loss(text, medium, similar, pairs[name].true_pairs()))
        return torch.stack(losses).mean()

    def captioning_loss(self, text: dict[str, Any], memories: dict[str, Memory], labels: torch.Tensor) -> torch.Tensor:
        """The language modelling loss of captions (B, T) with all their media, as in `MMForConditionalGeneration`."""
        assert self.lm_head is not None
        key_values, start = self.model.attended(memories, text["input_ids"], text.get("inputs_embeds"))
        text = {**self.decoder_options(text["attention_mask"]), **text, "return_dict": True}
        states = self.model(**text, media_key_values=key_values, media_start=start).last_hidden_state
        lm_head, config, targets = self.lm_head, self.config.text_config, shifted_labels(labels)
        return token_loss(states, targets, lambda chunk: scaled_logits(lm_head(chunk), config), lm_head.weight)

    def total_loss(self, output: MMRetrievalOutput) -> torch.Tensor:
        """The weighted sum of the losses in an output.

        Across processes, the audio projection always gets a gradient, zero for a batch without audio, because other
        processes wait for it.
        """
        parts = [
            (self.config.contrastive_weight, output.contrastive_loss),
            (self.config.matching_weight, output.matching_loss),
            (self.config.language_weight, output.language_loss),
        ]
        total = torch.stack([weight * loss for weight, loss in parts if loss is not None]).sum()
        if self.config.audio_config is not None and self.is_trained_across_processes():
            total = total + self.audio_projection.weight.flatten()[:0].sum()
        return total


__all__ = ["MMForImageTextRetrieval"]
