# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Look: where in the picture the model looked for each word, by the weights of its cross-attention.

Shapes: L fusion layers, H heads, T text tokens, S slots of the picture, h and w its grid of places.
"""

from typing import Any

import drawn
import gradio as gr
import numpy as np
import torch
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

WORDS = 12  # shown at most
TOKENS = 48
SIDE = 384  # pixels of a map's longer side
# from unseen to looked at; the picture shows through below, and every step is lighter than the one before
RAMP = np.array([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], dtype=np.float32)


def grid_of(weights: torch.Tensor) -> torch.Tensor:
    """Weights (S,) of a picture's slots as (h, w); leading class and register tokens are left out.

    Raises:
        Refused: the slots are no square grid.
    """
    for skipped in (0, 1, 5):
        side = round(max(0, len(weights) - skipped) ** 0.5)
        if side > 1 and side * side == len(weights) - skipped:
            return weights[skipped:].view(side, side)
    raise Refused("The places that this model sees in a picture are no square grid, so there is no map to draw.")


def overlay(picture: Image.Image, grid: np.ndarray) -> Image.Image:
    """The picture in grey, coloured and brighter where the weights (h, w) are high."""
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


def seen_picture(picture: Image.Image, shown: Shown, pixel_values: torch.Tensor) -> Image.Image:
    """The picture as the model saw it, where its processor crops; otherwise the whole of it."""
    settings = shown.processor.image_processor
    if pixel_values.dim() != 4 or not settings.to_dict().get("do_center_crop"):
        return picture
    pixels = pixel_values[0].float().cpu().permute(1, 2, 0)  # (H, W, C)
    if settings.do_normalize:
        pixels = pixels * torch.tensor(settings.image_std) + torch.tensor(settings.image_mean)
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def words_of(tokenizer: Any, ids: list[int], columns: list[int]) -> list[tuple[str, list[int]]]:
    """Words, each with the columns of the tokens that spell it."""
    words: list[tuple[str, list[int]]] = []
    told = ""
    for place, column in enumerate(columns):
        text = tokenizer.decode([ids[one] for one in columns[: place + 1]])
        piece, told = text[len(told) :], text
        if words and not piece[:1].isspace():
            words[-1] = (words[-1][0] + piece, [*words[-1][1], column])
        else:
            words.append((piece, [column]))
    return [(word.strip(), own) for word, own in words if word.strip()]


@torch.no_grad()
def maps(shown: Shown, picture: Image.Image, text: str, tokens: int) -> tuple[str, list[tuple[Image.Image, str]]]:
    """The answer, of a classifier the text itself, and for each of its words the picture with its map."""
    model, processor = shown.model, shown.processor
    generates = shown.kind == "generation"
    if generates:
        ids = torch.tensor(processor.encode_prompts([text], [1]))
    else:
        ids = processor.tokenizer(processor.with_markers(text, 1), return_tensors="pt")["input_ids"]
    if ids.shape[1] >= shown.longest:
        raise Refused("The text is longer than the model can read.")
    ids = ids.to(model.device)
    media = {name: value.to(model.device) for name, value in processor.flat_images([[picture]]).items()}
    start, chosen_at = 0, 0
    if generates:
        start, chosen_at = ids.shape[1], -1  # a token is chosen one column before it stands
        mask = torch.ones_like(ids)
        ids = model.generate(
            ids,
            attention_mask=mask,
            **media,
            max_new_tokens=min(tokens, shown.longest - ids.shape[1]),
            do_sample=False,
        )
    attentions = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), **media, output_attentions=True
    ).cross_attentions
    mean = torch.stack(attentions).mean(dim=(0, 2))[0].float().cpu()  # (L, 1, H, T, S) to (T, S)
    row, special = ids[0].tolist(), {*processor.tokenizer.all_special_ids, processor.image_token_id}
    columns = [column for column in range(start, len(row)) if row[column] not in special]
    words = words_of(processor.tokenizer, row, columns)
    seen = seen_picture(picture, shown, media["pixel_values"])
    drawn_maps = []
    for word, own in words[:WORDS]:
        weights = torch.stack([mean[column + chosen_at] for column in own]).mean(dim=0)
        drawn_maps.append((overlay(seen, grid_of(weights).numpy()), word))
    return " ".join(word for word, _ in words), drawn_maps


def can_look(shown: Shown) -> bool:
    """Whether there are maps to draw, tried on a small picture."""
    if not shown.has_maps:
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
        """Where in a picture the model looks for each word: of its answer, or of a classifier's text.

        Args:
            picture: an uploaded picture.
            text: the question, or for a classifier the text beside the picture.
        """
        visits.admit(request)
        path, text = uploaded_file(picture, "picture"), checked_text(text, shown.processor)
        if path is None or not text:
            raise Refused("Give a picture and a text.")
        answer, found = maps(shown, open_picture(path, shown.processor), text, TOKENS)
        return answer or "(the model says nothing)", found

    what = "each word of the answer" if generates else "each word of the text"
    gr.Markdown(f"Where in the picture the model looks for {what}: brighter is more, averaged over layers and heads.")
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
        [drawn.shape("red", "circle"), "what shape is in the image?"],
        [drawn.shape("blue", "triangle"), "what is the color of the shape?"],
    ]
    gr.Examples(examples, [picture, text], label="Examples", cache_examples=False)
    gr.on([button.click, text.submit], look, [picture, text], [answer, found], api_name="look", preprocess=False)
