# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Where media stand in the rows of a batch, and which of their slots a text token sees.

Visibility is one integer per slot, `media_start`: a token at column t sees the slots whose `media_start` is at most t.

Shapes: B rows, N images per row, S memory slots, T text tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .configuration_mm import MMConfig


@dataclass(frozen=True)
class Modality:
    """What is to know of one modality beside the text.

    tensor: the model's argument with its items, flat. states: the argument with what its tower gave for them, None
    where that is not taken. details: other arguments, one entry per item. tower: its attribute of the base model.
    argument: the processor's, and the field of a table's row. items: what several of them are called.
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
        """The argument (B, N) that says which items a row has."""
        return f"{self.name}_index"

    @property
    def marker(self) -> str:
        """The processor's attribute with the marker of one item."""
        return f"{self.name}_token"

    @property
    def marker_id(self) -> str:
        """The config's field with that marker's token id."""
        return f"{self.name}_token_id"

    @property
    def raw(self) -> tuple[str, ...]:
        """The arguments by which items come that are not projected yet; at most one is given."""
        return (self.tensor,) if self.states is None else (self.tensor, self.states)

    @property
    def arguments(self) -> tuple[str, ...]:
        """All its arguments of `MMModel.forward`."""
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
            "audio", "input_features", "audio_states", ("input_features_mask",), "audio_tower", "audio", "sounds"
        ),
        Modality("video", "pixel_values_videos", None, ("video_mask",), "vision_tower", "videos", "videos"),
    )
}
RAW = tuple(name for modality in MODALITIES.values() for name in modality.raw)
# The names by which models take media, raw and encoded.
MEDIA = (
    *(name for modality in MODALITIES.values() for name in modality.arguments),
    "media_key_values",
    "media_start",
)
NEVER = 2**30  # the `media_start` of a slot that no token may see


def find_markers(
    image_token_id: int | None,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    embeddings: Callable[[], torch.nn.Module],
) -> torch.Tensor | None:
    """(B, T) bool, where the image markers are: by their id, or by their embedding where no ids came."""
    if image_token_id is None or (input_ids is None and inputs_embeds is None):
        return None
    if input_ids is not None:
        return input_ids == image_token_id
    marker = embeddings()(torch.full((1,), image_token_id, device=inputs_embeds.device))
    return (inputs_embeds == marker.to(inputs_embeds.dtype)).all(dim=-1)


def media_start_from_markers(
    marker_mask: torch.Tensor | None, image_index: torch.Tensor, before: int | torch.Tensor = 0
) -> torch.Tensor:
    """Column from which each image of a row may be seen.

    Args:
        marker_mask: (B, T) bool, where the text holds an image marker; None for texts that know no markers.
        image_index: (B, N), -1 where the row has no such image.
        before: how many columns the cache holds before these; a row's last images then belong to its markers here,
            and the images before them to markers that the cache holds.

    Returns:
        (B, N) integers: the column of the image's own marker; 0 where the row has no marker at all and for an image of
        an earlier turn; `NEVER` for an absent image and for one beyond the row's last marker.
    """
    if marker_mask is None:
        return torch.where(image_index < 0, NEVER, 0)
    place = torch.arange(image_index.shape[1], device=image_index.device)
    markers = marker_mask.cumsum(dim=1)  # (B, T), how many stand at or before each column
    count = markers[:, -1:]
    images = torch.where(image_index < 0, 0, place + 1).amax(dim=1, keepdim=True)
    earlier = (images - count).clamp(min=0) * (before > 0)  # (B, 1), images of turns that the cache holds
    own = place - earlier  # (B, N), the image's marker among those here
    column = (markers[:, None] <= own[..., None]).sum(dim=2) + before
    start = torch.where(own < count, column, NEVER)
    start = torch.where((own >= 0) & (count > 0), start, 0)
    return torch.where(image_index < 0, NEVER, start)


