# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Packed conversations: several in one row of tokens, each of which attends to its own text and media only.

They come as `DataCollatorWithFlattening` returns them, without an `attention_mask`: `position_ids` restart with each
conversation, or `cu_seq_lens_q` holds their ends. The text backbone keeps them apart by a block mask or by kernels
for sequences of different lengths; `Packing` does the same for media, whose arguments have one row per conversation:
the queries are cut into conversations, attend to the media of theirs, and are packed again.

On a CPU, `packed_sdpa` spares the block mask: it attends within one conversation after the other, which skips what
the mask would hide. Backbones whose layers do more than causal attention go by the mask (`attends_by_lengths`).

Shapes: B rows of T tokens hold R conversations, of which the longest has W tokens; S memory slots.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "packed_sdpa"  # the attention implementation for a text backbone that trains on packs
# backbones whose attention is causal and nothing else, unless their config has a window, chunks or kinds of layers
PLAIN = ("llama", "gpt2", "qwen2", "qwen3", "qwen3_moe", "smollm3", "gpt_neox", "phi3", "mistral")


class Packing:
    """The places of packed conversations; no dataclass, because FSDP would copy it for each layer.

    Args:
        starts: (R,) place of the first token of each conversation in the flattened rows, in order, from 0.
        rows, tokens: B and T.
    """

    def __init__(self, starts: torch.Tensor, rows: int, tokens: int):
        self.rows, self.tokens = rows, tokens
        ends = torch.cat([starts[1:], starts.new_full((1,), rows * tokens)])
        lengths = ends - starts
        steps = torch.arange(int(lengths.max()), device=starts.device)
        self.real = steps < lengths[:, None]  # (R, W)
        self.places = torch.where(self.real, starts[:, None] + steps, 0)  # (R, W)
        self.sources = self.real.flatten().nonzero()[:, 0]  # (B * T,) place of each token in the flattened cut rows

    @property
    def lengths(self) -> list[list[int]]:
        """The numbers of tokens of the conversations in each row."""
        rows: list[list[int]] = [[] for _ in range(self.rows)]
        for row, length in zip((self.places[:, 0] // self.tokens).tolist(), self.real.sum(1).tolist(), strict=True):
            rows[row].append(length)
        return rows

    @property
    def position_ids(self) -> torch.Tensor:
        """(B, T), the column of each token in its conversation."""
        return self.pack(torch.arange(self.real.shape[1], device=self.real.device).expand(self.real.shape))

    def cut(self, tokens: torch.Tensor, padding: float | None = None) -> torch.Tensor:
        """(R, W, ...) from (B, T, ...); the places beyond a conversation's end hold `padding`, or any token."""
        rows = tokens.flatten(0, 1)[self.places]
        if padding is None:
            return rows
        return rows.masked_fill(~self.real.view(*self.real.shape, *[1] * (rows.dim() - 2)), padding)

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) from (R, W, ...); inverse of `cut`."""
        return rows.flatten(0, 1)[self.sources].unflatten(0, (self.rows, self.tokens))


def find_packing(
    text: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    has_cache: bool,
    cu_seq_lens_q: torch.Tensor | None = None,
    **others,
) -> Packing | None:
    """The packing of a text (B, T) or of its embeddings (B, T, D); None if each row is one conversation.

    Args:
        position_ids: (B, T); a conversation begins wherever they do not go on by one, as for transformers' own masks.
        has_cache: the tokens follow others, so that positions tell nothing.
        cu_seq_lens_q: (R + 1,) cumulative lengths of the conversations of one row, in place of the positions.

    Raises:
        ValueError: packed conversations came with a padding mask, under which the text backbone would mix them, or
            their lengths do not sum to the tokens.
    """
    rows, tokens = text.shape[:2]
    if cu_seq_lens_q is not None:
        if int(cu_seq_lens_q[-1]) != rows * tokens:
            raise ValueError(
                f"`cu_seq_lens_q` ends at {int(cu_seq_lens_q[-1])}, but {rows} x {tokens} tokens came; expected the "
                "cumulative lengths of all conversations, from 0"
            )
        starts = cu_seq_lens_q[:-1].long().to(text.device)
    else:
        is_known = position_ids is not None and position_ids.dim() == 2 and position_ids.shape[1] == tokens > 1
        if has_cache or not is_known or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        assert position_ids is not None
        restarts = position_ids.diff(dim=1) != 1  # (B or 1, T - 1)
        if attention_mask is not None and attention_mask.dim() == 2:
            real = attention_mask[:, :tokens].bool()
            restarts = restarts & real[:, 1:] & real[:, :-1]
        if not bool(restarts.any()):
            return None
        first = torch.ones_like(restarts[:, :1])
        starts = torch.cat([first, restarts], dim=1).expand(rows, tokens).flatten().nonzero()[:, 0]
    if attention_mask is not None and attention_mask.dim() == 2:
        raise ValueError(
            "packed conversations (`position_ids` that restart within a row, or `cu_seq_lens_q`) came with an "
            "`attention_mask`, under which the text backbone would mix them; leave the mask out"
        )
    return Packing(starts, rows, tokens)


def text_in_rows(
    packing: Packing | None,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    before: int | torch.Tensor,
    position_ids: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """Ids and embeddings with one row per conversation, and the columns of their tokens, (T,) or (R, W).

    Args:
        before: number of cached columns before these, without packing.
        position_ids: (B, T), the columns of packed tokens; by default each conversation begins at 0.
    """
    text = input_ids if inputs_embeds is None else inputs_embeds
    assert text is not None
    if packing is None:
        return input_ids, inputs_embeds, torch.arange(text.shape[1], device=text.device) + before
    columns = packing.cut(packing.position_ids if position_ids is None else position_ids)
    ids = None if input_ids is None else packing.cut(input_ids, -1)  # padding is no marker
    return ids, None if inputs_embeds is None else packing.cut(inputs_embeds, 0.0), columns


def attends_by_lengths(config: PreTrainedConfig) -> bool:
    """True if a text backbone is to attend within one conversation after the other, and has no attention beside."""
    others = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return config._attn_implementation == ATTENTION and config.model_type in PLAIN and not any(others) and not kinds


def may_be_packed(
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    past_key_values: object = None,
    **others,
) -> bool:
    """True for inputs that hold packed conversations if their positions restart, which a compiler cannot ask."""
    return attention_mask is None and position_ids is not None and past_key_values is None


def packed_sdpa_attention(
    module: nn.Module,
    query: torch.Tensor,  # (B, H, T, E)
    key: torch.Tensor,  # (B, K, T, E)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_lengths: list[list[int]] | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention (B, T, H, E) within each conversation; without lengths, that of transformers under the mask."""
    if packed_lengths is None:
        options = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows = []
    for row, lengths in enumerate(packed_lengths):
        parts = zip(*(states[row : row + 1].split(lengths, dim=2) for states in (query, key, value)), strict=True)
        options = {
            "dropout_p": dropout,
            "scale": scaling,
            "is_causal": True,
            "enable_gqa": query.shape[1] != key.shape[1],
        }
        rows.append(torch.cat([nn.functional.scaled_dot_product_attention(*p, **options) for p in parts], dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, packed_sdpa_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def check_not_packed(
    text: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    **others,
) -> None:
    """Refuse packed conversations for a head that pools whole rows.

    Raises:
        ValueError: a row holds several conversations.
    """
    if find_packing(text, attention_mask, position_ids, has_cache=False, **others) is not None:
        raise ValueError(
            "a row holds several packed conversations, of which this head would make one; pad them in rows of their "
            "own, or use MMForConditionalGeneration"
        )


@torch.no_grad()
def keeps_apart(text_model: nn.Module, run: Callable[..., torch.Tensor], device: torch.device) -> bool:
    """True if a backbone keeps packed conversations apart, found by two runs that differ in the first of two.

    Args:
        run: the states (1, T, D) of the backbone for `input_ids` and `position_ids` (1, T).
    """
    modes = [(module, module.training) for module in text_model.modules()]
    text_model.eval()  # without dropout
    try:
        second, places = torch.arange(6, device=device) + 1, torch.arange(6, device=device).repeat(2)[None]
        first = [torch.full((6,), token, device=device) for token in (1, 2)]
        states = [run(torch.cat([part, second])[None], places)[0] for part in first]
    finally:
        for module, mode in modes:
            module.training = mode
    change = (states[0] - states[1])[6:].abs().max()
    return bool(change <= 8 * torch.finfo(change.dtype).eps * states[0].abs().max())


__all__ = [
    "ATTENTION",
    "Packing",
    "attends_by_lengths",
    "check_not_packed",
    "find_packing",
    "keeps_apart",
    "may_be_packed",
    "text_in_rows",
]
