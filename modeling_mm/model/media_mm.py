# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Modalities, their markers, and the visibility of media slots to text tokens.

Visibility is one integer per slot, `media_start`: a token at column t sees the slots whose `media_start` is at most t.

Shapes: B rows, N images per row, S memory slots, T text tokens.
"""

from dataclasses import dataclass

import torch

from .configuration_mm import MMConfig
from .pooling_mm import masked_mean


@dataclass(frozen=True)
class Modality:
    """The names that belong to one modality beside the text.

    tensor: the model's argument for raw items, flat. states: the argument for the states of its tower instead, None if
    there is none. details: other arguments, one entry per item. tower: the attribute of the base model. argument: the
    processor's argument, and the field of a table row. items: the plural noun for messages.
    """

    name: str
    tensor: str
    states: str | None
    details: tuple[str, ...]
    tower: str
    argument: str
    items: str

    @property
    def index(self) -> str:
        """The argument (B, N) with the index of each row's items."""
        return f"{self.name}_index"

    @property
    def marker(self) -> str:
        """The processor's attribute for the marker of one item."""
        return f"{self.name}_token"

    @property
    def marker_id(self) -> str:
        """The config field for that marker's token id."""
        return f"{self.name}_token_id"

    @property
    def raw(self) -> tuple[str, ...]:
        """The arguments for items that are not projected yet; at most one of them may be passed."""
        return (self.tensor,) if self.states is None else (self.tensor, self.states)

    @property
    def arguments(self) -> tuple[str, ...]:
        """All arguments of `MMModel.forward` for this modality."""
        return (*self.raw, self.index, *self.details)


# In the order of their slots.
MODALITIES = {
    modality.name: modality
    for modality in (
        Modality(
            "image",
            "pixel_values",
            "image_states",
            ("pixel_attention_mask", "spatial_shapes"),
            "vision_tower",
            "images",
            "images",
        ),
        Modality(
            "audio", "input_features", "audio_states", ("input_features_mask",), "audio_tower", "audio", "audio clips"
        ),
        Modality("video", "pixel_values_videos", None, ("video_mask",), "vision_tower", "videos", "videos"),
    )
}
TABLE = "table"  # numbers and categories: one table row per row, without markers; see `table_tower_mm`
RAW = (*(name for modality in MODALITIES.values() for name in modality.raw), "table_values")
# The arguments of the models for media, raw and encoded.
MEDIA = (
    *(name for modality in MODALITIES.values() for name in modality.arguments),
    "table_values",
    "media_key_values",
    "media_start",
)
NEVER = 2**30  # the `media_start` of a slot that no token may see


def media_start_from_markers(
    marker_mask: torch.Tensor | None, image_index: torch.Tensor, before: int | torch.Tensor = 0
) -> torch.Tensor:
    """The first column that sees each image of a row.

    Args:
        marker_mask: (B, T) bool, True at image markers; None for texts that can have none.
        image_index: (B, N), -1 for absent images.
        before: number of cached columns before these; a row's last images then belong to its markers here, and the
            images before them to markers in the cache.

    Returns:
        (B, N) integers: the column of the image's marker; 0 for a row without markers; below 0, in their order, for
        images of earlier turns; `NEVER` for an absent image and for an image beyond the row's last marker.
    """
    if marker_mask is None:
        return torch.where(image_index < 0, NEVER, 0)
    place = torch.arange(image_index.shape[1], device=image_index.device)
    markers = marker_mask.cumsum(dim=1)  # (B, T), number of markers up to and at each column
    count = markers[:, -1:]
    images = torch.where(image_index < 0, 0, place + 1).amax(dim=1, keepdim=True)
    earlier = (images - count).clamp(min=0) * (before > 0)  # (B, 1), images of cached turns
    marker = place - earlier  # (B, N), the image's marker among those here
    column = (markers[:, None] <= marker[..., None]).sum(dim=2) + before
    start = torch.where(marker < count, column, NEVER)
    start = torch.where((marker >= 0) & (count > 0), start, 0)
    start = torch.where((marker < 0) & (earlier > 0), 2 * marker, start)  # apart, as from markers in several turns
    return torch.where(image_index < 0, NEVER, start)


