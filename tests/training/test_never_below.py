"""The law that a model of frozen pretrained towers is never below simple baselines on the same towers' features.

Slow, and skipped unless towers are named by Hub id or folder, for instance

    MM_VISION=facebook/dinov2-small MM_ENCODER=sentence-transformers/all-MiniLM-L6-v2 \
        python -m pytest -m slow tests/training/test_never_below.py

MM_FEATURES names a folder that keeps the vision tower's features from one run to the next.
"""

import csv
import json
import os
import shutil
import subprocess
import sys

import easy_vqa
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from recipes.data import make_emoji_groups
from recipes.data.digits import WORDS

VISION, ENCODER = (os.environ.get(name) for name in ("MM_VISION", "MM_ENCODER"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (VISION and ENCODER), reason="no pretrained towers: set MM_VISION and MM_ENCODER"),
]
SIZES = {"train": 600, "validation": 200, "test": 400}
TOLERANCE = 0.005


def write(folder, split, rows):
    with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "text", "label"), *rows])


def emoji_groups(folder):
    """The group of an emoji, from its drawing and two keywords, tested on a vendor that is not in training."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    sizes = {f"{split}_rows": count for split, count in SIZES.items()}
    make_emoji_groups.make(folder, 0, **sizes, validation_emoji=150, test_emoji=400)


def damaged_digits(folder):
    """Handwritten digits, of which a third are noise, with a hint that often names only half of the digits."""
    digits, rng = load_digits(), np.random.default_rng(0)
    order, start = rng.permutation(len(digits.images)), 0
    for split, count in SIZES.items():
        rows = []
        for number in order[start : start + count]:
            digit = int(digits.target[number])
            ink = digits.images[number] if rng.random() < 0.67 else rng.uniform(0, 16, (8, 8))
            picture = Image.fromarray((255 - ink * 15.9).astype("uint8")).convert("RGB")
            picture.resize((56, 56), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
            hints = ["", f"it is {'odd' if digit % 2 else 'even'}", f"{'five or more' if digit > 4 else 'below five'}"]
            rows.append((f"{number}.png", rng.choice([*hints, f"perhaps {WORDS[digit]}"]), WORDS[digit]))
        write(folder, split, rows)
        start += count


def shapes(folder):
    """The answers of easy-VQA, which depend on both the question and the image."""
    rng = np.random.default_rng(0)
    parts = {"train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths())}
    parts["test"] = (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths())
    parts["validation"] = parts["train"]
    drawn = {split: rng.permutation(len(parts[split][0][0])) for split in ("train", "test")}
    drawn["validation"] = drawn["train"][SIZES["train"] :]
    for split, count in SIZES.items():
        (questions, answers, images), paths = parts[split]
        chosen = drawn[split][:count]
        write(folder, split, [(paths[images[i]], questions[i], answers[i]) for i in chosen])


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return os.environ.get("MM_FEATURES") or str(tmp_path_factory.mktemp("features"))


@pytest.mark.parametrize("make", [emoji_groups, damaged_digits, shapes])
def test_fused_is_never_below_the_best_baseline(make, features, tmp_path):
    make(tmp_path)
    files = [part for split in SIZES for part in (f"--{split}_file", str(tmp_path / f"{split}.csv"))]
    towers = ["--vision_tower", VISION, "--text_model", ENCODER, "--cache_features", features]
    quiet = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--output_dir", str(tmp_path / "out")]
    # a process of its own, since the time limit counts from the start of the process
    command = [sys.executable, "-m", "modeling_mm.cli", "train", "--task", "classification", "--time_limit", "300"]
    subprocess.run([*command, *files, *towers, *quiet], check=True)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    scores = {row["model"]: row["accuracy"] for row in report["baselines"]["table"][1:]}
    assert {"image alone", "text alone", "late fusion"} <= scores.keys()
    assert report["accuracy"] >= max(scores.values()) - TOLERANCE, (report["accuracy"], scores)
