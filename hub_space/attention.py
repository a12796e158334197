# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Look: attention maps over the image for each word, by the code that comes with the checkpoint.

Shapes: H height and W width of an image in pixels, h and w of its grid of patches.
"""

import logging
from typing import Any

import example_media
import gradio as gr
import numpy as np
from limits import (
    MAX_CHARACTERS,
    Refused,
    checked_text,
    open_image,
    rate_limiter,
    uploaded_file,
)
from loading import LoadedModel
from PIL import Image

logger = logging.getLogger(__name__)

MAX_WORDS = 12  # words with a map
MAX_TOKENS = 48  # of an answer
SIDE = 384  # pixels of a map's longer side
# colours from no attention to most; the image shows through, and every step is lighter than the one before
RAMP = np.array([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], dtype=np.float32)


def overlay(image: Image.Image, grid: np.ndarray) -> Image.Image:
    """The image in grey, coloured and brighter where the weights (h, w) are high."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    low, high = float(grid.min()), float(grid.max())
    heat = Image.fromarray(((grid - low) / max(high - low, 1e-9)).astype(np.float32))
    heat = np.asarray(heat.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)  # (H, W)
    stops = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(heat, stops, RAMP[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)[..., None]
    opacity = 0.35 + 0.3 * heat[..., None]
    return Image.fromarray((grey * (1 - opacity) + colour * opacity).round().astype(np.uint8))


def draw_maps(
    loaded: LoadedModel, image: Image.Image, text: str, max_new_tokens: int
) -> tuple[str, list[tuple[Image.Image, str]]]:
    """The answer (for a classifier, the text itself), and the image with an attention map for each of its words.

    Raises:
        Refused: the model has no attention maps for this input.
    """
    try:
        found = loaded.model.attention_maps(
            loaded.processor, image, text, max_new_tokens=max_new_tokens, max_words=MAX_WORDS
        )
    except ValueError as error:
        logger.info("no attention map: %s", error)
        raise Refused("There is no attention map to draw; the text may be longer than the model can read.") from None
    return found.text, [(overlay(found.image, grid), word) for word, grid in found.words]


def has_attention_maps(loaded: LoadedModel) -> bool:
    """True if the model has attention maps, tried on a small image; the code of older checkpoints has none."""
    if not hasattr(loaded.model, "attention_maps"):
        return False
    try:
        draw_maps(loaded, Image.new("RGB", (32, 32), "white"), "what is this?", 2)
    except Refused:
        return False
    return True


def look_tab(loaded: LoadedModel) -> None:
    """Draw the tab and register its endpoint."""
    generates = loaded.kind == "generation"

    def look(picture: Any, text: str, request: gr.Request | None = None) -> tuple[str, list]:
        """Draw where in an image the model looks for each word of its answer, or of a classifier's text.

        Args:
            picture: an uploaded image.
            text: the question, or for a classifier the text that goes with the image.
        """
        rate_limiter.admit(request)
        path, text = uploaded_file(picture, "image"), checked_text(text, loaded.processor)
        if path is None or not text:
            raise Refused("Give an image and a text.")
        answer, found = draw_maps(loaded, open_image(path, loaded.processor), text, MAX_TOKENS)
        return answer or "(the answer is empty)", found

    words = "each word of the answer" if generates else "each word of the text"
    gr.Markdown(
        f"Where in the image the model looks for {words}: brighter is more attention, averaged over layers and heads."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = gr.Image(type="filepath", label="Image", height=260, sources=["upload", "clipboard"])
            text = gr.Textbox(
                label="Question" if generates else "Text", max_length=MAX_CHARACTERS, placeholder="what shape is it?"
            )
            button = gr.Button("Look", variant="primary")
        with gr.Column(scale=3, min_width=280):
            answer = gr.Textbox(label="Answer" if generates else "Text as read", interactive=False)
            found = gr.Gallery(
                label="Attention maps",
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
    gr.Examples(examples, [image, text], label="Examples", cache_examples=False)
    gr.on([button.click, text.submit], look, [image, text], [answer, found], api_name="look", preprocess=False)
