# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMForConditionalGeneration: captions, answers and chat with a decoder backbone.

Shapes: B rows, N images per row, S memory slots, T text tokens, V vocabulary, L fusion layers, K key/value heads,
E head width.
"""

import inspect

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .attention_maps_mm import MMAttentionMapsMixin
from .configuration_mm import MMConfig
from .media_mm import MEDIA, MODALITIES, check_markers, check_text, implied_image_index
from .modeling_mm import MMModel, MMPreTrainedModel, base_method
from .outputs_mm import MMOutput, head_output
from .token_loss_mm import shifted_labels, token_loss


def scaled_logits(logits: torch.Tensor, text: PreTrainedConfig) -> torch.Tensor:
    """The logits as some backbones transform them: Granite divides, Cohere and Falcon-H1 multiply, Gemma caps."""
    if (divisor := getattr(text, "logits_scaling", None)) is not None:
        logits = logits / divisor
    for name in ("logit_scale", "lm_head_multiplier"):
        if (factor := getattr(text, name, None)) is not None:
            logits = logits * factor
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if (cap := getattr(text, name, None)) is not None:
            logits = torch.tanh(logits / cap) * cap
    return logits


class MMForConditionalGeneration(MMAttentionMapsMixin, MMPreTrainedModel, GenerationMixin):
    """Captions, answers and chat: a decoder backbone with its language modelling head.

    Args:
        config: the configuration; its text backbone must be a decoder.
        lm_head: an already built head to use as it is. towers: as for `MMModel`.

    Raises:
        ValueError: the text backbone is an encoder, or takes no `past_key_values`.
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: MMConfig, lm_head: nn.Linear | None = None, **towers):
        super().__init__(config)
        text = config.text_config
        if not config.is_text_decoder:
            raise ValueError(
                f"the text backbone '{text.model_type}' is an encoder and cannot generate; use a decoder such as "
                "llama, qwen3 or gpt2, or MMForSequenceClassification for this backbone"
            )
        self.model = MMModel(config, **towers)
        if "past_key_values" not in inspect.signature(self.model.text_model.forward).parameters:
            raise ValueError(
                f"the text backbone '{text.model_type}' takes no `past_key_values`, which generation needs; use "
                "a decoder such as llama, qwen3 or gpt2"
            )
        # recurrent backbones cannot take tokens back, so transformers refuses assisted generation for them
        causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
        self._is_stateful = causal._is_stateful
        self._supports_default_dynamic_cache = causal._supports_default_dynamic_cache  # MiniMax makes its own cache
        self.lm_head = (
            nn.Linear(text.hidden_size, text.vocab_size, config.lm_head_bias) if lm_head is None else lm_head
        )
        embeddings = self.get_input_embeddings()
        path = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{path}.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    get_image_features = base_method("get_image_features")
    get_video_features = base_method("get_video_features")
    get_audio_features = base_method("get_audio_features")
    encode_media = base_method("encode_media")
    project_media = base_method("project_media")
    attended = base_method("attended")
    media_starts = base_method("media_starts")

    def scale_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits as the backbone transforms them; see `scaled_logits`."""
        return scaled_logits(logits, self.config.text_config)

    def logits_of(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return self.scale_logits(self.lm_head(states))

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
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMOutput | tuple:
        """Next-token logits (B, T, V), or those of the last `logits_to_keep` tokens only.

        Args:
            labels: (B, T), `input_ids` where the loss applies and -100 elsewhere; they are shifted inside.
            skip_logits: return the loss of the labels without logits, which then are computed where it applies only.
            The others are those of `MMModel.forward`.
        """
        check_text(input_ids, inputs_embeds)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_index=image_index,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            input_features=input_features,
            audio_index=audio_index,
            input_features_mask=input_features_mask,
            pixel_values_videos=pixel_values_videos,
            video_index=video_index,
            video_mask=video_mask,
            image_states=image_states,
            audio_states=audio_states,
            table_values=table_values,
            media_key_values=media_key_values,
            media_start=media_start,
            return_dict=True,
            **kwargs,
        )
        targets = kwargs.pop("shift_labels", None)
        if labels is not None and targets is None:
            targets = shifted_labels(labels, position_ids)
        loss, logits = self.loss_and_logits(output.last_hidden_state, targets, logits_to_keep, skip_logits, **kwargs)
        return head_output(output, loss, logits)

    def loss_and_logits(
        self,
        states: torch.Tensor,
        targets: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        skip_logits: bool,
        **kwargs,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The loss of targets (B, T), the tokens to predict, and the logits (B, T, V), None if they are skipped."""
        if skip_logits and targets is not None:
            items = kwargs.get("num_items_in_batch")
            return token_loss(states, targets, self.logits_of, self.lm_head.weight, items), None
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.logits_of(states[:, keep])
        if targets is None:
            return None, logits
        size = self.config.text_config.vocab_size
        return self.loss_function(logits, targets, vocab_size=size, shift_labels=targets, **kwargs), logits

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """Extends `GenerationMixin.generate`: media are encoded once, before rows are repeated for beams or samples.

        Takes `pixel_values` with `image_index`; or, for another question about the same images, `media_key_values`
        from `encode_media` or an earlier output, with the same `image_index`. For another question about an audio
        clip, use `project_media` and `attended`, unless the model has `num_latents`. With `past_key_values` of an
        earlier turn, the media are those of the whole conversation.

        Raises:
            ValueError: a row has another number of markers than media, or as for `MMModel.cross_attention_inputs`.
        """
        media = {name: kwargs.pop(name) for name in MEDIA if kwargs.get(name) is not None}
        if media:
            encoded, kwargs["media_start"] = self.encode_prompt_media(media, inputs, **kwargs)
            # contiguous, because each new token reads all of it, one layer at a time
            kwargs["media_key_values"] = None if encoded is None else encoded.contiguous()
        return super().generate(inputs, *args, **kwargs)

    def encode_prompt_media(
        self,
        media: dict[str, torch.Tensor],
        inputs: torch.Tensor | None,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """`media_key_values` and `media_start` for prompts; refuses prompts whose markers and media differ in number.

        `input_ids` (or `inputs`) include the cached tokens, unless they come with a longer `attention_mask`.
        """
        input_ids = input_ids if inputs is None else inputs
        before: int | torch.Tensor = 0
        if past_key_values is not None and input_ids is not None and attention_mask is not None:
            before = past_key_values.get_seq_length() if attention_mask.shape[1] > input_ids.shape[1] else 0
        text = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        media = self.model.index_media(media, **text, before=before)
        prepared = self.model.cross_attention_inputs(**text, **media, before=before)
        indices = {modality: media.get(f"{modality}_index") for modality in MODALITIES}
        if indices["image"] is None and "pixel_values" in media and "pixel_attention_mask" not in media:
            indices["image"] = implied_image_index(media["pixel_values"])
        for modality, index in indices.items():
            markers = None if index is None else self.model.marker_mask(modality, **text)
            if markers is not None and "media_start" not in media:
                check_markers(markers, index, before, modality)
        return prepared

    def _get_candidate_generator(self, *args, **kwargs):
        """Extends the base method: a draft model sees the text only, because encoded media fit no other model."""
        draft = kwargs.get("assistant_model")
        if draft is not None and draft is not self:
            media = ("media_key_values", "media_start")
            kwargs["model_kwargs"] = {k: v for k, v in kwargs["model_kwargs"].items() if k not in media}
        return super()._get_candidate_generator(*args, **kwargs)


__all__ = ["MMForConditionalGeneration", "scaled_logits"]
