# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Classify: a label for any of image, text and sound, and what each of them brought.

What one brought is how the score of the answer changes when it is taken away; all of these rows are one batch, so that
image and sound still go through their towers once.
"""

from html import escape
from typing import Any

import example_media
import gradio as gr
import torch
from limits import CHARACTERS, Refused, checked_text, open_picture, open_sound, uploaded_file, visits
from loading import Shown
from transformers.feature_extraction_utils import BatchFeature

STYLE = """
.brought { display: grid; grid-template-columns: max-content 1fr max-content; gap: .5rem .75rem; align-items: center; }
.brought .bar { height: .75rem; border-radius: 4px; background: var(--color-accent); min-width: 2px; }
.brought .against { background: var(--error-icon-color, #dc2626); }
.brought .number { font-variant-numeric: tabular-nums; }
"""


@torch.no_grad()
def scores(shown: Shown, rows: list[dict[str, Any]]) -> torch.Tensor:
    """(rows, labels): probabilities, or the numbers of a regression."""
    processor, model = shown.processor, shown.model
    images = [[row["image"]] if "image" in row else [] for row in rows]
    sounds = [[row["audio"]] if "audio" in row else [] for row in rows]
    tokenizer = processor.tokenizer
    first = tokenizer.cls_token or tokenizer.bos_token or tokenizer.eos_token  # as in training: no row is empty
    texts = [
        processor.with_markers(row.get("text", ""), len(image), len(sound)) or first
        for row, image, sound in zip(rows, images, sounds, strict=True)
    ]
    options = {"padding": True, "truncation": True, "max_length": shown.longest, "return_tensors": "pt"}
    batch = BatchFeature(tokenizer(texts, **options))
    batch.update(processor.flat_images(images) | processor.flat_audio(sounds))  # each distinct one goes in once
    if hasattr(processor, "drop_cut_media"):  # not in the code of older checkpoints
        processor.drop_cut_media(batch)
    if model.config.late_fusion is not None:
        batch["text_present"] = torch.tensor(["text" in row for row in rows])
    logits = model(**batch.to(model.device)).logits.float().cpu()
    if model.config.problem_type == "regression":
        return logits
    return logits.sigmoid() if model.config.problem_type == "multi_label_classification" else logits.softmax(dim=-1)


def classified(shown: Shown, given: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """The score of each label, and what each modality brought to the answer.

    Args:
        given: any of "image", "text" and "audio".
    """
    without = [{name: value for name, value in given.items() if name != left} for left in given]
    table = scores(shown, [given, *without])
    best = int(table[0].argmax())
    names = shown.model.config.id2label
    brought = {name: round(float(table[0, best] - row[best]), 4) for name, row in zip(given, table[1:], strict=True)}
    labels = {names[place]: round(score, 4) for place, score in enumerate(table[0].tolist())}
    return labels, {"answer": names[best], "score": labels[names[best]], "brought": brought}


def bars(found: dict[str, Any] | None) -> str:
    """What each modality brought, as bars; it comes from a browser, so that names are escaped and numbers checked."""
    if not found:
        return ""
    most = max(1e-9, *(abs(change) for change in found["brought"].values()))
    rows = []
    for name, change in found["brought"].items():
        kind = "bar" if change >= 0 else "bar against"
        bar = f'<div class="{kind}" style="width: {100 * abs(change) / most:.1f}%"></div>'
        rows.append(f'<span>{escape(name)}</span>{bar}<span class="number">{change:+.3f}</span>')
    told = f"<p>What each input brought to <b>{escape(found['answer'])}</b> ({found['score']:.3f}):</p>"
    return f'{told}<div class="brought">{"".join(rows)}</div>'


def shown_labels(shown: Shown, labels: dict[str, float]) -> dict[str, float] | str:
    """For `gr.Label`, which draws shares; numbers of a regression are written out."""
    if shown.model.config.problem_type != "regression":
        return labels
    return ", ".join(f"{name} {number:.4g}" for name, number in labels.items())


def examples_of(shown: Shown) -> list[list[Any]]:
    """Rows to click: every input, and some of them."""
    rows = [["blue", "circle", "a blue circle"], ["yellow", "triangle", ""], ["red", "rectangle", "red or blue?"]]
    sound = [[example_media.tone(pitch)] for pitch in (440, 660, 880)] if shown.hears else [[], [], []]
    return [
        [example_media.shape(colour, kind), text, *own] for (colour, kind, text), own in zip(rows, sound, strict=True)
    ]


def classify_tab(shown: Shown) -> None:
    """The tab."""

    def classify(picture: Any, text: str, *sound_and_request: Any) -> tuple[Any, dict]:
        sound = sound_and_request[0] if shown.hears else None
        visits.admit(sound_and_request[-1])
        given: dict[str, Any] = {}
        if path := uploaded_file(picture, "picture"):
            given["image"] = open_picture(path, shown.processor)
        if text := checked_text(text, shown.processor):
            given["text"] = text
        if path := uploaded_file(sound, "sound"):
            given["audio"] = open_sound(path)
        if not given:
            raise Refused(f"Give an image, a text{', a sound' if shown.hears else ''} or several of them.")
        labels, found = classified(shown, given)
        return shown_labels(shown, labels), found

    def classify_seen(picture: Any = None, text: str = "", request: gr.Request | None = None):
        """Classify an image, a text or both: scores of all labels, and what each input brought to the answer.

        Args:
            image: an uploaded image, or none.
            text: a text, or none.
        """
        return classify(picture, text, request)

    def classify_heard(picture: Any = None, text: str = "", sound: Any = None, request: gr.Request | None = None):
        """Classify any of an image, a text and a sound: scores of all labels, and what each brought to the answer.

        Args:
            image: an uploaded image, or none.
            text: a text, or none.
            sound: an uploaded sound, or none.
        """
        return classify(picture, text, sound, request)

    with gr.Row():
        with gr.Column(min_width=280):
            inputs: list[Any] = [
                gr.Image(type="filepath", label="Picture", height=240, sources=["upload", "clipboard"]),
                gr.Textbox(label="Text", max_length=CHARACTERS, lines=2),
            ]
            if shown.hears:
                inputs.append(gr.Audio(type="filepath", label="Sound", sources=["upload", "microphone"]))
            button = gr.Button("Classify", variant="primary")
        with gr.Column(min_width=280):
            label = gr.Label(label="Scores", num_top_classes=8)
            brought = gr.HTML(show_label=False, container=True, padding=True)
            with gr.Accordion("As numbers", open=False):
                numbers = gr.JSON(show_label=False)
    gr.Examples(examples_of(shown), inputs, label="Examples", cache_examples=False)
    button.click(
        classify_heard if shown.hears else classify_seen,
        inputs,
        [label, numbers],
        api_name="classify",
        preprocess=False,
    )
    numbers.change(bars, numbers, brought, api_visibility="private", queue=False, show_progress="hidden")
