# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""report.html: one file with tables and pictures in it, for light and dark screens, wide and narrow ones."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ..data.media import BadRow, open_image

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ground: #fff; --ink: #1c1f24; --soft: #5b6470; --line: #d8dde3; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ground: #15181c; --ink: #e6e9ed; --soft: #9aa4b0; --line: #343b44; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; margin: 0 0 .25rem; }}
h2 {{ font-size: 1.15rem; margin: 2rem 0 .5rem; }}
p {{ margin: .25rem 0 .75rem; color: var(--soft); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
th, td {{ padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 6px; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{subtitle}</p>
{body}
</body>
</html>
"""


@dataclass
class Section:
    """A part of the report: `table` has one dict per row, `picture` is a PNG that becomes part of the file."""

    heading: str
    text: str = ""
    table: Sequence[dict[str, Any]] = field(default_factory=list)
    picture: Path | None = None


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "&ndash;"
    if isinstance(value, tuple):  # the ends of an interval
        return " to ".join(f"{end:.3f}" for end in value)
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def html_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table with one column per key; a row that lacks a key shows a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell(row.get(name))}</td>" for name in names) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def html_section(section: Section) -> str:
    """One section with its picture inlined."""
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.table:
        parts.append(html_table(section.table))
    if section.picture is not None:
        data = base64.b64encode(section.picture.read_bytes()).decode()
        parts.append(f'<p><img alt="{escape(section.heading)}" src="data:image/png;base64,{data}"></p>')
    return "\n".join(parts)


def write_report(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page; nothing in it points to another file."""
    body = "\n".join(html_section(section) for section in sections)
    path.write_text(PAGE.format(title=escape(title), subtitle=escape(subtitle), body=body), encoding="utf-8")


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
