# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Ablation of the defaults of `--preset scratch`: `interaction` with 4,000 rows, trained without each of them.

    python -m recipes.data.make_interaction --train_rows 4000 --naming_share 0 --output_dir runs/data/interaction-4000
    python benchmarks/ablation.py  # hours; prints a Markdown table

All trainings have the same rows and number of epochs, and differ in the flags below. One that has a report already is
not repeated, so that the command can be interrupted, or run for some seeds and variants at a time. The score is the
accuracy on the test rows, whose images and voices occur in no other split, of the checkpoint that is best on the
validation rows.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

BOTH = ["--cross_attention", "true", "--late_fusion"]
VARIANTS = {
    "the defaults": [],
    "gates closed at first": ["--config_overrides", "fusion_gate_init=0"],
    "no positions of image states": ["--config_overrides", "image_positions=false"],
    "layer norm of what towers give": ["--projector_norm", "layer"],
    "products without MLPs": [*BOTH, "product", "--projector_norm", "batch"],
    "cross-attention alone": ["--cross_attention", "true", "--projector_norm", "batch"],
    "late fusion alone": ["--late_fusion", "product_mlp"],
    "AdamW for all weights": ["--muon_learning_rate", "0"],
    "no augmentation": ["--augment_images=", "--augment_audio="],
}


def accuracy(variant: str, seed: int, args: argparse.Namespace) -> float:
    """Accuracy on the test rows, from the report of an earlier training or of one that runs now."""
    output = args.output_dir / f"{variant.replace(' ', '-')}-{args.epochs}-epochs-{seed}"
    if not (output / "report.json").exists():
        files = [f"--{part}_file={args.data / part}.csv" for part in ("train", "validation", "test")]
        options = [f"--output_dir={output}", f"--num_train_epochs={args.epochs}", f"--seed={seed}"]
        command = [sys.executable, "-m", "modeling_mm.cli", "train", *files, *options, *VARIANTS[variant]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # progress and errors are shown
    return json.loads((output / "report.json").read_text())["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/data/interaction-4000"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=16)
    args = parser.parse_args()
    print(f"| trained with | mean | {' | '.join(f'seed {seed}' for seed in args.seeds)} |")
    print(f"|{'---|' * (2 + len(args.seeds))}", flush=True)
    for variant in args.variants:
        scores = [accuracy(variant, seed, args) for seed in args.seeds]
        print(f"| {variant} | {np.mean(scores):.3f} | {' | '.join(f'{s:.3f}' for s in scores)} |", flush=True)


if __name__ == "__main__":
    main()
