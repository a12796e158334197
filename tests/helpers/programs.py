# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Programs in which packages cannot be imported: their preambles, and how they are run."""

import os
import subprocess
import sys

# preamble of a program in which this package cannot be imported
ABSENT = """
import importlib.abc
import sys


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_mm":
            raise ImportError(f"{name} is not installed here")


sys.meta_path.insert(0, Absent())
"""
# preamble of a program in which the packages `{names}` are not installed
PACKAGES_ABSENT = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {names} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def run_without_package(program, folder, *argv):
    """The output of a program that runs in `folder`, offline, with caches of its own and one thread as the tests."""
    done = subprocess.run(
        [sys.executable, "-c", program, *argv],
        cwd=folder,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HOME": str(folder),
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",  # sums by other threads differ in the last bit
        },
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
