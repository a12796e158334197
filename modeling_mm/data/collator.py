# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMCollator: rows to a batch for training and evaluation.

- A batch differs from its rows only with an `augmentation`, which evaluation does not have.
- Each distinct image of the batch is opened and prepared once; `image_index` maps rows to images.
- For generation, labels are masked by position: the prompt and padding are -100, the answer and its end token are
  trained. Prompt and answer are tokenised apart, so that the prompt in training is the one that `generate` will get.
  Of conversations, those of the assistant are (see `chat_tokens.py`); too long ones are cut behind an answer.
- Packs, which are lists of rows, become one row of the batch each: see `packing.py` and `model/packing_mm.py`.
"""

import hashlib
import itertools
import logging
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..model.audio_mm import read_audio
from ..model.losses_mm import text_keys
from ..model.media_mm import MODALITIES, TABLE
from ..model.processing_mm import MMProcessor
from ..model.table_mm import table_tensor
from ..tasks import TASKS
from .augmentation import Augmentation, shrunk
from .chat_tokens import IGNORED, ChatEncoder, ChatTokens
from .dataset import CHUNK, MMDataset
from .feature_cache import CachedMedia
from .media import BadRow, MediaCache, MediaRef, open_image
from .negatives import with_negatives
from .rows import Row, media_markers, without

logger = logging.getLogger(__name__)


@dataclass
class MMCollator:
    """Turns a list of rows into model inputs.

    Args:
        processor: the model's processor.
        task: `generation` (targets are text) or a task with a head, as `classification` (targets are class ids).
        max_length: maximum number of tokens per row.
        with_prompts: also return the prompts alone, padded on the left, for `generate` in evaluation.
        negatives_seed: seed of a matching, by which each image is also paired with a wrong text of the batch.
        learned: what is learned of conversations, see `ChatEncoder`.
        blind: leave all images, audio clips, videos and tables out, to measure how much the text alone tells.
        augmentation: changes of the rows, for training only.
        cached: features of frozen towers by modality, in place of whose media they are used.
        image_cache, audio_cache: keep decoded images and samples of audio in memory; default: keep none.

    Raises:
        ValueError: a row is longer than `max_length`, or the augmentation is not for this processor.
    """

    processor: MMProcessor
    task: str
    max_length: int = 512
    with_prompts: bool = False
    blind: bool = False
    learned: str = "assistant"
    negatives_seed: int | None = None
    augmentation: Augmentation | None = None
    cached: Mapping[str, CachedMedia] = field(default_factory=dict)
    image_cache: MediaCache[Image.Image] = field(default_factory=MediaCache)
    audio_cache: MediaCache[np.ndarray] = field(default_factory=MediaCache)

    def __post_init__(self):
        if self.augmentation is not None:
            self.augmentation.check(self.processor)

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Model inputs for rows, or for packs, which are lists of rows."""
        packs = [len(pack) for pack in rows] if isinstance(rows[0], list) else None
        rows = [row for pack in rows for row in (pack if isinstance(pack, list) else [pack])]
        if self.negatives_seed is not None:
            rows = with_negatives(rows, self.negatives_seed)
        if self.augmentation is not None:
            rows = self.augmentation.rows(rows, self.media_markers)
        rows = self.blinded(rows)
        if not TASKS[self.task].generates:
            batch = self.classification(rows)
        elif rows[0].turns or rows[0].target is not None:
            rows, tokens = self.fitted(rows)
            batch = self.generation(rows, tokens, packs)
        else:
            batch = self.pad(self.prompts(rows), "left")
        batch |= self.flat_images(rows)
        if any(row.audio for row in rows):
            batch |= self.flat_audio([row.audio for row in rows])
        if self.processor.table_columns is not None and any(row.table for row in rows):
            batch["table_values"] = self.table_values(rows)
        if any(row.videos for row in rows):
            distinct = {video: video.source for row in rows for video in row.videos}
            batch |= self.processor.flat_videos([[distinct[video] for video in row.videos] for row in rows])
        if TASKS[self.task].has_labels:
            self.processor.drop_cut_media(batch)
        return batch

    def flat_audio(self, clips: list[list[MediaRef]]) -> dict[str, torch.Tensor]:
        """The tensors of the distinct audio clips from the processor, or their cached features."""
        if "audio" in self.cached:
            return self.cached["audio"].batch(clips)
        distinct = {clip.key: clip.source for row_clips in clips for clip in row_clips}  # equal bytes are one object
        if not hasattr(self.processor, "feature_extractor"):  # the processor refuses audio
            return self.processor.flat_audio([list(distinct.values())])
        samples = {key: self.cached_clip(key, source) for key, source in distinct.items()}
        if self.augmentation is not None and self.augmentation.audio:
            return self.augmentation.audio_views(self.processor, clips, samples)
        return self.processor.flat_audio([[samples[clip.key] for clip in row_clips] for row_clips in clips])

    def cached_clip(self, key: Hashable, source: Any) -> np.ndarray:
        """The samples of an audio clip from the cache, or else from its source."""
        rate, seconds = self.processor.feature_extractor.sampling_rate, self.processor.max_seconds
        return self.audio_cache.get(key, lambda: read_audio(source, rate, seconds))

    def table_values(self, rows: list[Row]) -> torch.Tensor:
        """`table_values` (B, columns) of the columns that the model knows."""
        columns = self.processor.table_columns
        tables = [{c["name"]: row.table.get(c["name"]) for c in columns} for row in rows]
        return table_tensor(tables, columns)

    def flat_images(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """The tensors of the distinct images from the processor, or their cached features."""
        if not any(row.images for row in rows):
            return {}
        if "image" in self.cached:
            return self.cached["image"].batch([row.images for row in rows])
        return self.processor.flat_images(self.open_images(rows))

    def open_images(self, rows: list[Row]) -> list[list[Image.Image]]:
        """The images of each row; an image of several rows is the same object in all of them."""
        opened: dict[str, Image.Image] = {}
        decoded = {key: image for row in rows for key, image in row.opened.items()}
        for image in (image for row in rows for image in row.images):
            if image.key not in opened:
                opened[image.key] = decoded[image.key] if image.key in decoded else self.cached_image(image)
        if self.augmentation is not None:
            opened = self.augmentation.image_views(opened, self.processor.image_processor)
        return [[opened[image.key] for image in row.images] for row in rows]

    def cached_image(self, image: MediaRef) -> Image.Image:
        """An image from the cache, or else from its source; one to be augmented is shrunk to what its tower sees."""
        background = self.processor.image_background
        if self.augmentation is None or not self.augmentation.images:
            return self.image_cache.get(image.key, lambda: open_image(image.source, background))
        side = self.augmentation.short_side(self.processor.image_processor)
        return self.image_cache.get((image.key, side), lambda: shrunk(open_image(image.source, background), side))

    def generation(
        self, rows: list[Row], tokens: list[ChatTokens], packs: list[int] | None
    ) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels` (B, T), padded on the right; with `with_prompts` the prompts too.

        With `packs`, the numbers of rows that are packed together, `position_ids` in place of a mask.
        """
        if reasons := self.too_long(rows, tokens):
            number, reason = next(iter(reasons.items()))
            raise ValueError(f"row {number + 1}: {reason}")
        if packs is not None:
            return self.packed(tokens, packs)
        batch = self.pad([row.ids for row in tokens], "right")
        batch["labels"] = pad_right([row.labels for row in tokens], IGNORED)
        if self.with_prompts:
            batch |= {f"prompt_{name}": value for name, value in self.pad(self.prompts(rows), "left").items()}
        return batch

    def packed(self, tokens: list[ChatTokens], packs: list[int]) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids`, `labels` (B, T) of packs; padding continues their last row."""
        columns: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
        rest = iter(tokens)
        for pack in (list(itertools.islice(rest, count)) for count in packs):
            columns["input_ids"].append([token for row in pack for token in row.ids])
            columns["position_ids"].append([place for row in pack for place in range(len(row.ids))])
            columns["labels"].append([label for row in pack for label in (IGNORED, *row.labels[1:])])
        longest = max(map(len, columns["input_ids"]))
        for ids, places, labels in zip(*columns.values(), strict=True):
            padding = longest - len(ids)
            ids += [self.processor.tokenizer.pad_token_id] * padding
            places += range(places[-1] + 1, places[-1] + 1 + padding)
            labels += [IGNORED] * padding
        return {name: torch.tensor(column) for name, column in columns.items()}

    def prompts(self, rows: list[Row]) -> list[list[int]]:
        """Token ids of what comes before the answers."""
        if rows[0].turns:
            return self.chat.prompts([row.turns[:-1] for row in rows])
        images, clips, videos = (list(counts) for counts in zip(*map(media_counts, rows), strict=True))
        return self.processor.encode_prompts([row.text for row in rows], images, clips, videos)

    def tokens(self, rows: list[Row]) -> list[ChatTokens]:
        """The tokens of rows with answers, and which of them are learned."""
        if rows[0].turns:
            return self.chat.encode([row.turns for row in rows])
        tokenizer = self.processor.tokenizer
        answers = tokenizer([str(row.target) for row in rows], add_special_tokens=False)["input_ids"]
        both = zip(self.prompts(rows), ([*answer, tokenizer.eos_token_id] for answer in answers), strict=True)
        return [ChatTokens([*p, *a], [False] * len(p) + [True] * len(a)) for p, a in both]

    @cached_property
    def chat(self) -> ChatEncoder:
        """The encoder of conversations."""
        return ChatEncoder(self.processor, self.learned)

    def fitted(self, rows: list[Row]) -> tuple[list[Row], list[ChatTokens]]:
        """The rows, their conversations cut behind an answer to at most `max_length` tokens, and their tokens."""
        rows, tokens = list(rows), self.tokens(rows)
        for place, row in enumerate(rows):
            if row.turns and len(tokens[place].ids) > self.max_length:
                rows[place] = self.chat.fit(row, self.max_length)
                (tokens[place],) = self.tokens([rows[place]])
        return rows, tokens

    def too_long(self, rows: list[Row], tokens: list[ChatTokens]) -> dict[int, str]:
        """The reasons why rows are bad that have more than `max_length` tokens, by row number from 0."""
        lengths = {row.number - 1: len(both.ids) for row, both in zip(rows, tokens, strict=True)}
        return {
            number: f"prompt and answer have {length} tokens; expected at most {self.max_length} (--max_length)"
            for number, length in lengths.items()
            if length > self.max_length
        }

    def lengths(self, dataset: MMDataset) -> list[int]:
        """Number of text tokens of each row; for a generation, the answer is included."""
        lengths = list[int]()
        for rows in self.chunks(dataset):
            if TASKS[self.task].generates:
                lengths += [len(row.ids) for row in self.fitted(rows)[1]]
            else:
                lengths += map(len, self.processor.tokenizer([row.text for row in rows])["input_ids"])
        return lengths

    def length_complaint(self, row: Row) -> str | None:
        """The reason why a row of a generation is too long, None if it is not; a classification truncates."""
        try:
            rows, tokens = self.fitted(self.blinded([row]))
        except BadRow as error:
            return str(error)
        return next(iter(self.too_long(rows, tokens).values()), None)

    def check_lengths(self, dataset: MMDataset, skip: bool) -> None:
        """Check the length of every row of a generation before training; a classification truncates.

        A warning counts the conversations that are cut.

        Raises:
            BadRow: names source and row, unless `skip`.
        """
        if not TASKS[self.task].generates:
            return
        cut, dropped = 0, 0
        for rows in self.chunks(dataset):
            if rows[0].turns:
                kept, reasons = self.cut_rows(rows)
                shorter = {i: row for i, row in kept.items() if len(row.turns) < len(rows[i].turns)}
                dataset.cut |= {row.number - 1: len(row.turns) for row in shorter.values()}
                cut += len(shorter)
                dropped += sum(count_media(rows[i]) - count_media(row) for i, row in shorter.items())
            else:
                reasons = self.too_long(rows, self.tokens(rows))
            dataset.note_bad_rows(reasons, skip)
        if cut:
            logger.warning(
                f"{dataset.source}: {cut} conversations are cut behind an answer to --max_length {self.max_length} "
                f"tokens, and {dropped} of their media are left out with the turns"
            )
        dataset.without_bad_rows()

    def cut_rows(self, rows: list[Row]) -> tuple[dict[int, Row], dict[int, str]]:
        """Conversations as they fit, by their place, and the reasons why others do not, by row number from 0."""
        kept, reasons = {}, {}
        for place, row in enumerate(rows):
            try:
                kept[place] = self.chat.fit(row, self.max_length)
            except BadRow as error:
                reasons[row.number - 1] = str(error)
        return kept, reasons

    def classification(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """The tokenizer's tensors (B, T), `labels` (B,) or (B, C), and `text_present` (B,) if any text is missing."""
        texts, counts = [row.text for row in rows], [media_counts(row) for row in rows]
        batch = self.processor.encode_rows(texts, counts, self.max_length)
        if rows[0].target is not None:
            batch["labels"] = torch.tensor([row.target for row in rows])
        return batch

    def chunks(self, dataset: MMDataset) -> Iterator[list[Row]]:
        """All rows as the model gets them, in chunks; nothing is opened."""
        for start in range(0, len(dataset), CHUNK):
            yield self.blinded([dataset.row(number) for number in dataset.kept[start : start + CHUNK]])

    def blinded(self, rows: list[Row]) -> list[Row]:
        """The rows as the model gets them: without media if `blind`."""
        return [self.without_media(row) for row in rows] if self.blind else rows

    def without_media(self, row: Row) -> Row:
        """The row with its text alone."""
        return without(row, (*MODALITIES, TABLE), self.media_markers)

    @property
    def media_markers(self) -> dict[str, str]:
        """The marker of each modality beside the text, by its name."""
        return media_markers(self.processor)

    def pad(self, ids: list[list[int]], side: str) -> dict[str, torch.Tensor]:
        padded = self.processor.tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}


