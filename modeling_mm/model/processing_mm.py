# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMProcessor: texts, images, audio and video in, tensors out.

- An image is one marker token (`<image>`) in the text, never expanded: its states stay outside the sequence.
- Images are flat, `pixel_values` (I, C, H, W): one for each marker of the texts, in their order, or one for each text
  if none has a marker. Anything else comes with `image_index` (B, N), the index of each row's images (-1: none), and
  so does a batch of distinct images (`deduplicate=True`). Audio and video have the same layout.
- An image object that is passed twice is prepared once.
- The chat template takes image, audio and video parts, so that chat, training and answering share one prompt format.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.tokenization_utils_base import TextInput
from transformers.utils import logging

from .audio_mm import (
    MAX_SECONDS,
    audio_features,
    clips_per_row,
    load_conversation_audio,
    read_audio,
    sampling_rate_from,
)
from .chat_mm import multimodal_chat_template
from .dealing_mm import distinct_items, drop_items
from .images_mm import BACKGROUND, check_background, fetch_image, images_per_row, open_image
from .media_mm import MODALITIES, Modality
from .table_mm import cells_only, table_tensor
from .video_mm import video_features, videos_per_row

logger = logging.get_logger(__name__)

AUTO_MAP = {"AutoProcessor": "processing_mm.MMProcessor"}


