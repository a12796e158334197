# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Baseline: transformers' VisionTextDualEncoderModel, trained on the data of `make_emoji` for a given time.

    python -m recipes.dual_encoder runs/data/emoji --seconds 300

The towers are read from `towers/convnext/vision` and `.../text` in the data folder. The first run writes them there
with random weights, so that another model can start from the same weights and tokenizer. The text tower is the BERT
of scratch-tiny. The ResNet of scratch-tiny cannot be used, as `ResNetConfig` has no `hidden_size` and its pooled
output is not a vector, nor can a decoder such as Llama, which has no pooled output; `--vision_tower vit`, `swin` and
`convnext` are of about the same size and work.

The training loop uses AdamW, rows in random order, and a cosine schedule over the given CPU seconds of this process
(on one thread of an idle machine, these are wall-clock seconds). `--augment_images` augments as `modeling-mm train`
does, but after images were resized. Recall is measured from text to image, where each text has one correct image, and
from image to text, where any text of the image counts; ties count as wrong.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    ConvNextConfig,
    PreTrainedTokenizerBase,
    SwinConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

from modeling_mm.data.augmentation import image_transform
from modeling_mm.training.scratch import train_tokenizer

SIDE = 32  # pixels: half the size of the images, at a quarter of the time
SPLITS = ("train", "validation", "test_vendor", "test_concepts")
VISION_TOWERS = {
    "vit": ViTConfig(
        **{"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256},
        **{"image_size": SIDE, "patch_size": 4},
    ),
    "swin": SwinConfig(
        image_size=SIDE, patch_size=2, embed_dim=24, depths=[1, 1, 1], num_heads=[2, 4, 6], window_size=4
    ),
    # the dual encoder reads hidden_size, for which ConvNext has another name
    "convnext": ConvNextConfig(
        image_size=SIDE, patch_size=2, hidden_sizes=[32, 64, 96], depths=[1, 1, 1], num_stages=3, hidden_size=96
    ),
}


class Split(NamedTuple):
    """The rows of one CSV: P images and N texts, N at least P."""

    pixels: torch.Tensor  # (P, 3, SIDE, SIDE)
    texts: list[str]  # N
    image_index: torch.Tensor  # (N,): the image of each text


def text_config(tokenizer: PreTrainedTokenizerBase) -> BertConfig:
    """A small BERT, whose pooled output `VisionTextDualEncoderModel` needs."""
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return BertConfig(vocab_size=len(tokenizer), initializer_range=0.1, **sizes, **dropout, **ids)


def write_towers(folder: Path, vision_tower: str, texts: list[str], seed: int) -> None:
    """Write towers with random weights to `folder/vision` and `folder/text`, unless they exist."""
    if (folder / "text" / "model.safetensors").exists():
        return
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(texts, "scratch-tiny")
    AutoModel.from_config(VISION_TOWERS[vision_tower]).save_pretrained(folder / "vision")
    size = {"height": SIDE, "width": SIDE}
    ViTImageProcessorPil(size=size).save_pretrained(folder / "vision")
    tokenizer.save_pretrained(folder / "text")
    AutoModel.from_config(text_config(tokenizer)).save_pretrained(folder / "text")


def read_split(folder: Path, split: str, image_processor: Any) -> Split:
    """A split, with all images in memory."""
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(row["image"] for row in rows))}
    images = []
    for name in numbers:
        with Image.open(folder / name) as file:
            images.append(file.convert("RGB"))
    pixels = image_processor(images, return_tensors="pt")["pixel_values"]
    return Split(pixels, [row["text"] for row in rows], torch.tensor([numbers[row["image"]] for row in rows]))


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless batches of row numbers, reshuffled in each epoch; the incomplete last batch of an epoch is dropped."""
    while True:
        yield from torch.randperm(count, generator=generator).split(size)[: count // size]


def train(
    model: VisionTextDualEncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Split,
    options: argparse.Namespace,
) -> int:
    """Train for `options.seconds` of CPU time, summed over cores; return the number of rows trained on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    encoded = tokenizer(data.texts)
    names = options.augment_images
    augment = image_transform(names, (SIDE, SIDE)) if names else torch.nn.Identity()
    generator = torch.Generator().manual_seed(options.seed)
    model.train()
    rows_trained, start = 0, time.process_time()
    for rows in batches(len(data.texts), options.batch_size, generator):
        done = (time.process_time() - start) / options.seconds
        if done >= 1:
            return rows_trained
        for group in optimizer.param_groups:  # warm-up for a tenth of the time, then cosine decay
            group["lr"] = options.learning_rate * min(10 * done, (1 + math.cos(math.pi * done)) / 2)
        text = tokenizer.pad({"input_ids": [encoded["input_ids"][row] for row in rows]}, return_tensors="pt")
        loss = model(**text, pixel_values=augment(data.pixels[data.image_index[rows]]), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        rows_trained += len(rows)
    raise AssertionError("batches have no end")


@torch.inference_mode()
def embed(
    model: VisionTextDualEncoderModel, tokenizer: PreTrainedTokenizerBase, data: Split, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised embeddings of the images (P, D) and of the texts (N, D)."""
    model.eval()
    images = [model.get_image_features(pixel_values=pixels).pooler_output for pixels in data.pixels.split(size)]
    texts = []
    for start in range(0, len(data.texts), size):
        text = tokenizer(data.texts[start : start + size], padding=True, return_tensors="pt")
        texts.append(model.get_text_features(text["input_ids"], text["attention_mask"]).pooler_output)
    return normalize(torch.cat(images), dim=-1), normalize(torch.cat(texts), dim=-1)


def recalls(images: torch.Tensor, texts: torch.Tensor, image_index: torch.Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions; text n of (N, D) belongs to image `image_index[n]` of (P, D)."""
    scores = texts @ images.T  # (N, P)
    positive = image_index[:, None] == torch.arange(len(images))  # (N, P)
    negatives = scores.masked_fill(positive, -torch.inf)
    text_score = scores.gather(1, image_index[:, None])  # (N, 1)
    text_rank = (negatives >= text_score).sum(1)  # (N,): wrong images that come first
    image_score = scores.masked_fill(~positive, -torch.inf).max(0).values  # (P,): that of the best positive text
    image_rank = (negatives >= image_score).sum(0)  # (P,): wrong texts that come first
    ways = {"text_to_image": text_rank, "image_to_text": image_rank}
    return {
        f"{way}_recall@{k}": round((rank < k).float().mean().item(), 4)
        for way, rank in ways.items()
        for k in (1, 5, 10)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--towers", type=Path, help="folder with `vision` and `text`; default: FOLDER/towers/NAME")
    parser.add_argument("--vision_tower", choices=VISION_TOWERS, default="convnext", help="default: %(default)s")
    parser.add_argument(
        "--seconds",
        type=float,
        default=300,
        help="CPU time of training in seconds, summed over cores; default: %(default)s",
    )
    parser.add_argument("--batch_size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="default: %(default)s")
    parser.add_argument("--augment_images", nargs="*", choices=("crop", "rotate", "flip"), default=[])
    parser.add_argument("--projection_dim", type=int, default=96, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    towers = options.towers or options.folder / "towers" / options.vision_tower
    with (options.folder / "train.csv").open(newline="", encoding="utf-8") as file:
        write_towers(towers, options.vision_tower, [row["text"] for row in csv.DictReader(file)], options.seed)
    tokenizer = AutoTokenizer.from_pretrained(towers / "text")
    image_processor = AutoImageProcessor.from_pretrained(towers / "vision", backend="pil")
    data = {split: read_split(options.folder, split, image_processor) for split in SPLITS}
    torch.manual_seed(options.seed)
    model = VisionTextDualEncoderModel.from_vision_text_pretrained(
        str(towers / "vision"), str(towers / "text"), projection_dim=options.projection_dim
    )
    rows_trained = train(model, tokenizer, data["train"], options)
    result: dict[str, Any] = {"vision_tower": model.config.vision_config.model_type, "seconds": options.seconds}
    result |= {"parameters": model.num_parameters(), "rows_per_second": round(rows_trained / options.seconds, 1)}
    result["epochs"] = round(rows_trained / len(data["train"].texts), 1)
    for split in SPLITS:
        embeddings = embed(model, tokenizer, data[split], options.batch_size)
        result[split] = recalls(*embeddings, data[split].image_index)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
