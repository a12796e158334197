"""`modeling-mm predict`: several texts, several images, none, and attention maps."""

import json

import numpy as np
import pytest
import torch
from helpers.audio import hearing, hearing_processor, tone
from helpers.builders import drawing, save
from PIL import Image
from transformers import CLIPImageProcessorPil

from modeling_mm import (
    MMForConditionalGeneration,
    MMForImageTextRetrieval,
    MMForSequenceClassification,
    MMProcessor,
    cli,
)
from modeling_mm.checkpoint import load_checkpoint
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.rows import Row
from modeling_mm.model.attention_maps_mm import attention_grid
from modeling_mm.report import figures

LABELS = {0: "blue", 1: "no", 2: "yes"}


@pytest.fixture
def generator(tmp_path, processor):
    return save(tmp_path / "generator", processor)


@pytest.fixture
def classifier(tmp_path, processor):
    return save(tmp_path / "classifier", processor, MMForSequenceClassification, "bert", id2label=LABELS)


@pytest.fixture
def image_paths(tmp_path):
    """Paths of two different images that are not square."""
    paths = []
    for name, shade in (("a", 220), ("b", 30)):
        pixels = np.random.default_rng(shade).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
    return paths


def ask(capsys, *argv):
    """Run a prediction that must succeed; returns its results."""
    assert cli.main(["predict", "--max_new_tokens", "4", *map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out)["results"]


def refuse(capsys, *argv):
    """Run a prediction that must be refused; returns its message."""
    assert cli.main(["predict", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip().splitlines()[-1]


@pytest.mark.parametrize("kind", ["generator", "classifier"])
def test_several_texts_are_answered_as_each_alone(request, image_paths, capsys, kind):
    model = request.getfixturevalue(kind)
    texts = ["is there a red square", "yes", "what colour is the circle"]
    together = ask(capsys, "--model", model, "--image", image_paths[0], "--text", *texts)
    single = [ask(capsys, "--model", model, "--image", image_paths[0], "--text", text)[0] for text in texts]
    assert [result["text"] for result in together] == texts
    for result, expected in zip(together, single, strict=True):
        if kind == "generator":
            assert result == expected
        else:
            assert result["label"] == expected["label"]
            assert result["probabilities"] == pytest.approx(expected["probabilities"], abs=2e-4)


def test_several_pictures_are_all_seen(generator, image_paths):
    model, processor = load_checkpoint(generator)
    assert not model.training

    def logits(*images):
        batch = MMCollator(processor, "generation")([Row(1, list(images), "is it red")])
        with torch.no_grad():
            return model(**batch).logits[:, -1]

    a, b = image_paths
    assert not torch.allclose(logits(a, b), logits(a, a)) and not torch.allclose(logits(a, b), logits(b, b))


def test_several_pictures_and_texts_make_one_row_per_text(generator, image_paths, capsys):
    results = ask(capsys, "--model", generator, "--image", *image_paths, "--text", "is it red", "yes")
    assert [set(result) for result in results] == [{"text", "answer"}] * 2
    message = refuse(capsys, "--model", generator, "--image", *image_paths, "--text", "<image>is it red")
    assert "the text has 1 '<image>' markers but 2 images" in message


def test_text_alone_is_the_backbone_s_own_answer(generator, capsys):
    (result,) = ask(capsys, "--model", generator, "--text", "is it red")
    model, processor = load_checkpoint(generator)
    batch = MMCollator(processor, "generation")([Row(1, [], "is it red")])
    hidden = model.model.text_model(**batch).last_hidden_state
    first = model.scale_logits(model.lm_head(hidden))[0, -1].argmax()
    assert result["answer"].startswith(processor.decode(first, skip_special_tokens=True).strip())


def test_a_picture_alone_is_described_or_classified(generator, classifier, image_paths, capsys):
    assert set(ask(capsys, "--model", generator, "--image", image_paths[0])[0]) == {"text", "answer"}
    (result,) = ask(capsys, "--model", classifier, "--image", image_paths[0])
    assert set(result["probabilities"]) == set(LABELS.values())
    assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert result["label"] == max(result["probabilities"], key=result["probabilities"].get)


def test_nothing_to_ask_is_refused(generator, capsys, tmp_path):
    assert "give --image, --audio, --video, --table or --text, or several of them" in refuse(
        capsys, "--model", generator
    )
    assert "no.png' does not exist" in refuse(capsys, "--model", generator, "--image", tmp_path / "no.png")


def test_explaining_needs_one_picture(generator, image_paths, capsys, tmp_path):
    look = tmp_path / "look.png"
    for images in ([], ["--image", *image_paths]):
        message = refuse(capsys, "--model", generator, *images, "--text", "x", "--explain", look)
        assert "--explain" in message and "one image" in message
    assert not look.exists()


def test_a_resampler_s_slots_are_not_drawn_as_places(tmp_path, processor, image_paths, capsys):
    model = save(tmp_path / "resampler", processor, num_latents=4)
    message = refuse(
        capsys, "--model", model, "--image", image_paths[0], "--text", "x", "--explain", tmp_path / "l.png"
    )
    assert "--explain" in message and "resampler" in message


def test_a_class_token_is_no_place():
    weights = torch.arange(17.0)
    assert attention_grid(weights).tolist() == weights[1:].view(4, 4).tolist()
    assert attention_grid(weights[:16]).tolist() == weights[:16].view(4, 4).tolist()
    for count in (2, 3, 7):
        with pytest.raises(ValueError, match=f"{count} slots"):
            attention_grid(weights[:count])


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of every call of `draw_attention`."""
    calls = []
    original = figures.draw_attention
    monkeypatch.setattr(figures, "draw_attention", lambda *args: calls.append(args) or original(*args))
    return calls


@pytest.mark.parametrize("vision", ["clip_vision_model", "siglip_vision_model", "resnet"])
def test_attention_of_a_word_is_shared_among_all_places(tmp_path, processor, image_paths, capsys, drawn, vision):
    model = save(tmp_path / "m", processor, vision=vision)
    look = tmp_path / "look.png"
    ask(capsys, "--model", model, "--image", image_paths[0], "--text", "is it red", "--explain", look)
    ((image, maps, title, path),) = drawn
    assert image.size == (16, 16)  # the centre crop that the processor takes of 30 x 20
    assert title == "is it red" and 1 <= len(maps) <= 8
    for word, grid in maps:
        assert isinstance(word, str) and grid.shape == (2, 2) and (grid >= 0).all()
        if vision == "clip_vision_model":  # the class token has a share too
            assert 0.1 < grid.sum() < 1
        else:
            assert grid.sum() == pytest.approx(1, abs=1e-4)
    Image.open(look).verify()


def test_an_explanation_is_the_same_beside_other_texts(generator, image_paths, capsys, drawn, tmp_path):
    ask(capsys, "--model", generator, "--image", image_paths[0], "--text", "yes", "--explain", tmp_path / "one.png")
    ask(
        capsys, "--model", generator, "--image", image_paths[0], "--text", "yes", "is there a red square, what colour",
        "--explain", tmp_path / "two.png",
    )  # fmt: skip
    first, second = (call[1] for call in drawn)
    assert [word for word, _ in first] == [word for word, _ in second]
    for (_, grid), (_, other) in zip(first, second, strict=True):
        assert np.allclose(grid, other, atol=1e-5)


def test_a_classification_is_explained_by_the_words_of_its_text(classifier, image_paths, capsys, drawn, tmp_path):
    text = "is there a red square what colour is the circle"
    (result,) = ask(
        capsys, "--model", classifier, "--image", image_paths[0], "--text", text, "--explain", tmp_path / "look.png"
    )
    assert result["label"] in LABELS.values()
    assert [word for word, _ in drawn[0][1]] == text.split()[:8]
    assert all(grid.sum() > 0 for _, grid in drawn[0][1])


def test_dollars_and_markup_in_texts_do_not_break_a_figure(tmp_path):
    odd = r"does it cost $\frac$ or $5_$?"
    samples = [{"image": drawing((9, 9, 9)), "text": odd, "prediction": odd, "truth": "$^$"}]
    figures.draw_samples(samples, tmp_path / "s.png")
    figures.draw_confusion([odd, "a"], [odd, "$^$"], tmp_path / "c.png")
    figures.draw_attention(drawing((9, 9, 9)), [(odd, np.ones((2, 2)))], odd, tmp_path / "a.png")
    assert {path.name for path in tmp_path.glob("*.png")} == {"s.png", "c.png", "a.png"}


def test_a_folder_opens_with_its_own_head(generator, classifier):
    assert type(load_checkpoint(generator)[0]) is MMForConditionalGeneration
    model, processor = load_checkpoint(classifier)
    assert type(model) is MMForSequenceClassification and type(processor) is MMProcessor
    assert isinstance(processor.image_processor, CLIPImageProcessorPil)


TEXTS = ["is there a red square", "yes", "a small green triangle"]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_texts_are_ranked_for_each_picture(tmp_path, processor, image_paths, capsys, weight):
    folder = save(tmp_path / "finder", processor, MMForImageTextRetrieval, matching_weight=weight)
    results = ask(capsys, "--model", folder, "--image", *image_paths, "--text", *TEXTS)
    model, _ = load_checkpoint(folder)
    tokens = dict(processor.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    for path in image_paths:
        ranked = [result for result in results if result["image"] == path]
        pixels = processor(images=[Image.open(path)], return_tensors="pt")["pixel_values"].expand(3, -1, -1, -1)
        with torch.no_grad():
            output = model(**tokens, pixel_values=pixels)
            logits = model.match(**tokens, pixel_values=pixels) if weight else torch.zeros(3, 2)
        scores = output.logits_per_text[:, 0] + logits[:, 1] - logits[:, 0]
        order = scores.argsort(descending=True).tolist()
        assert [(result["rank"], result["text"]) for result in ranked] == [
            (n + 1, TEXTS[i]) for n, i in enumerate(order)
        ]
        cosines = (output.text_embeds @ output.image_embeds[0])[order].tolist()
        assert [result["cosine"] for result in ranked] == pytest.approx(cosines, abs=1e-4)
        if weight:
            shares = logits.softmax(dim=1)[order, 1].tolist()
            assert [result["match"] for result in ranked] == pytest.approx(shares, abs=1e-4)
        assert all(("match" in result) == bool(weight) for result in ranked)
    assert len(results) == 6 and results[0]["cosine"] != results[3]["cosine"]


@torch.no_grad()
def test_texts_are_ranked_for_a_sound(tmp_path, capsys):
    soundfile = pytest.importorskip("soundfile")
    processor, model = hearing_processor(), hearing(head=MMForImageTextRetrieval)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    array, rate = tone(440)
    soundfile.write(tmp_path / "a.wav", array, rate)
    results = ask(capsys, "--model", tmp_path, "--audio", tmp_path / "a.wav", "--text", "a tone", "what do you hear")
    audio_embed = model.get_audio_features(
        **processor(audio=str(tmp_path / "a.wav"), return_tensors="pt")
    ).pooler_output[0]
    for result in results:
        tokens = processor.tokenizer(result["text"], return_tensors="pt")
        text_embed = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output[0]
        assert result["cosine"] == pytest.approx(float(text_embed @ audio_embed), abs=1e-4)
    assert [result["rank"] for result in results] == [1, 2] and all(0 < result["match"] < 1 for result in results)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image", "IMAGE"], "give --text, and --image or --audio"),
        (["--text", "yes"], "give --text, and --image or --audio"),
        (["--image", "IMAGE", "--text", "yes", " "], "expected words in each --text, but one is empty"),
        (["--image", "IMAGE", "--text", "yes", "--explain", "x.png"], "leave out --explain"),
        (["--video", "IMAGE", "--text", "yes"], "leave out --video"),
        (["--audio", "IMAGE", "--text", "yes"], "audio came to a processor without a feature extractor"),
        (["--image", "gone.png", "--text", "yes"], "the image 'gone.png' does not exist"),
    ],
)
def test_what_cannot_be_ranked_is_refused(tmp_path, processor, image_paths, capsys, flags, message):
    folder = save(tmp_path / "finder", processor, MMForImageTextRetrieval)
    flags = [image_paths[0] if word == "IMAGE" else word for word in flags]
    assert message in refuse(capsys, "--model", folder, *flags)
