"""Index and search: recovery after kills while indexing, latency and recall; writes benchmarks/SEARCH.md.

    python benchmarks/search.py                     # minutes on a CPU; about 3 GB of temporary disk space
    python benchmarks/search.py --parts latency     # one part; the other one in SEARCH.md is kept

- Generated images are indexed by `modeling-mm index` with a tiny random CLIP. The command is killed by SIGKILL at
  three stages of its work; the last run ends normally.
- Vectors are drawn around cluster centres in 32 dimensions, mapped to 256 by a random linear map, with a little noise
  in all 256, and normalised: like embeddings, they have neighbours and most variance in few directions. Queries are
  drawn separately in the same way. Latency is from the query's vector to ten rows, one query after another.
"""

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lancedb
import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from modeling_mm.data.media import open_image
from modeling_mm.search.ann import build_ann
from modeling_mm.search.dual_encoder import DualEncoder
from modeling_mm.search.gallery import INDEX_COLUMNS, Gallery
from modeling_mm.training.scratch import train_tokenizer

WIDTH, LATENT, CLUSTERS, QUERIES = 256, 32, 2000, 100
KILLED_AT = (0.15, 0.4, 0.7)  # fractions of the rows written


def save_clip(folder: Path) -> str:
    """Save a tiny CLIP with random weights, and its processor; return the folder."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["an image of coloured blocks"], "scratch-tiny")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessorPil(size=size, crop_size=size), tokenizer).save_pretrained(folder)
    return str(folder)


def draw_images(folder: Path, count: int) -> None:
    """Write PNG files of 4 x 4 coloured blocks, a thousand in each folder."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((32, 32), 0).save(path)


def rows_in(index: Path) -> int:
    """Number of rows written so far."""
    gallery = Gallery.find(str(index))
    return 0 if gallery is None else len(gallery)