def encoded_starts(
    key_values: torch.Tensor,
    indices: dict[str, torch.Tensor],
    markers: dict[str, torch.Tensor | None],
    before: int | torch.Tensor,
    text_rows: int | None,
    present: torch.Tensor | None,
) -> torch.Tensor:
    """`media_start` (B, S) of encoded images, audio clips and videos, in this order, all with as many slots.

    `indices` (B, N) and `markers` (B, T) by modality; without any index the media are images, per row as many as the
    most markers in a row. `present` (I, P) is 0 for padding patches.

    Raises:
        ValueError: text and media differ in rows, or the slots do not divide evenly among the media.
    """
    rows, slots = key_values.shape[0], key_values.shape[4]
    if not indices:
        images = 1 if markers["image"] is None else max(1, int(markers["image"].sum(dim=1).max()))
        indices = {"image": torch.zeros(rows, images, dtype=torch.long, device=key_values.device)}
    for name, index in indices.items():
        if text_rows not in (None, rows) or index.shape[0] != rows:
            raise ValueError(
                f"the media have {rows} rows, `{name}_index` {index.shape[0]} and the text {text_rows}; "
                "expected one row of each per text"
            )
    items = sum(index.shape[1] for index in indices.values())
    if slots % items:
        what = " or ".join(
            MODALITIES[name].items for name, mask in markers.items() if name in indices or mask is not None
        )
        raise ValueError(
            f"`media_key_values` holds {slots} slots per row, which {items} {what} do not share "
            "evenly; pass each index (B, N) that they were encoded with"
        )
    starts = [media_start_from_markers(markers[name], index, before) for name, index in indices.items()]
    start = torch.cat(starts, dim=1)[..., None].expand(-1, -1, slots // items)  # (B, N, P)
    if present is not None:
        start = torch.where(present.bool()[indices["image"].clamp(min=0)], start, NEVER)
    return start.flatten(1)


def visible_slots(media_start: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B, 1, T, S) bool, the slots that the tokens at columns (T,) or (B, T) see, from (B, S)."""
    return media_start[:, None, None, :] <= columns[..., None].unsqueeze(-3)


def recency(media_start: torch.Tensor, visible: torch.Tensor) -> torch.Tensor | None:
    """(B, 1, T, S), how many later media than a slot's a token sees, 0 for the latest; None without an order.

    Args:
        media_start: (B, S); media whose markers follow each other are given together, and equally recent.
        visible: (B, 1, T, S) bool.
    """
    starts, order = media_start.sort(dim=1)
    number = torch.nn.functional.pad((starts.diff(dim=1) > 1).cumsum(dim=1), (1, 0))  # (B, S)
    if not torch.compiler.is_compiling() and not bool(((number > 0) & (starts < NEVER)).any()):
        return None
    number = torch.zeros_like(number).scatter(1, order, number)[:, None, None, :]
    latest = torch.where(visible, number, -1).amax(dim=-1, keepdim=True)
    return (latest - number).clamp(min=0)


def implied_image_index(pixel_values: torch.Tensor) -> torch.Tensor:
    """The index (B, N) of `pixel_values` without one: (B, C, H, W) is one image per row, (B, N, C, H, W) N per row.

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


def one_per_row(media: torch.Tensor) -> torch.Tensor:
    """The index (B, 1) of media that are one per row, in their order."""
    return torch.arange(media.shape[0], device=media.device)[:, None]


def check_states(name: str, states: torch.Tensor, width: int, raw: torch.Tensor | None) -> None:
    """Refuse states of another width than the tower's, or that came together with `raw` media.

    Raises:
        ValueError: names what came and what was expected.
    """
    if raw is not None:
        raise ValueError(f"`{name}` came together with raw media of the same modality; pass one of the two")
    if states.dim() != 3 or states.shape[-1] != width:
        raise ValueError(f"`{name}` has shape {tuple(states.shape)}; expected (I, P, {width}), the tower's width")


def check_media(
    config: MMConfig,
    raw: list[str],
    media: dict[str, torch.Tensor | None],
    key_values: torch.Tensor | None,
    media_start: torch.Tensor | None,
) -> None:
    """Refuse media of a wrong shape or of another model, and `raw` media together with encoded ones.

    Raises:
        ValueError: names what came and what was expected.
    """
    for name in ("image_index", "audio_index", "video_index"):
        index = media.get(name)
        if index is not None and index.dim() != 2:
            raise ValueError(f"`{name}` has shape {tuple(index.shape)}; expected (B, N)")
    if key_values is None:
        return
    if raw:
        raise ValueError(
            f"both `{raw[0]}` and `media_key_values` were given; pass one of them, or encode the former with "
            "`encode_media` and join it to the latter by torch.cat(dim=4)"
        )
    shape = tuple(key_values.shape)
    layers, heads, width = len(config.fusion_layers), config.fusion_num_key_value_heads, config.fusion_head_dim
    if len(shape) != 6 or (*shape[1:4], shape[5]) != (layers, 2, heads, width):
        raise ValueError(f"`media_key_values` has shape {shape}; expected (B, {layers}, 2, {heads}, S, {width})")
    if media_start is not None and tuple(media_start.shape) != (shape[0], shape[4]):
        raise ValueError(f"`media_start` has shape {tuple(media_start.shape)}; expected ({shape[0]}, {shape[4]})")


def check_videos(config: MMConfig, pixel_values_videos: torch.Tensor, video_mask: torch.Tensor | None) -> None:
    """Refuse videos that the model cannot take.

    Raises:
        ValueError: names what came and what was expected.
    """
    shape = tuple(pixel_values_videos.shape)
    if config.num_frames is None:
        raise ValueError(
            "video came as `pixel_values_videos`, but this model takes none; compose it with `num_frames`"
        )
    if len(shape) != 5 or not 1 <= shape[1] <= config.num_frames:
        raise ValueError(
            f"`pixel_values_videos` has shape {shape}; expected (V, F, C, H, W), F at most {config.num_frames}"
        )
    if video_mask is not None and tuple(video_mask.shape) != shape[:2]:
        raise ValueError(f"`video_mask` has shape {tuple(video_mask.shape)}; expected {shape[:2]}")


def check_unambiguous(config: MMConfig, media: dict[str, torch.Tensor | None]) -> None:
    """Refuse encoded media if their indices do not tell which slots belong to which item.

    Without a resampler, images and audio clips differ in their number of slots, and slots of a clip's padding must
    stay invisible.

    Raises:
        ValueError: there is no index, or an index of audio or video and no resampler, or the model takes a table.
    """
    if config.table_columns is not None:
        raise ValueError(
            "encoded media came to a model that takes a table; pass the `media_start` (B, S) from `media_starts`"
        )
    takes = {"image": True, "audio": config.audio_config is not None, "video": config.num_frames is not None}
    names = [name for name, is_taken in takes.items() if is_taken]
    indexed = [name for name in names if media.get(f"{name}_index") is not None]
    if len(names) > 1 and not indexed:
        expected = " and ".join(f"`{name}_index`" for name in names)
        raise ValueError(
            f"encoded media came to a model that takes {', '.join(names)}; pass the {expected} (B, N) that they were "
            "encoded with, or `media_start` (B, S)"
        )
    if indexed[-1:] not in ([], ["image"]) and config.num_latents is None:
        raise ValueError(
            f"encoded media with {indexed[-1]} need the `media_start` (B, S) of the text, which `media_starts` "
            "returns for the memories of `project_media`; the indices are enough only with `num_latents`"
        )


def check_text(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
    """The text (B, T), or its embeddings (B, T, D) if they are given.

    Raises:
        ValueError: there are neither token ids nor embeddings.
    """
    text = input_ids if inputs_embeds is None else inputs_embeds
    if text is None:
        raise ValueError(
            "neither `input_ids` nor `inputs_embeds` was given; use `get_image_features` for images without text"
        )
    return text


def check_markers(
    marker_mask: torch.Tensor, index: torch.Tensor, before: int | torch.Tensor, modality: str = "image"
) -> None:
    """Refuse a row with markers and media whose numbers differ; it waits for the tensors, so only `generate` calls it.

    Raises:
        ValueError: names the first such row.
    """
    nouns = MODALITIES[modality].items
    counts = zip(marker_mask.sum(dim=1).tolist(), (index >= 0).sum(dim=1).tolist(), strict=True)
    for row, (markers, items) in enumerate(counts):
        if markers and items and (markers > items or markers < items and not before):
            raise ValueError(
                f"row {row}: {items} {nouns} came with {markers} {modality} markers in its tokens; expected one "
                f"marker for each, or none at all (in a later turn, pass the {nouns} of the earlier turns again)"
            )


@dataclass
class Memory:
    """The projected states of one modality in a batch.

    states: (I, P, M). index: (B, N) into them, -1 beyond a row's last item. present: (I, P) bool, False for padding;
    None without padding. in_order: the index counts from 0 to I - 1, so that no lookup is needed. embedding: (I, W),
    the item's embedding for late fusion, if it is not the mean of its states.
    """

    states: torch.Tensor
    index: torch.Tensor
    present: torch.Tensor | None = None
    in_order: bool = False
    embedding: torch.Tensor | None = None

    def pooled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean (B, M or W) of each row over the embeddings of its items; and (B,) bool, False without items."""
        pooled = masked_mean(self.states, self.present) if self.embedding is None else self.embedding  # (I, M or W)
        real = self.index >= 0  # (B, N)
        items = pooled[self.index.clamp(min=0)] * real[..., None]  # (B, N, M)
        return items.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1), real.any(dim=1)

    def starts(self, markers: torch.Tensor | None, before: int | torch.Tensor) -> torch.Tensor:
        """`media_start` (B, N * P): the first text column that sees each slot."""
        start = media_start_from_markers(markers, self.index, before)[..., None].expand(-1, -1, self.states.shape[1])
        if self.present is not None:
            start = torch.where(self.present[self.index.clamp(min=0)], start, NEVER)
        return start.flatten(1)
