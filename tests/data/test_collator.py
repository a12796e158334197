"""A batch trains on answers only, has the exact prompt of the chat template, and prepares each image once."""

import pytest
import torch
from helpers.collator import files  # noqa: F401
from transformers import CLIPImageProcessorPil

from modeling_mm import MMProcessor
from modeling_mm.data import collator
from modeling_mm.data.collator import IGNORED, MMCollator
from modeling_mm.data.rows import Row

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
TEMPLATES = pytest.mark.parametrize("template", [None, CHATML, WITH_BOS], ids=["plain", "own", "own with bos"])


def taught(tokenizer, template=None):
    """A processor whose tokenizer has this chat template."""
    tokenizer.chat_template = template
    size = {"height": 16, "width": 16}
    return MMProcessor(image_processor=CLIPImageProcessorPil(size=size, crop_size=size), tokenizer=tokenizer)


def trained(batch, row):
    """The tokens of a row that are trained on."""
    return batch["labels"][row][batch["labels"][row] != IGNORED].tolist()


@TEMPLATES
@pytest.mark.parametrize("pad_is_end", [False, True], ids=["own pad", "pad is end"])
def test_the_answer_and_its_end_are_trained_and_nothing_else(tokenizer, template, pad_is_end):
    if pad_is_end:
        tokenizer.pad_token = tokenizer.eos_token
    processor = taught(tokenizer, template)
    answers = ["blue", "is there a red square", "yes yes yes no"]  # the second says what its question says
    rows = [Row(i + 1, [], "is there a red square", answer) for i, answer in enumerate(answers)]
    batch = MMCollator(processor, "generation")(rows)
    for index, answer in enumerate(answers):
        tokens = trained(batch, index)
        assert processor.decode(tokens) == answer + tokenizer.eos_token
        assert tokens == tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        real = batch["attention_mask"][index].bool()
        ids, labels = batch["input_ids"][index][real], batch["labels"][index]
        assert ids[-len(tokens) :].tolist() == tokens and labels[real][-len(tokens) :].tolist() == tokens
        assert (labels[real][: -len(tokens)] == IGNORED).all() and (labels[~real] == IGNORED).all()
        assert not real[real.sum() :].any()  # padded on the right


@TEMPLATES
def test_a_prompt_is_the_chat_template_s(tokenizer, template, files):
    processor = taught(tokenizer, template)
    rows = [
        Row(1, [files[0]], "is there a red square", "yes"),
        Row(2, [], "blue", "no"),
        Row(3, files[:2], "what <image> is <image> it", "no"),
        Row(4, files[:2], "what colour", "no"),
    ]
    batch = MMCollator(processor, "generation", with_prompts=True)(rows)
    for index, row in enumerate(rows):
        images = [] if "<image>" in row.text else [{"type": "image", "url": image.path} for image in row.images]
        turn = [{"role": "user", "content": [*images, {"type": "text", "text": row.text}]}]
        tokenized = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True)
        expected = tokenized["input_ids"][0]
        mask = batch["prompt_attention_mask"][index].bool()
        assert batch["prompt_input_ids"][index][mask].tolist() == expected
        assert mask[-1] and not mask[: -len(expected)].any()  # padded on the left
        assert batch["input_ids"][index][: len(expected)].tolist() == expected


def test_a_prompt_with_pictures_is_the_chat_template_s(processor, files):
    content = [{"type": "image", "url": files[0]}, {"type": "text", "text": "is it red"}]
    tokenized = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    batch = MMCollator(processor, "generation")([Row(1, [files[0]], "is it red")])
    assert batch.pop("image_index").tolist() == [[0]] and batch.keys() == tokenized.keys()
    assert all(torch.equal(value, tokenized[name]) for name, value in batch.items())


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_a_distinct_picture_is_opened_and_prepared_once(processor, files, monkeypatch, task):
    opened = []
    whole = collator.open_image
    monkeypatch.setattr(collator, "open_image", lambda source, *rest: opened.append(source) or whole(source, *rest))
    a, b, c = files
    target = "yes" if task == "generation" else 0
    rows = [Row(i + 1, images, "q", target) for i, images in enumerate([[a], [], [b, a], [a], [c]])]
    batch = MMCollator(processor, task)(rows)
    assert opened == [a, b, c]
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert batch["image_index"].tolist() == [[0, -1], [-1, -1], [1, 0], [0, -1], [2, -1]]
    whole_batch = MMCollator(processor, task)([Row(1, [b], "q", target)])
    assert torch.equal(batch["pixel_values"][1], whole_batch["pixel_values"][0])
    markers = (batch["input_ids"] == processor.image_token_id).sum(dim=1)
    assert markers.tolist() == [1, 0, 2, 1, 1]


def test_the_same_bytes_are_one_picture(processor, files):
    with open(files[0], "rb") as first, open(files[0], "rb") as second:
        rows = [Row(1, [first.read()], "q", "a"), Row(2, [second.read()], "q", "a")]
    assert MMCollator(processor, "generation")(rows)["image_index"].tolist() == [[0], [0]]


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_blind_is_the_row_without_its_pictures(processor, files, task):
    target = "yes" if task == "generation" else 0
    blind = MMCollator(processor, task, blind=True)
    bare = MMCollator(processor, task)([Row(1, [], "is it red", target)])
    for text in ("is it red", "<image>is it red"):
        batch = blind([Row(1, [files[0]], text, target)])
        assert batch.keys() == bare.keys()
        assert all(torch.equal(value, bare[name]) for name, value in batch.items())


def test_a_row_too_long_is_named(processor):
    rows = [Row(1, [], "yes", "no"), Row(12, [], "yes " * 40, "no")]
    with pytest.raises(ValueError, match=r"row 12: prompt and answer have \d+ tokens; expected at most 30"):
        MMCollator(processor, "generation", max_length=30)(rows)
    assert "labels" in MMCollator(processor, "generation", max_length=200)(rows)


def test_rows_without_answers_are_prompts_padded_on_the_left(processor):
    batch = MMCollator(processor, "generation")([Row(1, [], "yes"), Row(2, [], "what colour is the circle")])
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"][:, -1].tolist() == [1, 1] and batch["attention_mask"][0, 0] == 0


def test_a_classification_batch_has_class_ids(processor, files):
    rows = [Row(1, [files[0]], "what colour is the circle", 2), Row(2, [], "no", 0)]
    batch = MMCollator(processor, "classification")(rows)
    assert batch["labels"].tolist() == [2, 0] and batch["input_ids"].shape == batch["attention_mask"].shape
    expected = processor.tokenizer(["<image>what colour is the circle", "no"])["input_ids"]
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    unpadded = [ids[mask.bool()].tolist() for ids, mask in pairs]
    assert unpadded == expected
    assert "labels" not in MMCollator(processor, "classification")([Row(1, [files[0]], "no")])


def test_a_classification_row_with_no_text_has_a_token(processor, files):
    batch = MMCollator(processor, "classification", blind=True)([Row(1, [files[0]], "", 1), Row(2, [], "no", 0)])
    assert batch["attention_mask"].sum(dim=1).min() >= 1
    processor.tokenizer.bos_token = None
    processor.tokenizer._tokenizer.post_processor = None
    alone = MMCollator(processor, "classification", blind=True)([Row(1, [files[0]], "", 1)])
    assert alone["input_ids"].tolist() == [[processor.tokenizer.eos_token_id]]


def test_a_long_classification_text_is_cut_to_the_limit(processor):
    batch = MMCollator(processor, "classification", max_length=12)([Row(1, [], "yes " * 40, 1)])
    assert batch["input_ids"].shape == (1, 12)
