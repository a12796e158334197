# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Models that answer about images, ours and the library's own, over the same towers, and the same work for each.

The towers have LLaVA-1.5's proportions (a vision tower a quarter as wide as the decoder), random weights, and grouped
key and value heads. LLaVA has each patch as a token of the text. Mllama has cross-attention like ours, over a vision
tower of its own kind with as many layers; its cross-attention layers come on top of the decoder's. BLIP-2 has 32
queries in the text, which a Q-Former of two layers gathers. "Towers alone" is the work that none can do without.
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
    """The floor: the vision tower sees the images and nobody looks at what it saw; the decoder reads the text."""

    def __init__(self, side: int):
        super().__init__(LlamaConfig(**TEXT))
        self.vision_tower = CLIPVisionModel(vision_config(side))

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if pixel_values is not None and input_ids.shape[1] > 1:  # not again for each new token
            self.vision_tower(pixel_values)
        return super().forward(input_ids, **kwargs)


def batch_for(name: str, side: int, pictures: int, rows: int, device: torch.device, dtype: torch.dtype) -> Batch:
    """The same text, 64 tokens, behind the same images, in the form that a model wants."""
    drawn = torch.Generator().manual_seed(0)
    text = torch.randint(2, IMAGE, (rows, TOKENS), generator=drawn)
    pixels = torch.randn(rows * pictures, 3, PATCH * side, PATCH * side, generator=drawn).to(dtype)
    markers = pictures * {"LLaVA": side * side, "BLIP-2": QUERIES}.get(name, 1)
    ids = torch.cat([torch.full((rows, markers), IMAGE), text], dim=1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    if name.startswith("ours"):
        batch["pixel_values"] = pixels.view(rows, pictures, *pixels.shape[1:])
    if name == "Mllama":
        seen = torch.zeros(rows, ids.shape[1], pictures, 1, dtype=torch.long)
        for picture in range(pictures):
            seen[:, picture:, picture] = 1
        one = torch.ones(rows, pictures, dtype=torch.long)
        batch |= {
            "pixel_values": pixels.view(rows, pictures, 1, *pixels.shape[1:]), "aspect_ratio_ids": one,
            "aspect_ratio_mask": one[..., None], "cross_attention_mask": seen,
        }  # fmt: skip
    return {key: value.to(device) for key, value in batch.items()}


def vision_part(model: PreTrainedModel) -> torch.nn.Module:
    """The vision tower, which is frozen in all of them."""
    return next(part for name, part in model.named_modules() if name.endswith(("vision_tower", "vision_model")))


def train_step(model: PreTrainedModel, batch: Batch) -> None:
    """Forward and backward of the next-token loss over the text."""
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)
    model(**batch, labels=labels, use_cache=False).loss.backward()
    model.zero_grad()


@torch.no_grad()
def prefill(model: PreTrainedModel, batch: Batch) -> None:
    """From images and text to the first answer token's logits."""
    model(**batch, logits_to_keep=1)


@torch.no_grad()
def with_encoded_pictures(model: PreTrainedModel, batch: Batch) -> Batch:
    """The batch with what the text looks at in place of the images: what is kept when they are asked about again."""
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if isinstance(model, MMForConditionalGeneration):
        return {**text, "media_key_values": model.encode_media(batch["pixel_values"])}
    if isinstance(model, LlavaForConditionalGeneration):
        embeds = model.get_input_embeddings()(batch["input_ids"])
        seen = torch.cat(list(model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output))
        embeds[batch["input_ids"] == IMAGE] = seen.to(embeds.dtype)
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
    """Prefill and 32 new tokens."""
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


# its queries are gathered by a forward of its own, which takes no other's
LEFT_OUT = {("BLIP-2", "prefill, text side")}


def work_of(
    name: str, work: str, side: int, pictures: int, rows: int, device: torch.device, dtype: torch.dtype
) -> Work:
    """One model, its batch and what it does with it."""
    torch.manual_seed(0)
    model = MODELS[name](side).to(device, dtype).train(work == "training step")
    vision_part(model).requires_grad_(False)
    if work != "training step":
        model.requires_grad_(False)
    batch = batch_for(name, side, pictures, rows, device, dtype)
    if work == "prefill, text side":
        batch = with_encoded_pictures(model, batch)
    return partial(WORKS[work], model, batch)