def survive(folder: Path, count: int) -> list[str]:
    """Index images in spite of three kills; return lines of the report."""
    model = save_clip(folder / "clip")
    draw_images(folder / "images", count)
    index = folder / "index"
    command = [sys.executable, "-m", "modeling_mm.cli", "index", "--model", model, "--images", folder / "images"]
    lines, started = (
        ["| run | ended by | rows afterwards | seconds |", "| --- | --- | --- | --- |"],
        time.perf_counter(),
    )
    for run, share in enumerate((*KILLED_AT, None), start=1):
        since = time.perf_counter()
        process = subprocess.Popen(
            [*map(str, command), "--index", str(index)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        while share is not None and process.poll() is None and rows_in(index) < share * count:
            time.sleep(0.2)
        if share is not None:
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode == (0 if share is None else -signal.SIGKILL), process.returncode
        end = "itself" if share is None else "SIGKILL"
        lines.append(f"| {run} | {end} | {rows_in(index):,} | {time.perf_counter() - since:.0f} |")
        print(lines[-1], flush=True)
    table = Gallery.open(str(index)).table.search().select(["id", "image", "vector"]).to_arrow()
    distinct, chosen = (
        len(set(table["id"].to_pylist())),
        table.slice(0, table.num_rows).take(list(range(0, count, 97))),
    )
    embedded_again = DualEncoder.load(model).embed_images([open_image(path) for path in chosen["image"].to_pylist()])
    difference = np.abs(embedded_again - np.array(chosen["vector"].to_pylist(), np.float32)).max()
    assert table.num_rows == distinct == count == json.loads(output.splitlines()[-1])["rows"]
    return [
        f"{count:,} images of 32 x 32, a CLIP of two layers, `modeling-mm index` with its defaults:",
        "",
        *lines,
        "",
        f"In the end {table.num_rows:,} rows with {distinct:,} different ids; every 97th image, embedded again, is "
        f"within {difference:.1e} of its row. All four runs took {time.perf_counter() - started:.0f} s.",
    ]


def vectors_of(rng: np.random.Generator, centres: np.ndarray, mixing: np.ndarray, count: int) -> np.ndarray:
    """Normalised vectors (count, WIDTH) around the centres (CLUSTERS, LATENT)."""
    latent = centres[rng.integers(0, CLUSTERS, count)] + 0.5 * rng.standard_normal((count, LATENT), np.float32)
    vectors = latent @ mixing + 0.1 * rng.standard_normal((count, WIDTH), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def latencies(gallery: Gallery, queries: np.ndarray, exact: bool) -> tuple[np.ndarray, list[set[str]]]:
    """Milliseconds of each query, and the ids found."""
    spent, found = [], []
    gallery.nearest(queries[0], 10, exact=exact)  # reads from disk what all queries share
    for query in queries:
        since = time.perf_counter()
        rows = gallery.nearest(query, 10, exact=exact)
        spent.append(1000 * (time.perf_counter() - since))
        found.append({row["id"] for row in rows})
    return np.array(spent), found


def measure(folder: Path, count: int) -> list[str]:
    """Rows of the report for a gallery of `count` vectors, for exact search and its ANN index."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, LATENT), np.float32)
    mixing = rng.standard_normal((LATENT, WIDTH), np.float32) / LATENT**0.5
    made_by = {"model": "none", "weights": "", "width": WIDTH, "vocabulary": "", "image_processor": {}}
    gallery = Gallery.create(str(folder / str(count)), made_by, {})
    for start in range(0, count, 50_000):
        ids = [str(number) for number in range(start, min(start + 50_000, count))]
        gallery.put({name: ids for name in INDEX_COLUMNS}, vectors_of(rng, centres, mixing, len(ids)), {})
    gallery.compact()
    queries = vectors_of(rng, centres, mixing, QUERIES)
    spent, truth = latencies(gallery, queries, exact=True)
    lines = [f"| {count:,} | exact | | {np.median(spent):.1f} | {np.percentile(spent, 95):.1f} | 1 |"]
    print(lines[-1], flush=True)
    since = time.perf_counter()
    built = build_ann(gallery)
    seconds = time.perf_counter() - since
    spent, found = latencies(gallery, queries, exact=False)
    recall = np.mean([len(near & true) / 10 for near, true in zip(found, truth, strict=True)])
    effort = ", ".join(f"{name} {value}" for name, value in built["effort"].items())
    figures = f"{np.median(spent):.1f} | {np.percentile(spent, 95):.1f} | {recall:.3f}"
    lines.append(f"| {count:,} | {built['kind']} ({effort}) | {seconds:.0f} | {figures} |")
    print(lines[-1], flush=True)
    return lines


def conditions() -> str:
    """The machine, its load and the versions of a measurement."""
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the start"
    versions = f"lancedb {lancedb.__version__}, torch {torch.__version__}"
    return f"On a CPU ({platform.machine()}, {load}, nice {os.nice(0)}), {versions}."


def kills(folder: Path, images: int, vectors: list[int]) -> list[str]:
    return ["## Killed three times", "", conditions(), "", *survive(folder, images)]


def latency(folder: Path, images: int, vectors: list[int]) -> list[str]:
    measured_on = conditions()
    rows = [row for count in vectors for row in measure(folder, count)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        "## Latency and recall",
        "",
        f"{measured_on} Synthetic vectors {WIDTH} wide: {CLUSTERS:,} cluster centres in {LATENT} dimensions, 0.5 of "
        f"noise around them, a random linear map to {WIDTH}, 0.1 of noise in all of those, normalised. {QUERIES} "
        "queries drawn in the same way, one after another, from the query's vector to ten rows; recall@10 is on "
        "these. The build time includes the exact searches that `--ann` compares with.",
        "",
        "| rows | search | build time, s | p50, ms | p95, ms | recall@10 |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Peak memory of the process was {peak:.1f} GB, including the generation of vectors.",
    ]


PARTS = {"kills": kills, "latency": latency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--vectors", type=int, nargs="+", default=[20_000, 1_000_000])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "SEARCH.md")
    args = parser.parse_args()
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            lines = PARTS[part](Path(folder), args.pictures, args.vectors)
        page = args.output.read_text(encoding="utf-8") if args.output.is_file() else ""
        sections = {text.split("\n")[0]: text.strip() for text in page.split("\n## ")[1:]}
        sections[lines[0].removeprefix("## ")] = "\n".join(lines).removeprefix("## ")
        text = "\n\n".join(
            ["# Index and search", "`python benchmarks/search.py`"]
            + [f"## {section}" for section in sections.values()]
        )
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
