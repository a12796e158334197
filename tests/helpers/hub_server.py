# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A Hub on loopback for the unmodified `huggingface_hub` client, with faults on demand.

- It holds model and Space repositories with commits, branches and tags, files in git or in LFS, tokens and private
  repositories, and answers with the status codes and headers that the client looks at.
- `LoopbackHub` runs in a thread of the test; the client, which reads `HF_ENDPOINT` when it is imported, runs in a
  process of its own with `hub.environment(folder)`. Both see one state: tests read `hub.repositories` and `hub.log`.
- `hub.fail("PUT", "/lfs/", status=500)` lets the next such request fail; see `Fault`.
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
    """What happens to the next `times` requests whose method and path match.

    `status`: they are answered so, without effect; `after`: with effect, only the answer is lost. `breaks`: the
    connection is cut in the middle of the body. `corrupts`: a byte of the body arrives changed. `intrudes`: somebody
    else commits first. `slow`: seconds before the answer.
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

    def meets(self, request):
        return self.times > 0 and request.method == self.method and self.path in request.url.path


class Connection(H11Protocol):
    """Remembers the transport of each connection, so that one can be cut."""

    transports: dict = {}

    def connection_made(self, transport):
        self.transports[transport.get_extra_info("peername")] = transport
        super().connection_made(transport)


class LoopbackHub(Endpoints):
    """The server, all it holds, and what goes wrong with it."""

    def __init__(self):
        super().__init__()
        self.log: list[tuple[str, str, int]] = []  # method, path, status; 0 where the connection was cut
        self.faults: list[Fault] = []
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        own = {"http": Connection, "interface": "asgi3", "lifespan": "off", "log_level": "error"}
        self.server = uvicorn.Server(uvicorn.Config(self.answer, port=self.port, **own))
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
        """The environment of a process that talks to this Hub and keeps what it is told in `folder`."""
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(folder / "hf"), "HOME": str(folder), "HF_HUB_OFFLINE": "0"}
        own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        own |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "no_proxy": "127.0.0.1"}
        rest = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        return rest | own | ({"HF_TOKEN": token} if token else {})

    def fail(self, method, path, **what):
        self.faults.append(Fault(method, path, **what))

    def add(self, name, files=(), kind="model", **fields):
        """A repository with a first commit, as if somebody had pushed it before."""
        repository = self.repositories[kind, name] = Repository(kind, name, **fields)
        first = {".gitattributes": Content(b"*.safetensors filter=lfs\n")}
        own = {path: Content(data, path.endswith(LFS_SUFFIXES)) for path, data in dict(files).items()}
        repository.commit("main", first | own, "initial commit")
        self.objects |= {content.oid: content.data for content in own.values() if content.lfs}
        return repository

    def pushed(self, method="POST", part="/commit/"):
        """How many commits, or other requests, were answered well."""
        return sum(done == method and part in path and status == 200 for done, path, status in self.log)

    # requests and faults

    async def answer(self, scope, receive, send):
        request = Request(scope, receive)
        fault = next((one for one in self.faults if one.meets(request)), None)
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

        async def told(message):
            if message["type"] == "http.response.start":
                self.log.append((request.method, request.url.path, message["status"]))
            await send(message)

        if fault is not None and fault.status is not None:
            if fault.after:
                await self.routes(scope, receive, self.nowhere)
            return await Refused(fault.status).response()(scope, receive, told)
        scope["corrupts"] = fault is not None and fault.corrupts
        await self.routes(scope, receive, told)

    @staticmethod
    async def nowhere(message):
        """An answer that nobody gets."""