def count_media(row: Row) -> int:
    """The number of images, audio clips and videos of a row together."""
    return sum(media_counts(row))


def media_counts(row: Row) -> tuple[int, int, int]:
    """The numbers of images, audio clips and videos of a row."""
    return len(row.images), len(row.audio), len(row.videos)


def pad_right(sequences: list[list[int]], value: int) -> torch.Tensor:
    """(B, T) from sequences of different lengths."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sequences], batch_first=True, padding_value=value)


@dataclass
class RetrievalCollator(MMCollator):
    """Rows of an image and its text to a batch; an image of several rows is encoded once.

    Args:
        captions: also return each text as the answer to its image, as `MMForConditionalGeneration` learns it.
    """

    captions: bool = False

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        unchanged = self.texts(rows)
        changed = rows if self.augmentation is None else self.augmentation.rows(rows, self.media_markers)
        tokens = unchanged if changed is rows else self.texts(changed)
        batch: dict[str, Any] = {**tokens, **self.flat_images(rows)}
        batch["image_keys"] = torch.zeros(int(batch["image_index"].max()) + 1, dtype=torch.long)
        for row, places in zip(rows, batch["image_index"], strict=True):
            batch["image_keys"][places[places >= 0]] = torch.tensor([content_key(image.key) for image in row.images])
        if tokens is not unchanged or any(row.concept for row in rows):
            batch["text_keys"] = text_keys(**unchanged)
            for place, row in enumerate(rows):
                if row.concept:
                    batch["text_keys"][place] = content_key(f"concept {row.concept}")
        if self.captions:
            batch |= self.as_captions(rows)
        return {**batch, "return_loss": True}

    def texts(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (B, T), padded on the right, where padding can be left out."""
        tokenizer = self.processor.tokenizer
        max_length = min(self.max_length, tokenizer.model_max_length)
        texts = [self.without_media(row).text for row in rows]
        options = {"padding": True, "padding_side": "right", "truncation": True, "max_length": max_length}
        batch = tokenizer(texts, **options, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def as_captions(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """`caption_ids`, `caption_mask` and `labels` (B, T): the image's marker, then the text and its end."""
        captioned = [replace(row, text="", target=self.without_media(row).text) for row in rows]
        tokens = [row.cut(self.max_length) for row in self.tokens(captioned)]
        batch = self.pad([row.ids for row in tokens], "right")
        labels = pad_right([row.labels for row in tokens], IGNORED)
        return {"caption_ids": batch["input_ids"], "caption_mask": batch["attention_mask"], "labels": labels}


def content_key(name: str) -> int:
    """A non-negative integer key of a name, the same on every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
