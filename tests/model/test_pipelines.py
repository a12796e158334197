# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A saved folder works in transformers' pipelines and Auto classes, and our pipeline classifies multimodal rows.

Without the package: tests/model/test_remote_code.py.
"""

import pytest
import torch
from helpers.builders import drawing, mm_model, pictures
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_mm import (
    MMForConditionalGeneration,
    MMForSequenceClassification,
    MMModel,
    MMProcessor,
    MultimodalClassificationPipeline,
)

TASK = "multimodal-classification"
RED, GREEN = drawing((200, 30, 30)), drawing((30, 200, 30))
ROWS = [
    {"image": RED, "text": "is there a red square"},
    {"text": "what colour is the circle"},
    {"image": GREEN},
    {"image": [RED, GREEN, RED], "text": "a small green triangle"},
    {"image": None, "text": None},
]


def saved(folder, processor, head, text="llama", **fields):
    """A folder with a model whose vocabulary is the processor's, and the processor."""
    model = mm_model(text, head=head, image_token_id=processor.image_token_id, **fields)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(processor, tmp_path):
    """The folder of a classifier."""
    names = {0: "yes", 1: "no", 2: "perhaps"}
    return saved(tmp_path / "classifier", processor, MMForSequenceClassification, "bert", id2label=names)


@pytest.fixture
def classify(folder):
    return pipeline(TASK, model=folder)


def scores(results):
    """Labels and scores (rows, labels) of results with all labels."""
    labels = [[entry["label"] for entry in row] for row in results]
    return labels, torch.tensor([[entry["score"] for entry in row] for row in results])


def test_the_pipeline_gives_the_model_s_probabilities(classify, processor):
    assert type(classify) is MultimodalClassificationPipeline
    texts = ["<image>is there a red square", "what colour is the circle", "<image>", "<image>" * 3 + ROWS[3]["text"]]
    texts.append(processor.tokenizer.cls_token or processor.tokenizer.bos_token)
    images = [[RED], [], [GREEN], [RED, GREEN, RED], []]
    for row, text, row_images in zip(ROWS, texts, images, strict=True):
        with torch.no_grad():
            logits = classify.model(**processor(images=[row_images], text=[text], return_tensors="pt")).logits[0]
        expected = dict(zip(["yes", "no", "perhaps"], logits.softmax(-1).tolist(), strict=True))
        got = classify(row, top_k=None)
        assert {entry["label"]: entry["score"] for entry in got} == pytest.approx(expected, abs=1e-5)
        assert got == sorted(got, key=lambda entry: -entry["score"])
        (best,) = classify(row)
        assert best == got[0]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_batch_gives_what_its_rows_give(classify, batch_size):
    labels, alone = scores(classify(ROWS, top_k=None))
    batched_labels, batched = scores(classify(ROWS, top_k=None, batch_size=batch_size))
    assert batched_labels == labels
    torch.testing.assert_close(batched, alone, atol=1e-5, rtol=1e-5)
    assert [entry["label"] for entry in classify(ROWS, batch_size=batch_size)] == [row[0] for row in labels]
    assert [len(row) for row in classify(ROWS, top_k=2)] == [2] * 5
    streamed = list(classify((row for row in ROWS), top_k=None, batch_size=batch_size))
    torch.testing.assert_close(scores(streamed)[1], alone, atol=1e-5, rtol=1e-5)


def test_a_picture_of_several_rows_is_encoded_once(classify, tmp_path):
    GREEN.save(tmp_path / "green.png")
    seen = []
    tower = classify.model.model.vision_tower
    tower.register_forward_hook(lambda *call: seen.append(len(call[2]["pixel_values"])), with_kwargs=True)
    path = str(tmp_path / "green.png")
    rows = [{"image": [path, RED], "text": "blue"}, {"image": path}, {"image": RED, "text": "yes"}]
    classify(rows, batch_size=3)
    assert seen == [2]
    assert classify({"image": path}) == classify({"image": GREEN})


def test_scores_follow_the_kind_of_problem(processor, tmp_path):
    fields = {"problem_type": "multi_label_classification", "num_labels": 3}
    several = pipeline(TASK, model=saved(tmp_path, processor, MMForSequenceClassification, **fields))
    logits = {entry["label"]: entry["score"] for entry in several(ROWS[0], top_k=None, function_to_apply="none")}
    shares = {entry["label"]: entry["score"] for entry in several(ROWS[0], top_k=None)}
    assert shares == pytest.approx({k: 1 / (1 + 2.718281828**-v) for k, v in logits.items()}, abs=1e-5)
    softmax = several(ROWS[0], top_k=None, function_to_apply="softmax")
    assert sum(entry["score"] for entry in softmax) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("row", ["picture.png", {}, {"image": RED, "question": "what?"}], ids=["text", "none", "key"])
