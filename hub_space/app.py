# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A Space that shows one model: its tabs are what the model can do.

    MM_MODEL_ID=user/name python app.py

- MM_MODEL_ID: a Hub id, or a folder. MM_MODEL_REVISION: a commit of it, or what a branch is at start.
- MM_PASSWORD: asked of everyone, with the user name "demo". MM_REQUESTS_PER_MINUTE: of one session (0: no limit).
- MM_QUEUE: requests that may wait. MM_CONCURRENCY: requests of one kind that run at a time.
"""

import os

# before gradio is imported, which reads them then
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from asking import Asker, ask_tab
from attention import can_look, look_tab
from classifying import STYLE, classify_tab
from limits import CHARACTERS, FILE_BYTES, GALLERY, PICTURES, PIXELS, SECONDS, GuardedBlocks
from loading import Shown, limits_of, load
from searching import Searcher, search_tab

USER = "demo"
HOW = """
A vision tower turns each image into a grid of states{hears}; layers of **gated cross-attention** inside the text
model look at these states while it reads. Images stay outside the text, so one is encoded once, however often it is
asked about. The gates start at zero: before training the text model is exactly what it was.

{facts}
"""
CSS = """
.gradio-container { width: 100% !important; max-width: 1100px !important; margin: 0 auto !important; }
footer .divider { display: none; }
@media (max-width: 480px) {
  .gradio-container { padding: 8px !important; }
  .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
  .grid-container > *, .grid-container button { min-width: 0 !important; }
}
"""


def facts(shown: Shown) -> str:
    """Lines about the model."""
    config = shown.model.config
    towers = {"vision": config.vision_config, "sound": config.audio_config, "text": config.text_config}
    names = {name: tower.model_type for name, tower in towers.items() if tower is not None}
    millions = sum(parameter.numel() for parameter in shown.model.parameters()) / 1e6
    lines = [f"- {name} tower: {kind}" for name, kind in names.items()]
    lines.append(f"- {millions:,.1f} million parameters")
    return "\n".join([*lines, *([f"- commit `{shown.commit[:12]}`"] if shown.commit else [])])


def limits_text(shown: Shown) -> str:
    """What the card says of the model's limits, and what this page takes."""
    said = limits_of(shown.card) or "The model card says nothing about limits; expect wrong answers."
    media = f"files up to {FILE_BYTES // 10**6} MB, images up to {PIXELS // 10**6} million pixels"
    sound = f", sounds up to {SECONDS} seconds" if shown.hears else ""
    counts = {"generation": f", {PICTURES} files in a conversation", "retrieval": f", {GALLERY} images to search in"}
    own = f"This page takes {media}{sound}, texts up to {CHARACTERS:,} characters"
    kept = "Uploads are deleted after an hour. Answers may be wrong; do not rely on them."
    return f"{said}\n\n{own}{counts.get(shown.kind, '')}. {kept}"


def tabs_of(shown: Shown) -> dict[str, Callable[[], None]]:
    """What the model can do: the name of each tab, and what fills it."""
    tabs: dict[str, Callable[[], None]] = {}
    if shown.kind == "generation":
        asker = Asker(shown)
        tabs["Ask"] = lambda: ask_tab(asker)
    if shown.kind == "classification":
        tabs["Classify"] = lambda: classify_tab(shown)
    if shown.kind == "retrieval":
        searcher = Searcher(shown)
        tabs["Search"] = lambda: search_tab(searcher)
    if can_look(shown):
        tabs["Look"] = lambda: look_tab(shown)
    return tabs


def build(shown: Shown) -> gr.Blocks:
    """The page."""
    hour = 3600
    name = shown.name.rpartition("/")[2]
    with GuardedBlocks(title=name, analytics_enabled=False, delete_cache=(hour // 4, hour)) as page:
        gr.Markdown(f"# {name}\nA small page to try the model `{shown.name}`.")
        for title, fill in tabs_of(shown).items():
            with gr.Tab(title):
                fill()
        with gr.Accordion("How it works", open=False):
            hears = ", an audio tower does so with sound" if shown.hears else ""
            gr.Markdown(HOW.format(facts=facts(shown), hears=hears))
        with gr.Accordion("Limits", open=False):
            gr.Markdown(limits_text(shown))
    return page.queue(
        max_size=int(os.environ.get("MM_QUEUE", 64)),
        default_concurrency_limit=int(os.environ.get("MM_CONCURRENCY", 2)),
    )


def signed_in(password: str) -> Callable[[str, str], bool]:
    """Whether a name and a password are those of the Space, in equal time for all wrong ones."""
    wanted = f"{USER}\n{password}".encode()
    return lambda user, given: secrets.compare_digest(f"{user}\n{given}".encode(), wanted)


def launch_options() -> dict[str, Any]:
    """How the page is served: nothing of other hosts, no stack traces, no files but uploads."""
    system = ["ui-sans-serif", "system-ui", "sans-serif"]
    theme = gr.themes.Soft(font=system, font_mono=["ui-monospace", "monospace"]).set(
        checkbox_border_color="*neutral_400",  # white on white otherwise
        checkbox_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        input_border_width="1px",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_700",
    )
    password = os.environ.get("MM_PASSWORD")
    return {
        "theme": theme,
        "css": CSS + STYLE,
        "auth": signed_in(password) if password else None,
        "max_file_size": FILE_BYTES,
        "show_error": False,
        "ssr_mode": False,
        "share": False,
        "enable_monitoring": False,
        "footer_links": ["api"],
        "blocked_paths": [str(Path(__file__).parent)],
    }


def main() -> None:
    model_id = os.environ.get("MM_MODEL_ID")
    if not model_id:
        raise SystemExit("MM_MODEL_ID is not set; expected a Hub id or a folder with a trained model")
    build(load(model_id, os.environ.get("MM_MODEL_REVISION") or None)).launch(**launch_options())


if __name__ == "__main__":
    main()
