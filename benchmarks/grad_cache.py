"""Memory of one contrastive step over 4,096 pairs, with GradCache and with one batch; writes GRAD_CACHE.md.

    python benchmarks/grad_cache.py                           # two minutes on a CPU, and 8 GB of memory
    python benchmarks/grad_cache.py --pairs 1024 --batch 32   # smaller

- Every variant takes one step with `RetrievalTrainer` in a separate process. Memory is the peak of the process, minus
  its peak when the model was loaded.
- "whole matrix" is CLIP's loss, over all logits at once; "loss in chunks" is ours, on the same single batch;
  GradCache is `--contrastive_batch_size`.
- Pairs are distinct noise. The model has no dropout and no matching loss, which would differ with GradCache because
  it is computed on small batches, so all variants have the same loss and gradients. The differences are measured.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch.nn import functional
from transformers import BertConfig, CLIPVisionConfig, TrainerCallback, TrainingArguments

from modeling_mm import MMConfig, MMForImageTextRetrieval
from modeling_mm.training.retrieval_trainer import RetrievalTrainer

VARIANTS = ("whole matrix", "loss in chunks", "GradCache")
SIZE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
SIDE, TOKENS, VOCABULARY = 32, 16, 8192


def peak_memory() -> float:
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def small_model() -> MMForImageTextRetrieval:
    """A ViT and a BERT of four layers, 128 wide, with random weights and without dropout."""
    torch.manual_seed(0)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    text = BertConfig(vocab_size=VOCABULARY, **SIZE, **none)
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, **SIZE)
    return MMForImageTextRetrieval(MMConfig(vision_config=vision, text_config=text, matching_weight=0.0))


class Noise(torch.utils.data.Dataset):
    """Random pairs of an image and a text, generated on access."""

    def __init__(self, pairs: int):
        self.pairs = pairs

    def __len__(self) -> int:
        return self.pairs

    def __getitem__(self, number: int) -> dict:
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(5, VOCABULARY, (TOKENS,), generator=generator)
        return {"number": number, "ids": ids, "pixels": torch.randn(3, SIDE, SIDE, generator=generator)}


def collate(rows: list[dict]) -> dict:
    """A batch in the format of the retrieval collator."""
    ids = torch.stack([row["ids"] for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.stack([row["pixels"] for row in rows]),
        "image_index": torch.arange(len(rows))[:, None],
        "image_keys": torch.tensor([row["number"] for row in rows]),
        "return_loss": True,
    }


class WholeMatrix(RetrievalTrainer):
    """Trains with the softmax loss over all logits at once; the text and the image of a row are a pair."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        logits = model(**{**inputs, "return_loss": False}).logits_per_text
        labels = torch.arange(len(logits))
        return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


class KeepGradients(TrainerCallback):
    """Keeps the gradients that the optimiser is about to use."""

    gradients: dict[str, torch.Tensor]

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def measure(variant: str, pairs: int, batch: int, folder: str) -> None:
    """Take one step, print MB, seconds and loss as a line of JSON, and save the gradients in the folder."""
    model, keep = small_model(), KeepGradients()
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=batch if variant == "GradCache" else pairs, max_steps=1,
        optim="sgd", max_grad_norm=0.0, use_cpu=True, report_to=[], save_strategy="no", logging_steps=1,
        disable_tqdm=True,
    )  # fmt: skip
    kind = WholeMatrix if variant == "whole matrix" else RetrievalTrainer
    size = pairs if variant == "GradCache" else None
    options = {"train_dataset": Noise(pairs), "data_collator": collate, "contrastive_batch_size": size}
    trainer = kind(model=model, args=arguments, callbacks=[keep], **options)
    before, started = peak_memory(), time.perf_counter()
    trainer.train()
    figures = {"seconds": time.perf_counter() - started, "megabytes": peak_memory() - before, "before": before}
    torch.save(keep.gradients, Path(folder) / f"{variant}.pt")
    loss = next(log["loss"] for log in trainer.state.log_history if "loss" in log)
    print(json.dumps({**figures, "loss": float(loss), "parameters": model.num_parameters()}))


def compare_gradients(folder: str, variant: str) -> tuple[float, float]:
    """The largest difference of a gradient from that of the whole matrix, and the largest gradient of the latter."""
    expected, actual = (torch.load(Path(folder) / f"{name}.pt") for name in (VARIANTS[0], variant))
    assert expected.keys() == actual.keys()
    difference = max(float((expected[name] - actual[name]).abs().max()) for name in expected)
    return difference, max(float(gradient.abs().max()) for gradient in expected.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4096, help="pairs of one step")
    parser.add_argument("--batch", type=int, default=64, help="pairs per forward pass with GradCache")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "GRAD_CACHE.md")
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        variant, folder = args.measure
        return measure(variant, args.pairs, args.batch, folder)
    rows = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            flags = ["--pairs", str(args.pairs), "--batch", str(args.batch), "--measure", variant, folder]
            done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{variant} ended with {done.returncode}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            difference, largest = compare_gradients(folder, variant)
            name = f"{variant}, {args.batch} at a time" if variant == "GradCache" else variant
            figures = f"{found['megabytes']:,.0f} | {found['seconds']:.0f} | {found['loss']:.5f}"
            rows.append(f"| {name} | {figures} | {difference:.1e} |")
            print(rows[-1], flush=True)
    lines = [
        f"# One contrastive step over {args.pairs:,} pairs",
        "",
        f"`python benchmarks/grad_cache.py --pairs {args.pairs} --batch {args.batch}`, as by `modeling-mm train "
        f"--contrastive_batch_size {args.pairs} --per_device_train_batch_size {args.batch}`",
        "",
        f"A ViT and a BERT of {found['parameters'] / 1e6:.1f}M parameters together, images of {SIDE} x {SIDE}, "
        f"{TOKENS} tokens, float32, on a CPU ({platform.machine()}, {torch.get_num_threads()} threads, load average "
        f"{load:.1f} on {os.cpu_count()} cores at the start), torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Each variant ran in a separate process; memory is its peak above the "
        f"{found['before']:,.0f} MB of its peak with the model loaded. The largest gradient is {largest:.1e}.",
        "",
        "| variant | peak memory, MB | seconds | loss | largest difference of a gradient from that of the first row |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
