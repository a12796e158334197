# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`pipeline("multimodal-classification")`: labels and scores for texts with images, audio clips, videos and a table.

It is transformers' text classification with another input. A batch is prepared as a whole, so that an image in several
of its rows is encoded once.
"""

from typing import Any

from transformers import TextClassificationPipeline
from transformers.feature_extraction_utils import BatchFeature

from .audio_mm import clips_per_row
from .images_mm import is_image
from .media_mm import MODALITIES
from .table_mm import table_tensor
from .video_mm import videos_per_row


class MultimodalClassificationPipeline(TextClassificationPipeline):
    """Classify `{"image": ..., "text": ...}`, a list of such rows, or a dataset or generator of them.

    `image` is a source for `MMProcessor.open_image`, or a list of them; `audio` a source for `audio_mm.read_audio` (a
    path, an array with its rate, ...), or a list of them; `video` a source for `video_mm.read_video` (a path, a list
    of frames, ...), or a list of them; `table` a dict of cells by their columns; `text` a string. Each may be None or
    left out. `top_k`, `function_to_apply`, `batch_size` and the tokenizer's arguments are those of text
    classification.
    """

    _load_processor = True
    _load_tokenizer = False

    def check_model_type(self, supported_models: Any) -> None:
        super().check_model_type(["MMForSequenceClassification"])

    def _sanitize_parameters(self, **parameters) -> tuple[dict, dict, dict]:
        tokenizer_kwargs, forward, postprocess = super()._sanitize_parameters(**parameters)
        return {}, {**forward, **tokenizer_kwargs}, postprocess

    def __call__(self, inputs: Any, **kwargs) -> Any:
        """`[{"label": ..., "score": ...}]` for one row; for a list, one such dict (with `top_k`, a list) per row."""
        result = super().__call__(inputs, **kwargs)
        return [result] if isinstance(result, dict) else result

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """One row: its images, audio clips and videos, as lists, its table and its text.

        Raises:
            ValueError: the input is not a dict of `image`, `text`, `audio`, `video` and `table`.
        """
        names = ("image", "text", "audio", "video", "table")
        if not isinstance(inputs, dict) or not inputs or not inputs.keys() <= set(names):
            raise ValueError(
                f"the input is {str(inputs)[:80]!r}; expected a dict with any of 'image', 'text', 'audio', 'video' "
                "and 'table'"
            )
        image = inputs.get("image")
        images = [] if image is None else [image] if is_image(image) else list(image)
        (clips,) = clips_per_row([inputs.get("audio")], 1, [])
        (videos,) = videos_per_row([inputs.get("video")], 1, [])
        media = {"images": images, "audio": clips, "videos": videos}
        return {**media, "table": inputs.get("table") or {}, "text": inputs.get("text") or ""}

    def _forward(self, model_inputs: dict[str, Any], **tokenizer_kwargs) -> dict[str, Any]:
        rows = [model_inputs[name] for name in ("images", "audio", "videos", "table", "text")]
        images, audio, videos, table, texts = [[value] for value in rows] if isinstance(rows[-1], str) else rows
        processor = self.processor
        counts = [tuple(map(len, media)) for media in zip(images, audio, videos, strict=True)]
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            for modality, items in zip(MODALITIES.values(), count, strict=True):
                processor.check_marker_count(row, text, getattr(processor, modality.marker), items, modality.items)
        batch = BatchFeature(processor.encode_rows(texts, counts, **tokenizer_kwargs))
        batch.update(processor.flat_images(images) | processor.flat_audio(audio) | processor.flat_videos(videos))
        if any(table):
            batch["table_values"] = table_tensor(table, processor.table_columns)
        processor.drop_cut_media(batch)
        return {"logits": self.model(**batch.to(self.device)).logits}

    def save_pretrained(self, save_directory: Any, **kwargs) -> None:
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


__all__ = ["MultimodalClassificationPipeline"]
