# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Where media stand in the rows of a batch, and which of their slots a text token sees.

Visibility is one integer per slot, `media_start`: a token at column t sees the slots whose `media_start` is at most t.

Shapes: B rows, N images per row, S memory slots, T text tokens.
"""

from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import Cache

from .configuration_mm import MMConfig

if TYPE_CHECKING:  # never runs; the library copies what these lines name
    from .audio_mm import audio_features  # noqa: F401
    from .audio_towers_mm import audio_states  # noqa: F401

NEVER = 2**30  # the `media_start` of a slot that no token may see


def media_start_from_markers(marker_mask: torch.Tensor | None, image_index: torch.Tensor) -> torch.Tensor:
    """Column from which each image of a row may be seen.

    Args:
        marker_mask: (B, T) bool, where the text holds an image marker; None for texts that know no markers.
        image_index: (B, N), -1 where the row has no such image.

    Returns:
        (B, N) integers: the column of the image's own marker; 0 where the row has no marker at all; `NEVER` for an
        absent image and for one beyond the row's last marker.
    """
    if marker_mask is None:
        return torch.where(image_index < 0, NEVER, 0)
    rows, columns = marker_mask.shape
    column = torch.arange(columns, device=marker_mask.device).expand(rows, -1)
    ordered = torch.where(marker_mask, column, NEVER).sort(dim=1).values  # (B, T), the markers' columns first
    images = image_index.shape[1]
    ordered = torch.nn.functional.pad(ordered, (0, max(0, images - columns)), value=NEVER)[:, :images]
    start = torch.where(marker_mask.any(dim=1, keepdim=True), ordered, 0)
    return torch.where(image_index < 0, NEVER, start)


def visible_slots(media_start: torch.Tensor, tokens: int, past_key_values: Cache | None) -> torch.Tensor:
    """(B, 1, T, S) bool, which slots each of the next `tokens` columns after the cache sees; `media_start` (B, S)."""
    before = 0 if past_key_values is None else past_key_values.get_seq_length()
    column = torch.arange(tokens, device=media_start.device) + before
    return media_start[:, None, None, :] <= column[:, None]


def implied_image_index(pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, N) for `pixel_values` without an index: (B, C, H, W) is one image per row, (B, N, C, H, W) is N per row.

    Raises:
        ValueError: any other number of dimensions.
    """
    if pixel_values.dim() not in (4, 5):
        raise ValueError(
            f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected (B, C, H, W) for one image per row, "
            "(B, N, C, H, W) for N per row, or (I, C, H, W) together with `image_index` (B, N)"
        )
    rows, per_row = pixel_values.shape[0], 1 if pixel_values.dim() == 4 else pixel_values.shape[1]
    return torch.arange(rows * per_row, device=pixel_values.device).view(rows, per_row)


def check_media_shapes(
    config: MMConfig,
    image_index: torch.Tensor | None,
    key_values: torch.Tensor | None,
    media_start: torch.Tensor | None,
) -> None:
    """Refuse media of another shape or another model.

    Raises:
        ValueError: says what came and what was expected.
    """
    if image_index is not None and image_index.dim() != 2:
        raise ValueError(f"`image_index` has shape {tuple(image_index.shape)}; expected (B, N)")
    if key_values is None:
        return
    shape = tuple(key_values.shape)
    own = (len(config.fusion_layers), 2, config.fusion_num_key_value_heads, config.fusion_head_dim)
    if len(shape) != 6 or (*shape[1:4], shape[5]) != own:
        layers, _, heads, width = own
        raise ValueError(f"`media_key_values` has shape {shape}; expected (B, {layers}, 2, {heads}, S, {width})")
    if media_start is not None and tuple(media_start.shape) != (shape[0], shape[4]):
        raise ValueError(f"`media_start` has shape {tuple(media_start.shape)}; expected ({shape[0]}, {shape[4]})")
