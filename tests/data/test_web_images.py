# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Images on the web are fetched once, from hosts that are allowed, and refused in a sentence otherwise."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from helpers.builders import drawing

from modeling_mm.data import web_images
from modeling_mm.data.media import BadRow
from modeling_mm.data.web_images import WebImages


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of one image, a redirect and errors, which counts requests."""
    file = tmp_path_factory.mktemp("web") / "a.png"
    drawing((200, 0, 0)).save(file)
    image = file.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            status = {"/a.png": 200, "/moved": 302}.get(self.path, 404)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/a.png")
            self.end_headers()
            self.wfile.write(image if status == 200 else b"")

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.image = [], image
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def address(server, path="/a.png"):
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_an_image_is_fetched_once(server, tmp_path):
    web = WebImages(["127.0.0.1"], tmp_path / "cache")
    server.asked.clear()
    files = {web.path(address(server)) for _ in range(3)}
    assert server.asked == ["/a.png"] and len(files) == 1
    assert (tmp_path / "cache" / files.pop().rpartition("/")[2]).read_bytes() == server.image


@pytest.mark.parametrize(
    "hosts, path, expected",
    [
        ([], "/a.png", "is on a private network; name the host in --fetch_hosts"),
        (["example.org"], "/a.png", "is on the host '127.0.0.1'; --fetch_hosts names example.org"),
        (["127.0.0.1"], "/moved", "answers 302; expected 200"),
        (["127.0.0.1"], "/b.png", "answers 404; expected 200"),
    ],
)
def test_others_are_refused(server, tmp_path, hosts, path, expected):
    with pytest.raises(BadRow) as error:
        WebImages(hosts, tmp_path).path(address(server, path))
    assert expected in str(error.value) and not list(tmp_path.iterdir())


def test_a_large_file_and_a_dead_host_are_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(web_images, "LARGEST", 10)
    with pytest.raises(BadRow, match="has more than 0 MB"):
        WebImages(["127.0.0.1"], tmp_path).path(address(server))
    with pytest.raises(BadRow, match="cannot be fetched"):
        WebImages(["127.0.0.1"], tmp_path).path("http://127.0.0.1:9/a.png")
    assert not list(tmp_path.iterdir())
