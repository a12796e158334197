# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Classify: a label for any of image, text, audio and table, and the contribution of each of them.

The contribution of an input is the change of the answer's score when that input is left out. All of these rows are one
batch, so that image and audio still go through their towers once.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import example_media
import gradio as gr
import torch
from limits import MAX_CHARACTERS, Refused, checked_text, open_audio, open_image, rate_limiter, uploaded_file
from loading import LoadedModel
from transformers.feature_extraction_utils import BatchFeature

STYLE = """
.brought { display: grid; grid-template-columns: max-content 1fr max-content; gap: .5rem .75rem; align-items: center; }
.brought .bar { height: .75rem; border-radius: 4px; background: var(--color-accent); min-width: 2px; }
.brought .against { background: var(--error-icon-color, #dc2626); }
.brought .number { font-variant-numeric: tabular-nums; }
"""


@torch.no_grad()
def scores(loaded: LoadedModel, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Probabilities (rows, labels), or the predicted numbers of a regression."""
    processor, model = loaded.processor, loaded.model
    images = [[row["image"]] if "image" in row else [] for row in rows]
    clips = [[row["audio"]] if "audio" in row else [] for row in rows]
    tokenizer = processor.tokenizer
    placeholder = tokenizer.cls_token or tokenizer.bos_token or tokenizer.eos_token  # of an empty row, as in training
    texts = [
        processor.with_markers(row.get("text", ""), len(image), len(clip)) or placeholder
        for row, image, clip in zip(rows, images, clips, strict=True)
    ]
    options = {"padding": True, "truncation": True, "max_length": loaded.max_length, "return_tensors": "pt"}
    batch = BatchFeature(tokenizer(texts, **options))
    batch.update(processor.flat_images(images) | processor.flat_audio(clips))  # each distinct one goes in once
    if hasattr(processor, "drop_cut_media"):  # absent from the code of older checkpoints
        processor.drop_cut_media(batch)
    if any("table" in row for row in rows):
        batch.update(processor(table=[row.get("table") for row in rows]))
    if model.config.late_fusion is not None:
        batch["text_present"] = torch.tensor(["text" in row for row in rows])
    logits = model(**batch.to(model.device)).logits.float().cpu()
    if model.config.problem_type == "regression":
        return logits
    return logits.sigmoid() if model.config.problem_type == "multi_label_classification" else logits.softmax(dim=-1)


def classify_inputs(loaded: LoadedModel, inputs: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """The score of each label, and the contribution of each modality to the answer.

    Args:
        inputs: any of "image", "text", "audio" and "table".
    """
    without = [{name: value for name, value in inputs.items() if name != absent} for absent in inputs]
    table = scores(loaded, [inputs, *without])
    best = int(table[0].argmax())
    names = loaded.model.config.id2label
    changes = {name: round(float(table[0, best] - row[best]), 4) for name, row in zip(inputs, table[1:], strict=True)}
    labels = {names[label_id]: round(score, 4) for label_id, score in enumerate(table[0].tolist())}
    return labels, {"answer": names[best], "score": labels[names[best]], "brought": changes}


def bars(found: dict[str, Any] | None) -> str:
    """Contributions as HTML bars; the input comes from a browser, so names are escaped and numbers checked."""
    if not found:
        return ""
    most = max(1e-9, *(abs(change) for change in found["brought"].values()))
    rows = []
    for name, change in found["brought"].items():
        kind = "bar" if change >= 0 else "bar against"
        bar = f'<div class="{kind}" style="width: {100 * abs(change) / most:.1f}%"></div>'
        rows.append(f'<span>{escape(name)}</span>{bar}<span class="number">{change:+.3f}</span>')
    heading = f"<p>Contribution of each input to <b>{escape(found['answer'])}</b> ({found['score']:.3f}):</p>"
    return f'{heading}<div class="brought">{"".join(rows)}</div>'


def shown_labels(loaded: LoadedModel, labels: dict[str, float]) -> dict[str, float] | str:
    """The value of `gr.Label`: probabilities, which it draws as bars, or the numbers of a regression as text."""
    if loaded.model.config.problem_type != "regression":
        return labels
    return ", ".join(f"{name} {number:.4g}" for name, number in labels.items())


def table_fields(loaded: LoadedModel) -> list[Any]:
    """A number field or a dropdown for each column of the model's table."""
    return [
        gr.Dropdown(["", *column["values"]], value="", label=column["name"])
        if column["kind"] == "category"
        else gr.Number(value=None, label=column["name"])
        for column in loaded.table_columns
    ]


def checked_table(loaded: LoadedModel, cells: Sequence[Any]) -> dict[str, Any]:
    """The cells of the columns that were filled in.

    Raises:
        Refused: a cell is no number, or no plain value.
    """
    names = [column["name"] for column in loaded.table_columns]
    table = {name: cell for name, cell in zip(names, cells, strict=False) if not (cell is None or cell == "")}
    for name, cell in table.items():
        try:
            loaded.processor(table=[{name: cell}])
        except ValueError:
            raise Refused(f"The field {name} cannot hold this value; expected a plain one.") from None
    return table


def examples_of(loaded: LoadedModel) -> list[list[Any]]:
    """Example rows: one with every input but the table, and others with a part of them."""
    rows = [["blue", "circle", "a blue circle"], ["yellow", "triangle", ""], ["red", "rectangle", "red or blue?"]]
    clips = [[example_media.tone(pitch)] for pitch in (440, 660, 880)] if loaded.takes_audio else [[], [], []]
    return [
        [example_media.shape(colour, kind), text, *clip]
        for (colour, kind, text), clip in zip(rows, clips, strict=True)
    ]


def classify(
    loaded: LoadedModel, request: gr.Request | None, image: Any, text: str, audio: Any, cells: Sequence[Any] = ()
) -> tuple[Any, dict]:
    """Scores and contributions of what a browser sent.

    Raises:
        Refused: nothing was sent, or an input is bad.
    """
    rate_limiter.admit(request)
    present: dict[str, Any] = {}
    if path := uploaded_file(image, "image"):
        present["image"] = open_image(path, loaded.processor)
    if text := checked_text(text, loaded.processor):
        present["text"] = text
    if path := uploaded_file(audio, "audio clip"):
        present["audio"] = open_audio(path)
    if cells and (table := checked_table(loaded, cells)):
        present["table"] = table
    if not present:
        raise Refused(
            f"Give an image, a text{', an audio clip' if loaded.takes_audio else ''}"
            f"{', numbers' if loaded.table_columns else ''} or several of them."
        )
    labels, found = classify_inputs(loaded, present)
    return shown_labels(loaded, labels), found


def classify_tab(loaded: LoadedModel) -> None:
    """Draw the tab and register its endpoint."""

    def classify_image_text(picture: Any = None, text: str = "", request: gr.Request | None = None):
        """Classify an image, a text or both: scores of all labels, and the contribution of each input to the answer.

        Args:
            picture: an uploaded image, or none.
            text: a text, or none.
        """
        return classify(loaded, request, picture, text, None)

    def classify_any(picture: Any = None, text: str = "", sound: Any = None, request: gr.Request | None = None):
        """Classify any of an image, a text and an audio clip: scores of all labels and the contribution of each input.

        Args:
            picture: an uploaded image, or none.
            text: a text, or none.
            sound: an uploaded audio clip, or none.
        """
        return classify(loaded, request, picture, text, sound)

    def classify_with_table(picture: Any = None, text: str = "", request: gr.Request | None = None, *others: Any):
        """Classify any of image, text, audio clip and table: scores of all labels and the contribution of each input.

        Args:
            picture: an uploaded image, or none.
            text: a text, or none.
            others: an uploaded audio clip, if the model takes audio; then a cell for each column, or none.
        """
        sound, cells = (others[0], others[1:]) if loaded.takes_audio else (None, others)
        return classify(loaded, request, picture, text, sound, cells)

    endpoint = classify_any if loaded.takes_audio else classify_image_text
    with gr.Row():
        with gr.Column(min_width=280):
            inputs: list[Any] = [
                gr.Image(type="filepath", label="Image", height=240, sources=["upload", "clipboard"]),
                gr.Textbox(label="Text", max_length=MAX_CHARACTERS, lines=2),
            ]
            if loaded.takes_audio:
                inputs.append(gr.Audio(type="filepath", label="Audio", sources=["upload", "microphone"]))
            media = list(inputs)
            inputs += table_fields(loaded)
            button = gr.Button("Classify", variant="primary")
        with gr.Column(min_width=280):
            label = gr.Label(label="Scores", num_top_classes=8)
            contributions = gr.HTML(show_label=False, container=True, padding=True)
            with gr.Accordion("As numbers", open=False):
                numbers = gr.JSON(show_label=False)
    gr.Examples(examples_of(loaded), media, label="Examples", cache_examples=False)
    button.click(
        classify_with_table if loaded.table_columns else endpoint,
        inputs,
        [label, numbers],
        api_name="classify",
        preprocess=False,
    )
    numbers.change(bars, numbers, contributions, api_visibility="private", queue=False, show_progress="hidden")
