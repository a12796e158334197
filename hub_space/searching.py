# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Search: the images of a gallery that are most like a text, an image or both, looked at again if wanted.

Shapes: G images of a gallery, E embedding width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import example_media
import gradio as gr
import torch
from cache import MediaCache
from limits import CHARACTERS, GALLERY, Refused, checked_number, checked_text, open_picture, uploaded_file, visits
from loading import Shown
from torch.nn import functional

AGAIN = 20  # of the best are looked at again


class Searcher:
    """Compares embeddings; remembers those of the last images, by their content."""

    KEPT = 5_000

    def __init__(self, shown: Shown):
        self.shown, self.known = shown, MediaCache(self.KEPT)

    @property
    def can_rerank(self) -> bool:
        return self.shown.model.matching_head is not None

    def picture(self, path: Path) -> torch.Tensor:
        """The embedding (E,) of an image."""
        return self.known.of(path, self.embedded)

    @torch.no_grad()
    def embedded(self, path: Path) -> torch.Tensor:
        seen = self.shown.model.get_image_features(**self.pixels([path])).pooler_output[0]
        return functional.normalize(seen, dim=-1)

    def pixels(self, paths: list[Path]) -> Any:
        """The tensors of images, without an index: one for each row."""
        processor = self.shown.processor
        made = processor.image_processor([open_picture(path, processor) for path in paths], return_tensors="pt")
        return made.to(self.shown.model.device)

    def tokens(self, texts: list[str]) -> Any:
        options = {"padding": True, "truncation": True, "max_length": self.shown.longest, "return_tensors": "pt"}
        return self.shown.processor.tokenizer(texts, **options).to(self.shown.model.device)

    @torch.no_grad()
    def search(self, text: str, like: Path | None, gallery: list[Path], rerank: bool, most: int) -> list[dict]:
        """The best images, each with its place in the gallery, its similarity and, if looked at again, its match."""
        model = self.shown.model
        queries = [] if like is None else [self.picture(like)]
        if text:
            queries.append(
                functional.normalize(model.get_text_features(**self.tokens([text])).pooler_output[0], dim=-1)
            )
        query = functional.normalize(torch.stack(queries).mean(dim=0), dim=-1)  # (E,)
        similar = torch.stack([self.picture(path) for path in gallery]) @ query  # (G,)
        order = similar.argsort(descending=True).tolist()
        hits = [{"picture": place, "similarity": round(float(similar[place]), 4)} for place in order]
        if rerank:
            again = hits[:AGAIN]
            batch = self.pixels([gallery[hit["picture"]] for hit in again])
            logits = model.match(**self.tokens([text] * len(again)), **batch)  # (again, 2): apart, together
            for hit, chance in zip(again, logits.float().softmax(dim=-1)[:, 1].tolist(), strict=True):
                hit["match"] = round(chance, 4)
            seen = torch.stack([self.picture(gallery[hit["picture"]]) for hit in again])
            scores = model.ranking_scores(model.similarities(query[None], seen)[0], logits)
            hits = [again[place] for place in scores.argsort(descending=True).tolist()]
        return hits[:most]


def gallery_files(given: Any) -> list[Path]:
    """The uploaded images of a gallery.

    Raises:
        Refused: they are not a list of such, or too many.
    """
    if not isinstance(given, list) or not given:
        raise Refused("The gallery is empty; upload some images.")
    if len(given) > GALLERY:
        raise Refused(f"The gallery has more than {GALLERY} images.")
    files = [uploaded_file(one.get("image") if isinstance(one, dict) else None, "picture") for one in given]
    if None in files:
        raise Refused("The gallery holds something that is no image.")
    return [path for path in files if path is not None]


def caption(rank: int, hit: dict) -> str:
    """What stands below an image found, short enough for a phone."""
    return f"{rank}. match {hit['match']:.2f}" if "match" in hit else f"{rank}. {hit['similarity']:.2f}"


def endpoint(searcher: Searcher) -> Callable[..., tuple[list, list[dict]]]:
    """What the tab and the API call."""

    def search(
        text: str = "",
        like: Any = None,
        gallery: Any = None,
        rerank: bool = False,
        most: float = 6,
        request: gr.Request | None = None,
    ) -> tuple[list, list[dict]]:
        """Find the images of a gallery that are most like a text, an image, or both.

        Args:
            text: what they should show.
            like: an uploaded image that they should be like.
            gallery: the images to search in.
            rerank: whether the matching head looks at text and image together for the best of them.
            most: how many to show.
        """
        visits.admit(request)
        text = checked_text(text, searcher.shown.processor)
        picture = uploaded_file(like, "picture")
        if not text and picture is None:
            raise Refused("Write what to look for, or give an image.")
        if rerank and not (text and searcher.can_rerank):
            raise Refused("Looking again needs a text, and a model with a matching head.")
        files = gallery_files(gallery)
        hits = searcher.search(
            text, picture, files, bool(rerank), checked_number(most, 1, GALLERY, "How many to show")
        )
        found = [(str(files[hit["picture"]]), caption(rank, hit)) for rank, hit in enumerate(hits, start=1)]
        return found, hits

    return search


def search_tab(searcher: Searcher) -> None:
    """The tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            text = gr.Textbox(label="Text", max_length=CHARACTERS, placeholder="a red circle")
            like = gr.Image(type="filepath", label="Like this image", height=160, sources=["upload", "clipboard"])
            rerank = gr.Checkbox(
                False, label="Look again: text and image together", visible=searcher.can_rerank, interactive=True
            )
            most = gr.Slider(1, 12, 6, step=1, label="Show")
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=3, min_width=280):
            gr.Markdown("**Found**: the most similar first (cosine), or what matches best")
            found = gr.Gallery(
                label="Found",
                show_label=False,
                columns=3,
                height="auto",
                object_fit="contain",
                interactive=False,
                buttons=["fullscreen"],
            )
            with gr.Accordion("As numbers", open=False):
                numbers = gr.JSON(show_label=False)
    gr.Markdown("**Gallery**, drawn by code. Clear it to put your own images in its place.")
    gallery = gr.Gallery(
        example_media.gallery(),
        label="Gallery",
        show_label=False,
        type="filepath",
        columns=6,
        height="auto",
        object_fit="contain",
        file_types=["image"],
        interactive=True,
    )
    gr.Examples([["a red circle"], ["a blue triangle"], ["yellow"]], [text], label="Examples", cache_examples=False)
    gr.on(
        [button.click, text.submit],
        endpoint(searcher),
        [text, like, gallery, rerank, most],
        [found, numbers],
        api_name="search",
        preprocess=False,
    )
