# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Models that generate text from images, ours and transformers', with the same towers and the same work.

The towers have LLaVA-1.5's proportions (a vision tower a quarter as wide as the decoder), random weights, and grouped
key and value heads. LLaVA puts each patch into the text as a token. Mllama has cross-attention like ours, over another
kind of vision tower with as many layers; its cross-attention layers are added to those of the decoder. BLIP-2 puts 32
query tokens from a two-layer Q-Former into the text. "Towers alone" is the work that every model must do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import Work
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedModel,
)

from modeling_mm import MMConfig, MMForConditionalGeneration

VOCABULARY, IMAGE, PATCH, TOKENS, NEW_TOKENS, QUERIES = 8192, 8191, 16, 64, 32, 32
VISION = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 9}
FUSION_LAYERS = [3, 7, 11]
TEXT = {
    **{"vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None},
}
Batch = dict[str, torch.Tensor]


def vision_config(side: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(**VISION, num_attention_heads=2, image_size=PATCH * side, patch_size=PATCH)


def ours(side: int, **options: Any) -> MMForConditionalGeneration:
    towers = {"vision_config": vision_config(side), "text_config": LlamaConfig(**TEXT)}
    return MMForConditionalGeneration(MMConfig(**towers, image_token_id=IMAGE, fusion_layers=FUSION_LAYERS, **options))


def llava(side: int) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=vision_config(side), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def mllama(side: int) -> MllamaForConditionalGeneration:
    layers = TEXT["num_hidden_layers"] + len(FUSION_LAYERS)
    crossing = [layer + i for i, layer in enumerate(FUSION_LAYERS)]
    text = {**TEXT, "num_hidden_layers": layers, "cross_attention_layers": crossing}
    vision = {
        **VISION, "num_hidden_layers": VISION["num_hidden_layers"] - 1, "num_global_layers": 1, "attention_heads": 2,
        "image_size": PATCH * side, "patch_size": PATCH, "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
        "intermediate_layers_indices": [4], "vision_output_dim": 2 * VISION["hidden_size"],
    }  # fmt: skip
    return MllamaForConditionalGeneration(
        MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    )


def blip2(side: int) -> Blip2ForConditionalGeneration:
    qformer = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2,
        "encoder_hidden_size": VISION["hidden_size"],
    }  # fmt: skip
    vision = {**VISION, "num_attention_heads": 2, "image_size": PATCH * side, "patch_size": PATCH}
    text = LlamaConfig(**TEXT)
    config = Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )  # fmt: skip
    return Blip2ForConditionalGeneration(config)


class TowersAlone(LlamaForCausalLM):
    """The lower bound: the vision tower encodes the images, and the decoder reads the text without them."""

    def __init__(self, side: int):
        super().__init__(LlamaConfig(**TEXT))
        self.vision_tower = CLIPVisionModel(vision_config(side))

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if pixel_values is not None and input_ids.shape[1] > 1:  # not again for each new token
            self.vision_tower(pixel_values)
        return super().forward(input_ids, **kwargs)


def batch_for(name: str, side: int, images: int, rows: int, device: torch.device, dtype: torch.dtype) -> Batch:
    """The same images followed by the same 64 text tokens, in the format of a model."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(2, IMAGE, (rows, TOKENS), generator=generator)
    pixels = torch.randn(rows * images, 3, PATCH * side, PATCH * side, generator=generator).to(dtype)
    markers = images * {"LLaVA": side * side, "BLIP-2": QUERIES}.get(name, 1)
    ids = torch.cat([torch.full((rows, markers), IMAGE), text], dim=1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    if name.startswith("ours"):
        batch["pixel_values"] = pixels.view(rows, images, *pixels.shape[1:])
    if name == "Mllama":
        visible = torch.zeros(rows, ids.shape[1], images, 1, dtype=torch.long)
        for image in range(images):
            visible[:, image:, image] = 1
        ones = torch.ones(rows, images, dtype=torch.long)
        batch |= {
            "pixel_values": pixels.view(rows, images, 1, *pixels.shape[1:]), "aspect_ratio_ids": ones,
            "aspect_ratio_mask": ones[..., None], "cross_attention_mask": visible,
        }  # fmt: skip
    return {key: value.to(device) for key, value in batch.items()}


def vision_part(model: PreTrainedModel) -> torch.nn.Module:
    """The vision tower, which is frozen in all models."""
    return next(part for name, part in model.named_modules() if name.endswith(("vision_tower", "vision_model")))


def train_step(model: PreTrainedModel, batch: Batch) -> None:
    """Forward and backward of the next-token loss over the text."""
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)
    model(**batch, labels=labels, use_cache=False).loss.backward()
    model.zero_grad()


@torch.no_grad()
def prefill(model: PreTrainedModel, batch: Batch) -> None:
    """Compute the logits of the first answer token from images and text."""
    model(**batch, logits_to_keep=1)


@torch.no_grad()
def with_encoded_images(model: PreTrainedModel, batch: Batch) -> Batch:
    """The batch with encoded images in place of pixels, as they are reused for another question."""
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if isinstance(model, MMForConditionalGeneration):
        return {**text, "media_key_values": model.encode_media(batch["pixel_values"])}
    if isinstance(model, LlavaForConditionalGeneration):
        embeds = model.get_input_embeddings()(batch["input_ids"])
        features = torch.cat(list(model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output))
        embeds[batch["input_ids"] == IMAGE] = features.to(embeds.dtype)
        return {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
    if isinstance(model, MllamaForConditionalGeneration):
        tiles = {name: batch[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
        states = model.model.vision_model(**tiles).last_hidden_state
        projected = model.model.multi_modal_projector(states).flatten(0, 2)
        states = projected.reshape(-1, states.shape[-2], TEXT["hidden_size"])
        return {**text, "cross_attention_states": states, "cross_attention_mask": batch["cross_attention_mask"]}
    return text


@torch.no_grad()
def answer(model: PreTrainedModel, batch: Batch) -> None:
    """Generate 32 new tokens, prefill included."""
    model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)


WORKS: dict[str, Callable[[PreTrainedModel, Batch], None]] = {
    "training step": train_step, "prefill": prefill, "prefill, text side": prefill, "prefill and 32 tokens": answer,
}  # fmt: skip
MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "ours": ours,
    "ours, with fusion MLPs": partial(ours, fusion_mlp=True),
    "LLaVA": llava,
    "Mllama": mllama,
    "BLIP-2": blip2,
    "towers alone": TowersAlone,
}


# the forward pass of BLIP-2 always runs its Q-Former and accepts no encoded images
LEFT_OUT = {("BLIP-2", "prefill, text side")}


def work_of(name: str, work: str, side: int, images: int, rows: int, device: torch.device, dtype: torch.dtype) -> Work:
    """A model's work on its batch, ready to be timed."""
    torch.manual_seed(0)
    model = MODELS[name](side).to(device, dtype).train(work == "training step")
    vision_part(model).requires_grad_(False)
    if work != "training step":
        model.requires_grad_(False)
    batch = batch_for(name, side, images, rows, device, dtype)
    if work == "prefill, text side":
        batch = with_encoded_images(model, batch)
    return partial(WORKS[work], model, batch)
