# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The page of `modeling-mm search --html`: thumbnails with scores and captions, all in one file."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .images import BadRow, open_image
from .report import PAGE

SIDE = 480  # pixels of a thumbnail's longer side, twice what a card shows, for dense screens
STYLE = """
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(10rem, 45%), 1fr)); gap: 1.25rem 1rem;
  margin-top: 1.5rem; padding: 0; list-style: none; }}
.cards li {{ min-width: 0; }}
.picture {{ display: grid; place-items: center; aspect-ratio: 1; border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; background: color-mix(in srgb, var(--line) 30%, var(--ground)); color: var(--soft);
  font-size: .85rem; text-align: center; }}
.picture img {{ width: 100%; height: 100%; object-fit: contain; padding: 0; border-radius: 0; background: none; }}
.query {{ width: 8rem; margin: 1rem 0; }}
.scores {{ margin: .4rem 0 .1rem; color: var(--ink); font-variant-numeric: tabular-nums; }}
.scores span {{ color: var(--soft); font-size: .85rem; }}
.name {{ margin: 0; font-size: .85rem; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }}
dl {{ margin: .25rem 0 0; font-size: .85rem; }}
dt {{ display: inline; color: var(--soft); }}
dt::after {{ content: ": "; }}
dd {{ display: inline; margin: 0; }}
"""


def thumbnail(path: str, said: str) -> str:
    """A picture as an <img> that holds its own bytes, or what to say where it cannot be read."""
    try:
        picture = open_image(path)
    except BadRow:
        return '<div class="picture">cannot be read now</div>'
    picture.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f'<div class="picture"><img alt="{escape(said)}" src="data:image/jpeg;base64,{data}"></div>'


def card(hit: dict[str, Any]) -> str:
    """One picture found."""
    score = f"<strong>{hit['rank']}.</strong> <span>similarity</span> {hit['score']:.3f}"
    if hit.get("matching") is not None:
        score += f" <span>matching</span> {hit['matching']:.3f}"
    shown = [(name, value) for name, value in hit["metadata"].items() if value is not None]
    own = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in shown)
    parts = [
        thumbnail(hit["image"], hit["id"]),
        f'<p class="scores">{score}</p>',
        f'<p class="name" title="{escape(hit["id"])}">{escape(hit["id"].rpartition("/")[2] or hit["id"])}</p>',
    ]
    return f"<li>{''.join(parts)}{f'<dl>{own}</dl>' if own else ''}</li>"


def write_page(
    path: Path, text: str | None, image: str | None, where: str | None, hits: Sequence[dict[str, Any]]
) -> None:
    """Write the page; nothing in it points to another file."""
    title = f"“{text}”" if text else "Pictures like this one"
    told = [f"{len(hits)} picture{'' if len(hits) == 1 else 's'}"]
    told += ["like the text and this picture"] if text and image else []
    told += [f"where {where}"] if where else []
    asked = f'<div class="query">{thumbnail(image, "the picture asked for")}</div>' if image else ""
    body = f'{asked}<ol class="cards">{"".join(card(hit) for hit in hits)}</ol>'
    page = PAGE.replace("</style>", f"{STYLE}</style>")  # report.html's page, its braces doubled like ours
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.format(title=escape(title), subtitle=escape(", ".join(told)), body=body), encoding="utf-8")
