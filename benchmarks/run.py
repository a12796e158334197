"""modeling_mm beside LLaVA on the same towers and the same work; writes benchmarks/RESULTS.md.

    make bench                               # a few minutes on two CPU cores
    python benchmarks/run.py --rounds 3      # quicker

Both models hold a ViT and a Llama decoder of equal shape with random weights. Rounds alternate between the two, so
that a noisy machine disturbs both alike; a row shows medians and how many times faster ours is.
"""

import argparse
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from modeling_mm import MMConfig, MMForConditionalGeneration

VOCABULARY, IMAGE = 8192, 8191


def towers(patches_per_side: int) -> tuple[CLIPVisionConfig, LlamaConfig]:
    """A vision tower 192 wide and a decoder 384 wide."""
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3,
        image_size=16 * patches_per_side, patch_size=16,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return vision, text


def ours(side: int) -> MMForConditionalGeneration:
    vision, text = towers(side)
    return MMForConditionalGeneration(MMConfig(vision_config=vision, text_config=text, image_token_id=IMAGE))


def llava(side: int) -> LlavaForConditionalGeneration:
    vision, text = towers(side)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def inputs(side: int, expanded: bool, rows: int = 4, tokens: int = 64) -> dict[str, torch.Tensor]:
    """The same pictures and texts; LLaVA's marker is repeated for each of the picture's states."""
    torch.manual_seed(0)
    markers = torch.full((rows, side * side if expanded else 1), IMAGE)
    ids = torch.cat([markers, torch.randint(2, IMAGE, (rows, tokens))], dim=1)
    pixels = torch.randn(rows, 3, 16 * side, 16 * side)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def train_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward of the next-token loss over the text; the vision tower is frozen."""
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)
    model(**batch, labels=labels, use_cache=False).loss.backward()
    model.zero_grad()


@torch.no_grad()
def prefill(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """From pictures and text to the first answer token's logits."""
    model(**batch, logits_to_keep=1)


@torch.no_grad()
def answer(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Prefill and 32 new tokens."""
    model.generate(**batch, max_new_tokens=32, do_sample=False)


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(work: Callable, side: int, rounds: int) -> tuple[float, float]:
    """Median seconds of ours and of LLaVA, in alternating rounds after one of warming up."""
    pairs = []
    for build, expanded in ((ours, False), (llava, True)):
        model = build(side).train(work is train_step)
        model.model.vision_tower.requires_grad_(False)
        pairs.append((model, inputs(side, expanded)))
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        for (model, batch), kept in zip(pairs, times, strict=True):
            spent = seconds(lambda model=model, batch=batch: work(model, batch))
            if round_:
                kept.append(spent)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "RESULTS.md")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# modeling_mm beside LLaVA",
        "",
        f"`python benchmarks/run.py --rounds {args.rounds}` at commit {commit or 'unknown'}, {date.today()}: "
        f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, float32.",
        "",
        "4 rows of one picture and 64 text tokens; CLIP tower 192 wide with 6 layers (frozen), Llama decoder 384 wide",
        "with 12 layers, random weights. Medians of alternating rounds; the ratio is LLaVA's time over ours.",
        "",
        "| work | picture tokens | ours, s | LLaVA, s | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for side in (14, 24):
        for work, name in ((train_step, "training step"), (prefill, "prefill"), (answer, "prefill and 32 tokens")):
            mine, theirs = compare(work, side, args.rounds)
            lines.append(f"| {name} | {side * side} | {mine:.3f} | {theirs:.3f} | {theirs / mine:.1f}x |")
            print(lines[-1], flush=True)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
