# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Training on ragged conversations: padded, grouped by length, packed; and logits where tokens are learned.

    python benchmarks/packing.py  # a quarter of an hour on one core; writes PACKING.md

One thread, CPU seconds, medians. Conversations have 10 to 400 tokens, and half of them an image. All three ways see
the same conversations in an epoch. Memory is the peak of a process that does one step.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import generating
import torch
import transformers
from measuring import Work, interleaved
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_mm import MMConfig, MMForConditionalGeneration
from modeling_mm.data.packing import first_fit
from modeling_mm.model.packing_mm import ATTENTION

MARKER, PAD, WORDS = 5, 0, (10, 2000)
TEXT = f"""# Packing, and logits where tokens are learned

`python benchmarks/packing.py`, one thread, medians; torch {torch.__version__},
transformers {transformers.__version__}.

A decoder of 6 layers, 256 wide, and a small vision tower train on conversations of 10 to 400 tokens, half of them with
an image, about 16 in a batch; a pack has 1,024 tokens. Each way sees the same conversations. By count of operations,
packing gains over grouping what padding is left in its groups, and nothing else; "under a block mask" is what
transformers does.
"""
LLAVA = """A step on eight texts of 10 to 400 tokens with an image of 64 patches each: the models of
[RESULTS.md](RESULTS.md), wall-clock seconds. Ours computes no logits of images and padding.
"""
LOGITS = """A step with a vocabulary of 49,152, 8 x 512 tokens of which a tenth is learned, a decoder of 2 layers, 128
wide.
"""


def build(vocabulary: int, width: int = 256, layers: int = 6) -> MMForConditionalGeneration:
    """A small decoder that sees images in every other layer."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 3 * width,
    }
    text = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=vocabulary, max_position_embeddings=2048)
    vision = CLIPVisionConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, image_size=64, patch_size=8
    )
    fused = list(range(1, layers, 2))
    config = MMConfig(text_config=text, vision_config=vision, image_token_id=MARKER, fusion_layers=fused)
    return MMForConditionalGeneration(config).train()


def conversations(count: int, seed: int) -> list[torch.Tensor]:
    """Token ids of conversations; every second has the marker of an image."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = [torch.randint(*WORDS, (draw.randint(10, 400),), generator=generator) for _ in range(count)]
    for row in rows[::2]:
        row[1] = MARKER
    return rows


