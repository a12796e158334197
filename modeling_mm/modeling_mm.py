# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The models: one text backbone that sees media through gated cross-attention, and a head for each task.

- `MMModel` runs each distinct image through the vision tower once, and hands its keys and values to the fusion layers
  that sit before some of the backbone's own layers. With gates at zero its output is the backbone's, bit for bit.
- Media are encoded before text: `encode_media` gives `media_key_values`, which `forward` and `generate` take in place
  of pixels. A second question about the same picture costs no vision work.
- Heads add their layers and their loss only.

Shapes: B rows, I distinct images, N images per row, S memory slots, T text tokens, D text width, V vocabulary,
L fusion layers, K key/value heads, E head width.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel

from .configuration_mm import MMConfig
from .fusion_mm import NEVER, FusionCall, MMFusion, MMResampler, add_fusion_hooks, media_start_from_markers


@dataclass
class MMModelOutput(ModelOutput):
    """Output of `MMModel`.

    last_hidden_state: (B, T, D). past_key_values: the self-attention cache. hidden_states, attentions: of the text
    backbone. cross_attentions: one (B, H, T, S) tensor per fusion layer, with `output_attentions=True`.
    media_key_values: (B, L, 2, K, S, E), to be given to a later call in place of the pixels.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    media_key_values: torch.Tensor | None = None


@dataclass
class MMOutput(ModelOutput):
    """Output of the heads: `loss` where labels were given, `logits`, and the fields of `MMModelOutput`."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    media_key_values: torch.Tensor | None = None


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
        for gate in ("cross_attn_gate", "mlp_gate"):
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
        add_fusion_hooks(self.text_model, config.fusion_layers)
        self.post_init()

    def train(self, mode: bool = True):
        """As usual, but a frozen vision tower stays in evaluation mode: its batch norms must not drift."""
        super().train(mode)
        if mode and not any(p.requires_grad for p in self.vision_tower.parameters()):
            self.vision_tower.eval()
        return self

    def get_image_features(self, pixel_values: torch.Tensor, **vision_inputs) -> torch.Tensor:
        """States of distinct images: (I, C, H, W) to (I, P, V); grids of convolutional towers are flattened.

        `vision_inputs` are what else a tower takes per image (SigLIP2's `pixel_attention_mask`, `spatial_shapes`).
        """
        trained = any(p.requires_grad for p in self.vision_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            states = self.vision_tower(
                pixel_values=pixel_values.to(self.vision_tower.dtype), **vision_inputs
            ).last_hidden_state
        return states.flatten(2).transpose(1, 2) if states.dim() == 4 else states

    def encode_media(
        self,
        pixel_values: torch.Tensor,
        image_index: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the vision tower and the fusion's key/value projection, once per distinct image.

        Args:
            pixel_values: (I, C, H, W) with `image_index`; without it (B, C, H, W) for one image per row or
                (B, N, C, H, W) for N per row. SigLIP2 takes (I, P, C * p * p) with the two arguments below.
            image_index: (B, N) integers into the images, -1 where a row has fewer than N.
            pixel_attention_mask: (I, P), 1 where a patch is real. spatial_shapes: (I, 2), patches per side.

        Returns:
            `media_key_values` (B, L, 2, K, S, E) and `media_visible_from` (B, N, S / N): 0 for a slot that may be
            seen, `NEVER` for one that is empty.

        Raises:
            ValueError: `pixel_values` has another number of dimensions.
        """
        if image_index is None:
            pixel_values, image_index = self._implied_image_index(pixel_values)
        vision_inputs = {}
        if pixel_attention_mask is not None:
            vision_inputs = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        states = self.get_image_features(pixel_values, **vision_inputs)  # (I, P, V)
        present = None if pixel_attention_mask is None else pixel_attention_mask.bool()
        key_values = self.fusion.encode(states, present)  # (I, L, 2, K, P, E)
        slots = key_values.shape[4]
        absent = (image_index < 0)[..., None].expand(-1, -1, slots)  # (B, N, P)
        if present is not None and self.config.num_latents is None:
            absent = absent | ~present[image_index.clamp(min=0)]
        gathered = key_values[image_index.clamp(min=0)]  # (B, N, L, 2, K, P, E)
        gathered = gathered.permute(0, 2, 3, 4, 1, 5, 6).flatten(4, 5)  # (B, L, 2, K, S, E)
        return gathered, torch.where(absent, NEVER, 0)

    @staticmethod
    def _implied_image_index(pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if pixel_values.dim() not in (4, 5):
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected (B, C, H, W) for one image per row, "
                "(B, N, C, H, W) for N per row, or (I, C, H, W) together with `image_index` (B, N)"
            )
        rows, per_row = pixel_values.shape[0], 1 if pixel_values.dim() == 4 else pixel_values.shape[1]
        index = torch.arange(rows * per_row, device=pixel_values.device).view(rows, per_row)
        return (pixel_values if pixel_values.dim() == 4 else pixel_values.flatten(0, 1)), index

    def prepare_media(
        self,
        input_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        media_key_values: torch.Tensor | None = None,
        media_start: torch.Tensor | None = None,
        **vision_inputs,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What fusion needs of the media: `media_key_values` (B, L, 2, K, S, E) and `media_start` (B, S).

        Media that were encoded before pass through; without `media_start` each of their N equal parts belongs to one
        marker of `input_ids`, where N is the largest number of markers in a row (1 without markers).

        Raises:
            ValueError: rows of text and of media differ in number, or encoded media do not divide among the markers.
        """
        if pixel_values is None and media_key_values is None:
            return None, None
        markers = None
        if input_ids is not None and self.config.image_token_id is not None:
            markers = input_ids == self.config.image_token_id
        if media_key_values is None:
            media_key_values, empty = self.encode_media(pixel_values, image_index, **vision_inputs)
        elif media_start is None:
            images = 1 if markers is None else max(1, int(markers.sum(dim=1).max()))
            rows, slots = media_key_values.shape[0], media_key_values.shape[4]
            if slots % images:
                raise ValueError(
                    f"`media_key_values` holds {slots} slots, which {images} image markers do not share evenly; "
                    "pass `media_start` (B, S) as well"
                )
            empty = torch.zeros(rows, images, slots // images, dtype=torch.long, device=media_key_values.device)
        if media_start is None:
            if markers is not None:
                if markers.shape[0] != empty.shape[0]:
                    raise ValueError(
                        f"the text has {markers.shape[0]} rows but the media {empty.shape[0]}; "
                        "`image_index` (B, N) or `media_key_values` (B, ...) must have one row per row of text"
                    )
                image_index = torch.where(empty.amin(dim=2) > 0, -1, 0)
                start = media_start_from_markers(markers, image_index)
                empty = torch.maximum(empty, start[..., None])
            media_start = empty.flatten(1)  # (B, S)
        return media_key_values, media_start

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        media_key_values: torch.Tensor | None = None,
        media_start: torch.LongTensor | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
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
            before = 0 if past_key_values is None else past_key_values.get_seq_length()
            column = torch.arange(tokens, device=media_start.device) + before
            visible = media_start[:, None, None, :] <= column[:, None]  # (B, 1, T, S)
            call = FusionCall(self.fusion, media_key_values, visible, [] if output_attentions else None)
        inputs = {
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "output_attentions": output_attentions or None,
            "fusion_call": call,
        }
        text = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **{name: value for name, value in inputs.items() if value is not None},
            **kwargs,
        )
        output = MMModelOutput(
            last_hidden_state=text.last_hidden_state,
            past_key_values=text.get("past_key_values"),
            hidden_states=text.get("hidden_states"),
            attentions=text.get("attentions"),
            cross_attentions=tuple(call.attentions) if call is not None and call.attentions is not None else None,
            media_key_values=media_key_values,
        )
        return output if return_dict is not False and self.config.return_dict else output.to_tuple()


class MMForConditionalGeneration(MMPreTrainedModel, GenerationMixin):
    """Captions, answers and chat: the language modelling head of a decoder backbone over what it sees.

    Args:
        config: the configuration; its text backbone must be a decoder.
        lm_head: an already built head to use as it is. towers: as for `MMModel`.

    Raises:
        ValueError: the text backbone is an encoder.
    """

    def __init__(self, config: MMConfig, lm_head: nn.Linear | None = None, **towers):
        super().__init__(config)
        text = config.text_config
        if not config.is_text_decoder:
            raise ValueError(
                f"the text backbone '{text.model_type}' is an encoder and cannot generate; use a decoder such as llama, "
                "qwen3 or gpt2, or MMForSequenceClassification for this backbone"
            )
        self.model = MMModel(config, **towers)
        self.lm_head = (
            nn.Linear(text.hidden_size, text.vocab_size, config.lm_head_bias) if lm_head is None else lm_head
        )
        embeddings = self.get_input_embeddings()
        path = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{path}.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def encode_media(self, pixel_values: torch.Tensor, image_index: torch.Tensor | None = None, **vision_inputs):
        """`media_key_values` (B, L, 2, K, S, E) for `forward` and `generate`; arguments as `MMModel.encode_media`."""
        return self.model.encode_media(pixel_values, image_index, **vision_inputs)[0]

    def scale_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """What some backbones do to their logits: Granite divides, Cohere multiplies, Gemma caps them softly."""
        text = self.config.text_config
        if (divisor := getattr(text, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (factor := getattr(text, "logit_scale", None)) is not None:
            logits = logits * factor
        if (cap := getattr(text, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        media_key_values: torch.Tensor | None = None,
        media_start: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs,
    ) -> MMOutput | tuple:
        """Next-token logits (B, T, V), or of the last `logits_to_keep` tokens only.

        Args:
            labels: (B, T), the tokens themselves where they are to be learned and -100 elsewhere; shifted inside.
            The others are `MMModel.forward`'s.
        """
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
            media_key_values=media_key_values,
            media_start=media_start,
            return_dict=True,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.scale_logits(self.lm_head(output.last_hidden_state[:, keep]))  # (B, T, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return head_output(output, loss, logits, return_dict is not False and self.config.return_dict)

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """As `GenerationMixin.generate`; media are encoded once, before rows are repeated for beams or samples.

        Takes `pixel_values` with `image_index`, or `media_key_values` from `encode_media` or an earlier output.
        """
        vision = ("pixel_values", "image_index", "pixel_attention_mask", "spatial_shapes")
        media = {name: kwargs.pop(name) for name in vision if kwargs.get(name) is not None}
        media |= {name: kwargs.pop(name) for name in ("media_key_values", "media_start") if name in kwargs}
        if media:
            input_ids = inputs if inputs is not None else kwargs.get("input_ids")
            kwargs["media_key_values"], kwargs["media_start"] = self.model.prepare_media(input_ids, **media)
        return super().generate(inputs, *args, **kwargs)

    def _get_candidate_generator(self, *args, **kwargs):
        """A draft model without fusion proposes from the text alone: media are not for it."""
        draft = kwargs.get("assistant_model")
        if draft is not None and not hasattr(draft, "encode_media"):
            media = ("media_key_values", "media_start")
            kwargs["model_kwargs"] = {k: v for k, v in kwargs["model_kwargs"].items() if k not in media}
        return super()._get_candidate_generator(*args, **kwargs)


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

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        media_key_values: torch.Tensor | None = None,
        media_start: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> MMOutput | tuple:
        """Logits (B, num_labels).

        Args:
            labels: (B,) class ids, (B, num_labels) of 0 and 1 for several labels, or (B,) numbers for regression.
            The others are `MMModel.forward`'s.
        """
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
        return head_output(output, loss, logits, return_dict is not False and self.config.return_dict)


def head_output(output: MMModelOutput, loss: torch.Tensor | None, logits: torch.Tensor, return_dict: bool):
    """The base model's output without its last hidden state, with the head's loss and logits."""
    fields = {name: value for name, value in output.items() if name != "last_hidden_state"}
    result = MMOutput(loss=loss, logits=logits, **fields)
    return result if return_dict else result.to_tuple()


__all__ = ["MMPreTrainedModel", "MMModel", "MMForConditionalGeneration", "MMForSequenceClassification"]
