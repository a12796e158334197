"""Cost of composing pretrained towers: seconds and memory, compared with the text model; writes benchmarks/TOWERS.md.

    python benchmarks/towers.py --vision facebook/dinov2-small --text HuggingFaceTB/SmolLM2-135M-Instruct

A tower is a Hub id or a folder. Every row runs in a separate process; memory is its peak after loading and one forward
pass over eight tokens (weights are memory-mapped until they are used), minus that of the imports.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from modeling_mm import MMForConditionalGeneration


def peak_memory() -> float:
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(variant: str, vision: str, text: str, dtype: str, folder: str) -> None:
    """Load one variant and print seconds, MB and parameters as a line of JSON."""
    before, started = peak_memory(), time.perf_counter()
    if variant == "text model alone":
        model = AutoModelForCausalLM.from_pretrained(text, dtype=dtype)
    elif variant == "composed":
        model = MMForConditionalGeneration.from_towers(vision=vision, text=text, dtype=getattr(torch, dtype))
    else:
        model = MMForConditionalGeneration.from_pretrained(folder)
    spent = time.perf_counter() - started
    with torch.no_grad():
        model(torch.arange(8)[None])
    used = peak_memory() - before
    if variant == "composed":
        model.save_pretrained(folder)
    print(json.dumps({"seconds": spent, "megabytes": used, "parameters": model.num_parameters()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vision", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "TOWERS.md")
    parser.add_argument("--measure", nargs=3, metavar=("VARIANT", "DTYPE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        variant, dtype, folder = args.measure
        return measure(variant, args.vision, args.text, dtype, folder)
    names = [Path(source).name for source in (args.vision, args.text)]
    lines = [
        "# Composing pretrained towers",
        "",
        f"`python benchmarks/towers.py` with {names[0]} and {names[1]} on a CPU, torch {torch.__version__}, "
        f"transformers {transformers.__version__}.",
        "",
        "| loaded | dtype | parameters | seconds | peak memory, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            for variant in ("text model alone", "composed", "composed, saved and loaded"):
                flags = ["--vision", args.vision, "--text", args.text, "--measure", variant, dtype, folder]
                done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=True)
                row = json.loads(done.stdout.splitlines()[-1])
                figures = f"{row['parameters'] / 1e6:.1f}M | {row['seconds']:.1f} | {row['megabytes']:.0f}"
                lines.append(f"| {variant} | {dtype} | {figures} |")
                print(lines[-1], flush=True)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
