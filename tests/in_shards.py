# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""What test_sharding.py lets each process do, and its parent to compare: models, their global batch, a step of each."""

import torch
import torch.distributed as dist
from conftest import IMAGE_ID, open_gates, text_config, token_row, vision_config
from test_hearing import AUDIO_ID, ears
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import CLIPImageProcessorPil, Wav2Vec2FeatureExtractor

from modeling_mm import (
    MMConfig,
    MMForConditionalGeneration,
    MMForImageTextRetrieval,
    MMForSequenceClassification,
    MMProcessor,
)
from modeling_mm.scratch import train_tokenizer
from modeling_mm.sharding import is_sharded, open_methods, shard, unseen_media, with_unseen_media

ROWS, TOKENS = 4, 7
HEADS = {
    "generation": MMForConditionalGeneration,
    "classification": MMForSequenceClassification,
    "retrieval": MMForImageTextRetrieval,
}
# name: head, text, vision, fields
CASES = {
    "generation": ("generation", "llama", "clip_vision_model", {"tie_word_embeddings": False}),
    "tied": ("generation", "llama", "siglip_vision_model", {"tie_word_embeddings": True}),
    "frozen towers": ("generation", "qwen3", "vit", {"frozen": ("vision_tower", "text_model")}),
    "resampler": ("generation", "gpt2", "dinov2", {"num_latents": 2, "resampler_layers": 1}),
    "late fusion": ("classification", "bert", "clip_vision_model", {"late_fusion": "gated", "cross_attention": True}),
    "no cross-attention": ("classification", "distilbert", "vit", {"late_fusion": "sum", "cross_attention": False}),
    "sound": ("classification", "modernbert", "vit", {"audio": "wav2vec2"}),
    "retrieval": ("retrieval", "bert", "vit", {"contrastive_loss": "sigmoid", "matching_weight": 0.0}),
}


def model_of(case):
    """The model of a case, the same in each process, in training but without dropout."""
    head, text, vision, fields = CASES[case]
    fields = dict(fields)
    frozen, audio = fields.pop("frozen", ()), fields.pop("audio", None)
    tied = {"tie_word_embeddings": fields.pop("tie_word_embeddings")} if "tie_word_embeddings" in fields else {}
    if audio is not None:
        fields |= {"audio_config": ears(audio), "audio_token_id": AUDIO_ID}
    torch.manual_seed(0)
    config = MMConfig(
        text_config=text_config(text, **tied), vision_config=vision_config(vision), fusion_layers=[0, 2],
        image_token_id=IMAGE_ID, initializer_range=0.2, **fields,
    )  # fmt: skip
    model = open_gates(HEADS[head](config), 1.0)
    for part in frozen:
        getattr(model.model, part).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout", "hidden_dropout", "feat_proj_dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    return model.train()


def batch_of(case, rows=slice(None)):
    """Some rows of the global batch: pictures only in the first half, sound only in the second.

    Of retrieval, where each process must have some, each row has a picture.
    """
    head, text, _, fields = CASES[case]
    torch.manual_seed(1)
    everywhere = head == "retrieval"
    ids = torch.stack([token_row(TOKENS, [1] if i < ROWS // 2 and not everywhere else []) for i in range(ROWS)])
    shown, heard = torch.randn(ROWS, 3, 16, 16), torch.randn(ROWS, 4000)
    own = torch.arange(ROWS)[rows]
    batch = {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids[rows])}
    labels = {"generation": ids[rows], "classification": own % 2, "retrieval": None}[head]
    batch |= {"return_loss": True} if labels is None else {"labels": labels}
    seen = own if everywhere else own[own < ROWS // 2]
    if len(seen):
        place = torch.arange(len(own))[:, None]
        index = torch.where(place < len(seen), place, -1)
        batch |= {"pixel_values": shown[seen], "image_index": index}
    listening = own[own >= ROWS // 2]
    if "audio" in fields and len(listening):
        place = torch.arange(len(own))[:, None] - (len(own) - len(listening))
        batch |= {"input_features": heard[listening], "audio_index": place.clamp(min=-1)}
    return batch


def processor_of(case):
    """A processor for 16 x 16 pictures and, where the case has it, sound."""
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_convert_rgb=True)
    audio = {"audio": Wav2Vec2FeatureExtractor(), "max_seconds": 1.0} if "audio" in CASES[case][3] else {}
    tokenizer = train_tokenizer(["what is it"], "scratch-tiny", audio=bool(audio))
    return MMProcessor(image_processor=images, tokenizer=tokenizer, **audio)


def step(model, batch):
    """One step of plain gradient descent; the loss before it."""
    loss = model(**batch).loss
    loss.backward()
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1).step()
    return loss.detach().item()


def whole(model):
    """The full state, on the first process."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def trained(case, folder):
    """A step in shards, what was saved of it, and the mean loss."""
    rank, count = dist.get_rank(), dist.get_world_size()
    rows = slice(rank * ROWS // count, (rank + 1) * ROWS // count)
    model = shard(model_of(case))
    unseen = unseen_media(processor_of(case)) if CASES[case][0] != "retrieval" else {}
    loss = torch.tensor(step(model, with_unseen_media(batch_of(case, rows), unseen)))
    dist.all_reduce(loss)
    state = whole(model)
    model.save_pretrained(folder / case, state_dict=dict(state), is_main_process=rank == 0)  # which renames in place
    return {"loss": loss.item() / count, "state": state, "sharded": is_sharded(model)}


def all_trained(folder):
    return {case: trained(case, folder) for case in CASES}
