# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Contents of the Hub on loopback: repositories with their commits, and the rules for their cards."""

import hashlib
import itertools
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png", ".jpg")  # files that the preupload answer assigns to LFS


def git_oid(data):
    """The git hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Content:
    """A file of a commit."""

    data: bytes
    lfs: bool = False

    @property
    def oid(self):
        return hashlib.sha256(self.data).hexdigest() if self.lfs else git_oid(self.data)

    def entry(self, path):
        entry = {"type": "file", "path": path, "size": len(self.data), "oid": git_oid(self.data)}
        return entry | ({"lfs": {"oid": self.oid, "size": len(self.data), "pointerSize": 130}} if self.lfs else {})


@dataclass
class Commit:
    """A commit: all files after it, and its parent."""

    oid: str
    parent: str | None
    title: str
    files: dict[str, Content]


@dataclass
class Repository:
    """A model or a Space, with its commits by id and the commits of its branches and tags."""

    kind: str
    name: str
    private: bool = False
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def at(self, revision="main"):
        """The commit of a branch, tag or id; None if there is none."""
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def commit(self, branch, files, title):
        parent = self.branches.get(branch)
        oid = hashlib.sha1(f"{self.kind}{self.name}{branch}{parent}{title}{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, files)
        self.branches[branch] = oid
        return oid


def card_errors(data, kind):
    """Errors in the metadata of a card, by the rules of the Hub's documentation."""
    errors = []
    if kind == "space" and data.get("sdk") not in ("gradio", "docker", "static"):
        errors.append('"sdk" must be one of [gradio, docker, static]')
    for key in ("library_name", "pipeline_tag", "license"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    for key in ("base_model", "datasets", "tags", "language"):
        values = data.get(key, [])
        if not all(isinstance(value, str) and value for value in (values if isinstance(values, list) else [values])):
            errors.append(f'"{key}" must be a string or a list of strings')
    if "model-index" in data:
        results = itertools.chain.from_iterable(model["results"] for model in data["model-index"])
        for result in results:
            if not result["task"]["type"] or not result["dataset"]["type"] or not result["dataset"]["name"]:
                errors.append('"model-index" names no task or data set')
            errors += [
                f'"model-index" has no type or value for a metric: {metric}'
                for metric in result["metrics"]
                if not metric.get("type") or not isinstance(metric.get("value"), (int, float, str))
            ]
    return errors
