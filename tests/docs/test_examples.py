# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The examples run for a few steps, are short, work offline, and use public names only."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

import modeling_mm

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
TRAIN_FOR_SECONDS = ("find_images",)
LINES = 58  # at most: what can be read on one screen
NOT_YET_PUBLIC = {"modeling_mm.data.rows.Columns"}  # maps columns to their meaning, for MMDataset
PRINTED = {
    "quickstart": "answer: ",
    "lora": "the same logits after merging",
    "train_in_python": "trained folder: MMForConditionalGeneration",
    "three_modalities": "of 200 new rows",
    "find_images": "rank   score  id",
    "trl_sft": '{"accuracy": ',
    "trl_dpo": "the right answer is preferred in",
    "trl_grpo": "in the last five",
}


def runs(path):
    marks = pytest.mark.slow if path.stem in TRAIN_FOR_SECONDS else ()
    return pytest.param(path, id=path.stem, marks=marks)


def names_of(path):
    """Full names of everything that an example imports from this package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "modeling_mm":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_is_an_example_for_each_way_of_use():
    assert {path.stem for path in EXAMPLES} == set(PRINTED)


@pytest.mark.parametrize("path", map(runs, EXAMPLES))
def test_an_example_runs(path, tmp_path, monkeypatch, capsys):
    if path.stem.startswith("trl_"):
        pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "2"])
    runpy.run_path(str(path), run_name="__main__")
    assert PRINTED[path.stem] in capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path):
    source = path.read_text(encoding="utf-8")
    header = ast.get_docstring(ast.parse(source))
    assert len(source.splitlines()) < LINES
    assert "Run on a CPU" in header and f"python examples/{path.name}" in header
    assert "# With the Hub: " in source or "# With the Hub, " in source


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_uses_public_names_only(path):
    top = {name for name in names_of(path) if name.count(".") == 1}
    assert set(names_of(path)) - top <= NOT_YET_PUBLIC
    assert all(hasattr(modeling_mm, name.partition(".")[2]) for name in top - {"modeling_mm.cli"})
