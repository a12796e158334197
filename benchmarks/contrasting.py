# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""One contrastive training step of ours and of transformers' dual encoders, with a ViT and a BERT of equal shape."""

from collections.abc import Callable
from functools import partial

import torch
from measuring import Work
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from modeling_mm import MMConfig, MMForImageTextRetrieval

SIZE = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
SIDE, PATCH, TOKENS, VOCABULARY, WIDTH = 64, 8, 16, 8192, 128


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(**SIZE, image_size=SIDE, patch_size=PATCH)


def text_config() -> BertConfig:
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(**SIZE, **none, vocab_size=VOCABULARY, max_position_embeddings=TOKENS)


def ours() -> MMForImageTextRetrieval:
    """Our model, without the matching loss, which the others lack, and with their pooling."""
    return MMForImageTextRetrieval(
        MMConfig(
            vision_config=vision_config(), text_config=text_config(), matching_weight=0.0, image_pooling="tower",
            embedding_size=WIDTH,
        )
    )  # fmt: skip


def dual_encoder() -> VisionTextDualEncoderModel:
    return VisionTextDualEncoderModel(
        VisionTextDualEncoderConfig.from_vision_text_configs(vision_config(), text_config(), projection_dim=WIDTH)
    )


def clip() -> CLIPModel:
    """CLIP, whose text tower is causal and pooled at the last token; its shape is the same."""
    text = {**SIZE, "vocab_size": VOCABULARY, "max_position_embeddings": TOKENS, "eos_token_id": VOCABULARY - 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision_config().to_dict(), projection_dim=WIDTH))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "ours": ours, "VisionTextDualEncoder": dual_encoder, "CLIP": clip,
}  # fmt: skip


def step(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    model(**batch, return_loss=True).loss.backward()
    model.zero_grad()


def work_of(name: str, pairs: int, device: torch.device, dtype: torch.dtype) -> Work:
    """A model's training step on the same pairs, all distinct, ready to be timed."""
    torch.manual_seed(0)
    model = MODELS[name]().to(device, dtype).train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY - 1, (pairs, TOKENS), generator=generator)
    ids[:, -1] = VOCABULARY - 1
    pixels = torch.randn(pairs, 3, SIDE, SIDE, generator=generator).to(dtype)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return partial(step, model, {key: value.to(device) for key, value in batch.items()})
