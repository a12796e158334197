# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Search: the images of a gallery that are most similar to a text, an image or both, optionally reranked.

Shapes: G images of a gallery, E embedding width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import example_media
import gradio as gr
import torch
from cache import MediaCache
from limits import (
    MAX_CHARACTERS,
    MAX_GALLERY,
    Refused,
    checked_number,
    checked_text,
    open_image,
    rate_limiter,
    uploaded_file,
)
from loading import LoadedModel
from torch.nn import functional

NUM_RERANKED = 20  # best images that the matching head scores


class Searcher:
    """Compares embeddings; caches those of the images that were used last, by their content."""

    CACHE_SIZE = 5_000

    def __init__(self, loaded: LoadedModel):
        self.loaded, self.embeddings = loaded, MediaCache(self.CACHE_SIZE)

    @property
    def can_rerank(self) -> bool:
        """True if the model has a matching head."""
        return self.loaded.model.matching_head is not None

    def image_embedding(self, path: Path) -> torch.Tensor:
        """The normalised embedding (E,) of an image, cached."""
        return self.embeddings.get_or_compute(path, self.embed_image)

    @torch.no_grad()
    def embed_image(self, path: Path) -> torch.Tensor:
        features = self.loaded.model.get_image_features(**self.pixels([path])).pooler_output[0]
        return functional.normalize(features, dim=-1)

    def pixels(self, paths: list[Path]) -> Any:
        """The tensors of images, one image per row, so without an image index."""
        processor = self.loaded.processor
        batch = processor.image_processor([open_image(path, processor) for path in paths], return_tensors="pt")
        return batch.to(self.loaded.model.device)

    def tokens(self, texts: list[str]) -> Any:
        options = {"padding": True, "truncation": True, "max_length": self.loaded.max_length, "return_tensors": "pt"}
        return self.loaded.processor.tokenizer(texts, **options).to(self.loaded.model.device)

    @torch.no_grad()
    def search(self, text: str, like: Path | None, gallery: list[Path], rerank: bool, max_hits: int) -> list[dict]:
        """The best images, each with its position in the gallery, its similarity and, if reranked, its match score.

        Args:
            text: the query text; '' if the query is the image `like` alone.
        """
        model = self.loaded.model
        queries = [] if like is None else [self.image_embedding(like)]
        if text:
            queries.append(
                functional.normalize(model.get_text_features(**self.tokens([text])).pooler_output[0], dim=-1)
            )
        query = functional.normalize(torch.stack(queries).mean(dim=0), dim=-1)  # (E,)
        similar = torch.stack([self.image_embedding(path) for path in gallery]) @ query  # (G,)
        order = similar.argsort(descending=True).tolist()
        hits = [{"picture": number, "similarity": round(float(similar[number]), 4)} for number in order]
        if rerank:
            best = hits[:NUM_RERANKED]
            batch = self.pixels([gallery[hit["picture"]] for hit in best])
            logits = model.match(**self.tokens([text] * len(best)), **batch)  # (best, 2): no match, match
            for hit, probability in zip(best, logits.float().softmax(dim=-1)[:, 1].tolist(), strict=True):
                hit["match"] = round(probability, 4)
            embeddings = torch.stack([self.image_embedding(gallery[hit["picture"]]) for hit in best])
            scores = model.ranking_scores(model.similarities(query[None], embeddings)[0], logits)
            hits = [best[number] for number in scores.argsort(descending=True).tolist()]
        return hits[:max_hits]


def gallery_files(gallery: Any) -> list[Path]:
    """The uploaded images of a gallery.

    Raises:
        Refused: there are no images, too many, or one is not an upload.
    """
    if not isinstance(gallery, list) or not gallery:
        raise Refused("The gallery is empty; upload some images.")
    if len(gallery) > MAX_GALLERY:
        raise Refused(f"The gallery has more than {MAX_GALLERY} images.")
    files = [uploaded_file(item.get("image") if isinstance(item, dict) else None, "image") for item in gallery]
    if None in files:
        raise Refused("The gallery holds something that is not an image.")
    return [path for path in files if path is not None]


def caption(rank: int, hit: dict) -> str:
    """The caption of an image found, short enough for a phone."""
    return f"{rank}. match {hit['match']:.2f}" if "match" in hit else f"{rank}. {hit['similarity']:.2f}"


def endpoint(searcher: Searcher) -> Callable[..., tuple[list, list[dict]]]:
    """The function that the tab and the API call."""

    def search(
        text: str = "",
        like: Any = None,
        gallery: Any = None,
        rerank: bool = False,
        most: float = 6,
        request: gr.Request | None = None,
    ) -> tuple[list, list[dict]]:
        """Find the images of a gallery that are most similar to a text, an image, or both.

        Args:
            text: a description of the images to find.
            like: an uploaded image that the images found should be similar to.
            gallery: the images to search in.
            rerank: if true, the matching head reorders the best of them by reading text and image together.
            most: maximum number of images to return.
        """
        rate_limiter.admit(request)
        text = checked_text(text, searcher.loaded.processor)
        query_image = uploaded_file(like, "image")
        if not text and query_image is None:
            raise Refused("Write what to look for, or give an image.")
        if rerank and not (text and searcher.can_rerank):
            raise Refused("Reranking needs a text, and a model with a matching head.")
        files = gallery_files(gallery)
        hits = searcher.search(
            text, query_image, files, bool(rerank), checked_number(most, 1, MAX_GALLERY, "The number of images")
        )
        found = [(str(files[hit["picture"]]), caption(rank, hit)) for rank, hit in enumerate(hits, start=1)]
        return found, hits

    return search


def search_tab(searcher: Searcher) -> None:
    """Draw the tab and register its endpoint."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            text = gr.Textbox(label="Text", max_length=MAX_CHARACTERS, placeholder="a red circle")
            like = gr.Image(type="filepath", label="Similar to image", height=160, sources=["upload", "clipboard"])
            rerank = gr.Checkbox(
                False, label="Rerank: read text and image together", visible=searcher.can_rerank, interactive=True
            )
            most = gr.Slider(1, 12, 6, step=1, label="Number of images")
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=3, min_width=280):
            gr.Markdown("**Found**: most similar first (cosine), or best match first if reranked")
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
    gr.Markdown("**Gallery**, drawn by code. Clear it to search in your own images.")
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
