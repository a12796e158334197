# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Names and docstrings as the field writes them; files and functions that fit on a few screens."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ["modeling_mm", "hub_space", "recipes", "benchmarks", "examples", "tests"]
FILES = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
BANNED = {"own", "of", "said", "told", "given", "some", "one"}  # a name says what it holds
# a docstring begins with a noun phrase or an imperative
OPENERS = re.compile(r"(As|By|For|From|How|Of|That|What|When|Where|Whether|Which|Who|Whose|Why)\b")
FILE_LINES, FUNCTION_LINES = 450, 60


def names_bound(tree: ast.AST) -> set[str]:
    """Variables, arguments, functions, classes and aliases that a file gives names to."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias) and node.asname:
            names.add(node.asname)
    return names


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_reads_well(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert not names_bound(tree) & BANNED
    assert text.count("\n") <= FILE_LINES
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        name, docstring = getattr(node, "name", "module"), ast.get_docstring(node) or ""
        assert not OPENERS.match(docstring), f"{name}: {docstring.splitlines()[0]}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            described = node.body[0].end_lineno - node.body[0].lineno + 1 if docstring else 0
            assert node.end_lineno - node.lineno + 1 - described <= FUNCTION_LINES, name
