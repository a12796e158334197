# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""What towers made of the last uploads, by their content, so that each is encoded once however often it is used."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any


class MediaCache:
    """Results by the content of a file; the one that was not wanted for longest goes first. Threads may share it.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int):
        self.most, self.lock = most, threading.Lock()
        self.known: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def of(self, path: Path, make: Callable[[Path], Any], kind: str = "") -> Any:
        """The result for a file, made if it is not known; one file has one for each `kind`."""
        key = (kind, hashlib.sha256(path.read_bytes()).hexdigest())
        with self.lock:
            if key in self.known:
                self.known.move_to_end(key)
                return self.known[key]
        made = make(path)
        with self.lock:
            self.known[key] = made
            while len(self.known) > self.most:
                self.known.popitem(last=False)
        return made
