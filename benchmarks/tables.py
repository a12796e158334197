# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tables of scikit-learn by `modeling-mm train` without flags, beside gradient boosting with scikit-learn's defaults.

    python benchmarks/tables.py  # 8 minutes; prints a Markdown table

A split has 60 % training, 20 % validation and 20 % test rows, classes in equal shares; its seed is that of training.
Boosting is fitted on the training rows, which the model trains on too, and on training and validation rows, which
the model needs to choose its checkpoint.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split

LOADERS = {"breast": load_breast_cancer, "wine": load_wine, "digits": load_digits, "diabetes": load_diabetes}
REGRESSIONS = ("diabetes",)
COLUMNS = ("table", "rows", "model", "boosting", "boosting, train + validation", "seconds")


def write_splits(name: str, seed: int, folder: Path) -> tuple[list[pd.DataFrame], pd.DataFrame]:
    """Write the three splits of a table as CSV files; returns them, and training and validation rows together."""
    table = LOADERS[name](as_frame=True).frame
    table.columns = [column.replace(" ", "_").replace("/", "_") for column in table.columns]

    def split(rows: np.ndarray, share: float) -> list[np.ndarray]:
        classes = None if name in REGRESSIONS else table.target[rows]
        return train_test_split(rows, test_size=share, random_state=seed, stratify=classes)

    fitted, test = split(np.arange(len(table)), 0.2)
    train, validation = split(fitted, 0.25)
    folder.mkdir(parents=True, exist_ok=True)
    for file, rows in (("train", train), ("validation", validation), ("test", test)):
        table.iloc[rows].to_csv(folder / f"{file}.csv", index=False)
    return [table.iloc[rows] for rows in (train, validation, test)], table.iloc[fitted]


def boosted(name: str, seed: int, fitted: pd.DataFrame, test: pd.DataFrame) -> float:
    """Accuracy, or R2, of gradient boosting on the test rows."""
    kind = HistGradientBoostingRegressor if name in REGRESSIONS else HistGradientBoostingClassifier
    estimator = kind(random_state=seed).fit(fitted.drop(columns="target"), fitted.target)
    return estimator.score(test.drop(columns="target"), test.target)


def trained(name: str, seed: int, folder: Path) -> tuple[float, float]:
    """Accuracy, or R2, of the model on the test rows, and the seconds of the whole command."""
    files = [word for part in ("train", "validation", "test") for word in (f"--{part}_file", folder / f"{part}.csv")]
    options = ["--output_dir", folder / "model", "--time_limit", 720, "--seed", seed]
    began = time.time()
    command = [sys.executable, "-m", "modeling_mm.cli", "train", *map(str, [*files, *options])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    report = json.loads((folder / "model" / "report.json").read_text())
    return report["r2" if name in REGRESSIONS else "accuracy"], time.time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/tables"))
    args = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for name in args.tables:
        figures = []
        for seed in args.seeds:
            folder = args.output_dir / f"{name}-{seed}"
            (train, _, test), fitted = write_splits(name, seed, folder)
            score, wall = trained(name, seed, folder)
            figures.append((score, *(boosted(name, seed, rows, test) for rows in (train, fitted)), wall))
        *scores, seconds = zip(*figures, strict=True)
        cells = [f"{np.mean(each):.3f} ({', '.join(f'{score:.3f}' for score in each)})" for each in scores]
        print(f"| {name} | {len(train)} | {' | '.join(cells)} | {np.mean(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
