"""An epoch with and without cached features of a frozen tower; writes FEATURE_CACHE.md.

    python benchmarks/feature_cache.py                          # a quarter of an hour on a CPU
    python benchmarks/feature_cache.py --pictures 32 --rounds 1  # shorter

- The same model, rows and seed are trained for two epochs without a cache, with a new cache, and with the existing
  one, in turns, as by `modeling-mm train --cache_features`. The tower dominates the step: a ViT-S/16 with a small
  decoder that answers one short question about each image.
- Times are CPU seconds of this process, since other work may share the machine; medians over the rounds.
- The first epoch with a new cache includes computing the features.
"""

import argparse
import copy
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, TrainerCallback, TrainingArguments

from modeling_mm import MMConfig, MMForConditionalGeneration, MMProcessor
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.training.build import use_cached_features
from modeling_mm.training.scratch import train_tokenizer
from modeling_mm.training.splits import Splits
from modeling_mm.training.trainable import set_trainable
from modeling_mm.training.trainer import MMTrainer

VARIANTS = ("without", "with a new cache", "with the cache of an earlier run")
ANSWERS = ["red", "green", "blue", "no", "yes", "round"]


def write_rows(folder: Path, images: int) -> MMDataset:
    """A dataset of one question about each of `images` images of noise, 256 x 256."""
    for number in range(images):
        noise = np.random.default_rng(number).integers(0, 255, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    table = {
        "image": [f"{number}.png" for number in range(images)],
        "text": ["what is there to be seen in this image"] * images,
        "answer": [ANSWERS[number % len(ANSWERS)] for number in range(images)],
    }
    return MMDataset("noise", datasets.Dataset.from_dict(table), folder, Columns("image", "text", "answer"))


def model_and_processor() -> tuple[MMForConditionalGeneration, MMProcessor]:
    """A model of a frozen ViT-S/16 and a decoder of four layers, 256 wide, with random weights, and its processor."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["what is there to be seen in this image", *ANSWERS], "scratch-tiny")
    processor = MMProcessor(CLIPImageProcessorPil(do_convert_rgb=True), tokenizer)
    width = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
    vision = CLIPVisionConfig(image_size=224, patch_size=16, **width)
    small = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    text = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **small)
    config = MMConfig(vision_config=vision, text_config=text, image_token_id=processor.image_token_id)
    model = MMForConditionalGeneration(config)
    set_trainable(model, vision=False, fusion=True, text=True)
    return model, processor


class Epochs(TrainerCallback):
    """CPU and wall-clock seconds at the end of each epoch."""

    def __init__(self):
        self.ends: list[tuple[float, float]] = []

    def on_epoch_end(self, args, state, control, **kwargs):
        self.ends.append((time.process_time(), time.perf_counter()))


def train(
    model: MMForConditionalGeneration, processor: MMProcessor, rows: MMDataset, batch: int, cache: Path | None
) -> dict:
    """CPU and wall-clock seconds of two epochs, losses and weights."""
    epochs, model = Epochs(), copy.deepcopy(model)
    arguments = TrainingArguments(
        output_dir=str(rows.folder / "out"), use_cpu=True, num_train_epochs=2, per_device_train_batch_size=batch,
        learning_rate=1e-4, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = MMTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=MMCollator(processor, "generation"),
        processing_class=processor, callbacks=[epochs],
    )  # fmt: skip
    starts = (time.process_time(), time.perf_counter())
    if cache is not None:
        use_cached_features(trainer, Splits(rows, rows), cache, "float32")
    trainer.train()
    times = [starts, *epochs.ends]
    seconds = [[times[i + 1][clock] - times[i][clock] for i in range(2)] for clock in range(2)]
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {"processor": seconds[0], "wall": seconds[1], "losses": losses, "weights": model.state_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("FEATURE_CACHE.md"))
    args = parser.parse_args()
    load = os.getloadavg()[0]
    model, processor = model_and_processor()
    runs: dict[str, list[dict]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        rows, cache = write_rows(Path(folder), args.pictures), Path(folder) / "features"
        train(model, processor, rows.subset(list(range(args.batch))), args.batch, None)  # to warm up
        for _ in range(args.rounds):
            shutil.rmtree(cache, ignore_errors=True)
            for variant in VARIANTS:
                run = train(model, processor, rows, args.batch, None if variant == "without" else cache)
                runs[variant].append(run)
                print(variant, {name: [round(s, 2) for s in run[name]] for name in ("processor", "wall")}, flush=True)
        size = sum(path.stat().st_size for path in cache.rglob("*.safetensors"))
    args.output.write_text("\n".join(report(args, runs, model, size, load)) + "\n", encoding="utf-8")


def report(args: argparse.Namespace, runs: dict, model: torch.nn.Module, size: int, load: float) -> list[str]:
    """The lines of the page."""
    plain = runs["without"][0]
    bare = [statistics.median(run["processor"][epoch] for run in runs["without"]) for epoch in range(2)]
    lines = []
    for variant in VARIANTS:
        cells = [variant]
        for epoch in range(2):
            seconds = [run["processor"][epoch] for run in runs[variant]]
            wall = statistics.median(run["wall"][epoch] for run in runs[variant])
            middle = statistics.median(seconds)
            cells += [f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})", f"{wall:.2f}"]
            cells.append(f"{bare[epoch] / middle:.1f}x")
        run = runs[variant][0]
        cells.append(f"{max(abs(a - b) for a, b in zip(run['losses'], plain['losses'], strict=True)):.1e}")
        weights = run["weights"]
        cells.append(
            f"{max(float((weights[name] - weight).abs().max()) for name, weight in plain['weights'].items()):.1e}"
        )
        lines.append(f"| {' | '.join(cells)} |")
    tower = sum(p.numel() for p in model.model.vision_tower.parameters()) / 1e6
    others = sum(p.numel() for p in model.parameters()) / 1e6 - tower
    return [
        "# An epoch with cached features of a frozen tower",
        "",
        f"`python benchmarks/feature_cache.py --pictures {args.pictures} --batch {args.batch} --rounds {args.rounds}`"
        ", as by `modeling-mm train --cache_features`",
        "",
        f"A frozen ViT-S/16 of {tower:.1f}M parameters under a decoder and fusion of {others:.1f}M that train; "
        f"{args.pictures} images of 224 x 224, a question of one line about each, batches of {args.batch}, float32, "
        f"on a CPU ({platform.machine()}, {torch.get_num_threads()} threads, load average {load:.1f} on "
        f"{os.cpu_count()} cores at the start), torch {torch.__version__}, transformers {transformers.__version__}. "
        f"Medians of {args.rounds} alternating rounds (minimum to maximum in brackets); "
        f"the first epoch with a new cache includes computing the features. The cache takes {size / 1e6:.1f} MB, "
        f"{size / args.pictures / 1e3:.0f} kB for each image.",
        "",
        "| training | epoch 1, CPU s | wall-clock s | speed-up | epoch 2, CPU s | wall-clock s | speed-up "
        "| largest loss difference | largest weight difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *lines,
        "",
        "The speed-up is in CPU seconds. The last two columns compare the losses of all steps and the final weights "
        "with those without the cache.",
    ]


if __name__ == "__main__":
    main()
