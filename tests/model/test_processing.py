# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The tensors of MMProcessor for texts and images, and its saving and loading."""

import numpy as np
import pytest
import torch
from helpers.builders import SENTENCES, drawing, mm_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoProcessor, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_mm import MMForConditionalGeneration, MMProcessor

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
RED, BLUE = (200, 30, 30), (30, 30, 200)


def equal(left, right):
    """True if two batches hold the same tensors under the same names."""
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def chat(*parts, answer=None):
    """A conversation of one question, and an answer if there is one; a part is a text or an image."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    answers = [] if answer is None else [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return [{"role": "user", "content": content}, *answers]


def test_images_are_flat_and_indexed(processor):
    red, blue = drawing(RED), drawing(BLUE)
    texts, options = ["<image>a", "<image>a <image>b"], {"padding": True, "return_tensors": "pt"}
    flat = processor([[red], [blue, red]], texts, **options)
    batch = processor([[red], [blue, red]], texts, deduplicate=True, **options)
    assert set(flat) == set(batch) - {"image_index"}
    assert torch.equal(flat["pixel_values"], batch["pixel_values"][[0, 1, 0]])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["image_index"].tolist() == [[0, -1], [1, 0]]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [1, 2]


def test_the_same_image_object_is_prepared_once(processor):
    red, same_colour = drawing(RED), drawing(RED)
    images = [red, red, same_colour, red]
    batch = processor(images, ["<image>a"] * 4, return_tensors="pt", deduplicate=True)
    assert batch["pixel_values"].shape[0] == 2
    assert batch["image_index"].tolist() == [[0], [0], [1], [0]]


def test_none_is_a_row_without_images(processor):
    batch = processor([None, drawing(RED), []], ["a", "<image>a", "b"], padding=True, return_tensors="pt")
    assert len(batch["pixel_values"]) == 1 and "image_index" not in batch
    for nothing in (None, [None, None], [[], []]):
        assert set(processor(nothing, ["a", "b"], padding=True)) == {"input_ids", "attention_mask"}


def test_one_text_takes_one_image_or_a_flat_list(processor):
    red, blue = drawing(RED), drawing(BLUE)
    expected = processor([[red, blue]], ["<image><image>a"], return_tensors="pt")
    assert equal(processor([red, blue], "<image><image>a", return_tensors="pt"), expected)
    assert set(processor(red, "<image>a", return_tensors="pt")) == {"input_ids", "attention_mask", "pixel_values"}


def test_a_text_without_markers_may_have_any_images(processor):
    batch = processor([[drawing(RED), drawing(BLUE)]], ["what is this"], return_tensors="pt")
    assert batch["image_index"].tolist() == [[0, 1]]
    one_each = processor([drawing(RED), drawing(BLUE)], ["what", "is"], padding=True, return_tensors="pt")
    assert len(one_each["pixel_values"]) == 2 and "image_index" not in one_each
    mixed = processor([drawing(RED), None], ["what", "is"], padding=True, return_tensors="pt")
    assert mixed["image_index"].tolist() == [[0], [-1]]


def test_images_alone_are_one_per_row(processor):
    batch = processor([drawing(RED), drawing(BLUE)], return_tensors="pt")
    assert set(batch) == {"pixel_values"} and len(batch["pixel_values"]) == 2
    assert processor(drawing(RED), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)


def test_arrays_and_paths_are_images_too(processor, tmp_path):
    red = drawing(RED)
    red.save(tmp_path / "red.png")
    expected = processor(red, "<image>a", return_tensors="pt")
    assert equal(processor(np.asarray(red), "<image>a", return_tensors="pt"), expected)
    assert equal(processor(str(tmp_path / "red.png"), "<image>a", return_tensors="pt"), expected)


def test_the_same_path_is_prepared_once(processor, tmp_path):
    drawing(RED).save(tmp_path / "red.png")
    batch = processor([str(tmp_path / "red.png")] * 3, ["<image>a"] * 3, return_tensors="pt", deduplicate=True)
    assert batch["image_index"].tolist() == [[0], [0], [0]]
    assert batch["pixel_values"].shape[0] == 1


@pytest.mark.parametrize(
    "images,texts,row,markers,num_images",
    [
        ([[1], [1]], ["<image>a", "<image><image>b"], 1, 2, 1),
        ([None, [1, 1]], ["a", "<image>b"], 1, 1, 2),
        ([None, [1]], ["<image>a", "<image>b"], 0, 1, 0),
    ],
)
def test_markers_and_images_that_differ_are_refused(processor, images, texts, row, markers, num_images):
    images = [None if row_images is None else [drawing(RED) for _ in row_images] for row_images in images]
    sentence = f"row {row}: the text has {markers} '<image>' markers but {num_images} images came with it"
    with pytest.raises(ValueError, match=sentence):
        processor(images, texts)


def test_rows_that_differ_are_refused(processor):
    with pytest.raises(ValueError, match="2 images or lists of images came with 3 texts"):
        processor([drawing(RED), drawing(BLUE)], ["a", "b", "c"])
    with pytest.raises(ValueError, match="a processor without a feature extractor"):
        processor(text="a", audio=np.zeros(100))


def test_a_flat_list_is_dealt_out_to_the_markers(processor):
    red, blue = drawing(RED), drawing(BLUE)
    texts = ["<image>a <image>", "b", "<image>c"]
    batch = processor([red, blue, red], texts, padding=True, return_tensors="pt", deduplicate=True)
    assert batch["image_index"].tolist() == [[0, 1], [-1, -1], [0, -1]]
    with pytest.raises(ValueError, match="2 images or lists of images came with 3 texts"):
        processor([red, blue], texts)


def test_an_empty_call_is_refused(processor):
    with pytest.raises(ValueError, match="neither text nor images were given"):
        processor()


def test_a_marker_that_truncation_cuts_off_is_refused(processor):
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        processor(drawing(RED), "is it red <image>", truncation=True, max_length=2)


def test_each_image_is_one_token_for_those_who_plan_ahead(processor):
    red, blue = drawing(RED), drawing(BLUE, size=50)
    options = {"return_mm_token_type_ids": True, "return_text_replacement_offsets": True, "padding": True}
    batch = processor([[red], [blue, red]], ["a<image>", "<image><image>"], return_tensors="pt", **options)
    assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == processor.image_token_id).long())
    assert [[offset["span"] for offset in row] for row in batch["text_replacement_offsets"]] == [
        [(1, 8)],
        [(0, 7), (7, 14)],
    ]
    assert processor._get_num_multimodal_tokens([(20, 20), (50, 50)]).num_image_tokens == [1, 1]
    assert processor._get_num_multimodal_tokens().num_image_tokens is None


def test_a_tokenizer_without_the_marker_is_refused(processor):
    with pytest.raises(ValueError, match="does not know the marker '<picture>'; use MMProcessor.from_towers"):
        MMProcessor(processor.image_processor, processor.tokenizer, image_token="<picture>")


def test_a_processor_comes_back_as_it_was(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MMProcessor
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.image_token_id == processor.image_token_id and loaded.chat_template == processor.chat_template
    arguments = ([drawing(RED), None], ["<image>is it red", "yes"])
    batches = [each(*arguments, padding=True, return_tensors="pt") for each in (processor, loaded)]
    assert equal(*batches)
    loaded.save_pretrained(tmp_path / "again")
    assert AutoProcessor.from_pretrained(tmp_path / "again").chat_template == processor.chat_template


def test_a_tokenizer_without_a_template_gets_a_plain_one(processor):
    text = processor.apply_chat_template(chat(drawing(RED), "is it red", answer="yes"))
    assert text == "<image>is it red\nyes</s>"
    assert processor.apply_chat_template([{"role": "user", "content": "hello"}]) == "hello\n"


def test_a_tokenizer_s_own_template_learns_images(processor):
    processor.tokenizer.chat_template = CHATML
    taught = MMProcessor(processor.image_processor, processor.tokenizer)
    conversation = chat("look: ", drawing(RED), "is it red", answer="yes")
    plain = [{"role": "user", "content": "look: <image>is it red"}, {"role": "assistant", "content": "yes"}]
    expected = processor.tokenizer.apply_chat_template(plain, tokenize=False)
    assert expected == "<|user|>look: <image>is it red</s><|assistant|>yes</s>"
    assert taught.apply_chat_template(conversation) == expected
    assert taught.apply_chat_template(conversation[:1], add_generation_prompt=True).endswith("</s><|assistant|>")


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_chat_tokenized_equals_its_text_processed(processor, template, tmp_path):
    processor.tokenizer.chat_template = template
    MMProcessor(processor.image_processor, processor.tokenizer).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    red, blue = drawing(RED), drawing(BLUE)
    conversations = [chat(red, "is it red"), chat(blue, "or ", red, "red", answer="no"), chat("what is red")]
    options = {"padding": True, "return_tensors": "pt"}
    tokenized = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, padding=True, return_tensors="pt"
    )
    texts = [processor.apply_chat_template(conversation) for conversation in conversations]
    assert equal(tokenized, processor([[red], [blue, red], []], texts, **options))
    assert len(tokenized["pixel_values"]) == 3 and "image_index" not in tokenized
    alone = processor.apply_chat_template(conversations[2], tokenize=True, return_dict=True, return_tensors="pt")
    assert alone["pixel_values"].shape == (0, 3, 16, 16)  # so that it can be batched with other chats


def test_a_processed_chat_can_be_answered(processor):
    model = mm_model(image_token_id=processor.image_token_id)
    model.resize_token_embeddings(len(processor.tokenizer))
    conversation = chat(drawing(RED), "is it red")
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape == (1, inputs["input_ids"].shape[1] + 3)
    assert set(inputs) <= set(processor.model_input_names)


@pytest.fixture(scope="module")
def plain_text_tower(tmp_path_factory):
    """A folder with a decoder and a tokenizer that knows neither image markers nor padding."""
    folder = tmp_path_factory.mktemp("plain")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(SENTENCES, trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    tokenizer.save_pretrained(folder)
    model = mm_model()
    model.resize_token_embeddings(len(tokenizer))
    text = model.config.text_config
    backbone = LlamaForCausalLM(text)
    backbone.save_pretrained(folder)
    return str(folder), len(tokenizer), backbone


def test_a_tokenizer_without_the_marker_gets_it_and_the_model_a_row(plain_text_tower, processor):
    folder, known, backbone = plain_text_tower
    made = MMProcessor.from_towers(vision=processor.image_processor, text=folder)
    model = MMForConditionalGeneration.from_towers(vision=mm_model().config.vision_config, text=folder)
    assert made.image_token_id == model.config.image_token_id == known
    assert made.tokenizer.pad_token == "</s>"
    embeddings, head = model.get_input_embeddings().weight, model.lm_head.weight
    assert embeddings.shape[0] == head.shape[0] == model.config.text_config.vocab_size == known + 1
    assert torch.equal(embeddings[:known], backbone.model.embed_tokens.weight)
    assert torch.equal(head[:known], backbone.lm_head.weight)
    batch = made(drawing(RED), "<image>is it red", return_tensors="pt")
    assert batch["input_ids"][0, 0] == known
    assert model(**batch).logits.isfinite().all()


def test_a_vocabulary_with_room_for_the_marker_is_not_resized(plain_text_tower, tmp_path):
    folder, known, backbone = plain_text_tower
    text = mm_model().config.text_config
    text.vocab_size = known + 10
    type(backbone)(text).save_pretrained(tmp_path)
    PreTrainedTokenizerFast.from_pretrained(folder).save_pretrained(tmp_path)
    model = MMForConditionalGeneration.from_towers(vision=mm_model().config.vision_config, text=str(tmp_path))
    assert model.get_input_embeddings().num_embeddings == known + 10
    assert model.config.image_token_id == known
