# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A cache of encoded uploads, keyed by their content, so that each is encoded once however often it is used."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any


class MediaCache:
    """A least recently used cache of results, keyed by the content of a file. Threads may share it.

    Args:
        max_entries: maximum number of results.
    """

    def __init__(self, max_entries: int):
        self.max_entries, self.lock = max_entries, threading.Lock()
        self.cached: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def get_or_compute(self, path: Path, compute: Callable[[Path], Any], kind: str = "") -> Any:
        """The result for a file, computed if it is not cached; a file has one result for each `kind`."""
        key = (kind, hashlib.sha256(path.read_bytes()).hexdigest())
        with self.lock:
            if key in self.cached:
                self.cached.move_to_end(key)
                return self.cached[key]
        result = compute(path)
        with self.lock:
            self.cached[key] = result
            while len(self.cached) > self.max_entries:
                self.cached.popitem(last=False)
        return result
