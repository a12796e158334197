# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Self-contained HTML pages, with tables and images, for light and dark, wide and narrow screens: `templates/`.

Jinja2 escapes every text on a page.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data.media import BadRow, open_image

SIDE = 480  # pixels of a thumbnail's longer side, twice its size on the page, for dense screens


@dataclass
class Section:
    """A part of the report: `table` has one dict per row, `image` is a PNG file to embed."""

    heading: str
    text: str = ""
    table: Sequence[dict[str, Any]] = field(default_factory=list)
    image: Path | None = None

    @property
    def columns(self) -> list[str]:
        """The keys of all rows of the table; a row that lacks one shows a dash."""
        return list(dict.fromkeys(name for row in self.table for name in row))


def cell(value: Any) -> str:
    """The text of a table cell."""
    if value is None:
        return "–"
    if isinstance(value, tuple):  # the ends of an interval
        return " to ".join(f"{end:.3f}" for end in value)
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def data_uri(encoded: bytes, kind: str) -> str:
    """A data URI with the bytes of an image."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def thumbnail(path: str) -> bytes | None:
    """A small JPEG of an image; None if it cannot be read."""
    try:
        image = open_image(path)
    except BadRow:
        return None
    image.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def write(path: Path, template: str, **content: Any) -> None:
    """Write a page from a template; it refers to no other file."""
    environment = Environment(
        loader=PackageLoader("modeling_mm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "data_uri": data_uri, "thumbnail": thumbnail}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment.get_template(template).render(content), encoding="utf-8")


def write_report(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the report of an evaluation."""
    write(path, "report.html", title=title, subtitle=subtitle, sections=sections)


def write_page(
    path: Path, text: str | None, image: str | None, where: str | None, hits: Sequence[dict[str, Any]]
) -> None:
    """Write the results of a search: the query, and a card for each hit."""
    parts = [f"{len(hits)} image{'' if len(hits) == 1 else 's'}"]
    parts += ["similar to the text and this image"] if text and image else []
    parts += [f"where {where}"] if where else []
    title = f"“{text}”" if text else "Images similar to this one"
    write(path, "search.html", title=title, subtitle=", ".join(parts), image=image, hits=hits)
