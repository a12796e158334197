"""Imports of the package flow one way, from layer to layer."""

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
    """Names below the package that a file imports, as `data.rows`."""
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


def edges(with_type_checking: bool) -> dict[str, set[str]]:
    """Files of the package by name, and those that each imports; imports within functions count."""

    class Imports(ast.NodeVisitor):
        def __init__(self, parts: tuple[str, ...]):
            self.parts, self.names = parts, set()

        def visit_If(self, node):
            manifest = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            for child in node.orelse if manifest and not with_type_checking else [*node.body, *node.orelse]:
                self.visit(child)

        def visit_ImportFrom(self, node):
            if node.level:
                base = ".".join([*self.parts[: len(self.parts) - node.level], *filter(None, [node.module])])
                self.names |= {base, *(f"{base}.{name.name}".lstrip(".") for name in node.names)}

    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph = {}
    for name, path in files.items():
        imports = Imports(tuple(name.split(".")))
        imports.visit(ast.parse(path.read_text(encoding="utf-8")))
        graph[name] = imports.names & files.keys() - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> set[str]:
    """Files on or between circles: without those, again and again, that import no other or that no other imports."""
    left = set(graph)
    while True:
        imported = set().union(*(graph[name] for name in left)) if left else set()
        ends = {name for name in left if not graph[name] & left or name not in imported}
        if not ends:
            return left
        left -= ends


def test_six_floors_and_no_circle_but_the_manifest():
    assert len(LAYERS) <= 6
    assert circles(edges(with_type_checking=False)) == set()
    assert all(name.startswith("model.") for name in circles(edges(with_type_checking=True)))
