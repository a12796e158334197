# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMProcessor: texts, images, sound and video in, tensors out.

- An image is one marker token (`<image>`) in the text, never expanded: its states stay outside the sequence.
- Images are flat, `pixel_values` (I, C, H, W): one for each marker of the texts, in their order, or one for each text
  where none has a marker. Anything else comes with `image_index` (B, N), which says which of them a row has (-1:
  none), and so do the distinct images alone (`deduplicate=True`). Sound and video are given in the same way.
- The same image object given twice is prepared once.
- Every tokenizer gets a chat template that understands parts of all of these, so that chat, training and answering
  share one way to write a prompt.
"""

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
from .dealing_mm import distinct_items, drop_items, items_per_row
from .images_mm import BACKGROUND, check_background, fetch_image, open_image
from .media_mm import MODALITIES, Modality
from .video_mm import video_features, videos_per_row

logger = logging.get_logger(__name__)

AUTO_MAP = {"AutoProcessor": "processing_mm.MMProcessor"}


def images_per_row(images: Any, rows: int | None, markers: list[int]) -> list[list]:
    """One list of images for each row; see `items_per_row`."""

    def is_item(value: Any) -> bool:
        return not isinstance(value, (list, tuple)) and getattr(value, "ndim", 3) < 4  # an array (B, C, H, W) is not

    return items_per_row(images, rows, markers, is_item, "images")


class MMProcessor(ProcessorMixin):
    """An image processor, a tokenizer and, for models that hear, a feature extractor as one.

    Args:
        image_processor: any of transformers' PIL image processors.
        tokenizer: a tokenizer that knows `image_token`; `MMProcessor.from_towers` adds it.
        chat_template (`str`, *optional*): default: the tokenizer's own, taught to take image parts.
        image_token (`str`): the marker of one image.
        audio_token (`str`): the marker of one clip of sound.
        audio (*optional*): a feature extractor for sound, or the dict it is saved as.
        max_seconds (`float`): what is heard of a clip; every clip is padded to it where the audio tower has no window
            of its own.
        video_token (`str`): the marker of one video.
        max_frames (`int`, *optional*): the frames taken of a video, spread evenly over it; None takes no video.
        image_background (`str`): the colour on which transparent images are laid, as `PIL.ImageColor` names it.

    Raises:
        ValueError: the tokenizer does not know the marker, or the background is no colour.
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
        **kwargs,
    ):
        self.image_background = check_background(image_background)
        self.audio_token, self._feature_extractor, self.max_seconds = audio_token, audio, max_seconds
        self.video_token, self.max_frames = video_token, max_frames
        if isinstance(audio, dict):  # as it is saved; no component of its own, which loading would insist on
            self._feature_extractor = getattr(transformers, audio["feature_extractor_type"])(**audio)
        self.auto_map = dict(AUTO_MAP)  # as in the config: the library's loading drops it, and saving needs it
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
            chat_template = multimodal_chat_template(tokenizer.chat_template, image_token, audio_token, video_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_towers(cls, vision, text, audio=None, **kwargs):
        """The processor of a composed model; see `compose_mm.processor_from_towers`."""
        from .compose_mm import processor_from_towers

        return processor_from_towers(cls, vision=vision, text=text, audio=audio, **kwargs)

    @property
    def feature_extractor(self) -> Any:
        """What prepares sound, by the library's name for it, which a processor without one does not have.

        Raises:
            AttributeError: this processor takes no sound.
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
        deduplicate: bool | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Tensors for the model.

        Args:
            images: one image, one per text (None: no image), a list of images for each text, or a flat list with one
                image per marker; each is what `open_image` takes.
            text: one string or a list; may hold markers of images and sound. Without it, media alone are prepared.
            audio: one clip, one per text (None: no sound), a list of clips for each text, or a flat list with one clip
                per marker; a path, `(array, sampling rate)` or what else `audio_mm.read_audio` takes.
            videos: one video, one per text (None: no video), or a list of videos for each text; a path, a list of
                frames, an array (F, H, W, C) or what else `video_mm.read_video` takes.
            deduplicate: give each distinct image, clip and video once, with an index, so that towers run once for it.
            kwargs: the tokenizer's and image processor's, for instance `padding`, `return_tensors`; `sampling_rate`
                is that of arrays of sound that come without one, by default the feature extractor's.

        Returns:
            `input_ids`, `attention_mask` (B, T); with images `pixel_values` (I, C, H, W), with sound `input_features`
            (A, ...), and `input_features_mask` where the extractor makes one, with video `pixel_values_videos`
            (V, max_frames, C, H, W), and `video_mask` (V, max_frames) where a video has fewer frames. Where they are
            not one per marker, or without markers one per text, `image_index`, `audio_index`, `video_index` (B, N) say
            which of them a row has, -1 where it has fewer than N.

        Raises:
            ValueError: media and texts do not match in number, a text has another number of markers than media, or
                loses some by truncation, sound came to a processor without a feature extractor, or video to one
                without `max_frames`.
        """
        media = {} if audio is None else self.sounds_of(text, audio, sampling_rate_from(kwargs))
        media |= {} if videos is None else self.videos_of(text, videos)
        alone = images is None and text is None and not (audio is None and videos is None)
        batch = BatchFeature() if alone else super().__call__(images=images, text=text, **kwargs)
        batch.update(media)
        texts = [text] if isinstance(text, str) else text
        if texts is not None:
            self.check_cut_markers(batch, texts)
        if not deduplicate:
            self.drop_needless_indices(batch)
        if kwargs.get("return_tensors") == "np":
            batch.update({name: value.numpy() for name, value in batch.items() if torch.is_tensor(value)})
        return batch

    def sounds_of(self, text: TextInput | list[TextInput] | None, audio: Any, rate: int | None) -> dict[str, Any]:
        """The tensors of the sound in a call; `rate` is that of arrays that come without one."""
        texts = [text] if isinstance(text, str) else text
        markers = [row.count(self.audio_token) for row in texts or []]
        clips = clips_per_row(audio, None if texts is None else len(texts), markers)
        for row, one in enumerate(texts or []):
            self.check_marker_count(row, one, self.audio_token, len(clips[row]), "sounds")
        return self.flat_audio(clips, rate)

    def videos_of(self, text: TextInput | list[TextInput] | None, videos: Any) -> dict[str, Any]:
        """The tensors of the videos in a call."""
        texts = [text] if isinstance(text, str) else text
        markers = [row.count(self.video_token) for row in texts or []]
        videos = videos_per_row(videos, None if texts is None else len(texts), markers)
        for row, one in enumerate(texts or []):
            self.check_marker_count(row, one, self.video_token, len(videos[row]), "videos")
        return self.flat_videos(videos)

    def apply_chat_template(self, conversation: Any, *args, **kwargs) -> Any:
        """As the library's; sound in it is what a call takes as `audio`, and read as there, each file once."""
        if kwargs.get("tokenize") and self._feature_extractor is not None:
            told = sampling_rate_from({**kwargs, **(kwargs.get("processor_kwargs") or {})})
            rate = told or self.feature_extractor.sampling_rate
            conversation = load_conversation_audio(conversation, rate, self.max_seconds)
        output = super().apply_chat_template(conversation, *args, **kwargs)
        if isinstance(output, BatchFeature) and kwargs.get("return_tensors") == "pt":
            output.update({name: value for name, value in self.no_images().items() if name not in output})
        return output

    def no_images(self) -> dict[str, torch.Tensor]:
        """The tensors of zero images, by which a chat without any has the same names as others.

        Pipelines and collators that join chats prepared one by one refuse those of different names.
        """
        blank = self.image_processor([Image.new("RGB", (32, 32))], return_tensors="pt")
        return {name: value[:0] for name, value in blank.items()}

    def check_cut_markers(self, batch: dict[str, Any], texts: list[str]) -> None:
        """Refuse texts that lost markers of their media to truncation, as the library does for images.

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
                        "expected one for each of its media, so give a larger `max_length`"
                    )

    def drop_cut_media(self, batch: dict[str, Any]) -> int:
        """Take media whose markers truncation cut off out of the rows of `encode_rows`, with a warning.

        Args:
            batch: `input_ids` with a marker for each of its media, and the index of each modality, which changes.

        Returns:
            how many were taken out.
        """
        dropped = 0
        for modality in MODALITIES.values():
            if modality.index in batch and self.marker_id(modality) is not None:
                markers = self.count_markers(modality, batch["input_ids"])
                dropped += drop_items(batch[modality.index], markers, self.tokenizer.truncation_side)
        if dropped:
            logger.warning(f"truncation cut off the markers of {dropped} media, which are left out with them")
        return dropped

    def drop_needless_indices(self, batch: dict[str, Any]) -> None:
        """Give media one per marker, or one per row without markers, in place of distinct ones with their index."""
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
        """The token id of a modality's marker; None where the tokenizer does not know it."""
        marker_id = self.tokenizer.convert_tokens_to_ids(getattr(self, modality.marker))
        return None if marker_id == self.tokenizer.unk_token_id else marker_id

    def count_markers(self, modality: Modality, rows: Any) -> list[int]:
        """How many markers of a modality each row of token ids (B, T) has."""
        marker_id = self.marker_id(modality)
        if marker_id is None:
            return [0] * len(rows)
        if not isinstance(rows, list):  # (B, T)
            return (torch.as_tensor(rows) == marker_id).sum(dim=1).tolist()
        return [int((torch.as_tensor(ids) == marker_id).sum()) for ids in rows]

    def without_markers(self, text: str) -> str:
        """A text without the markers of images, sound and video."""
        for modality in MODALITIES.values():
            text = text.replace(getattr(self, modality.marker), "")
        return text

    def encode_rows(
        self, texts: list[str], counts: list[tuple[int, int, int]], max_length: int | None = None, **kwargs
    ) -> dict[str, torch.Tensor]:
        """Texts as a classifier reads them: markers in front of texts that have none, truncated, never empty.

        Args:
            counts: how many images, clips and videos each text has. max_length: tokens at most, if the tokenizer does
                not take fewer. kwargs: the tokenizer's.

        Returns:
            what the tokenizer gives, and `text_present` (B,) bool where a text has no words.
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
        """Called first by the library: texts as a list, images as one list per row."""
        texts = [text] if isinstance(text, str) else text if text is None else list(text)
        if images is not None:
            rows = None if texts is None else len(texts)
            images = images_per_row(images, rows, [one.count(self.image_token) for one in texts or []])
        return images, texts, videos, audio

    def validate_inputs(self, images=None, text=None, **kwargs) -> None:
        """Called second: refuse an empty call, and markers that differ from the images."""
        if images is None and text is None:
            raise ValueError("neither text nor images were given; expected one of them or both")
        if images is not None and text is not None:
            self.check_markers(text, images)

    def _process_images(self, images: list[list], **kwargs) -> tuple[dict[str, Any], list[str]]:
        """Called third: the images' tensors, and what stands in the text for each image, its marker as it is."""
        kwargs.pop("return_tensors", None)
        replacements = [self.replace_image_token({}, index) for index in range(sum(map(len, images)))]
        return self.flat_images(images, **kwargs), replacements

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs) -> MultiModalData:
        """What serving engines ask to plan their memory: each image, of any size, is one token."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(num_image_tokens=[1] * len(image_sizes), num_image_patches=[1] * len(image_sizes))

    def check_markers(self, texts: list[str], images: list[list]) -> None:
        """Refuse a row whose markers and images differ in number; a text without markers may have any images.

        Raises:
            ValueError: names the first such row.
        """
        for row, (text, own) in enumerate(zip(texts, images, strict=True)):
            self.check_marker_count(row, text, self.image_token, len(own), "images")

    def check_marker_count(self, row: int, text: str, marker: str, items: int, kind: str) -> None:
        """Refuse a text whose markers of one kind are not as many as its items; none at all may be.

        Raises:
            ValueError: names the row.
        """
        markers = text.count(marker)
        if markers and markers != items:
            raise ValueError(
                f"row {row}: the text has {markers} '{marker}' markers but {items} {kind} came with it; expected one "
                f"marker for each of the {kind}, or none at all"
            )

    def with_markers(self, text: str, images: int, sounds: int = 0, videos: int = 0) -> str:
        """The text with one marker per image, clip and video in front, unless it says itself where they go."""
        text = text if self.video_token in text else self.video_token * videos + text
        text = text if self.audio_token in text else self.audio_token * sounds + text
        return text if self.image_token in text else self.image_token * images + text

    def encode_prompts(
        self, texts: list[str], images: list[int], sounds: list[int] | None = None, videos: list[int] | None = None
    ) -> list[list[int]]:
        """Token ids of single-turn prompts, exactly those that `apply_chat_template(..., tokenize=True)` gives.

        Args:
            texts: what the user says; may hold image markers, otherwise the images come first.
            images, sounds, videos: how many of them each text has.
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
        ready = kwargs.get("do_rescale") is False and all(hasattr(image, "__array__") for image in distinct)
        if not ready:  # arrays that are not to be rescaled are what the caller wants the tower to see
            layout = kwargs.pop("input_data_format", None)
            distinct = [self.open_image(image, layout) for image in distinct]
        return {**self.image_processor(distinct, return_tensors="pt", **kwargs), "image_index": index}

    def open_image(self, image: Any, layout: str | None = None) -> Image.Image:
        """The RGB image that every image becomes first, on this processor's background; see `images_mm.open_image`.

        Pipelines of the library that open files by themselves (`zero-shot-image-classification`, and
        `image-text-to-text` with `images` beside a string) drop transparency and clip 16-bit greys; give them what
        this returns.

        Args:
            image: a path, an address that is fetched, encoded bytes or base64, an image of PIL, an array or a tensor.
            layout: "channels_first" or "channels_last" of an array; default: what its shape allows.

        Raises:
            ValueError: it cannot be read.
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
            raise ValueError("sound came to a processor without a feature extractor; compose it with an audio tower")
        if rate is not None:
            distinct = [(clip, rate) if hasattr(clip, "__array__") else clip for clip in distinct]
        heard = [read_audio(clip, self.feature_extractor.sampling_rate, self.max_seconds) for clip in distinct]
        features, mask = audio_features(self.feature_extractor, heard, self.max_seconds)
        sounds = {"input_features": features, "audio_index": index}
        return sounds if mask is None else {**sounds, "input_features_mask": mask}

    def flat_videos(self, videos: list[list]) -> dict[str, torch.Tensor]:
        """`pixel_values_videos` of the distinct videos, their mask and `video_index` (B, N), for videos of each row.

        Raises:
            ValueError: the processor takes no video, or one cannot be read.
        """
        distinct, index = distinct_items(videos)
        if not distinct:
            return {}
        if self.max_frames is None:
            raise ValueError("video came to a processor without `max_frames`; give it the `num_frames` of its model")
        pixels, mask = video_features(self.image_processor, distinct, self.max_frames, self.image_background)
        seen = {"pixel_values_videos": pixels, "video_index": index}
        return seen if mask is None else {**seen, "video_mask": mask}

    def to_dict(self) -> dict[str, Any]:
        """As the library's; the feature extractor is a dict in it."""
        audio = None if self._feature_extractor is None else self._feature_extractor.to_dict()
        return {**super().to_dict(), "audio": audio}

    @property
    def model_input_names(self) -> list[str]:
        """What a call gives for texts with a marker for each of their media."""
        sound = [] if self._feature_extractor is None else ["input_features", "input_features_mask"]
        video = [] if self.max_frames is None else ["pixel_values_videos", "video_mask"]
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, *sound, *video]


__all__ = ["MMProcessor"]
