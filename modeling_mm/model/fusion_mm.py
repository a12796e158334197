# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Fusion: gated cross-attention from the text tokens of a frozen or trained backbone to media.

- `MMFusion` turns tower states into keys and values, once per distinct image and for all fusion layers by one linear
  layer, and holds the gated cross-attention layers (Alayrac et al. 2022, "Flamingo").
- `FusionHook` enters the backbone: a forward pre-hook on every text layer that runs a fusion layer on its input. It
  holds an index only. Module and tensors arrive in a `FusionContext`, so that deepcopy, pickling and peft's
  replacement of modules cannot leave it with a stale reference.
- The context arrives as a keyword argument if the backbone passes those down to its layers. Otherwise the hook finds
  it in a context variable (`active_context`); compilers and exporters support the first way only.
- The hidden state of a token that sees no slot (see `media_mm`) does not change.

Shapes: B rows, I distinct images, N images per row, P states per image, S = N * P slots, T text tokens, D text width,
V tower width, M memory width, L fusion layers, H query heads, K key/value heads, G query heads for each of these,
E head width.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.models.whisper.modeling_whisper import sinusoids

from .audio_towers_mm import audio_width
from .configuration_mm import MMConfig, tower_width
from .cross_attention_mm import MMCrossAttention, for_each_head
from .media_mm import Memory
from .packing_mm import Packing
from .resampler_mm import MMResampler
from .table_tower_mm import MMTableTower

RECENCY_BIAS = -2.0  # at first, of all media but the latest: most of what is asked is about that one


class FusionContext:
    """The inputs of every fusion layer in one forward pass; no dataclass, because FSDP would copy it for each layer.

    fusion: the module that holds the fusion layers. text_model: the backbone that they enter. layers: the indices of
    the text layers that they precede. key_values: (B, L, 2, K, S, E). visible: (B, 1, T, S) bool.
    attentions: a list that collects (B, H, T, S) weights, or None. packing: that of the hidden states, with which the
    tensors have one row per conversation. ranks: (B, 1, T, S), see `media_mm.recency`, or None. num_layers_run: number
    of fusion layers that ran.
    keys, values: for each fusion layer (B, K, S, E), views. sees_media: (B, T, 1) bool, True if a token sees any slot;
    packed like the hidden states.
    mask: (B, 1, G * T, S) bool, the slots that each token attends to, repeated for the G heads that share them.
    """

    def __init__(
        self,
        fusion: nn.Module,
        text_model: PreTrainedModel,
        layers: tuple[int, ...],
        key_values: torch.Tensor,
        visible: torch.Tensor,
        attentions: list | None = None,
        packing: Packing | None = None,
        ranks: torch.Tensor | None = None,
    ):
        self.fusion, self.text_model, self.layers = fusion, text_model, layers
        self.key_values, self.visible = key_values, visible
        self.attentions, self.packing, self.ranks, self.num_layers_run = attentions, packing, ranks, 0
        # unbound in one step, whose gradient is one tensor instead of one full of zeros for each layer
        slots_first = key_values.permute(0, 4, 1, 2, 3, 5).flatten(2, 3)  # (B, S, L * 2, K, E)
        unbound = [tensor.transpose(1, 2) for tensor in slots_first.unbind(2)]
        self.keys, self.values = unbound[::2], unbound[1::2]
        sees_media = visible.any(dim=-1).transpose(1, 2)
        self.sees_media = sees_media if packing is None else packing.pack(sees_media)
        # A softmax over no slot is NaN: such tokens attend to all slots, and the layer restores them afterwards.
        self.mask = for_each_head(visible | ~visible.any(dim=-1, keepdim=True), fusion.num_key_value_groups)

    @property
    def shape(self) -> tuple[int, int]:
        """The rows and tokens of the hidden states."""
        packing, visible = self.packing, self.visible
        return (visible.shape[0], visible.shape[2]) if packing is None else (packing.rows, packing.tokens)

    @cached_property
    def text_layers(self) -> nn.ModuleList:
        """The backbone's layers, looked up once per forward pass, if the context does not come as a keyword."""
        return text_layers(self.text_model)


