# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tensors by key in the safetensors shards of one folder, memory-mapped: all processes that read it share its pages.

- A shard is written under another name and then renamed: it is complete or absent, however the process ends.
- Keys, which are hexadecimal digests, fall into buckets. The process that fills a bucket holds its lock, which ends
  with the process, so that several processes fill one folder together and compute nothing twice.
"""

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

logger = logging.getLogger(__name__)

BUCKET_KEYS = 256  # keys in a bucket, roughly, so that several processes find work
MOST_BITS = 10  # leading bits of a key that determine its bucket, at most
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def buckets_of(keys: Sequence[str], total: int) -> dict[str, list[str]]:
    """Keys by their bucket; the number of buckets follows from `total`, the number of all keys."""
    bits = min(MOST_BITS, max(0, (total // BUCKET_KEYS).bit_length() - 1))
    buckets: dict[str, list[str]] = {}
    for key in keys:
        buckets.setdefault("b" + f"{int(key[:8], 16):032b}"[:bits], []).append(key)
    return buckets


class FeatureStore:
    """A folder that maps keys to named tensors; it is created if missing.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.places: dict[str, tuple[str, int]] = {}  # shard and row by key
        self.known: set[str] = set()
        self.mapped: dict[str, dict[str, torch.Tensor]] = {}  # tensors by shard, once one of its keys was read

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "mapped": {}}  # another process maps the files itself

    def look(self, bucket: str = "") -> None:
        """Find the shards written meanwhile, by other processes too; a broken shard counts as absent."""
        for path in sorted(self.folder.glob(f"{bucket}*.safetensors")):
            if path.name in self.known:
                continue
            try:
                with safe_open(path, "pt") as shard:
                    keys = shard.metadata()["keys"].split()
            except SafetensorError as error:
                logger.warning(f"'{path}' is broken ({error}) and not used; delete it")
                continue
            self.known.add(path.name)
            self.places.update((key, (path.name, row)) for row, key in enumerate(keys))

    @contextlib.contextmanager
    def claimed(self, bucket: str, wait: bool) -> Iterator[bool]:
        """A context in which this process fills a bucket; it yields False if another does and `wait` is False."""
        lock = FileLock(self.folder / f"{bucket}.lock")
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            yield False
            return
        try:
            for left in self.folder.glob(f"{bucket}-*.part"):  # of a process that was killed
                left.unlink(missing_ok=True)
            self.look(f"{bucket}-")
            yield True
        finally:
            lock.release()

    def write(self, bucket: str, keys: Sequence[str], tensors: dict[str, torch.Tensor]) -> None:
        """Write tensors (n, ...) of n keys into a bucket that this process has claimed.

        Raises:
            ValueError: the disk is full.
        """
        name = f"{bucket}-{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.put(name, save(tensors, {"keys": " ".join(keys)}))
        self.known.add(name)
        self.places.update((key, (name, row)) for row, key in enumerate(keys))

    def put(self, name: str, content: bytes) -> None:
        """Write a file atomically.

        Raises:
            ValueError: the disk is full.
        """
        part = self.folder / f"{name}.{os.getpid()}.part"
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or a power failure could leave the name without the content
            part.replace(self.folder / name)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise ValueError(
                f"the disk of '{self.folder}' is full; {len(self.places)} entries are there, whole, and will be used "
                "when you run this again with more room"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors (n, ...) of n keys, copied out of the mapped files."""
        rows = []
        for shard, row in (self.places[key] for key in keys):
            if shard not in self.mapped:
                with safe_open(self.folder / shard, "pt") as file:
                    self.mapped[shard] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            rows.append({name: tensor[row] for name, tensor in self.mapped[shard].items()})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