def media(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """An image for each marker, and the index of each conversation's."""
    has_image = [bool((row == MARKER).any()) for row in rows]
    index = torch.tensor(has_image).cumsum(0) - 1
    index = torch.where(torch.tensor(has_image), index, -1)[:, None]
    return {"pixel_values": torch.zeros(max(1, sum(has_image)), 3, 64, 64), "image_index": index}


def padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch of padded rows."""
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    return {"input_ids": ids, "attention_mask": (labels != -100).long(), "labels": labels, **media(rows)}


def packed(packs: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of packs."""
    rows = [row for pack in packs for row in pack]
    longest = max(sum(map(len, pack)) for pack in packs)
    ids, labels = torch.full((len(packs), longest), PAD), torch.full((len(packs), longest), -100)
    places = torch.zeros(len(packs), longest, dtype=torch.long)
    for number, pack in enumerate(packs):
        lengths = [len(row) for row in pack]
        whole = torch.cat(pack)
        ids[number, : len(whole)] = labels[number, : len(whole)] = whole
        lengths[-1] += longest - len(whole)
        places[number] = torch.cat([torch.arange(length) for length in lengths])
    return {"input_ids": ids, "position_ids": places, "labels": labels, **media(rows)}


def batches(kind: str, rows: list[torch.Tensor], size: int, per_batch: int) -> list[dict[str, torch.Tensor]]:
    """An epoch's batches of about as many tokens each."""
    lengths = [len(row) for row in rows]
    if kind.startswith("packed"):
        packs = [[rows[i] for i in pack] for pack in first_fit(lengths, size)]
        count = max(1, round(per_batch * sum(lengths) / len(lengths) / size))
        return [packed(packs[i : i + count]) for i in range(0, len(packs), count)]
    order = list(range(len(rows)))
    if kind == "grouped by length":
        order = list(get_length_grouped_indices(lengths, per_batch, generator=torch.Generator().manual_seed(0)))
    return [padded([rows[i] for i in order[begin : begin + per_batch]]) for begin in range(0, len(order), per_batch)]


def measure(kind: str, args: argparse.Namespace) -> tuple[float, float]:
    """Real tokens per CPU second, and the share of tokens that are not padding."""
    model, rows = build(2048), conversations(args.rows, 1)
    if kind == "packed":  # as `--packing true` does on a CPU
        model.set_attn_implementation({"text_config": ATTENTION})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    epoch = batches(kind, rows, args.size, args.per_batch)
    began, real, whole = 0.0, 0, 0
    for number, batch in enumerate(epoch[: args.steps + 1]):
        if number == 1:  # the first step warms up
            began, real, whole = time.process_time(), 0, 0
        model(**batch, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        real, whole = real + int((batch["labels"] != -100).sum()), whole + batch["labels"].numel()
    return real / (time.process_time() - began), real / whole


def loss_curves(steps: int) -> float:
    """The largest difference between the losses of a training on padded rows and on the same rows packed."""
    rows = conversations(8 * steps, 2)
    parts = [rows[i : i + 8] for i in range(0, len(rows), 8)]
    curves = []
    for kind in ("padded", "packed"):
        model, losses = build(2048, width=128, layers=4), []
        if kind == "packed":
            model.set_attn_implementation({"text_config": ATTENTION})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for part in parts:
            batch = padded(part) if kind == "padded" else packed([part[:3], part[3:]])
            loss = model(**batch, num_items_in_batch=sum(map(len, part)) - len(part), skip_logits=True).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        curves.append(losses)
    return max(abs(a - b) for a, b in zip(*curves, strict=True))


def beside_llava(rows: int, rounds: int) -> dict[str, float]:
    """Median seconds of a training step of the models of the main benchmark, on ragged texts with an image each."""
    draw, generator, side = random.Random(3), torch.Generator().manual_seed(3), 8
    texts = [torch.randint(2, 2000, (draw.randint(10, 400),), generator=generator) for _ in range(rows)]
    pixels = torch.randn(rows, 3, generating.PATCH * side, generating.PATCH * side, generator=generator)
    works: dict[str, Work] = {}
    for name in ("LLaVA, padded", "ours, padded", "ours, packed"):
        model = generating.MODELS[name.partition(",")[0]](side).train()
        generating.vision_part(model).requires_grad_(False)
        places = side * side if name.startswith("LLaVA") else 1
        marked = [torch.cat([torch.full((places,), generating.IMAGE), text]) for text in texts]
        batch: dict[str, Any] = {key: padded(marked)[key] for key in ("input_ids", "attention_mask")}
        if name == "ours, packed":
            model.set_attn_implementation({"text_config": ATTENTION})
            batch = {key: packed([marked])[key] for key in ("input_ids", "position_ids")}
        labels = torch.where(batch["input_ids"] == generating.IMAGE, -100, batch["input_ids"])
        labels = labels.masked_fill(batch.get("attention_mask", torch.ones_like(labels)) == 0, -100)
        skip = {} if name.startswith("LLaVA") else {"skip_logits": True}
        works[name] = partial(train_step, model, {**batch, "labels": labels, "pixel_values": pixels, **skip})
    return {name: timing.median for name, timing in interleaved(works, rounds).items()}


def train_step(model: torch.nn.Module, batch: dict[str, Any]) -> None:
    """Forward and backward."""
    model(**batch, use_cache=False).loss.backward()
    model.zero_grad()


def step_memory(skip_logits: bool) -> dict[str, float]:
    """Peak memory in MB beyond the model's, and CPU seconds of a step with a large vocabulary, a tenth learned."""
    model = build(49_152, width=128, layers=2)
    ids = torch.randint(10, 2000, (8, 512))
    labels = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.1, ids, -100)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    model(input_ids=ids[:1, :8], labels=ids[:1, :8]).loss.backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = peak_memory(), time.process_time()
    model(**batch, skip_logits=skip_logits).loss.backward()
    seconds = time.process_time() - began
    return {"MB": peak_memory() - before, "seconds": seconds}


def peak_memory() -> float:
    """Peak of this process's resident memory in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--per_batch", type=int, default=16, help="rows of a padded batch")
    parser.add_argument("--size", type=int, default=1024, help="tokens of a pack")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "PACKING.md")
    parser.add_argument("--memory_of", choices=["all", "learned"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print(json.dumps(step_memory(args.memory_of == "learned")))
        return
    kinds = ["padded", "grouped by length", "packed", "packed, under a block mask"]
    found = {kind: [measure(kind, args) for _ in range(args.repeats)] for kind in kinds}
    speeds = {kind: statistics.median(speed for speed, _ in values) for kind, values in found.items()}
    lines = [TEXT, "| rows are | tokens per CPU second | ratio | tokens that are no padding |", "|---|---|---|---|"]
    for kind, speed in speeds.items():
        lines.append(f"| {kind} | {speed:,.0f} | {speed / speeds['padded']:.2f} | {found[kind][0][1]:.1%} |")
    difference = loss_curves(50)
    lines += [
        "",
        f"Over 50 steps of the same order, the losses of packed and padded rows differ by {difference:.0e} at most.",
    ]
    times = beside_llava(8, args.repeats)
    lines += ["", LLAVA, "| training step | seconds | relative to LLaVA |", "|---|---|---|"]
    lines += [f"| {name} | {value:.2f} | {value / times['LLaVA, padded']:.2f} |" for name, value in times.items()]
    command = [sys.executable, __file__, "--memory_of"]
    results = {
        kind: [json.loads(subprocess.run([*command, kind], capture_output=True, text=True).stdout) for _ in range(3)]
        for kind in ("all", "learned")
    }
    lines += ["", LOGITS, "| logits of | peak MB of a step | CPU seconds |", "|---|---|---|"]
    for kind, values in results.items():
        megabytes, seconds = (statistics.median(value[name] for value in values) for name in ("MB", "seconds"))
        lines.append(f"| {kind} tokens | {megabytes:,.0f} | {seconds:.2f} |")
    print("\n".join(lines))
    if args.output is not None:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
