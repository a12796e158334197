# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Training on ragged conversations: padded, grouped by length, and packed; and logits where tokens are learned.

    python benchmarks/packing.py  # minutes; prints Markdown tables

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
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_mm import MMConfig, MMForConditionalGeneration
from modeling_mm.data.packing import first_fit
from modeling_mm.model.packing_mm import ATTENTION

MARKER, PAD, WORDS = 5, 0, (10, 2000)


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
    parser.add_argument("--memory_of", choices=["all", "learned"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print(json.dumps(step_memory(args.memory_of == "learned")))
        return
    kinds = ["padded", "grouped by length", "packed", "packed, under a block mask"]
    found = {kind: [measure(kind, args) for _ in range(args.repeats)] for kind in kinds}
    speeds = {kind: statistics.median(speed for speed, _ in values) for kind, values in found.items()}
    print("| rows are | tokens per CPU second | ratio | tokens that are no padding |\n|---|---|---|---|")
    for kind, speed in speeds.items():
        print(f"| {kind} | {speed:,.0f} | {speed / speeds['padded']:.2f} | {found[kind][0][1]:.1%} |")
    command = [sys.executable, __file__, "--memory_of"]
    results = {
        kind: [json.loads(subprocess.run([*command, kind], capture_output=True, text=True).stdout) for _ in range(3)]
        for kind in ("all", "learned")
    }
    print("\n| logits of | peak MB of a step | CPU seconds |\n|---|---|---|")
    for kind, values in results.items():
        megabytes, seconds = (statistics.median(value[name] for value in values) for name in ("MB", "seconds"))
        print(f"| {kind} tokens | {megabytes:,.0f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
