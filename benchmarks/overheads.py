# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Overhead besides arithmetic: importing, loading, reading data, and the Trainer around a training loop."""

import csv
import subprocess
import sys
from pathlib import Path

import torch
from generating import MODELS
from measuring import Timing, interleaved
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, TrainingArguments, ViTImageProcessorPil

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.tables import read_table
from modeling_mm.training import scratch
from modeling_mm.training.trainer import MMTrainer

AUTO = (
    "from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, "
    "AutoModelForSequenceClassification, AutoModelForZeroShotImageClassification, AutoProcessor"
)
SIZE, ROWS, BATCH = "scratch-tiny", 512, 32


def importing(rounds: int) -> dict[str, Timing]:
    """Seconds of a Python process that imports transformers with the Auto classes that we use, and of one for ours."""

    def fresh(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    return interleaved({"transformers": lambda: fresh(AUTO), "ours": lambda: fresh("import modeling_mm")}, rounds)


def loading(folder: Path, rounds: int) -> dict[str, Timing]:
    """Seconds of `from_pretrained` for models of `generating`."""
    for name in ("ours", "LLaVA"):
        MODELS[name](14).save_pretrained(folder / name)
    load = AutoModelForImageTextToText.from_pretrained
    return interleaved({name: lambda name=name: load(folder / name) for name in ("ours", "LLaVA")}, rounds)


def drawn_data(folder: Path) -> tuple[MMDataset, MMCollator]:
    """A dataset of questions, each about its own image of 64 x 64, and its collator."""
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "answer"])
        for number in range(ROWS):
            colour = tuple(int(x) for x in torch.randint(256, (3,), generator=torch.Generator().manual_seed(number)))
            Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", "what is the colour of the shape?", f"number {colour[0]}"])
    dataset = MMDataset(
        str(folder / "rows.csv"), *read_table(str(folder / "rows.csv"), "train"), Columns(target="answer")
    )
    tokenizer = scratch.train_tokenizer(["what is the colour of the shape? number 0123456789"], SIZE)
    image_processor = ViTImageProcessorPil(size={"height": 64, "width": 64})
    return dataset, MMCollator(MMProcessor.from_towers(image_processor, tokenizer), "generation")


def reading(dataset: MMDataset, collator: MMCollator, rounds: int) -> float:
    """Rows per second that one process decodes, resizes, tokenises and collates."""
    loader = DataLoader(dataset, BATCH, collate_fn=collator)
    return ROWS / interleaved({"ours": lambda: list(loader)}, rounds)["ours"].median


def around_a_loop(dataset: MMDataset, collator: MMCollator, folder: Path, rounds: int) -> dict[str, Timing]:
    """Seconds of one epoch with the Trainer, and with a plain loop of the same steps."""
    tokenizer = collator.processor.tokenizer
    text = scratch.text_config(SIZE, tokenizer, decoder=True)
    model = MMForConditionalGeneration.from_towers(scratch.vision_config(SIZE), text, processor=collator.processor)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=1e-4,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    device = arguments.device
    model.to(device)

    def bare() -> None:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        for batch in DataLoader(dataset, BATCH, shuffle=True, collate_fn=collator):
            model(**{name: value.to(device) for name, value in batch.items()}).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    trainer = MMTrainer(model=model, args=arguments, train_dataset=dataset, data_collator=collator)
    return interleaved({"bare loop": bare, "MMTrainer": trainer.train}, rounds)
