# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tiny towers, models and inputs that every test file shares; nothing here touches the network."""

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CLIPImageProcessorPil

from modeling_mm import MMConfig, MMForConditionalGeneration, MMModel

OLD_LIBRARY = Version(transformers.__version__) < Version("5.23")
REENTRANT = pytest.mark.skipif(
    OLD_LIBRARY,
    reason="reentrant checkpointing gives no gradients to keyword arguments before transformers 5.23",
)
VOCABULARY, PAD, IMAGE_ID = 99, 0, 98
SENTENCES = ["what colour is the circle", "is there a red square", "yes", "no", "blue", "a small green triangle"]
# Weights larger than the default, so that attention and logits vary enough for errors to show.
WIDE = {"initializer_range": 0.1}
ROWS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = {**PLAIN, **ROWS, **WIDE, "num_key_value_heads": 2, "max_position_embeddings": 64}
DECODERS = {
    "llama": GROUPED,
    "gpt2": {**ROWS, **WIDE, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "qwen3": {**GROUPED, "head_dim": 16},  # heads wider than the model, as in Qwen3-0.6B
    "smollm3": GROUPED,
    "gemma2": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
}
ENCODERS = {
    "bert": {**PLAIN, **WIDE, "vocab_size": VOCABULARY, "max_position_embeddings": 64},
    "modernbert": {
        **PLAIN,
        **WIDE,
        **ROWS,
        "cls_token_id": 1,
        "sep_token_id": 1,
        "max_position_embeddings": 64,
        "local_attention": 8,
    },
    "distilbert": {
        **WIDE,
        "vocab_size": VOCABULARY,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 64,
    },
}
COMMON = {**PLAIN, **ROWS, "max_position_embeddings": 64}
# Backbones whose layers have other shapes or names.
OTHERS = {
    **dict.fromkeys(["gpt_neox", "phi", "phi3", "roberta", "xlm-roberta"], COMMON),
    "electra": {**COMMON, "embedding_size": 16},
    "lfm2": {**COMMON, "num_key_value_heads": 2, "full_attn_idxs": [1]},
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen3_moe": {
        **COMMON,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}
ALL_TEXT = DECODERS | ENCODERS | OTHERS
TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
VISION = {
    "clip_vision_model": {**TRANSFORMER, "projection_dim": 16},
    "siglip_vision_model": TRANSFORMER,
    "vit": {**TRANSFORMER, **WIDE},
    "dinov2": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 16,
        "patch_size": 8,
        **WIDE,
    },
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
        **WIDE,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0, **WIDE},
    "siglip2_vision_model": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 4,
        "num_patches": 16,
    },
}


def text_config(kind="llama", **fields):
    """A tiny config of a decoder or an encoder."""
    return AutoConfig.for_model(kind, **{**ALL_TEXT[kind], **fields})


def vision_config(kind="clip_vision_model"):
    """A tiny config of a vision tower for 16 x 16 images."""
    return AutoConfig.for_model(kind, **VISION[kind])


def causal_model(kind="llama", **fields):
    """A decoder with a language modelling head, in evaluation mode."""
    return AutoModelForCausalLM.from_config(text_config(kind, **fields)).eval()


def vision_model(kind="clip_vision_model"):
    """A vision tower in evaluation mode."""
    return AutoModel.from_config(vision_config(kind)).eval()


def save_towers(folder, tokenizer):
    """Save a tiny vision tower and decoder, as if they were pretrained; return their flags."""
    torch.manual_seed(0)
    vision_model().save_pretrained(folder / "vision")
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder / "vision")
    tokenizer.save_pretrained(folder / "text")
    causal_model(vocab_size=len(tokenizer)).save_pretrained(folder / "text")
    return ["--vision_tower", folder / "vision", "--text_model", folder / "text"]


def mm_config(text="llama", vision="clip_vision_model", **fields):
    """A config with every other text layer fused, all optional parts of fusion layers, and large random weights."""
    defaults = {"fusion_layers": [0, 2], "fusion_mlp": True, "image_token_id": IMAGE_ID, "initializer_range": 0.2}
    fields = {**defaults, **fields}
    return MMConfig(text_config=text_config(text), vision_config=vision_config(vision), **fields)


def mm_model(text="llama", vision="clip_vision_model", head=MMForConditionalGeneration, gate=1.0, **fields):
    """A model in evaluation mode with its gates at `gate`."""
    return open_gates(head(mm_config(text, vision, **fields)).eval(), gate)


def mm_encoder(text="bert", vision="clip_vision_model", **fields):
    """The base model over an encoder, its gates open."""
    return mm_model(text, vision, head=MMModel, **fields)


@torch.no_grad()
def open_gates(model, value=1.0):
    """Fill every gate with `value`; at 0, where models start, fusion does nothing."""
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            parameter.fill_(value)
    return model


def pictures(count, vision="clip_vision_model"):
    """The tensors of `count` different random images, as the tower takes them."""
    if vision == "siglip2_vision_model":
        shapes = torch.tensor([[2, 2], [3, 2], [2, 3]])[torch.arange(count) % 3]
        mask = (torch.arange(9) < shapes.prod(1, keepdim=True)).long()
        values = torch.randn(count, 9, 3 * 4 * 4) * mask[..., None]
        return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    return {"pixel_values": torch.randn(count, 3, 16, 16)}


def token_row(length, markers=()):
    """A row (length,) of words with image markers at the given columns."""
    row = torch.randint(5, 90, (length,))
    row[list(markers)] = IMAGE_ID
    return row


def padded(rows, side="right"):
    """Rows of different lengths to `input_ids`, `attention_mask` and `position_ids` (B, T)."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, columns], mask[index, columns] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def mixed_rows():
    """Rows with no, one and two images and one image without a marker: rows of ids and `image_index` (4, 2)."""
    rows = [token_row(9), token_row(7, [2]), token_row(11, [1, 5]), token_row(5)]
    return rows, torch.tensor([[-1, -1], [0, -1], [1, 0], [1, -1]])


def rows_of_0_1_3_images():
    """Rows of ids with no, one and three images, and their `image_index` (3, 3) into three images."""
    rows = [token_row(9), token_row(7, [2]), token_row(11, [1, 5, 6])]
    return rows, torch.tensor([[-1, -1, -1], [0, -1, -1], [1, 0, 2]])


def text_inputs(batch, text):
    """The tensors of a padded batch that a backbone takes: BERT-like encoders compute position ids themselves."""
    return {name: value for name, value in batch.items() if name != "position_ids" or text not in ENCODERS}


def drawing(colour, size=20):
    """A PIL image of one colour."""
    return Image.fromarray(np.full((size, size, 3), colour, dtype=np.uint8))


def save_with_processor(model, processor, folder):
    """Save a tiny model with the processor, resized to its vocabulary and with its end and padding tokens."""
    model.resize_token_embeddings(len(processor.tokenizer))
    if isinstance(model, MMForConditionalGeneration):
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def model_for(processor, head=MMForConditionalGeneration, text="llama", vision="clip_vision_model", **fields):
    """A tiny model that knows the processor's vocabulary, its gates open."""
    tokenizer = processor.tokenizer
    model = mm_model(text, vision, head=head, image_token_id=processor.image_token_id, **fields)
    model.resize_token_embeddings(len(tokenizer))
    if head is MMForConditionalGeneration:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def save(folder, processor, head=MMForConditionalGeneration, text="llama", vision="clip_vision_model", **fields):
    """Save a tiny model with open gates and its processor; return the folder."""
    model = mm_model(text, vision, head=head, image_token_id=processor.image_token_id, **fields)
    save_with_processor(model, processor, folder)
    return str(folder)
