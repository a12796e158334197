# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Preambles of programs in which packages cannot be imported."""

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
