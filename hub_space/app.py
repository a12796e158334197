# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A Gradio Space for one model, with a tab for each thing that the model can do.

    MM_MODEL_ID=user/name python app.py

- MM_MODEL_ID: a Hub id or a folder. MM_MODEL_REVISION: a commit or a branch; a branch is resolved once, at start.
- MM_PASSWORD: password that every visitor must enter, with the user name "demo".
- MM_REQUESTS_PER_MINUTE: limit for one session (0: no limit).
- MM_QUEUE: number of requests that may wait. MM_CONCURRENCY: number of requests per endpoint that run at a time.
"""

import os

# set before gradio is imported, as gradio reads it on import
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from asking import Asker, ask_tab
from attention import has_attention_maps, look_tab
from classifying import STYLE, classify_tab
from limits import MAX_AUDIO_SECONDS, MAX_CHARACTERS, MAX_FILE_BYTES, MAX_GALLERY, MAX_MEDIA, MAX_PIXELS, GuardedBlocks
from loading import LoadedModel, limits_of, load
from searching import Searcher, search_tab

USER = "demo"
HOW_IT_WORKS = """
A vision tower encodes each image as a grid of hidden states{audio_clause}. Layers of **gated cross-attention** in the
text model attend to these states. Images are not part of the token sequence, so each is encoded only once, however
many questions are asked about it. The gates start at zero: before training, the text model is exactly the original.

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


def model_facts(loaded: LoadedModel) -> str:
    """Markdown list of the towers, the number of parameters and the commit."""
    config = loaded.model.config
    towers = {"vision": config.vision_config, "audio": config.audio_config, "text": config.text_config}
    names = {name: tower.model_type for name, tower in towers.items() if tower is not None}
    millions = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    lines = [f"- {name} tower: {kind}" for name, kind in names.items()]
    lines.append(f"- {millions:,.1f} million parameters")
    return "\n".join([*lines, *([f"- commit `{loaded.commit[:12]}`"] if loaded.commit else [])])


def limits_text(loaded: LoadedModel) -> str:
    """Markdown: limits from the model card, then the sizes that this page accepts."""
    model_limits = limits_of(loaded.card) or "The model card states no limits; expect wrong answers."
    media = f"files up to {MAX_FILE_BYTES // 10**6} MB, images up to {MAX_PIXELS // 10**6} million pixels"
    audio = f", audio clips up to {MAX_AUDIO_SECONDS} seconds" if loaded.takes_audio else ""
    counts = {
        "generation": f", {MAX_MEDIA} files in a conversation",
        "retrieval": f", {MAX_GALLERY} images in a gallery",
    }
    page_limits = f"This page accepts {media}{audio}, texts up to {MAX_CHARACTERS:,} characters"
    notice = "Uploads are deleted after an hour. Answers may be wrong; do not rely on them."
    return f"{model_limits}\n\n{page_limits}{counts.get(loaded.kind, '')}. {notice}"


def tabs_of(loaded: LoadedModel) -> dict[str, Callable[[], None]]:
    """The name of each tab that the model supports, with the function that draws it."""
    tabs: dict[str, Callable[[], None]] = {}
    if loaded.kind == "generation":
        asker = Asker(loaded)
        tabs["Ask"] = lambda: ask_tab(asker)
    if loaded.kind == "classification":
        tabs["Classify"] = lambda: classify_tab(loaded)
    if loaded.kind == "retrieval":
        searcher = Searcher(loaded)
        tabs["Search"] = lambda: search_tab(searcher)
    if has_attention_maps(loaded):
        tabs["Look"] = lambda: look_tab(loaded)
    return tabs


def build(loaded: LoadedModel) -> gr.Blocks:
    """The page with all tabs of a model, ready to launch."""
    hour = 3600
    name = loaded.name.rpartition("/")[2]
    with GuardedBlocks(title=name, analytics_enabled=False, delete_cache=(hour // 4, hour)) as page:
        gr.Markdown(f"# {name}\nA small page for trying the model `{loaded.name}`.")
        for title, fill in tabs_of(loaded).items():
            with gr.Tab(title):
                fill()
        with gr.Accordion("How it works", open=False):
            audio = ", and an audio tower each audio clip as a sequence of them" if loaded.takes_audio else ""
            gr.Markdown(HOW_IT_WORKS.format(facts=model_facts(loaded), audio_clause=audio))
        with gr.Accordion("Limits", open=False):
            gr.Markdown(limits_text(loaded))
    return page.queue(
        max_size=int(os.environ.get("MM_QUEUE", 64)),
        default_concurrency_limit=int(os.environ.get("MM_CONCURRENCY", 2)),
    )


def signed_in(password: str) -> Callable[[str, str], bool]:
    """A check of user name and password that takes the same time for every wrong pair."""
    expected = f"{USER}\n{password}".encode()
    return lambda user, entered: secrets.compare_digest(f"{user}\n{entered}".encode(), expected)


def launch_options() -> dict[str, Any]:
    """Arguments of `launch`: nothing is loaded from other hosts, no stack traces are sent, only uploads are served."""
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
        "max_file_size": MAX_FILE_BYTES,
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
        raise SystemExit("MM_MODEL_ID is not set; expected a Hub id, or a folder with a trained model")
    build(load(model_id, os.environ.get("MM_MODEL_REVISION") or None)).launch(**launch_options())


if __name__ == "__main__":
    main()