class MMProcessor(ProcessorMixin):
    """An image processor, a tokenizer and, for models with an audio tower, a feature extractor.

    Args:
        image_processor: any of transformers' PIL image processors.
        tokenizer: a tokenizer that knows `image_token`; `MMProcessor.from_towers` adds it.
        chat_template (`str`, *optional*): default: the tokenizer's, extended to image, audio and video parts.
        image_token (`str`): the marker of one image.
        audio_token (`str`): the marker of one audio clip.
        audio (*optional*): an audio feature extractor, or the dict it is saved as.
        max_seconds (`float`): maximum length of a clip; every clip is padded to it if the audio tower has no fixed
            window.
        video_token (`str`): the marker of one video.
        max_frames (`int`, *optional*): number of evenly spaced frames per video; None for a processor without video.
        image_background (`str`): the colour behind transparent pixels, by its name in `PIL.ImageColor`.
        table_columns (`list[dict]`, *optional*): the columns of a table that comes with each row, see `table_mm`.

    Raises:
        ValueError: the tokenizer does not know a marker, or PIL does not know the background colour.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        image_token="<image>",
        audio_token="<audio>",
        audio=None,
        max_seconds=MAX_SECONDS,
        video_token="<video>",
        max_frames=None,
        image_background=BACKGROUND,
        table_columns=None,
        **kwargs,
    ):
        self.table_columns = cells_only(table_columns)
        self.image_background = check_background(image_background)
        self.audio_token, self._feature_extractor, self.max_seconds = audio_token, audio, max_seconds
        self.video_token, self.max_frames = video_token, max_frames
        if isinstance(audio, dict):  # saved as a dict, because loading would require a separate component
            self._feature_extractor = getattr(transformers, audio["feature_extractor_type"])(**audio)
        self.auto_map = dict(AUTO_MAP)  # as in the config: transformers drops it on loading, and saving needs it
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        for token in (image_token, video_token)[: 1 if max_frames is None else 2]:
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise ValueError(
                    f"the tokenizer does not know the marker '{token}'; use MMProcessor.from_towers, which adds it"
                )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if chat_template is None:
            chat_template = multimodal_chat_template(tokenizer, image_token, audio_token, video_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_towers(cls, vision, text, audio=None, **kwargs):
        """The processor of a composed model; see `compose_mm.processor_from_towers`."""
        from .compose_mm import processor_from_towers

        return processor_from_towers(cls, vision=vision, text=text, audio=audio, **kwargs)

    @property
    def feature_extractor(self) -> Any:
        """The audio feature extractor, under the name that transformers looks for.

        Raises:
            AttributeError: this processor takes no audio.
        """
        if self._feature_extractor is None:
            raise AttributeError("this processor has no feature extractor; compose it with an audio tower")
        return self._feature_extractor

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        *,
        audio: Any = None,
        videos: Any = None,
        table: Any = None,
        deduplicate: bool | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Tensors for the model.

        Args:
            images: one image, one per text (None: no image), a list of images for each text, or a flat list with one
                image per marker; each is a source for `open_image`.
            text: one string or a list; may hold markers. Without text, only media are prepared.
            audio: one clip, one per text (None: no clip), a list of clips for each text, or a flat list with one clip
                per marker; each is a source for `audio_mm.read_audio`: a path, `(array, sampling rate)`, ...
            videos: one video, one per text (None: no video), or a list of videos for each text; each is a source for
                `video_mm.read_video`: a path, a list of frames, an array (F, H, W, C), ...
            table: one dict of cells by column, or one (or None) per text; missing cells are left out, None, "" or NaN.
            deduplicate: return each distinct image, clip and video once, with an index; the towers then run once.
            kwargs: the tokenizer's and image processor's, for instance `padding`, `return_tensors`; `sampling_rate`
                is that of audio arrays that come without one, by default the feature extractor's.

        Returns:
            `input_ids`, `attention_mask` (B, T); with images `pixel_values` (I, C, H, W); with audio `input_features`
            (A, ...), and `input_features_mask` if the extractor returns one; with video `pixel_values_videos`
            (V, max_frames, C, H, W), and `video_mask` (V, max_frames) if a video has fewer frames; with a table
            `table_values` (B, columns). Media that are not one per marker, nor one per text without markers, come
            with `image_index`, `audio_index`, `video_index` (B, N), each row's items, -1 beyond the last one.

        Raises:
            ValueError: media do not match the texts or their markers in number, truncation cut off a marker, the
                processor lacks a feature extractor for audio or `max_frames` for video, or it has no such table.
        """
        texts = [text] if isinstance(text, str) else text
        media: dict[str, Any] = {}
        if audio is not None:
            clips = self.items_of_texts(MODALITIES["audio"], texts, audio, clips_per_row)
            media |= self.flat_audio(clips, sampling_rate_from(kwargs))
        if videos is not None:
            media |= self.flat_videos(self.items_of_texts(MODALITIES["video"], texts, videos, videos_per_row))
        if table is not None:
            media["table_values"] = table_tensor(table, self.table_columns, texts)
        media_only = images is None and text is None and not (audio is None and videos is None and table is None)
        batch = BatchFeature() if media_only else super().__call__(images=images, text=text, **kwargs)
        batch.update(media)
        if texts is not None:
            self.check_cut_markers(batch, texts)
        if not deduplicate:
            self.drop_needless_indices(batch)
        if kwargs.get("return_tensors") == "np":
            batch.update({name: value.numpy() for name, value in batch.items() if torch.is_tensor(value)})
        return batch

    def items_of_texts(self, modality: Modality, texts: list[str] | None, items: Any, per_row: Callable) -> list[list]:
        """One list of items for each text, by `clips_per_row` or `videos_per_row`.

        Raises:
            ValueError: media and texts, or the markers of a text and its items, differ in number.
        """
        marker = getattr(self, modality.marker)
        rows = per_row(items, None if texts is None else len(texts), [text.count(marker) for text in texts or []])
        for row, text in enumerate(texts or []):
            self.check_marker_count(row, text, marker, len(rows[row]), modality.items)
        return rows

    def apply_chat_template(self, conversation: Any, *args, **kwargs) -> Any:
        """Extends the base method: audio parts are sources as in the `audio` of a call, and each file is read once."""
        if kwargs.get("tokenize") and self._feature_extractor is not None:
            arguments = {**kwargs, **(kwargs.get("processor_kwargs") or {})}
            rate = sampling_rate_from(arguments) or self.feature_extractor.sampling_rate
            conversation = load_conversation_audio(conversation, rate, self.max_seconds)
        output = super().apply_chat_template(conversation, *args, **kwargs)
        if isinstance(output, BatchFeature) and kwargs.get("return_tensors") == "pt":
            output.update({name: value for name, value in self.empty_images().items() if name not in output})
        return output

    def empty_images(self) -> dict[str, torch.Tensor]:
        """The tensors of zero images, so that a chat without images has the same keys as others.

        Pipelines and collators that batch separately prepared chats refuse different keys.
        """
        blank = self.image_processor([Image.new("RGB", (32, 32))], return_tensors="pt")
        return {name: value[:0] for name, value in blank.items()}

    def check_cut_markers(self, batch: dict[str, Any], texts: list[str]) -> None:
        """Refuse texts that lost markers of their media to truncation, as transformers does for images.

        Raises:
            ValueError: names the first such row.
        """
        for modality in MODALITIES.values():
            if modality.index not in batch or self.marker_id(modality) is None:
                continue
            marker = getattr(self, modality.marker)
            for row, left in enumerate(self.count_markers(modality, batch["input_ids"])):
                if left < texts[row].count(marker):
                    raise ValueError(
                        f"row {row}: truncation left {left} of its {texts[row].count(marker)} '{marker}' markers; "
                        "expected one for each of its media, so set a larger `max_length`"
                    )

    def drop_cut_media(self, batch: dict[str, Any]) -> int:
        """Drop media from the rows of `encode_rows` whose markers were truncated, with a warning.

        Args:
            batch: `input_ids`, and the index of each modality, which is changed in place.

        Returns:
            the number of dropped media.
        """
        dropped = 0
        for modality in MODALITIES.values():
            if modality.index in batch and self.marker_id(modality) is not None:
                markers = self.count_markers(modality, batch["input_ids"])
                dropped += drop_items(batch[modality.index], markers, self.tokenizer.truncation_side)
        if dropped:
            logger.warning(f"truncation cut off the markers of {dropped} media, so that these media are left out too")
        return dropped

    def drop_needless_indices(self, batch: dict[str, Any]) -> None:
        """Replace distinct media and their index by flat media, if these are one per marker, or one per text."""
        for modality in MODALITIES.values():
            if modality.index not in batch:
                continue
            index = torch.as_tensor(batch[modality.index])
            counts = (index >= 0).sum(dim=1).tolist()
            markers = self.count_markers(modality, batch.get("input_ids", [[]] * len(counts)))
            if markers != counts and (any(markers) or set(counts) != {1}):
                continue
            del batch[modality.index]
            order = index[index >= 0].tolist()
            if order != list(range(len(batch[modality.tensor]))):
                for name in {modality.tensor, *modality.details} & set(batch):
                    batch[name] = batch[name][order]

    def marker_id(self, modality: Modality) -> int | None:
        """The token id of a modality's marker; None if the tokenizer does not know it."""
        marker_id = self.tokenizer.convert_tokens_to_ids(getattr(self, modality.marker))
        return None if marker_id == self.tokenizer.unk_token_id else marker_id

    def count_markers(self, modality: Modality, rows: Any) -> list[int]:
        """Number of markers of a modality in each row of token ids (B, T)."""
        marker_id = self.marker_id(modality)
        if marker_id is None:
            return [0] * len(rows)
        if not isinstance(rows, list):  # (B, T)
            return (torch.as_tensor(rows) == marker_id).sum(dim=1).tolist()
        return [int((torch.as_tensor(ids) == marker_id).sum()) for ids in rows]

    def without_markers(self, text: str) -> str:
        """The text without the markers of any modality."""
        for modality in MODALITIES.values():
            text = text.replace(getattr(self, modality.marker), "")
        return text

    def encode_rows(
        self, texts: list[str], counts: list[tuple[int, int, int]], max_length: int | None = None, **kwargs
    ) -> dict[str, torch.Tensor]:
        """Tokenize texts for a classifier: with markers in front of texts that have none, truncated, never empty.

        Args:
            counts: number of images, clips and videos of each text. max_length: maximum number of tokens, unless the
                tokenizer's maximum is lower. kwargs: the tokenizer's.

        Returns:
            the tokenizer's output; and `text_present` (B,) bool, if any text has no words.
        """
        tokenizer = self.tokenizer
        first = tokenizer.cls_token or tokenizer.bos_token or tokenizer.eos_token
        marked = [self.with_markers(text, *count) or first for text, count in zip(texts, counts, strict=True)]
        longest = min(max_length or 2**20, tokenizer.model_max_length)
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt", **kwargs}
        batch = dict(tokenizer(marked, **options))
        present = [bool(self.without_markers(text).strip()) for text in texts]
        return batch if all(present) else {**batch, "text_present": torch.tensor(present)}

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Called first by transformers: texts as a list, images as one list per row."""
        texts = [text] if isinstance(text, str) else text if text is None else list(text)
        if images is not None:
            rows = None if texts is None else len(texts)
            images = images_per_row(images, rows, [prompt.count(self.image_token) for prompt in texts or []])
        return images, texts, videos, audio

    def validate_inputs(self, images=None, text=None, **kwargs) -> None:
        """Called second: refuse an empty call, and markers that differ from the images."""
        if images is None and text is None:
            raise ValueError("neither text nor images were given; expected one of them or both")
        if images is not None and text is not None:
            self.check_markers(text, images)

    def _process_images(self, images: list[list], **kwargs) -> tuple[dict[str, Any], list[str]]:
        """Called third: the images' tensors, and the text that replaces each marker, the marker itself."""
        kwargs.pop("return_tensors", None)
        replacements = [self.replace_image_token({}, index) for index in range(sum(map(len, images)))]
        return self.flat_images(images, **kwargs), replacements

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs) -> MultiModalData:
        """Token counts by which serving engines plan their memory: each image, of any size, is one token."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(num_image_tokens=[1] * len(image_sizes), num_image_patches=[1] * len(image_sizes))

    def check_markers(self, texts: list[str], images: list[list]) -> None:
        """Refuse a row whose markers and images differ in number; a text without markers may have any images.

        Raises:
            ValueError: names the first such row.
        """
        for row, (text, row_images) in enumerate(zip(texts, images, strict=True)):
            self.check_marker_count(row, text, self.image_token, len(row_images), "images")

    def check_marker_count(self, row: int, text: str, marker: str, items: int, plural: str) -> None:
        """Refuse a text with markers of one modality, unless they are as many as its items.

        Raises:
            ValueError: names the row.
        """
        markers = text.count(marker)
        if markers and markers != items:
            raise ValueError(
                f"row {row}: the text has {markers} '{marker}' markers but {items} {plural} came with it; expected "
                f"one marker for each of the {plural}, or none at all"
            )

    def with_markers(self, text: str, images: int, sounds: int = 0, videos: int = 0) -> str:
        """The text with one marker per image, clip and video in front, unless it has markers of that modality."""
        text = text if self.video_token in text else self.video_token * videos + text
        text = text if self.audio_token in text else self.audio_token * sounds + text
        return text if self.image_token in text else self.image_token * images + text

    def encode_prompts(
        self, texts: list[str], images: list[int], sounds: list[int] | None = None, videos: list[int] | None = None
    ) -> list[list[int]]:
        """Token ids of single-turn prompts, the same as by `apply_chat_template(..., tokenize=True)`.

        Args:
            texts: the user's turns; may hold markers, otherwise the media come first.
            images, sounds, videos: number of images, audio clips and videos of each text.
        """
        sounds, videos = sounds or [0] * len(texts), videos or [0] * len(texts)
        turns = [
            [{"role": "user", "content": [{"type": "text", "text": self.with_markers(text, *counts)}]}]
            for text, *counts in zip(texts, images, sounds, videos, strict=True)
        ]
        prompts = self.apply_chat_template(turns, add_generation_prompt=True)
        start = self.tokenizer.bos_token
        add_special_tokens = start is None or not prompts[0].startswith(start)
        return self.tokenizer(prompts, add_special_tokens=add_special_tokens)["input_ids"]

    def flat_images(self, images: list[list], **kwargs) -> dict[str, Any]:
        """`pixel_values` of the distinct images and `image_index` (B, N), for a list of images per row."""
        distinct, index = distinct_items(images)
        if not distinct:
            return {}
        rescaled = kwargs.get("do_rescale") is False and all(hasattr(image, "__array__") for image in distinct)
        if not rescaled:  # arrays with `do_rescale=False` hold the values for the tower already
            layout = kwargs.pop("input_data_format", None)
            distinct = [self.open_image(image, layout) for image in distinct]
        return {**self.image_processor(distinct, return_tensors="pt", **kwargs), "image_index": index}

    def open_image(self, image: Any, layout: str | None = None) -> Image.Image:
        """The RGB image of a source, on this processor's background; see `images_mm.open_image`.

        Pipelines of transformers that open files themselves (`zero-shot-image-classification`, `image-text-to-text`
        with `images` beside a string) drop transparency and clip 16-bit greys; pass them the result of this method.

        Args:
            image: a path, a URL, encoded bytes or base64, a PIL image, an array or a tensor.
            layout: "channels_first" or "channels_last" for an array; default: the one that its shape allows.

        Raises:
            ValueError: the image cannot be read.
        """
        return open_image(fetch_image(image), self.image_background, layout)

    def flat_audio(self, clips: list[list], rate: int | None = None) -> dict[str, torch.Tensor]:
        """`input_features` of the distinct clips, their mask and `audio_index` (B, N), for a list of clips per row.

        `rate` is that of arrays that come without one, by default the feature extractor's.

        Raises:
            ValueError: the processor has no feature extractor, or a clip cannot be read.
        """
        distinct, index = distinct_items(clips)
        if not distinct:
            return {}
        if self._feature_extractor is None:
            raise ValueError("audio came to a processor without a feature extractor; compose it with an audio tower")
        if rate is not None:
            distinct = [(clip, rate) if hasattr(clip, "__array__") else clip for clip in distinct]
        arrays = [read_audio(clip, self.feature_extractor.sampling_rate, self.max_seconds) for clip in distinct]
        features, mask = audio_features(self.feature_extractor, arrays, self.max_seconds)
        inputs = {"input_features": features, "audio_index": index}
        return inputs if mask is None else {**inputs, "input_features_mask": mask}

    def flat_videos(self, videos: list[list]) -> dict[str, torch.Tensor]:
        """`pixel_values_videos` of the distinct videos, their mask and `video_index` (B, N), for a list per row.

        Raises:
            ValueError: the processor has no `max_frames`, or a video cannot be read.
        """
        distinct, index = distinct_items(videos)
        if not distinct:
            return {}
        if self.max_frames is None:
            raise ValueError("video came to a processor without `max_frames`; set it to the `num_frames` of the model")
        pixels, mask = video_features(self.image_processor, distinct, self.max_frames, self.image_background)
        inputs = {"pixel_values_videos": pixels, "video_index": index}
        return inputs if mask is None else {**inputs, "video_mask": mask}

    def to_dict(self) -> dict[str, Any]:
        """Extends the base method: includes the feature extractor as a dict."""
        audio = None if self._feature_extractor is None else self._feature_extractor.to_dict()
        return {**super().to_dict(), "audio": audio}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors of a call for texts with a marker for each of their media."""
        audio = [] if self._feature_extractor is None else ["input_features", "input_features_mask"]
        video = [] if self.max_frames is None else ["pixel_values_videos", "video_mask"]
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, *audio, *video]
        return names if self.table_columns is None else [*names, "table_values"]


__all__ = ["MMProcessor"]