CURRENT_CONTEXT: ContextVar[FusionContext | None] = ContextVar("fusion_context", default=None)


@contextmanager
def active_context(context: FusionContext | None) -> Iterator[None]:
    """Make a context available to hooks that get none by keyword; None hides the context of an enclosing model."""
    if torch.compiler.is_compiling():
        yield
        return
    token = CURRENT_CONTEXT.set(context)
    try:
        yield
    finally:
        CURRENT_CONTEXT.reset(token)


class FusionHook:
    """Forward pre-hook of text layer `layer`; the context tells which fusion layer precedes it, if any."""

    def __init__(self, layer: int):
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        context = kwargs.pop("fusion_context", None) or self.find_context(module)
        if context is None or self.layer not in context.layers:
            return args, kwargs
        context.num_layers_run += 1
        position = context.layers.index(self.layer)
        if args:
            return (context.fusion(args[0], context, position), *args[1:]), kwargs
        kwargs["hidden_states"] = context.fusion(kwargs["hidden_states"], context, position)
        return args, kwargs

    def find_context(self, module: nn.Module) -> FusionContext | None:
        """The active context, if it belongs to the backbone of this layer.

        Raises:
            ValueError: the layer is checkpointed together with its hooks: the backward pass would compute it again
                outside of the context, without fusion, and return wrong gradients.
        """
        context = None if torch.compiler.is_compiling() else CURRENT_CONTEXT.get()
        if context is None or self.layer not in context.layers or context.text_layers[self.layer] is not module:
            return None
        with_hooks = type(module).__call__ is not nn.Module.__call__  # so before transformers 5.23
        if with_hooks and module.training and getattr(module, "gradient_checkpointing", False):
            raise ValueError(
                f"{type(context.text_model).__name__} does not pass keyword arguments down to its layers, so that it "
                "cannot be trained with gradient checkpointing in this version of transformers; use 5.23 or newer, "
                "or leave gradient checkpointing off"
            )
        return context


def text_layers(text_model: PreTrainedModel) -> nn.ModuleList:
    """The backbone's layers: the shallowest `ModuleList` as long as `config.num_hidden_layers`.

    Raises:
        ValueError: there is no such list, or more than one.
    """
    length = text_model.config.num_hidden_layers
    lists = [
        (name.count("."), module)
        for name, module in text_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == length
    ]
    shallowest = [module for depth, module in lists if depth == min(depth for depth, _ in lists)]
    if len(shallowest) != 1:
        raise ValueError(
            f"{type(text_model).__name__} holds {len(shallowest) or 'no'} lists of its {length} layers, where fusion "
            "needs one to enter; use an encoder like bert or modernbert, or a decoder like llama or qwen3"
        )
    return shallowest[0]


def add_fusion_hooks(text_model: PreTrainedModel) -> None:
    """Register a hook on every layer, fused or not, so that our keyword never reaches the backbone's own code.

    A backbone that is part of another model has its hooks already; they serve both models.
    """
    for index, layer in enumerate(text_layers(text_model)):
        if not any(isinstance(hook, FusionHook) for hook in layer._forward_pre_hooks.values()):
            layer.register_forward_pre_hook(FusionHook(index), with_kwargs=True)


