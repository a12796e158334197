# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Images of conversations that are on the web, downloaded once into a folder, where `--fetch_images true` allows it.

A table from elsewhere may hold any address: only http and https are fetched, from the hosts that are named, or from
public addresses if none is; redirects and large files are refused.
"""

import hashlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import datasets
import httpx

from .media import BadRow

LARGEST = 20 * 2**20  # bytes
SECONDS = 20.0


def is_web_address(place: object) -> bool:
    """True for an address that would have to be fetched."""
    return isinstance(place, str) and place.startswith(("http://", "https://"))


@dataclass(frozen=True)
class WebImages:
    """Downloads images into a folder that later runs use again.

    Args:
        hosts: the names of hosts to fetch from; none: any whose addresses are public.
        folder: default: in the cache of `datasets`.
    """

    hosts: Sequence[str] = ()
    folder: Path = Path(datasets.config.HF_DATASETS_CACHE) / "modeling_mm-web-images"

    def path(self, address: str) -> str:
        """The file of an image, downloaded unless it is there.

        Raises:
            BadRow: names the address and why it is not fetched.
        """
        file = self.folder / hashlib.sha256(address.encode()).hexdigest()
        if not file.exists():
            self.check_host(address)
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self.download(address, file)
            except httpx.HTTPError as error:
                raise BadRow(f"'{address:.80}' cannot be fetched: {error or type(error).__name__}") from None
        return str(file)

    def check_host(self, address: str) -> None:
        """Refuse a host that is not named or, where none is, not public."""
        host = urlsplit(address).hostname or ""
        if self.hosts:
            if host not in self.hosts:
                raise BadRow(f"'{address:.80}' is on the host '{host}'; --fetch_hosts names {', '.join(self.hosts)}")
            return
        try:
            found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
        except OSError as error:
            raise BadRow(f"'{address:.80}' cannot be fetched: {error}") from None
        if not all(ipaddress.ip_address(str(place).partition("%")[0]).is_global for place in found):
            raise BadRow(f"'{address:.80}' is on a private network; name the host in --fetch_hosts to fetch it")

    def download(self, address: str, file: Path) -> None:
        """Write the image to a file that is renamed when complete."""
        handle, part = tempfile.mkstemp(dir=self.folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as output, httpx.stream("GET", address, timeout=SECONDS) as answer:
                if answer.status_code != 200:
                    raise BadRow(f"'{address:.80}' answers {answer.status_code}; expected 200 and an image")
                size = 0
                for chunk in answer.iter_bytes():
                    size += len(chunk)
                    if size > LARGEST:
                        raise BadRow(f"'{address:.80}' has more than {LARGEST // 2**20} MB; expected a smaller image")
                    output.write(chunk)
            Path(part).replace(file)
        finally:
            Path(part).unlink(missing_ok=True)
