"""Law: rows prepared alone and then stacked equal the rows prepared together, and see their own media."""

import copy

import numpy as np
import pytest
import torch
from helpers.audio import hearing, hearing_processor
from helpers.builders import drawing, mm_model

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMProcessor
from modeling_mm.model.media_mm import MODALITIES

GREEDY = {"max_new_tokens": 4, "do_sample": False}
COUNTS = [1, 0, 3, 2, 1]  # items of each row
TEXTS = ["what do you hear", "a tone", "what", "you hear", "do"]


def tone(hertz):
    return np.sin(2 * np.pi * hertz * np.arange(8000) / 16000).astype(np.float32), 16000


def clip(shade):
    """A video of three frames."""
    return [drawing(shade + 20 * step) for step in range(3)]


def fitted(model, processor):
    """Resize the model to the processor's vocabulary and set its markers."""
    model.resize_token_embeddings(len(processor.tokenizer))
    for modality in MODALITIES.values():
        marker = processor.tokenizer.convert_tokens_to_ids(getattr(processor, modality.marker))
        setattr(model.config, modality.marker_id, marker)
    return model.eval()


@pytest.fixture(scope="module")
def processor():
    return hearing_processor()


def items_of(name, count, row):
    make = {"image": lambda i: drawing(40 * row + 9 * i), "audio": lambda i: tone(200 + 90 * row + 300 * i)}[name]
    return [make(i) for i in range(count)]


def prepared(processor, name, rows, **options):
    """Rows with items of one modality, prepared together."""
    marker, argument = getattr(processor, MODALITIES[name].marker), {"image": "images", "audio": "audio"}[name]
    items = [items_of(name, COUNTS[row], row) for row in rows]
    texts = [marker * COUNTS[row] + TEXTS[row] for row in rows]
    media = {argument: items} if any(items) else {}
    return processor(text=texts, **media, padding="max_length", max_length=12, return_tensors="pt", **options)


def stacked(batches):
    """Rows prepared alone, as a collator that ignores media joins them: each tensor concatenated along dim 0."""
    names = dict.fromkeys(name for batch in batches for name in batch)
    return {name: torch.cat([batch[name] for batch in batches if name in batch]) for name in names}


@pytest.mark.parametrize("name", ["image", "audio"])
@pytest.mark.parametrize("late_fusion", [None, "sum"])
@torch.no_grad()
def test_rows_prepared_alone_and_stacked_are_the_rows_prepared_together(processor, name, late_fusion):
    model = fitted(hearing(head=MMForSequenceClassification, text="bert", late_fusion=late_fusion), processor)
    rows = range(len(COUNTS))
    together = prepared(processor, name, rows)
    alone = [prepared(processor, name, [row]) for row in rows]
    assert MODALITIES[name].index not in together
    joined = stacked(alone)
    assert all(torch.equal(joined[key], value) for key, value in together.items() if key in joined)
    expected = torch.cat([model(**batch).logits for batch in alone])
    for batch in (together, joined, prepared(processor, name, rows, deduplicate=True)):
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    other = [row for row in rows if COUNTS[row]]
    changed = dict(together)
    changed[MODALITIES[name].tensor] = together[MODALITIES[name].tensor].flip(0)
    moved = (model(**changed).logits - expected).abs().amax(dim=1)
    assert (moved[other] > 1e-6).all() and moved[COUNTS.index(0)] < 1e-6


@torch.no_grad()
def test_videos_prepared_alone_are_dealt_out_too(processor):
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<video>"]}, replace_extra_special_tokens=False)
    watcher = MMProcessor(processor.image_processor, tokenizer, max_frames=3)
    model = fitted(mm_model(num_frames=3), watcher)
    options = {"padding": "max_length", "max_length": 12, "return_tensors": "pt"}
    videos = [[clip(30 * n + 9 * i) for i in range(n)] for n in COUNTS]
    rows = [
        watcher(text="<video>" * len(shown) + text, videos=[shown] if shown else None, **options)
        for text, shown in zip(TEXTS, videos, strict=True)
    ]
    expected = torch.cat([model(**row).logits for row in rows])
    torch.testing.assert_close(model(**stacked(rows)).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_image_per_row_needs_no_marker(processor):
    model = fitted(hearing(head=MMForSequenceClassification, text="bert"), processor)
    options = {"padding": "max_length", "max_length": 8, "return_tensors": "pt"}
    rows = [processor(drawing(30 * i), TEXTS[i], **options) for i in range(4)]
    expected = torch.cat([model(**row).logits for row in rows])
    torch.testing.assert_close(model(**stacked(rows)).logits, expected, atol=1e-5, rtol=1e-5)
    default = {name: torch.stack([row[name][0] for row in rows]) for name in rows[0]}  # as `datasets.map` stores rows
    torch.testing.assert_close(model(**default).logits, expected, atol=1e-5, rtol=1e-5)


def test_what_fits_neither_markers_nor_rows_is_refused(processor):
    model = fitted(hearing(head=MMForSequenceClassification, text="bert"), processor)
    options = {"padding": "max_length", "max_length": 8, "return_tensors": "pt"}
    together = processor([[drawing(1), drawing(2)], [drawing(3)]], ["<image><image>a", "<image>b"], **options)
    with pytest.raises(ValueError, match="2 images came without `image_index`, but the 2 texts hold 3 markers"):
        model(**{**together, "pixel_values": together["pixel_values"][:2]})
    bare = processor(text=["a", "b"], **options)
    with pytest.raises(ValueError, match="3 images came without `image_index`, but the 2 texts hold 0 markers"):
        model(**bare, pixel_values=together["pixel_values"])


def test_rows_with_an_index_prepared_alone_are_refused_when_stacked(processor):
    model = fitted(hearing(head=MMForSequenceClassification, text="bert"), processor)
    options = {"padding": "max_length", "max_length": 8, "return_tensors": "pt"}
    rows = [processor([[drawing(i), drawing(9 + i)]], [TEXTS[i]], **options) for i in range(3)]
    assert rows[0]["image_index"].tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="looks like that of rows which were prepared alone"):
        model(**stacked(rows))
    rows = [processor(drawing(i), "<image>a", deduplicate=True, **options) for i in range(3)]
    with pytest.raises(ValueError, match="looks like that of rows which were prepared alone"):
        model(**stacked(rows))


@torch.no_grad()
def test_stacked_prompts_are_answered_each_for_its_own_images(processor):
    model = fitted(hearing(), processor)
    assert isinstance(model, MMForConditionalGeneration)
    rows = range(len(COUNTS))
    options = {"padding_side": "left"}
    alone = [prepared(processor, "image", [row], **options) for row in rows]
    expected = [model.generate(**batch, **GREEDY)[0, -4:].tolist() for batch in alone]
    assert [row[-4:] for row in model.generate(**stacked(alone), **GREEDY).tolist()] == expected
    beams = model.generate(**stacked(alone), **GREEDY, num_beams=2)[:, -4:]
    each = torch.cat([model.generate(**batch, **GREEDY, num_beams=2)[:, -4:] for batch in alone])
    assert torch.equal(beams, each)
