# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A saved retrieval model is a SentenceTransformer: with the package, and without it from the folder's own code."""

import numpy as np
import pytest
import torch
from helpers.audio import hearing, hearing_processor, tone
from helpers.builders import SENTENCES, drawing, mm_model
from helpers.programs import ABSENT, run_without_package
from helpers.retrieval import COLOURS, command, train
from transformers import Siglip2ImageProcessorPil

from modeling_mm import MMForConditionalGeneration, MMForImageTextRetrieval, MMProcessor
from modeling_mm.checkpoint import load_checkpoint

sentence_transformers = pytest.importorskip("sentence_transformers")

FILES = ["config_sentence_transformers.json", "modules.json", "sentence_bert_config.json"]
WIDTH = 12  # width of the embeddings, unlike any other width here

WITHOUT_THE_PACKAGE = (
    ABSENT
    + """
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("folder", device="cpu", trust_remote_code=True)
assert type(encoder[0].model).__module__.startswith("transformers_modules.")
pictures = [Image.open(name) for name in ("a.png", "b.png", "a.png")]
np.savez("found.npz", texts=encoder.encode(sys.argv[1:]), pictures=encoder.encode(pictures))
"""
)


def some_pictures():
    """Three images: two of different sizes, and the first object again."""
    first, second = drawing((200, 30, 30)), drawing((20, 60, 220), 31)
    return [first, second, first]


def save(folder, processor, model):
    """Save a retrieval model and its processor to a folder, and return the model."""
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def features(model, processor, texts, pictures):
    """Embeddings of texts and images, computed by the model directly."""
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        text_embeds = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        pixels = [dict(processor.image_processor(images=[image], return_tensors="pt")) for image in pictures]
        image_embeds = torch.cat([model.get_image_features(**batch).pooler_output for batch in pixels])
    return text_embeds.numpy(), image_embeds.numpy()


@pytest.mark.parametrize("text", ["llama", "bert"])
@pytest.mark.parametrize("vision", ["clip_vision_model", "siglip2_vision_model"])
def test_texts_and_pictures_are_encoded_as_by_the_model(tmp_path, processor, text, vision):
    if vision == "siglip2_vision_model":
        images = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16)
        processor = MMProcessor(image_processor=images, tokenizer=processor.tokenizer)
    model = save(tmp_path, processor, mm_model(text, vision, head=MMForImageTextRetrieval, embedding_size=WIDTH))
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert type(encoder[0].model) is MMForImageTextRetrieval
    assert encoder.get_embedding_dimension() == WIDTH
    text_embeds, image_embeds = features(model, processor, SENTENCES, some_pictures())
    np.testing.assert_allclose(encoder.encode(SENTENCES, batch_size=4), text_embeds, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(some_pictures()), image_embeds, atol=1e-6)
    assert np.abs(image_embeds[0] - image_embeds[1]).max() > 1e-3
    similar = encoder.similarity(encoder.encode_query(SENTENCES), encoder.encode_document(some_pictures()))
    np.testing.assert_allclose(similar.numpy(), text_embeds @ image_embeds.T, atol=1e-6)


def test_sounds_are_encoded_as_by_the_model(tmp_path):
    processor = hearing_processor()
    model = save(tmp_path, processor, hearing(head=MMForImageTextRetrieval, embedding_size=WIDTH))
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    sounds = [tone(300), tone(900, 0.8), tone(500)]
    with torch.no_grad():
        heard = model.get_audio_features(**processor(audio=sounds, return_tensors="pt")).pooler_output
    clips = [{"array": array, "sampling_rate": rate} for array, rate in sounds]
    np.testing.assert_allclose(encoder.encode(clips), heard.numpy(), atol=1e-6)


def test_a_trained_adapter_encodes_over_its_base(tmp_path, capsys):
    lines = ["image,caption"]
    for i, colour in enumerate(COLOURS.values()):
        drawing(colour, 64).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,number {i}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    command(capsys, *train(tmp_path, "--use_peft", "true", "--lora_r", 4, "--learning_rate", "0.1"))
    model, processor = load_checkpoint(str(tmp_path / "out"))
    base, _ = load_checkpoint(str(tmp_path / "out/base"))
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    texts, pictures = ["number 1", "3"], some_pictures()
    merged, plain = features(model, processor, texts, pictures), features(base, processor, texts, pictures)
    for found, expected, other in zip((encoder.encode(texts), encoder.encode(pictures)), merged, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.abs(expected - other).max() > 1e-2


@pytest.mark.slow
def test_without_the_package_the_folder_encodes_the_same(tmp_path, processor):
    model = save(tmp_path / "folder", processor, mm_model(head=MMForImageTextRetrieval, embedding_size=WIDTH))
    pictures = some_pictures()
    for name, picture in zip(("a", "b"), pictures, strict=False):
        picture.save(tmp_path / f"{name}.png")
    run_without_package(WITHOUT_THE_PACKAGE, tmp_path, *SENTENCES)
    found, expected = np.load(tmp_path / "found.npz"), features(model, processor, SENTENCES, pictures)
    for name, embeddings in zip(("texts", "pictures"), expected, strict=True):
        np.testing.assert_allclose(found[name], embeddings, atol=1e-6)


def test_saved_by_sentence_transformers_it_is_still_a_model_of_ours(tmp_path, processor):
    model = save(tmp_path / "first", processor, mm_model("bert", head=MMForImageTextRetrieval))
    sentence_transformers.SentenceTransformer(str(tmp_path / "first"), device="cpu").save(str(tmp_path / "second"))
    text_embeds, image_embeds = features(model, processor, SENTENCES, some_pictures())
    again = MMForImageTextRetrieval.from_pretrained(tmp_path / "second").eval()
    for expected, other in zip(
        (text_embeds, image_embeds), features(again, processor, SENTENCES, some_pictures()), strict=True
    ):
        np.testing.assert_allclose(expected, other, atol=1e-6)
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path / "second"), device="cpu")
    np.testing.assert_allclose(encoder.encode(SENTENCES), text_embeds, atol=1e-6)


def test_other_heads_are_saved_without_its_files(tmp_path):
    mm_model(head=MMForImageTextRetrieval, language_weight=1.0).save_pretrained(tmp_path / "found")
    MMForConditionalGeneration.from_pretrained(tmp_path / "found").save_pretrained(tmp_path / "said")
    assert all((tmp_path / "found" / name).is_file() for name in FILES)
    assert not any((tmp_path / "said" / name).exists() for name in FILES)
