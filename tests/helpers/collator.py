# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Image files for tests of the collator."""

import pytest
from helpers.builders import drawing


@pytest.fixture
def files(tmp_path):
    """Paths of three different images."""
    paths = []
    for name, colour in (("a", (200, 0, 0)), ("b", (0, 0, 200)), ("c", (0, 200, 0))):
        drawing(colour).save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
    return paths