class MMFusionLayer(GradientCheckpointingLayer):
    """Gated cross-attention and an optional gated MLP; with gates at zero, tanh(0) = 0, it returns its input."""

    def __init__(self, config: MMConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.cross_attn_norm = nn.LayerNorm(width)
        self.cross_attn = MMCrossAttention(config, width)
        self.cross_attn_gate = nn.Parameter(torch.full((1,), float(config.fusion_gate_init)))
        self.mlp: nn.Sequential | None = None
        if config.fusion_mlp:
            hidden = config.fusion_intermediate_size
            self.mlp_norm = nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, hidden), ACT2FN["gelu"], nn.Linear(hidden, width))
            self.mlp_gate = nn.Parameter(torch.full((1,), float(config.fusion_gate_init)))

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        sees_media: torch.Tensor,
        need_weights: bool,
        packing: Packing | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Fused hidden states (B, T, D) and attention weights; the other arguments are those of the context."""
        states = hidden_states.to(self.cross_attn_norm.weight.dtype)  # fusion may train in a higher precision
        attended, weights = self.cross_attn(self.cross_attn_norm(states), key, value, mask, need_weights, packing)
        fused = states + (self.cross_attn_gate.tanh() * attended).to(states.dtype)
        if self.mlp is not None:
            fused = fused + (self.mlp_gate.tanh() * self.mlp(self.mlp_norm(fused))).to(fused.dtype)
        if weights is not None:
            weights = weights * (sees_media if packing is None else packing.cut(sees_media, False))[:, None]
        return torch.where(sees_media, fused.to(hidden_states.dtype), hidden_states), weights


class MMChannelNorm(nn.Module):
    """Batch norm of states (..., V) by channel: what all states of an untrained tower have in common is subtracted."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States (..., V), of the same shape."""
        return self.norm(states.flatten(0, -2)).view_as(states)


