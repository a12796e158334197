# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The base model: a text backbone that attends to media through gated cross-attention. Each head has its own file.

- `MMModel` runs each distinct image through the vision tower once, and passes its keys and values to the fusion layers
  in front of some of the backbone's layers. With gates at zero its output equals the backbone's, bit for bit.
- Media are encoded before text: `encode_media` returns `media_key_values`, which `forward` and `generate` take in
  place of pixels. A second question about the same image does not run the vision tower.

Shapes: B rows, I distinct images, N images per row, S = N * P memory slots, T text tokens, D text width,
V tower width, P states per image, L fusion layers, K key/value heads, E head width.
"""

import inspect
import re
from collections.abc import Callable, Collection
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .adapters_mm import MMAdapterMixin
from .audio_towers_mm import audio_tower_from_config
from .configuration_mm import MMConfig
from .encoding_mm import MMEncodingMixin
from .fusion_mm import RECENCY_BIAS, FusionContext, MMFusion, active_context, add_fusion_hooks, text_layers
from .late_fusion_mm import MMLateFusion
from .media_mm import check_text, recency, visible_slots
from .outputs_mm import MMModelOutput
from .packing_mm import Packing, attends_by_lengths, find_packing, keeps_apart, may_be_packed, text_in_rows
from .resampler_mm import MMResampler
from .table_tower_mm import MMTableTower
from .towers_mm import HUB_ARGUMENTS, fetch_towers, patterns_of

if TYPE_CHECKING:  # never runs; transformers copies the files imported here, so every head travels with every class
    from .classification_mm import MMForSequenceClassification  # noqa: F401
    from .generation_mm import MMForConditionalGeneration  # noqa: F401
    from .pipeline_mm import MultimodalClassificationPipeline  # noqa: F401
    from .retrieval_mm import MMForImageTextRetrieval  # noqa: F401


def block_classes(model: PreTrainedModel) -> set[str]:
    """Names of the block classes of a model, which no device map splits and FSDP shards one by one.

    These are the classes that the towers declare, if the model has them (CLIP's vision tower names a class of its text
    tower, which accelerate would miss), the layers of the text backbone (DistilBERT declares none), and fusion's own.
    Modules that hold the text embeddings are excluded: those form a block alone, or with the head tied to them.
    """
    declared = {
        *model._no_split_modules,
        *(type(layer).__name__ for layer in text_layers(model.base_model.text_model)),
    }
    vocab_size = model.config.text_config.vocab_size
    blocks = [module for module in model.modules() if type(module).__name__ in declared]
    return {type(block).__name__ for block in blocks} - {
        type(block).__name__
        for block in blocks
        if any(isinstance(part, nn.Embedding) and part.num_embeddings == vocab_size for part in block.modules())
    }


def gate_value(gate: nn.Parameter) -> float:
    """The tanh of a gate; if FSDP shards it, every process must make this call."""
    from torch.distributed.tensor import DTensor

    whole = gate.full_tensor() if isinstance(gate, DTensor) else gate
    return whole.tanh().item()


class MMPreTrainedModel(MMAdapterMixin, PreTrainedModel):
    """Loading, saving and initialisation, common to all models of the package."""

    config: MMConfig
    config_class = MMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: Collection[str] = ["MMFusionLayer", "MMResamplerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: for custom code, transformers would initialise missing weights of towers by its own rule."""
        return False

    def post_init(self) -> None:
        """Extends the base method: keeps only real blocks of the classes that transformers collects from the parts."""
        super().post_init()
        self._no_split_modules = block_classes(self)
        names = [name for name, module in self.named_modules() if type(module).__name__ in self._no_split_modules]
        self._fsdp_plan = {re.sub(r"\.\d+(?=\.|$)", ".*", name): "free_full_weight" for name in names}

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.text_model.set_input_embeddings(value)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        """Extends the base method: refuses unknown parts. Takes a name, or a dict by sub-config with "" for fusion."""
        self.config.check_attention_parts(attn_implementation)
        super().set_attn_implementation(attn_implementation, **kwargs)

    def fusion_gates(self) -> list[dict[str, float]]:
        """The gate values of each fusion layer: tanh of its gates, from -1 to 1, all 0 before training.

        Returns:
            for each fusion layer `before_text_layer`, `cross_attention` and, with `fusion_mlp`, `mlp`.
        """
        gates = []
        for place, layer in zip(self.config.fusion_layers, self.base_model.fusion.layers, strict=True):
            values = {"before_text_layer": place, "cross_attention": gate_value(layer.cross_attn_gate)}
            gates.append(values if layer.mlp is None else {**values, "mlp": gate_value(layer.mlp_gate)})
        return gates

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MMResampler):
            init.normal_(module.latents, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, (MMTableTower, MMLateFusion)):
            module.reset()
        for name in ("cross_attn_gate", "mlp_gate"):
            if name in module._parameters:
                init.constant_(module._parameters[name], self.config.fusion_gate_init)
        if "frame_embedding" in module._parameters:
            init.zeros_(module._parameters["frame_embedding"])
        if "recency_bias" in module._parameters:
            init.constant_(module._parameters["recency_bias"], RECENCY_BIAS)

    def save_pretrained(self, *args, **kwargs) -> None:
        """Extends the base method: restores the class name that FSDP changed, which decides the code to save."""
        unsharded = next(base for base in type(self).__mro__ if not base.__name__.startswith("FSDP"))
        type(self).__name__, type(self).__module__ = unsharded.__name__, unsharded.__module__
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Extends the base method: fetches towers that the checkpoint names but does not hold."""
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.fetched_towers:
            fetch_towers(model, pretrained_model_name_or_path, **hub_arguments)
        return loaded

    @classmethod
    def from_towers(cls, vision, text, audio=None, **config):
        """Compose a model from pretrained towers; see `compose_mm.model_from_towers`."""
        from .compose_mm import model_from_towers

        return model_from_towers(cls, vision=vision, text=text, audio=audio, **config)


class MMModel(MMEncodingMixin, MMPreTrainedModel):
    """Towers and fusion without a head.

    Args:
        config: the configuration.
        vision_tower, text_model, audio_tower: already built towers to use as they are, whose configs `config` must
            hold.

    Raises:
        ValueError: the backbone has no list of layers, or the audio tower takes no audio.
    """

    def __init__(
        self,
        config: MMConfig,
        vision_tower: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
        audio_tower: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config) if vision_tower is None else vision_tower
        if config.audio_config is not None and audio_tower is None:
            audio_tower = audio_tower_from_config(config.audio_config)
        self.audio_tower = audio_tower
        self.text_model = AutoModel.from_config(config.text_config) if text_model is None else text_model
        self.fusion = MMFusion(config)
        self._keys_to_ignore_on_load_missing = patterns_of(config.fetched_towers or [])
        add_fusion_hooks(self.text_model)
        parameters = inspect.signature(self.text_model.forward).parameters.values()
        self.keeps_conversations_apart: bool | None = None  # not tried yet
        self.text_model_takes_keywords = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self.post_init()

    def train(self, mode: bool = True):
        """Extends the base method: what is frozen in a tower stays in evaluation mode, or batch norms would drift."""
        super().train(mode)
        for tower in (self.vision_tower, self.audio_tower):
            if not mode or tower is None:
                continue
            if not any(p.requires_grad for p in tower.parameters()):
                tower.eval()
            for module in tower.modules():
                parameters = list(module.parameters(recurse=False))
                if parameters and not any(p.requires_grad for p in parameters):
                    module.training = False
        return self

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
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMModelOutput | BaseModelOutputWithPooling | tuple:
        """Hidden states (B, T, D) of text (B, T) with or without media; for images alone, `get_image_features`.

        Args:
            pixel_values, image_index, pixel_attention_mask, spatial_shapes, input_features, audio_index,
            input_features_mask, pixel_values_videos, video_index, video_mask, image_states, audio_states,
            table_values: media, as `encode_media` takes them. With `past_key_values`, those of the whole conversation:
                a row's last images belong to the new markers.
            media_key_values: encoded media (B, L, 2, K, S, E), in place of pixels.
            media_start: (B, S), the first text column that sees each slot; by default it follows from the markers.
            position_ids, cu_seq_lens_q: with conversations packed in rows, see `packing_mm`; the media arguments then
                have one row per conversation.
            The others are arguments of the text backbone.
        """
        if input_ids is None and inputs_embeds is None and pixel_values is not None:
            patches = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
            return self.get_image_features(pixel_values, return_dict=True, **patches)
        states = check_text(input_ids, inputs_embeds)
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        packing = find_packing(states, attention_mask, position_ids, past_key_values is not None, **kwargs)
        places = None if media_start is None else position_ids
        *text, columns = text_in_rows(packing, input_ids, inputs_embeds, before, places)
        media_key_values, media_start = self.cross_attention_inputs(
            *(text[0], media_key_values, media_start, text[1], before),
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
        )
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        context = self.fusion_context(media_key_values, media_start, columns, output_attentions, packing)
        return self.run_text_model(
            *(context, packing, input_ids, attention_mask),
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions or None,
            **kwargs,
        )

    def check_packing(self, packing: Packing) -> None:
        """Refuse a backbone that mixes packed conversations; it is tried once, and FSDP's processes try it together.

        Raises:
            ValueError: one conversation changes the states of the next, or flash kernels, which keep conversations
                apart in one row only, got several.
        """
        if packing.rows > 1 and "flash" in str(self.config.text_config._attn_implementation):
            raise ValueError(
                f"packed conversations came in {packing.rows} rows, which flash kernels would mix; flatten them to one"
            )
        if self.keeps_conversations_apart is None:

            def run(input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
                return self.text_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)[0]

            with active_context(None):
                self.keeps_conversations_apart = keeps_apart(self.text_model, run, self.device)
        if not self.keeps_conversations_apart:
            raise ValueError(
                f"the text backbone '{self.config.text_config.model_type}' mixes conversations that are packed in one "
                "row; pad them instead (--packing false), or use a backbone like llama, qwen3 or gemma2"
            )

    def fusion_context(
        self,
        key_values: torch.Tensor | None,
        media_start: torch.Tensor | None,
        columns: torch.Tensor,
        output_attentions: bool,
        packing: Packing | None,
    ) -> FusionContext | None:
        """The inputs of the fusion layers, from keys and values (B, L, 2, K, S, E) and `media_start` (B, S).

        `columns` (T,) or (B, T) are the places of the tokens in their rows or, if packed, in their conversations.

        None without media.
        """
        if key_values is None:
            return None
        visible = visible_slots(media_start, columns)  # (B, 1, T, S)
        attentions: list | None = [] if output_attentions else None
        layers = tuple(self.config.fusion_layers)
        ranks = recency(media_start, visible) if self.config.recency_ranks else None
        return FusionContext(self.fusion, self.text_model, layers, key_values, visible, attentions, packing, ranks)

    def run_text_model(
        self, context: FusionContext | None, packing: Packing | None, input_ids, attention_mask, **inputs
    ) -> MMModelOutput:
        """The text backbone's output, fused with the media of a context; inputs that are None are left out."""
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if packing is not None:
            self.check_packing(packing)
            if attends_by_lengths(self.config.text_config) and self.text_model_takes_keywords:
                inputs["packed_lengths"] = packing.lengths
            inputs.setdefault("position_ids", packing.position_ids)
        if packing is not None or (torch.compiler.is_compiling() and may_be_packed(attention_mask, **inputs)):
            inputs["use_cache"] = False  # with a cache, the backbone takes the row for one conversation
        if context is not None and self.text_model_takes_keywords:
            inputs["fusion_context"] = context
        with active_context(context):
            text = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        if context is not None:
            self.check_layers_run(context)
        states = text.last_hidden_state
        if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            states = states + self.touch_unused_parts().to(states.dtype)
        return MMModelOutput(
            last_hidden_state=states,
            past_key_values=text.get("past_key_values"),
            hidden_states=text.get("hidden_states"),
            attentions=text.get("attentions"),
            cross_attentions=tuple(context.attentions)
            if context is not None and context.attentions is not None
            else None,
            media_key_values=None if context is None else context.key_values,
        )

    def check_layers_run(self, context: FusionContext) -> None:
        """Refuse a backbone that did not run every fusion layer.

        Raises:
            ValueError: a fusion layer did not run, and LayerDrop is off.
        """
        text = self.config.text_config
        run, layers = context.num_layers_run, len(context.layers)
        if run < layers and not (self.training and getattr(text, "layerdrop", 0)):
            raise ValueError(
                f"fusion entered the text backbone '{text.model_type}' at {run} of {layers} layers; a "
                "backbone must call its layers as modules and, to be compiled or exported, pass keyword arguments "
                "down to them, as bert, modernbert, llama and qwen3 do"
            )


def base_method(name: str) -> Callable[..., Any]:
    """A method for heads that calls this method of their base model, with its signature and docstring."""

    @wraps(getattr(MMModel, name))
    def method(self, *args, **kwargs):
        return getattr(self.model, name)(*args, **kwargs)

    return method


__all__ = ["MMPreTrainedModel", "MMModel", "base_method"]