def encoded_starts(
    key_values: torch.Tensor,
    indices: dict[str, torch.Tensor],
    markers: dict[str, torch.Tensor | None],
    before: int | torch.Tensor,
    text_rows: int | None,
    present: torch.Tensor | None,
) -> torch.Tensor:
    """`media_start` (B, S) of media that came encoded, images, sound, video in this order and all of as many slots.

    `indices` (B, N) and `markers` (B, T) by modality; without an index these are images, as many per row as the most
    markers in a row. `present` (I, P) is 1 where a patch is real.

    Raises:
        ValueError: text and media differ in rows, or the slots do not divide among the media.
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
            MODALITIES[name].items for name, own in markers.items() if name in indices or own is not None
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


def visible_slots(media_start: torch.Tensor, tokens: int, before: int | torch.Tensor) -> torch.Tensor:
    """(B, 1, T, S) bool, which slots each of `tokens` columns after `before` cached ones sees; from (B, S)."""
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


def one_per_row(media: torch.Tensor) -> torch.Tensor:
    """(B, 1), the index of media of which each row has one, in their order."""
    return torch.arange(media.shape[0], device=media.device)[:, None]


def check_states(name: str, states: torch.Tensor, width: int, raw: torch.Tensor | None) -> None:
    """Refuse states that the tower of this model cannot have given, or that came beside the `raw` media.

    Raises:
        ValueError: says what came and what was expected.
    """
    if raw is not None:
        raise ValueError(f"`{name}` came beside the media that they are the tower's states of; give one of the two")
    if states.dim() != 3 or states.shape[-1] != width:
        raise ValueError(f"`{name}` has shape {tuple(states.shape)}; expected (I, P, {width}), the tower's width")


def check_media(
    config: MMConfig,
    raw: list[str],
    media: dict[str, torch.Tensor | None],
    key_values: torch.Tensor | None,
    media_start: torch.Tensor | None,
) -> None:
    """Refuse media of another shape or another model, and `raw` ones beside media that are encoded already.

    Raises:
        ValueError: says what came and what was expected.
    """
    for name in ("image_index", "audio_index", "video_index"):
        index = media.get(name)
        if index is not None and index.dim() != 2:
            raise ValueError(f"`{name}` has shape {tuple(index.shape)}; expected (B, N)")
    if key_values is None:
        return
    if raw:
        raise ValueError(
            f"both `{raw[0]}` and `media_key_values` were given; give one, or join what `encode_media` makes of "
            "the former to the encoded media by torch.cat(dim=4)"
        )
    shape = tuple(key_values.shape)
    own = (len(config.fusion_layers), 2, config.fusion_num_key_value_heads, config.fusion_head_dim)
    if len(shape) != 6 or (*shape[1:4], shape[5]) != own:
        layers, _, heads, width = own
        raise ValueError(f"`media_key_values` has shape {shape}; expected (B, {layers}, 2, {heads}, S, {width})")
    if media_start is not None and tuple(media_start.shape) != (shape[0], shape[4]):
        raise ValueError(f"`media_start` has shape {tuple(media_start.shape)}; expected ({shape[0]}, {shape[4]})")


def check_videos(config: MMConfig, pixel_values_videos: torch.Tensor, video_mask: torch.Tensor | None) -> None:
    """Refuse videos that the model cannot take.

    Raises:
        ValueError: says what came and what was expected.
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


def check_told_apart(config: MMConfig, media: dict[str, torch.Tensor | None]) -> None:
    """Refuse encoded media whose slots could be of sound or video, unless all media have as many slots.

    Without a resampler an image has other slots than a clip, and those in a clip's padding must stay unseen.

    Raises:
        ValueError: the index of sound or video came and there is no resampler, or no index at all.
    """
    takes = {"image": True, "audio": config.audio_config is not None, "video": config.num_frames is not None}
    names = [name for name, taken in takes.items() if taken]
    came = [name for name in names if media.get(f"{name}_index") is not None]
    if len(names) > 1 and not came:
        expected = " and ".join(f"`{name}_index`" for name in names)
        raise ValueError(
            f"encoded media came to a model that takes {', '.join(names)}; pass the {expected} (B, N) that they were "
            "encoded with, or `media_start` (B, S)"
        )
    if came[-1:] not in ([], ["image"]) and config.num_latents is None:
        what = {"audio": "sound", "video": "video"}[came[-1]]
        raise ValueError(
            f"encoded media with {what} need the `media_start` (B, S) that goes with the text, which `media_starts` "
            "gives for the memories of `project_media`; only with `num_latents` do the indices suffice"
        )


def check_text(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> None:
    """Refuse a call without text.

    Raises:
        ValueError: neither ids nor embeddings came.
    """
    if input_ids is None and inputs_embeds is None:
        raise ValueError(
            "neither `input_ids` nor `inputs_embeds` was given; for images alone there is `get_image_features`"
        )


def check_markers(
    marker_mask: torch.Tensor, index: torch.Tensor, before: int | torch.Tensor, modality: str = "image"
) -> None:
    """Refuse a row with markers and media whose numbers differ; reads the tensors, so only `generate` can afford it.

    Raises:
        ValueError: names the first such row.
    """
    items = MODALITIES[modality].items
    for row, (markers, own) in enumerate(
        zip(marker_mask.sum(dim=1).tolist(), (index >= 0).sum(dim=1).tolist(), strict=True)
    ):
        if markers and own and (markers > own or markers < own and not before):
            raise ValueError(
                f"row {row}: {own} {items} came with {markers} {modality} markers in its tokens; expected one marker "
                f"for each, or none at all (in a later turn, give the {items} of the earlier turns again)"
            )


@dataclass
class Memory:
    """One modality of a batch.

    states: (I, P, M). index: (B, N) into them, -1 where a row has fewer than N. present: (I, P) bool, which states are
    real; None where all are. in_order: the index counts from 0 to I - 1, so that there is nothing to look up.
    """

    states: torch.Tensor
    index: torch.Tensor
    present: torch.Tensor | None = None
    in_order: bool = False

    def pooled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean (B, M) over all items of a row of each one's mean state, and (B,) bool, whether it has any."""
        pooled = self.states.mean(dim=1)  # (I, M)
        if self.present is not None:
            weight = self.present[..., None].to(self.states.dtype)
            pooled = (self.states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        real = self.index >= 0  # (B, N)
        own = pooled[self.index.clamp(min=0)] * real[..., None]  # (B, N, M)
        return own.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1), real.any(dim=1)

    def starts(self, markers: torch.Tensor | None, before: int | torch.Tensor) -> torch.Tensor:
        """(B, N * P), the text column from which each slot may be seen."""
        start = media_start_from_markers(markers, self.index, before)[..., None].expand(-1, -1, self.states.shape[1])
        if self.present is not None:
            start = torch.where(self.present[self.index.clamp(min=0)], start, NEVER)
        return start.flatten(1)
