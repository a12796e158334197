# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Files shipped with the package, the Space and the recipes: inside it in a wheel, beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped_folder(name: str) -> Path:
    """The path of `hub_space` or `recipes`."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def recipes() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(shipped_folder("recipes").glob("*.yaml"))}


def recipes_module() -> str:
    """The module with the programs that write the recipes' data, for `python -m`."""
    return "modeling_mm.recipes.data" if shipped_folder("recipes").parent == PACKAGE else "recipes.data"


def config_file(name: str) -> Path:
    """The file that `--config` names: a path, or the name of a shipped recipe; an existing file takes precedence.

    Raises:
        ValueError: it is neither; the message lists the recipes.
    """
    path = Path(name)
    if not path.exists() or path.is_dir():
        path = recipes().get(name, path)
    if not path.exists():
        raise ValueError(
            f"the config file '{name}' does not exist; expected a path, or the name of a recipe of modeling-mm train: "
            f"{', '.join(recipes())}"
        )
    return path
