# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A Hub on loopback for the unmodified `huggingface_hub` client, with faults on demand.

- It holds model and Space repositories with commits, branches and tags, files in git or in LFS, tokens and private
  repositories, and answers with the status codes and headers that the client reads.
- `LoopbackHub` runs in a thread of the test; the client, which reads `HF_ENDPOINT` when it is imported, runs in a
  separate process with `hub.environment(folder)`. Both share the state: tests read `hub.repositories` and `hub.log`.
- `hub.fail("PUT", "/lfs/", status=500)` makes the next such request fail; see `Fault`.
"""

import asyncio
import os
import socket
import threading
import time
from contextlib import closing
from dataclasses import dataclass

import uvicorn
from helpers.hub_endpoints import Endpoints, Refused
from helpers.hub_repository import LFS_SUFFIXES, Content, Repository
from starlette.applications import Starlette
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass
class Fault:
    """A fault in the next `times` requests whose method and path match.

    `status`: the status of the answer; the request has no effect, or with `after` its effect. `breaks`: the
    connection is cut in the middle of the body. `corrupts`: a byte of the body is changed. `intrudes`: another user
    commits first. `slow`: seconds before the answer.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    after: bool = False
    breaks: bool = False
    corrupts: bool = False
    intrudes: bool = False
    slow: float = 0.0

    def matches(self, request):
        return self.times > 0 and request.method == self.method and self.path in request.url.path


class Connection(H11Protocol):
    """A protocol that keeps the transport of each connection, so that it can be cut."""

    transports: dict = {}

    def connection_made(self, transport):
        self.transports[transport.get_extra_info("peername")] = transport
        super().connection_made(transport)


class LoopbackHub(Endpoints):
    """The server with its contents and its faults."""

    def __init__(self):
        super().__init__()
        self.log: list[tuple[str, str, int]] = []  # method, path, status; status 0 if the connection was cut
        self.faults: list[Fault] = []
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        options = {"http": Connection, "interface": "asgi3", "lifespan": "off", "log_level": "error"}
        self.server = uvicorn.Server(uvicorn.Config(self.answer, port=self.port, **options))
        self.routes = Starlette(routes=self.routing())

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *exception):
        self.server.should_exit = True
        self.thread.join(10)

    def environment(self, folder, token="write"):
        """The environment of a process that talks to this Hub and has its caches in `folder`."""
        environment = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(folder / "hf"),
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "0",
        }
        environment |= {
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "no_proxy": "127.0.0.1"}
        inherited = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        return inherited | environment | ({"HF_TOKEN": token} if token else {})

    def fail(self, method, path, **fields):
        self.faults.append(Fault(method, path, **fields))

    def add(self, name, files=(), kind="model", **fields):
        """Add a repository with a first commit, as if it had been pushed before."""
        repository = self.repositories[kind, name] = Repository(kind, name, **fields)
        first = {".gitattributes": Content(b"*.safetensors filter=lfs\n")}
        contents = {path: Content(data, path.endswith(LFS_SUFFIXES)) for path, data in dict(files).items()}
        repository.commit("main", first | contents, "initial commit")
        self.objects |= {content.oid: content.data for content in contents.values() if content.lfs}
        return repository

    def pushed(self, method="POST", part="/commit/"):
        """Number of commits, or other requests, that succeeded."""
        return sum(logged == method and part in path and status == 200 for logged, path, status in self.log)

    # requests and faults

    async def answer(self, scope, receive, send):
        request = Request(scope, receive)
        fault = next((fault for fault in self.faults if fault.matches(request)), None)
        if fault is not None:
            fault.times -= 1
            await asyncio.sleep(fault.slow)
            if fault.breaks:
                await receive()
                self.log.append((request.method, request.url.path, 0))
                return Connection.transports[tuple(scope["client"])].abort()
            if fault.intrudes:
                repository = self.repositories["model", "/".join(request.url.path.split("/")[3:5])]
                files = repository.at().files | {"theirs.txt": Content(b"somebody else's")}
                repository.commit("main", files, "an edit in the browser")

        async def send_and_log(message):
            if message["type"] == "http.response.start":
                self.log.append((request.method, request.url.path, message["status"]))
            await send(message)

        if fault is not None and fault.status is not None:
            if fault.after:
                await self.routes(scope, receive, self.discard)
            return await Refused(fault.status).response()(scope, receive, send_and_log)
        scope["corrupts"] = fault is not None and fault.corrupts
        await self.routes(scope, receive, send_and_log)

    @staticmethod
    async def discard(message):
        """Drop the answer."""
