# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Inputs that a public Space must survive: deceptive files, paths outside of uploads, markup, wrong types."""

import io
import struct
import zlib
from functools import partial

import numpy as np
import soundfile
from helpers.space import SPACE, file_data
from PIL import Image

SECRET = "root:x:0:0"  # of /etc/passwd
MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "$\\input{/etc/passwd}$",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "<image>" * 9,
    "<audio><video><image>",
    "</s><s><pad><unk><|im_end|>",
    "\u202egnirts\u202c \u0000 \u0007",
    "'; DROP TABLE users; --",
]
BAD_TEXTS = ["x" * 1001, "x" * 1_000_000, 5, 1.5, True, ["a"], {"a": "b"}, [[]], "\ud800" * 2000]


def png(width, height, rows=b"", extra=b""):
    """A PNG whose header states this size, whatever it contains."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(kind, size=(20, 20), mode="RGB"):
    stored = io.BytesIO()
    Image.new(mode, size).save(stored, kind)
    return stored.getvalue()


def encoded_audio(samples, rate, kind="WAV", subtype=None):
    stored = io.BytesIO()
    soundfile.write(stored, samples, rate, format=kind, subtype=subtype)
    return stored.getvalue()


def bad_images():
    """Files that must not be accepted as images, by their defect."""
    bomb = zlib.compress(b"\0" * 100_000_000)
    text = struct.pack(">I", len(bomb) + 5) + b"zTXt" + b"a\0\0" + b"  " + bomb + b"\0\0\0\0"
    whole = encoded("PNG", (200, 200))
    return {
        "empty": b"",
        "one byte": b"\x89",
        "text": b"this is no image",
        "html": b"<html><script>alert(1)</script></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:40],
        "truncated jpeg": encoded("JPEG", (300, 300))[:300],
        "bomb": png(60_000, 60_000, b"\0" * 1_000_000),
        "25 million pixels": encoded("PNG", (5000, 5000), "1"),
        "no width": png(0, 10),
        "fewer rows than told": png(100, 100, b"\0" * 50),
        "bomb of text": png(4, 4, b"\0" * 52, text),
        "tiff": encoded("TIFF"),
        "eps": encoded("EPS"),
        "pdf": encoded("PDF"),
        "icns": encoded("ICNS", (64, 64), "RGBA"),
        "audio": encoded_audio(np.zeros(100), 8000),
        "zip": b"PK\x03\x04" + b"\0" * 100,
        "pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    }


def bad_audio():
    """Files that must not be accepted as audio, by their defect."""
    whole = encoded_audio(np.zeros(4000), 8000)
    return {
        "empty": b"",
        "text": b"this is not audio",
        "picture": encoded("PNG"),
        "header only": whole[:40],
        "no samples": encoded_audio(np.zeros(0), 8000),
        "too long": encoded_audio(np.zeros(31 * 1000), 1000),
        "rate of 4 GHz": whole[:24] + struct.pack("<I", 2**32 - 1) + whole[28:],
        "no rate": whole[:24] + struct.pack("<I", 0) + whole[28:],
        "not finite": encoded_audio(np.full(100, np.nan, np.float32), 8000, subtype="FLOAT"),
        "many channels": encoded_audio(np.zeros((10, 100)), 8000),
        "aiff": encoded_audio(np.zeros(100), 8000, "AIFF"),
        "au": encoded_audio(np.zeros(100), 8000, "AU"),
        "truncated ogg": encoded_audio(np.zeros(9000), 8000, "OGG")[:60],
        "pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    }


def bad_files(server, upload):
    """Values that must not be accepted as an uploaded file."""
    paths = [
        "/etc/passwd",
        "../../../../../../etc/passwd",
        f"{upload}/../../../../../../../../etc/passwd",
        str(SPACE / "app.py"),
        "app.py",
        "file:///etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        server.urls["asked"],
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/a.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "",
        ".",
        "a\0b.png",
        "x" * 5000,
        "~/.bashrc",
    ]
    wrong = [5, True, "/etc/passwd", ["/etc/passwd"], {}, {"path": 5}, {"path": None, "url": "file:///etc/passwd"}]
    inline = {"path": upload, "url": "data:image/png;base64,iVBORw0KGgo=", "meta": {"_type": "gradio.FileData"}}
    bare = {"path": "/etc/passwd"}
    return [*map(file_data, paths), *wrong, inline, bare]


def cases(server):
    """All cases (title, Space, data); `data()` uploads the files and returns the endpoint and its inputs."""
    good = {name: server.upload(name, encoded("PNG")) for name in server.urls}
    found = []

    def add(title, name, call, *inputs):
        found.append((title[:80], name, lambda: call(*(value() if callable(value) else value for value in inputs))))

    def plain(endpoint):
        return lambda *inputs: (endpoint, *inputs)

    for title, content in bad_images().items():
        for name, call in calls(good):
            add(f"image {title}", name, call, partial(server.upload, name, content), "yes")
    for title, content in bad_audio().items():
        for name, call in calls(good, audio=True):
            add(f"audio {title}", name, call, partial(server.upload, name, content, "a.wav"), "yes")
    for name, call in calls(good):
        for file in bad_files(server, good[name]["path"]):
            add(f"file {file!r}", name, call, file, "yes")
        for text in [*MARKUP, *BAD_TEXTS]:
            add(f"text {text!r}", name, call, good[name], text)
    for number in (-1, 0, 257, 1e9, float("nan"), "8", "x", [8], {}, True):
        add(f"length {number!r}", "asked", plain("chat"), {"text": "yes", "files": []}, False, number)
        add(f"most {number!r}", "found", plain("search"), "yes", None, gallery_of([good["found"]]), False, number)
    for message in (5, "text", [], {}, {"text": None}, {"files": [good["asked"]]}, {"text": "a", "files": 5}):
        add(f"message {message!r}", "asked", plain("chat"), message, False, 4)
    add("nine images", "asked", plain("chat"), {"text": "yes", "files": [good["asked"]] * 9}, False, 4)
    add("61 images", "found", plain("search"), "yes", None, gallery_of([good["found"]] * 61), False, 4)
    for gallery in (5, "x", [5], [{}], [{"image": None}], [[]], {"image": good["found"]}):
        add(f"gallery {gallery!r}", "found", plain("search"), "yes", None, gallery, False, 4)
    for name, endpoint in (
        ("asked", "look"),
        ("classified", "classify"),
        ("found", "search"),
        ("asked", "chat"),
        ("asked", "ask"),
    ):
        add("nothing", name, plain(endpoint))
        add("too much", name, plain(endpoint), *(None,) * 12)
    return found


def gallery_of(files):
    return [{"image": file, "caption": None} for file in files]


def calls(good, audio=False):
    """Pairs of a Space and a function that builds a call of its endpoint from an image, or audio, and a text."""
    if audio:
        yield "classified", lambda file, text: ("classify", None, text, file)
        yield "asked", lambda file, text: ("chat", {"text": text, "files": [file]}, False, 4)
        yield "asked", lambda file, text: ("ask", text, None, file, 4)
        return
    yield "asked", lambda file, text: ("chat", {"text": text, "files": [file]}, False, 4)
    yield "asked", lambda file, text: ("ask", text, file, None, 4)
    yield "asked", lambda file, text: ("look", file, text)
    yield "classified", lambda file, text: ("classify", file, text, None)
    yield "found", lambda file, text: ("search", text, file, gallery_of([good["found"]]), False, 4)
    yield "found", lambda file, text: ("search", text, None, gallery_of([file]), False, 4)