class MMFusion(nn.Module):
    """Projectors, resampler and fusion layers between the towers and the backbone; the part that is always trained."""

    def __init__(self, config: MMConfig):
        super().__init__()
        width = config.fusion_memory_size
        self.num_key_value_heads, self.head_dim = config.fusion_num_key_value_heads, config.fusion_head_dim
        self.num_key_value_groups = config.fusion_num_attention_heads // config.fusion_num_key_value_heads
        self.image_positions = config.image_positions
        widths = {"image": tower_width(config.vision_config)}
        if config.audio_config is not None:
            widths["audio"] = audio_width(config.audio_config)
        for modality, tower in widths.items():
            norm = MMChannelNorm(tower) if config.projector_norm == "batch" else nn.LayerNorm(tower)
            setattr(self, f"{modality}_projector", nn.Sequential(norm, nn.Linear(tower, width)))
        if config.num_frames is not None:
            self.frame_embedding = nn.Parameter(torch.zeros(config.num_frames, width))
        self.resampler = MMResampler(config) if config.num_latents else None
        if config.recency_ranks:
            shape = (len(config.fusion_layers), config.fusion_num_attention_heads, config.recency_ranks - 1)
            self.recency_bias = nn.Parameter(torch.full(shape, RECENCY_BIAS))
        self.table_tower = MMTableTower(config) if config.table_columns else None
        if config.cross_attention:
            self.memory_norm = nn.LayerNorm(width)
            per_layer = 2 * self.num_key_value_heads * self.head_dim
            self.kv_proj = nn.Linear(width, len(config.fusion_layers) * per_layer, bias=False)
        self.layers = nn.ModuleList([MMFusionLayer(config) for _ in config.fusion_layers])

    def project(
        self, states: torch.Tensor, present: torch.Tensor | None = None, modality: str = "image"
    ) -> torch.Tensor:
        """Project states of distinct items (I, P, V) to the memory width, and resample them if configured: (I, P, M).

        `present` (I, P) is False for padding states; only the resampler uses it. Audio states get a position in time,
        which convolutional towers do not encode, and image states one in their grid if configured. Video states
        (I, F, P, V) are projected like those of images, get the embedding of their frame, and are flattened to F * P
        per video.
        """
        projector = self.audio_projector if modality == "audio" else self.image_projector
        memory = projector(states.to(projector[1].weight.dtype))  # (I, P, M); parts may differ in precision
        if modality == "audio" or self.image_positions:
            memory = memory + sinusoids(*memory.shape[-2:]).to(memory)
        if modality == "video":
            memory = (memory + self.frame_embedding[: memory.shape[1], None]).flatten(1, 2)
        return memory if self.resampler is None else self.resampler(memory, present)

    def table_memory(self, values: torch.Tensor) -> Memory:
        """The memory of table rows (B, C), a slot for each column; a row without any cell has no slots.

        Raises:
            ValueError: the model takes no table, or one with another number of columns.
        """
        if self.table_tower is None:
            raise ValueError(
                "a table came as `table_values`, but this model takes none; compose it with `table_columns`"
            )
        columns = len(self.table_tower.order)
        if values.dim() != 2 or values.shape[1] != columns:
            raise ValueError(f"`table_values` has shape {tuple(values.shape)}; expected (B, {columns})")
        slots, embedding = self.table_tower(values)
        rows = torch.arange(values.shape[0], device=values.device)
        index = torch.where(values.isnan().all(dim=1), -1, rows)[:, None]
        return Memory(slots, index, in_order=True, embedding=embedding)

    def key_values(self, memories: Iterable[Memory]) -> torch.Tensor:
        """Keys and values (B, L, 2, K, S, E) of each row's media, for the memories of one or more modalities.

        Raises:
            ValueError: the model has no cross-attention.
        """
        if not len(self.layers):
            raise ValueError(
                "this model has no cross-attention, only `late_fusion`, which MMForSequenceClassification computes "
                "from `pixel_values`; compose it with `cross_attention=True` for any other use of media"
            )
        modalities = []
        for memory in memories:
            projected = self.kv_proj(self.memory_norm(memory.states))  # (I, P, L * 2KE)
            index = memory.index
            items = projected.unflatten(0, index.shape) if memory.in_order else projected[index.clamp(min=0)]
            modalities.append(items.flatten(1, 2))  # (B, N * P, L * 2KE)
        slots = modalities[0] if len(modalities) == 1 else torch.cat(modalities, dim=1)
        slots = slots.unflatten(2, (len(self.layers), 2, self.num_key_value_heads, self.head_dim))
        return slots.permute(0, 2, 3, 4, 1, 5)

    def weighted_mask(self, context: FusionContext, position: int) -> torch.Tensor:
        """The mask (B, K, G * T, S) of a fusion layer as numbers: the bias of what is visible, by its recency."""
        assert context.ranks is not None
        bias = nn.functional.pad(self.recency_bias[position], (1, 0))  # (H, R), 0 for the latest medium
        ranks = context.ranks[:, 0].clamp(max=bias.shape[1] - 1)  # (B, T, S)
        heads = bias[:, ranks].transpose(0, 1)  # (B, H, T, S)
        heads = heads.unflatten(1, (self.num_key_value_heads, self.num_key_value_groups)).flatten(2, 3)
        return heads.masked_fill(~context.mask, torch.finfo(heads.dtype).min)

    def forward(self, hidden_states: torch.Tensor, context: FusionContext, position: int) -> torch.Tensor:
        """Run the fusion layer at `position` on the input (B, T, D) of a text layer.

        Raises:
            ValueError: the backbone's hidden states are not one per text token.
        """
        rows, tokens = context.shape
        if hidden_states.shape[:-1] != (rows, tokens):
            raise ValueError(
                f"{type(context.text_model).__name__} gives its layers states of shape {tuple(hidden_states.shape)}, "
                f"where fusion expects one for each text token, ({rows}, {tokens}, width)"
            )
        mask = context.mask if context.ranks is None else self.weighted_mask(context, position)
        media = (context.keys[position], context.values[position], mask, context.sees_media)
        need_weights = context.attentions is not None
        hidden_states, weights = self.layers[position](hidden_states, *media, need_weights, context.packing)
        if context.attentions is not None:
            context.attentions.append(weights)
        return hidden_states


__all__ = ["MMFusion", "MMFusionLayer"]
