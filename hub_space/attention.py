# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Look: where in the image the model looked for each word, as the code that comes with it finds.

Shapes: H height, W width of an image, h and w the grid of its places.
"""

import logging
from typing import Any

import example_media
import gradio as gr
import numpy as np
from limits import (
    CHARACTERS,
    Refused,
    checked_text,
    open_picture,
    uploaded_file,
    visits,
)
from loading import Shown
from PIL import Image

logger = logging.getLogger(__name__)

WORDS = 12  # shown at most
TOKENS = 48
SIDE = 384  # pixels of a map's longer side
# from unseen to looked at; the image shows through below, and every step is lighter than the one before
RAMP = np.array([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], dtype=np.float32)


def overlay(picture: Image.Image, grid: np.ndarray) -> Image.Image:
    """The image in grey, coloured and brighter where the weights (h, w) are high."""
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    low, high = float(grid.min()), float(grid.max())
    heat = Image.fromarray(((grid - low) / max(high - low, 1e-9)).astype(np.float32))
    heat = np.asarray(heat.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)  # (H, W)
    places = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(heat, places, RAMP[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)[..., None]
    opacity = 0.35 + 0.3 * heat[..., None]
    return Image.fromarray((grey * (1 - opacity) + colour * opacity).round().astype(np.uint8))


def maps(shown: Shown, picture: Image.Image, text: str, tokens: int) -> tuple[str, list[tuple[Image.Image, str]]]:
    """The answer, of a classifier the text itself, and for each of its words the image with its map.

    Raises:
        Refused: the model has no map for them.
    """
    try:
        found = shown.model.attention_maps(shown.processor, picture, text, max_new_tokens=tokens, max_words=WORDS)
    except ValueError as error:
        logger.info("no map: %s", error)
        raise Refused("There is no map to draw; the text may be longer than the model can read.") from None
    return found.text, [(overlay(found.image, grid), word) for word, grid in found.words]


def can_look(shown: Shown) -> bool:
    """Whether there are maps to draw, tried on a small image; the code of older checkpoints has none."""
    if not hasattr(shown.model, "attention_maps"):
        return False
    try:
        maps(shown, Image.new("RGB", (32, 32), "white"), "what is this?", 2)
    except Refused:
        return False
    return True


def look_tab(shown: Shown) -> None:
    """The tab."""
    generates = shown.kind == "generation"

    def look(picture: Any, text: str, request: gr.Request | None = None) -> tuple[str, list]:
        """Where in an image the model looks for each word: of its answer, or of a classifier's text.

        Args:
            image: an uploaded image.
            text: the question, or for a classifier the text beside the image.
        """
        visits.admit(request)
        path, text = uploaded_file(picture, "picture"), checked_text(text, shown.processor)
        if path is None or not text:
            raise Refused("Give an image and a text.")
        answer, found = maps(shown, open_picture(path, shown.processor), text, TOKENS)
        return answer or "(the model says nothing)", found

    what = "each word of the answer" if generates else "each word of the text"
    gr.Markdown(f"Where in the image the model looks for {what}: brighter is more, averaged over layers and heads.")
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            picture = gr.Image(type="filepath", label="Picture", height=260, sources=["upload", "clipboard"])
            text = gr.Textbox(
                label="Question" if generates else "Text", max_length=CHARACTERS, placeholder="what shape is it?"
            )
            button = gr.Button("Look", variant="primary")
        with gr.Column(scale=3, min_width=280):
            answer = gr.Textbox(label="Answer" if generates else "Text as read", interactive=False)
            found = gr.Gallery(
                label="Maps",
                show_label=False,
                columns=3,
                fit_columns=False,
                height="auto",
                object_fit="contain",
                interactive=False,
                buttons=["fullscreen"],
            )
    examples = [
        [example_media.shape("red", "circle"), "what shape is in the image?"],
        [example_media.shape("blue", "triangle"), "what is the color of the shape?"],
    ]
    gr.Examples(examples, [picture, text], label="Examples", cache_examples=False)
    gr.on([button.click, text.submit], look, [picture, text], [answer, found], api_name="look", preprocess=False)
