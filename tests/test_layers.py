"""Imports in the package go one way, from layer to layer."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "modeling_mm"
LAYERS = [
    ["model", "version"],
    ["tasks", "checkpoint"],
    ["data"],
    ["evaluation", "search", "export"],
    ["training", "report", "hub"],
    ["commands"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = [
    path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem in RANK
]


def imported(file: Path) -> set[str]:
    """Modules of the package that a file imports, such as `data.rows`."""
    parts, found = file.with_suffix("").parts, set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
            found |= (
                {".".join(filter(None, base))} if node.module else {".".join([*base[:-1], n.name]) for n in node.names}
            )
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found |= {name.removeprefix("modeling_mm.") for name in names if name.startswith("modeling_mm")}
    return found


def test_every_folder_and_file_has_a_layer():
    beside = {"__init__", "cli", "version", "startup", "registration", "__pycache__", "py"}
    assert {path.stem for path in PACKAGE.iterdir()} - beside <= {*RANK}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down(file):
    folder = Path(file.parts[0]).stem
    for name in imported(file):
        other = name.split(".")[0]
        assert other in RANK, f"{file} imports {name}"
        below = RANK[other] < RANK[folder]
        assert below or other == folder or (RANK[other] == RANK[folder] == 1), (
            f"{file} imports {name}, which is not below it"
        )


def test_the_space_imports_nothing_of_the_package():
    for path in (PACKAGE.parent / "hub_space").glob("*.py"):
        assert "import modeling_mm" not in path.read_text() and "from modeling_mm" not in path.read_text()
