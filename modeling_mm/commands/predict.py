# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm predict`: answer questions about media, classify them, or rank texts for them, by a trained model.

modeling-mm predict --model DIR --image a.png --text "what is the blue shape?" --explain look.png
modeling-mm predict --model RETRIEVAL --image a.png --text "a red circle" "a blue square"
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import BatchFeature

from ..checkpoint import load_checkpoint, quantized
from ..data.cells import formed_numbers
from ..data.collator import MMCollator, RetrievalCollator
from ..data.media import MediaRef, open_image
from ..data.rows import Row
from ..model.processing_mm import MMProcessor
from ..model.table_mm import table_tensor
from ..report import figures
from ..tasks import TASKS, task_of
from .arguments import MMParser
from .verbs import PredictArguments


def answer(model: PreTrainedModel, processor: MMProcessor, batch: BatchFeature, max_new_tokens: int) -> list[dict]:
    """Answers, generated greedily."""
    generated = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    texts = processor.batch_decode(generated[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [{"answer": text.strip()} for text in texts]


def classify(model: PreTrainedModel, batch: BatchFeature) -> list[dict]:
    """Predictions of a head: the likeliest label or all likely labels, with probabilities; or its numbers."""
    with torch.no_grad():
        logits = model(**batch).logits.float()
    names, task = model.config.id2label, TASKS[task_of(model)]
    if task.numbers:
        return [{"numbers": {names[i]: number for i, number in enumerate(row)}} for row in logits.tolist()]
    shares = logits.sigmoid() if task.several_labels else logits.softmax(dim=-1)
    probabilities = [{names[i]: round(share, 4) for i, share in enumerate(row.tolist())} for row in shares]
    if task.several_labels:
        likely = [[names[i] for i in row.nonzero().flatten().tolist()] for row in logits > 0]
        return [{"labels": labels, "probabilities": row} for labels, row in zip(likely, probabilities, strict=True)]
    return [{"label": max(row, key=row.__getitem__), "probabilities": row} for row in probabilities]


@torch.no_grad()
def rank(
    model: PreTrainedModel, processor: MMProcessor, medium: dict[str, torch.Tensor], texts: list[str]
) -> list[dict]:
    """Texts ranked for one image or audio clip: cosine of the embeddings, and the probability of a match.

    They are ranked by the similarity logit, with the log-odds of a match if there is a matching head, as in
    `evaluate --rerank`.
    """
    rows, media = [Row(i, [], text) for i, text in enumerate(texts)], BatchFeature(medium).to(model.device)
    tokens = RetrievalCollator(processor, "retrieval", max_length=2**20).texts(rows)
    tokens = BatchFeature(tokens).to(model.device)
    embed = model.get_image_features if "pixel_values" in media else model.get_audio_features
    text_embeds, medium_embeds = model.get_text_features(**tokens).pooler_output, embed(**media).pooler_output
    scores = model.similarities(text_embeds, medium_embeds)[:, 0].float()
    cosines = (text_embeds @ medium_embeds.T)[:, 0].tolist()
    results = [{"text": text, "cosine": round(cosine, 4)} for text, cosine in zip(texts, cosines, strict=True)]
    if model.matching_head is not None:
        indices = {name: value.expand(len(texts), 1) for name, value in media.items() if name.endswith("_index")}
        logits = model.match(**tokens, **{**media, **indices}).float()  # (B, 2): mismatch, match
        scores = model.ranking_scores(scores, logits)
        for result, share in zip(results, logits.softmax(dim=-1)[:, 1].tolist(), strict=True):
            result["match"] = round(share, 4)
    order = scores.argsort(descending=True, stable=True).tolist()
    return [{"rank": place, **results[index]} for place, index in enumerate(order, start=1)]


def rankings(args: PredictArguments, model: PreTrainedModel, processor: MMProcessor) -> dict[str, Any]:
    """The texts ranked for each image and each audio clip.

    Raises:
        ValueError: texts or media are missing, or a flag does not fit retrieval.
    """
    prefix = "a retrieval model compares texts with images or audio"
    if flag := next((name for name in ("explain", "video", "table") if getattr(args, name)), None):
        raise ValueError(f"{prefix}; leave out --{flag}")
    if not args.text or not (args.image or args.audio):
        raise ValueError(f"{prefix}; give --text, and --image or --audio")
    if not all(text.strip() for text in args.text):
        raise ValueError(f"{prefix}; expected words in each --text, but one is empty")
    background = processor.image_background
    media = [("image", path, processor.flat_images([[open_image(path, background)]])) for path in args.image]
    media += [("audio", path, processor.flat_audio([[path]])) for path in args.audio]
    results = [
        {kind: path, **ranked} for kind, path, medium in media for ranked in rank(model, processor, medium, args.text)
    ]
    audio = {"audio": args.audio} if args.audio else {}
    return {"model": args.model, "image": args.image, **audio, "results": results}


def read_table_row(text: str | None) -> dict[str, Any]:
    """The cells of `--table`.

    Raises:
        ValueError: the text is no JSON object.
    """
    try:
        row = json.loads(text or "{}")
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"--table is {text!r:.60}; expected a JSON object such as '{{\"age\": 61}}'")
    return {name: cell for name, cell in row.items() if not (cell is None or cell == "")}


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the verb; returns its results."""
    (args,) = MMParser(PredictArguments, prog="modeling-mm predict").parse(argv)
    if not (args.image or args.text or args.audio or args.video or args.table):
        raise ValueError("give --image, --audio, --video, --table or --text, or several of them")
    table = read_table_row(args.table)
    if args.explain and (args.audio or args.video):
        raise ValueError(f"--explain draws over one image; leave out {'--audio' if args.audio else '--video'}")
    if args.explain and len(args.image) != 1:
        raise ValueError(f"--explain draws over one image, but {len(args.image)} were given with --image")
    attention = {"attn_implementation": "eager"} if args.explain else {}
    model, processor = load_checkpoint(args.model, **attention, **quantized(args.quantization))
    model = model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    task = task_of(model)
    if TASKS[task].embeds:
        return rankings(args, model, processor)
    if args.explain:
        try:
            model.check_attention_maps()
        except ValueError as error:
            raise ValueError(f"--explain: {error}") from None
    clips, videos = list(args.audio), list(args.video)
    media = [[MediaRef(path) for path in paths] for paths in (args.image, clips, videos)]
    table = formed_numbers(table, (model.config.columns or {}).get("forms", {}))
    if table:
        table_tensor(table, processor.table_columns)  # refuses a bad cell, and an unknown column
    rows = [
        Row(number, media[0], text, None, media[1], media[2], table=table)
        for number, text in enumerate(args.text or [""], start=1)
    ]
    for row in rows:
        processor.check_markers([row.text], [row.images])
        processor.check_marker_count(0, row.text, processor.audio_token, len(row.audio), "sounds")
        processor.check_marker_count(0, row.text, processor.video_token, len(row.videos), "videos")
    collator = MMCollator(processor, task, max_length=2**20)
    batch = BatchFeature(collator(rows)).to(model.device)
    results = answer(model, processor, batch, args.max_new_tokens) if TASKS[task].generates else classify(model, batch)
    output: dict[str, Any] = {"model": args.model, "image": args.image, **({"audio": clips} if clips else {})}
    output |= {"video": videos} if videos else {}
    output |= {"table": table} if table else {}
    output["results"] = [{"text": row.text, **result} for row, result in zip(rows, results, strict=True)]
    if args.explain:
        image = open_image(args.image[0], processor.image_background)
        try:
            maps = model.attention_maps(processor, image, rows[0].text, args.max_new_tokens, table=table)
        except ValueError as error:
            raise ValueError(f"--explain: {error}") from None
        figures.draw_attention(maps.image, maps.words, rows[0].text, Path(args.explain))
        output["explain"] = args.explain
    return output
