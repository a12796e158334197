"""Law: command, pipeline and Space give the same answer to the same row, whatever it lacks."""

import json
import sys

import pytest
import soundfile
from helpers.audio import tone
from helpers.builders import drawing
from helpers.space import SPACE, save_tiny
from transformers import pipeline

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMProcessor, cli
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.rows import Row

LABELS = {0: "blue", 1: "red", 2: "yes"}
KINDS = {
    "plain": {},
    "late": {"late_fusion": "sum"},
    "gated": {"late_fusion": "gated", "cross_attention": False},
    "multilabel": {"problem_type": "multi_label_classification", "late_fusion": "concat"},
    "regression": {"problem_type": "regression", "label_mean": [0.0] * 3, "label_scale": [2.0] * 3},
}
ROWS = [
    {"image": "red.png"},
    {"text": "is it red"},
    {"audio": "low.wav"},
    {"image": "red.png", "text": "is it red"},
    {"image": "red.png", "audio": "low.wav"},
    {"text": "is it red", "audio": "low.wav"},
    {"image": "red.png", "text": "is it red", "audio": "low.wav"},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    drawing((200, 30, 30)).save(folder / "red.png")
    soundfile.write(folder / "low.wav", *tone(220))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    folder, options = tmp_path_factory.mktemp(request.param), dict(KINDS[request.param])
    return save_tiny(folder, MMForSequenceClassification, "bert", audio=True, id2label=LABELS, **options)


@pytest.fixture
def space(monkeypatch):
    """The Space's own modules, in this process."""
    monkeypatch.syspath_prepend(str(SPACE))
    before = set(sys.modules)
    import classifying
    import loading

    yield loading, classifying
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(SPACE) in str(sys.modules[name].__file__):
            del sys.modules[name]


def predicted(model, capsys, **row):
    """The result of `modeling-mm predict`."""
    argv = [word for name, value in row.items() for word in (f"--{name}", value)]
    assert cli.main(["predict", "--model", str(model), *argv, "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["results"][0]


def test_classifiers_answer_alike(model, files, space, capsys):
    loading, classifying = space
    shown = loading.load(str(model))
    classify = pipeline("multimodal-classification", model=str(model))
    kind = shown.model.config.problem_type
    rows = [{n: v if n == "text" else str(files / v) for n, v in row.items()} for row in ROWS]
    for size in (1, 3, len(rows)):
        piped = [
            {score["label"]: score["score"] for score in scores}
            for scores in classify(rows, top_k=None, batch_size=size)
        ]
        for row, scores in zip(rows, piped, strict=True):
            result = predicted(model, capsys, **row)
            by_command = result["numbers"] if kind == "regression" else result["probabilities"]
            opened = dict(row)
            if "image" in row:
                opened["image"] = classifying.open_image(row["image"], shown.processor)
            if "audio" in row:
                opened["audio"] = classifying.open_audio(row["audio"])
            by_space, _ = classifying.classify_inputs(shown, opened)
            assert scores == pytest.approx(by_command, abs=2e-4)
            assert scores == pytest.approx(by_space, abs=2e-4)


def test_media_go_with_markers_that_truncation_cuts_off(files, space, tmp_path, caplog):
    loading, classifying = space
    folder = save_tiny(tmp_path, MMForSequenceClassification, "bert", id2label=LABELS, late_fusion="sum")
    processor = MMProcessor.from_pretrained(folder)
    processor.tokenizer.model_max_length = 8
    processor.save_pretrained(folder)
    text = "is it red " * 8 + "<image>"
    classify = pipeline("multimodal-classification", model=str(folder))
    with caplog.at_level("WARNING"):
        cut = classify({"image": str(files / "red.png"), "text": text}, top_k=None)
        batch = MMCollator(processor, "classification")([Row(1, [str(files / "red.png")], text)])
    assert batch["image_index"].tolist() == [[-1]]
    assert caplog.text.count("truncation cut off the markers of 1 media") == 2
    inputs = {"image": drawing((200, 30, 30)), "text": text}
    by_space, _ = classifying.classify_inputs(loading.load(str(folder)), inputs)
    bare = {score["label"]: score["score"] for score in classify({"text": "is it red " * 8}, top_k=None)}
    for scores in ({score["label"]: score["score"] for score in cut}, by_space):
        assert scores == pytest.approx(bare, abs=2e-4)


def test_answers_in_words_are_alike(files, tmp_path, capsys):
    folder = save_tiny(tmp_path, MMForConditionalGeneration)
    ask = pipeline("image-text-to-text", model=str(folder))
    content = [{"type": "image", "url": str(files / "red.png")}, {"type": "text", "text": "is it red"}]
    chats = [[{"role": "user", "content": content[start:]}] for start in (0, 1)] * 2
    options = {"generate_kwargs": {"max_new_tokens": 4, "do_sample": False}}
    by_command = [predicted(folder, capsys, text="is it red", max_new_tokens="4", **row)["answer"]
                  for row in ({"image": str(files / "red.png")}, {})]  # fmt: skip
    for size in (1, 2, 4):
        answers = [
            one[0]["generated_text"][-1]["content"].strip() for one in ask(text=chats, batch_size=size, **options)
        ]
        assert answers == by_command * 2
