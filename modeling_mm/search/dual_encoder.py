# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Any dual encoder of transformers (CLIP, SigLIP, ours): images and texts as embeddings that can be compared.

A fingerprint identifies the model that made an index: digests of the weights and of the vocabulary, and settings of
the image processor.

Shapes: B images or texts, E embedding width.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor, PreTrainedModel
from transformers.feature_extraction_utils import BatchFeature

from ..data.fingerprint import NAMES, digest_of_weights
from ..data.media import open_image
from ..model.images_mm import BACKGROUND

Fingerprint = dict[str, Any]


class DualEncoder:
    """A model with `get_image_features` and `get_text_features`, and its processor.

    Args:
        source: the folder or Hub id that it was loaded from, for messages and for the index to find it again.
    """

    def __init__(self, source: str, model: PreTrainedModel, processor: Any):
        self.source, self.model, self.processor = source, model.eval(), processor

    @classmethod
    def load(cls, source: str, device: str | None = None) -> "DualEncoder":
        """The dual encoder of a folder or Hub id.

        Raises:
            ValueError: there is no dual encoder.
        """
        try:
            model = AutoModelForZeroShotImageClassification.from_pretrained(source)
            processor = AutoProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"'{source}' holds no dual encoder of images and texts with its processor: {reason}"
            ) from error
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        source = str(Path(source).resolve()) if Path(source).is_dir() else source
        return cls(source, model.to(device), processor)

    @property
    def background(self) -> str:
        """The colour behind transparent images; the default for processors other than ours."""
        return getattr(self.processor, "image_background", BACKGROUND)

    def prepare(self, image: str | bytes | Image.Image) -> BatchFeature:
        """The tensors of one image, opened as in training.

        Raises:
            BadRow: the image cannot be read.
        """
        image = open_image(image, self.background)
        return self.processor.image_processor(images=[image], return_tensors="pt")

    def batch(self, prepared: Sequence[BatchFeature]) -> BatchFeature:
        """A batch of prepared images as model inputs."""
        tensors = {name: torch.cat([image[name] for image in prepared]) for name in prepared[0]}
        return BatchFeature(tensors).to(self.model.device, self.model.dtype)

    def tokens(self, texts: Sequence[str]) -> BatchFeature:
        """A batch of texts as model inputs."""
        # SigLIP was trained on texts padded to 64 tokens, and has no mask to leave the padding out
        fixed = {"padding": "max_length", "max_length": 64} if "siglip" in self.model.config.model_type else {}
        options = {"padding": True, "truncation": True, "return_tensors": "pt", **fixed}
        return self.processor.tokenizer(list(texts), **options).to(self.model.device)

    @torch.no_grad()
    def embed_prepared(self, prepared: Sequence[BatchFeature]) -> np.ndarray:
        """Normalised embeddings (B, E) of prepared images."""
        return self.normalised(self.model.get_image_features(**self.batch(prepared)).pooler_output)

    def embed_images(self, images: Sequence[str | bytes | Image.Image]) -> np.ndarray:
        """Normalised embeddings (B, E) of images."""
        return self.embed_prepared([self.prepare(image) for image in images])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Normalised embeddings (B, E) of texts."""
        return self.normalised(self.model.get_text_features(**self.tokens(texts)).pooler_output)

    def normalised(self, embeddings: torch.Tensor) -> np.ndarray:
        """Embeddings (B, E) of length one, on the CPU.

        Raises:
            ValueError: an embedding is NaN or infinite.
        """
        if not embeddings.isfinite().all():
            raise ValueError(f"'{self.source}' gave embeddings with NaN or infinity; are its weights intact?")
        return functional.normalize(embeddings.float(), dim=-1).cpu().numpy()

    def check_matching(self) -> None:
        """Check that the model can rerank.

        Raises:
            ValueError: it has no matching head.
        """
        if not hasattr(self.model, "match") or self.model.matching_head is None:
            kind = type(self.model).__name__
            raise ValueError(f"'{self.source}' ({kind}) has no matching head, which --rerank needs; leave it out")

    @torch.no_grad()
    def matching_scores(self, text: str, images: Sequence[Image.Image], batch_size: int = 16) -> list[float]:
        """Reranking scores of images for a text, by the matching head, which attends to both at once.

        They are the model's `ranking_scores` (similarity logit plus weighted match log-odds), as in `evaluate`.
        """
        text_embeds, scores = self.model.get_text_features(**self.tokens([text])).pooler_output, list[float]()
        for start in range(0, len(images), batch_size):
            batch = self.batch([self.prepare(image) for image in images[start : start + batch_size]])
            tokens = self.tokens([text] * len(batch["pixel_values"]))
            logits = self.model.match(**tokens, **batch)  # (B, 2): no match, match
            image_embeds = self.model.get_image_features(**batch).pooler_output
            similar = self.model.similarities(text_embeds, image_embeds)[0]
            scores += self.model.ranking_scores(similar, logits).float().tolist()
        return scores

    def fingerprint(self) -> Fingerprint:
        """Everything that embeddings depend on, as JSON can hold it."""
        vocabulary = json.dumps(self.processor.tokenizer.get_vocab(), sort_keys=True).encode()
        settings = self.processor.image_processor.to_dict()
        return {
            "model": self.source,
            "weights": digest_of_weights(self.model),
            "width": self.embed_images([Image.new("RGB", (32, 32))]).shape[1],
            "vocabulary": hashlib.sha256(vocabulary).hexdigest(),
            "image_processor": {
                **{name: value for name, value in settings.items() if name not in NAMES},
                "image_background": self.background,
            },
        }


def explain_mismatch(made: Fingerprint, other: Fingerprint) -> str | None:
    """The difference between two fingerprints in words; None if their embeddings can be compared.

    Settings that only one of them has are ignored: a newer library may have more.
    """
    if made["width"] != other["width"]:
        return f"embeddings {made['width']} wide, not {other['width']}"
    if made["weights"] != other["weights"]:
        return f"weights {made['weights'][:8]}, not {other['weights'][:8]}"
    if made["vocabulary"] != other["vocabulary"]:
        return "another tokenizer vocabulary"
    settings = json.loads(json.dumps(other["image_processor"]))  # tuples become lists, as they did in the index
    for name, value in made["image_processor"].items():
        if name in settings and settings[name] != value:
            return f"images prepared with {name} {value}, not {settings[name]}"
    return None