def test_an_input_of_another_form_is_named(classify, row):
    with pytest.raises(ValueError, match="expected a dict with any of 'image', 'text'"):
        classify(row)


def test_a_pipeline_saved_is_a_whole_folder(classify, tmp_path):
    classify.save_pretrained(tmp_path / "again")
    again = pipeline(TASK, model=str(tmp_path / "again"))
    assert again(ROWS, top_k=None) == classify(ROWS, top_k=None)
    assert type(again.processor) is MMProcessor


def test_no_trust_is_needed_with_the_package_even_when_it_is_given(folder):
    trusted = pipeline(TASK, model=folder, trust_remote_code=True)
    assert type(trusted) is MultimodalClassificationPipeline
    assert trusted(ROWS) == pipeline(TASK, model=folder)(ROWS)
    assert PIPELINE_REGISTRY.check_task(TASK)[1]["pt"] == (AutoModelForSequenceClassification,)


def test_a_config_offers_its_pipeline_for_classifiers_only(monkeypatch):
    classifier, generator = mm_model(head=MMForSequenceClassification).config, mm_model().config
    classifier.architectures, generator.architectures = ["MMForSequenceClassification"], ["MMForConditionalGeneration"]
    assert classifier.custom_pipelines == {}  # the package has registered it
    monkeypatch.delitem(PIPELINE_REGISTRY.supported_tasks, TASK)
    assert classifier.custom_pipelines[TASK]["impl"] == "pipeline_mm.MultimodalClassificationPipeline"
    assert generator.custom_pipelines == {} and "custom_pipelines" not in classifier.to_dict()


@pytest.mark.parametrize("head", [MMModel, MMForConditionalGeneration])
def test_features_come_from_any_folder(head, processor, tmp_path):
    path = saved(tmp_path, processor, head)
    model = AutoModel.from_pretrained(path).eval()
    ids = processor.tokenizer("what colour", return_tensors="pt")
    with torch.no_grad():
        text, image = model(**ids).last_hidden_state, processor.image_processor(RED, return_tensors="pt")
        expected = model.get_image_features(**image)
    got = pipeline("feature-extraction", model=path)("what colour", return_tensors=True)
    torch.testing.assert_close(got, text)
    extract = pipeline("image-feature-extraction", model=path)
    torch.testing.assert_close(extract(RED, return_tensors=True), expected.last_hidden_state)
    torch.testing.assert_close(extract(RED, return_tensors=True, pool=True), expected.pooler_output)


def test_a_chat_goes_through_the_pipeline(processor, tmp_path):
    path = saved(tmp_path, processor, MMForConditionalGeneration)
    ask = pipeline("image-text-to-text", model=path)
    parts = [{"type": "image", "image": RED}, {"type": "text", "text": "what colour is the circle"}]
    chat = [{"role": "user", "content": parts}]
    options = {"max_new_tokens": 4, "do_sample": False}
    (answer,) = ask(text=chat, generate_kwargs=options, return_full_text=False)
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    new = ask.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert answer["generated_text"].strip() == processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_every_auto_class_opens_the_folder(folder, processor, tmp_path):
    generation = saved(tmp_path / "generation", processor, MMForConditionalGeneration)
    assert type(AutoModelForSequenceClassification.from_pretrained(folder)) is MMForSequenceClassification
    assert type(AutoModelForImageTextToText.from_pretrained(generation)) is MMForConditionalGeneration
    assert type(AutoModelForMultimodalLM.from_pretrained(generation)) is MMForConditionalGeneration
    for path in (folder, generation):
        assert type(AutoModel.from_pretrained(path)) is MMModel
        assert type(AutoProcessor.from_pretrained(path)) is MMProcessor
        assert len(AutoTokenizer.from_pretrained(path)) == len(processor.tokenizer)
        image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        assert type(image_processor) is type(processor.image_processor)


@pytest.mark.parametrize("head", [MMForConditionalGeneration, MMForSequenceClassification])
def test_a_head_without_text_is_refused(head):
    with pytest.raises(ValueError, match="neither `input_ids` nor `inputs_embeds` was given"):
        mm_model(head=head)(**pictures(1))
    with pytest.raises(ValueError, match="neither `input_ids` nor `inputs_embeds` was given"):
        mm_model(head=MMModel)()
