# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A file has the same pixels everywhere: table, path, PIL, array, chat, pipelines, search, video, the Space."""

import base64
import json
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.builders import mm_model, save_with_processor
from helpers.images import GREY, RAMP, SIDE, coloured, drawn_on_nothing, processor_of, square, turned
from PIL import Image, ImageCms
from transformers import CLIPImageProcessorPil, pipeline

from modeling_mm import (
    MMForConditionalGeneration,
    MMForImageTextRetrieval,
    MMForSequenceClassification,
    MMProcessor,
)
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.feature_cache import FrozenTower
from modeling_mm.data.media import BadRow, MediaRef, open_image
from modeling_mm.data.rows import Row
from modeling_mm.model import images_mm
from modeling_mm.search.dual_encoder import DualEncoder

SPACE = Path(__file__).parents[2] / "hub_space"


def palette_with_clear_ground():
    """A black square on a transparent palette colour."""
    image = Image.fromarray((square() == 0).astype(np.uint8))
    image.putpalette([0, 0, 0, 200, 30, 30])
    return image.convert("P") if image.mode != "P" else image


def black_square(ground=255):
    return np.where(square() > 0, 0, ground)


def steps():
    """Black and white bars."""
    return np.where(np.arange(SIDE) % 4 < 2, 0, 255)[None].repeat(SIDE, 0)


# each file with its options for saving, its grey values when opened, and the tolerance of a lossy format
FILES = {
    "grey16.png": (lambda: Image.fromarray((RAMP * 65535).round().astype(np.uint16)), {}, GREY, 0.5),
    "grey16.tif": (lambda: Image.fromarray((RAMP * 65535).round().astype(np.uint16)), {}, GREY, 0.5),
    "grey32.tif": (lambda: Image.fromarray((RAMP * 65535).round().astype(np.int32)), {}, GREY, 0.5),
    "float.tif": (lambda: Image.fromarray(RAMP.astype(np.float32)), {}, GREY, 0),
    "float255.tif": (lambda: Image.fromarray(GREY.astype(np.float32)), {}, GREY, 0),
    "transparent.png": (lambda: drawn_on_nothing("RGBA"), {}, black_square(), 0),
    "grey_and_alpha.png": (lambda: drawn_on_nothing("LA"), {}, black_square(), 0),
    "transparent.tif": (lambda: drawn_on_nothing("RGBA"), {}, black_square(), 0),
    "palette.png": (palette_with_clear_ground, {"transparency": 1}, black_square(), 0),
    "clear_grey16.png": (
        lambda: Image.fromarray(np.where(square() > 0, 0, 700).astype(np.uint16)),
        {"transparency": 700},
        black_square(),
        0,
    ),
    "turned.jpg": (turned, {"quality": 95}, np.rot90(GREY, -1), 3),
    "turned16.png": (
        lambda: Image.fromarray((RAMP * 65535).round().astype(np.uint16)),
        {"exif": turned().getexif()},
        np.rot90(GREY, -1),
        0.5,
    ),
    "print.jpg": (lambda: coloured("CMYK"), {"quality": 95}, GREY, 3),
    "bits.png": (lambda: Image.fromarray(steps().astype(np.uint8)).convert("1"), {}, steps(), 0),
    "grey.png": (lambda: coloured("L"), {}, GREY, 0),
    "plain.png": (coloured, {}, GREY, 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, (make, options, _, _) in FILES.items():
        image = make()
        options = {"exif": image.getexif(), **options} if name == "turned.jpg" else options
        image.save(folder / name, **options)
    return folder


@pytest.fixture
def processor(tokenizer):
    return processor_of(tokenizer)


def seen(pixels):
    """The first image of pixels (I, C, H, W), which is grey, as values (H, W) from 0 to 255."""
    return pixels[0].mul(255).numpy()


def chat(image, key="url"):
    return [{"role": "user", "content": [{"type": "image", key: image}, {"type": "text", "text": "is it red"}]}]


def chat_pixels(processor, image, key="url"):
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(chat(image, key), **options)["pixel_values"]


def array_of(path):
    """The file's samples as a numpy array, or None if they are not the whole image (palette, alpha, rotation)."""
    with Image.open(path) as file:
        plain = file.mode not in ("P", "CMYK") and not file.getexif() and "transparency" not in file.info
        return np.array(file) if plain else None


def space_opens(path, processor, monkeypatch):
    """The image that the Space makes of an uploaded file, run without the Space's libraries."""
    pytest.importorskip("gradio")
    monkeypatch.syspath_prepend(str(SPACE))
    import limits

    try:
        return limits.open_image(path, processor)
    finally:
        sys.modules.pop("limits")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_same_pixels_through_every_door(folder, processor, name, monkeypatch):
    path = folder / name
    content = path.read_bytes()
    row = partial(Row, 1, text="yes", target=0)

    def prepared(image):
        return processor(images=[image], text=["yes"], return_tensors="pt")["pixel_values"]

    encoder = DualEncoder("here", mm_model(head=MMForImageTextRetrieval), processor)
    videos = MMProcessor(processor.image_processor, processor.tokenizer, max_frames=1, video_token="yes")
    doors = {
        "path": prepared(str(path)),
        "path object": prepared(path),
        "bytes": prepared(content),
        "base64": prepared(base64.b64encode(content).decode()),
        "PIL": prepared(Image.open(path)),
        "PIL, copied": prepared(Image.open(path).copy()),
        "opened before": prepared(processor.open_image(path)),
        "alone": processor(images=path, return_tensors="pt")["pixel_values"],
        "chat by path": chat_pixels(processor, str(path)),
        "chat by PIL": chat_pixels(processor, Image.open(path), "image"),
        "table": MMCollator(processor, "classification")([row([str(path)])])["pixel_values"],
        "embedded in a table": MMCollator(processor, "classification")([row([content])])["pixel_values"],
        "search": encoder.prepare(str(path))["pixel_values"],
        "frame of a video": videos.flat_videos([[[str(path)]]])["pixel_values_videos"][0],
        "PIL frame of a video": videos.flat_videos([[[Image.open(path)]]])["pixel_values_videos"][0],
    }
    if (array := array_of(path)) is not None:
        doors |= {
            "array": prepared(array),
            "array as a frame": videos.flat_videos([[[array]]])["pixel_values_videos"][0],
        }
        if array.dtype != np.uint16:
            doors["tensor"] = prepared(torch.from_numpy(array))
    if path.suffix != ".tif":  # the Space does not take these
        doors["Space"] = prepared(space_opens(path, processor, monkeypatch))
    expected, tolerance = FILES[name][2:]
    for door, pixels in doors.items():
        assert torch.equal(pixels, doors["path"]), door
    assert np.abs(seen(doors["path"]) - expected).max() <= tolerance + 1e-3


def test_the_cache_of_features_opens_files_as_training_does(folder, processor):
    run = FrozenTower.__new__(FrozenTower)
    run.processor, run.modality = processor, "image"
    for name in FILES:
        expected = processor.flat_images([[folder / name]])["pixel_values"]
        assert torch.equal(run.prepare(MediaRef(str(folder / name)))["pixel_values"], expected), name


def test_pipelines_see_what_the_processor_sees(folder, tokenizer, tmp_path):
    size = {"height": SIDE, "width": SIDE}
    processor = MMProcessor(CLIPImageProcessorPil(size=size, crop_size=size), tokenizer)
    for name, head in (("classifier", MMForSequenceClassification), ("answers", MMForConditionalGeneration)):
        model = mm_model(head=head, image_token_id=processor.image_token_id)
        save_with_processor(model, processor, tmp_path / name)
    classify = pipeline("multimodal-classification", model=str(tmp_path / "classifier"))
    ask = pipeline("image-text-to-text", model=str(tmp_path / "answers"))
    pixels = []
    for asked in (classify, ask):
        asked.model.base_model.vision_tower.register_forward_pre_hook(
            lambda module, args, kwargs: pixels.append(kwargs.get("pixel_values", args and args[0])), with_kwargs=True
        )
    for name in FILES:
        expected = processor.flat_images([[folder / name]])["pixel_values"]
        del pixels[:]
        for image in (str(folder / name), Image.open(folder / name), folder / name, (folder / name).read_bytes()):
            classify({"image": image, "text": "yes"})
        ask(text=chat(str(folder / name)), max_new_tokens=1)
        ask(text=chat(Image.open(folder / name), "image"), max_new_tokens=1)
        assert len(pixels) == 6 and all(torch.equal(each, expected) for each in pixels), name


def test_sentence_transformers_see_what_the_processor_sees(folder, tokenizer, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    size = {"height": SIDE, "width": SIDE}
    processor = MMProcessor(CLIPImageProcessorPil(size=size, crop_size=size), tokenizer)
    model = mm_model("bert", head=MMForImageTextRetrieval)
    save_with_processor(model, processor, tmp_path)
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    for name in FILES:
        pixels = processor.flat_images([[folder / name]])["pixel_values"]
        with torch.no_grad():
            expected = model.get_image_features(pixels).pooler_output.numpy()
        np.testing.assert_allclose(encoder.encode([Image.open(folder / name)]), expected, atol=1e-6)


MODES = ["1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA", "I", "F"]


@pytest.mark.parametrize("mode", [*MODES, "I;16", "I;16L", "I;16B"])
def test_any_mode_is_taken_by_any_image_processor(tokenizer, mode):
    image = Image.new("RGB", (SIDE, SIDE), (153, 153, 153))  # a colour of the web palette
    if mode.startswith("I;16"):
        image = Image.new(mode, (SIDE, SIDE), 153 * 257)
    elif mode == "1":
        image = Image.new("1", (SIDE, SIDE), 1)
    elif mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    else:
        through = {"La": "LA", "RGBa": "RGBA", "PA": "P", "I": "L", "F": "L"}.get(mode, "RGB")
        image = image.convert(through).convert(mode)
    assert image.mode == mode
    opened = images_mm.open_image(image)
    assert opened.mode == "RGB" and opened.size == (SIDE, SIDE)
    assert np.abs(np.asarray(opened).astype(int) - (255 if mode == "1" else 153)).max() <= 1
    for name in ("CLIPImageProcessor", "ViTImageProcessor", "Siglip2ImageProcessor", "ConvNextImageProcessor"):
        images = processor_like(name)
        batch = MMProcessor(images, tokenizer)(images=[image], text=["yes"], return_tensors="pt")
        expected = images([opened], return_tensors="pt")
        assert torch.equal(batch["pixel_values"], expected["pixel_values"]), name


def processor_like(name):
    """An image processor by its class, over PIL."""
    import transformers

    return getattr(transformers, f"{name}Pil")()


def test_transparency_is_laid_on_the_colour_that_the_config_names(folder, tokenizer, tmp_path):
    processor_of(tokenizer, image_background="#0000ff").save_pretrained(tmp_path)
    processor = MMProcessor.from_pretrained(tmp_path)
    assert processor.image_background == "#0000ff"
    row = Row(1, [str(folder / "transparent.png")], "yes", 0)
    doors = {
        "path": processor.flat_images([[folder / "transparent.png"]])["pixel_values"],
        "table": MMCollator(processor, "classification")([row])["pixel_values"],
        "search": DualEncoder("here", mm_model(head=MMForImageTextRetrieval), processor).prepare(row.images[0].source)[
            "pixel_values"
        ],
        "chat": chat_pixels(processor, str(folder / "transparent.png")),
    }
    for door, pixels in doors.items():
        assert pixels[0, :, 0, 0].tolist() == [0, 0, 1], door
        assert pixels[0, :, 8, 8].tolist() == [0, 0, 0], door


def test_a_processor_saved_before_lays_transparency_on_white(tokenizer, tmp_path):

    processor_of(tokenizer).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config.pop("image_background") == "white"
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    assert MMProcessor.from_pretrained(tmp_path).image_background == "white"


@pytest.fixture
def served(folder):
    """Serve the files on loopback and yield the address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *args: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_address_is_fetched_and_opened_as_the_file(folder, processor, served):
    for name in FILES:
        expected = processor.flat_images([[folder / name]])["pixel_values"]
        inline = f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}"
        for source in (f"{served}/{name}", inline):
            assert torch.equal(processor.flat_images([[source]])["pixel_values"], expected), name
            assert torch.equal(chat_pixels(processor, source), expected), name
    with pytest.raises(ValueError, match="the image 'http://.*none.png' cannot be fetched: .*404"):
        processor.flat_images([[f"{served}/none.png"]])
    with pytest.raises(ValueError, match="cannot be fetched"):
        processor.flat_images([["http://127.0.0.1:1/none.png"]])


def test_a_table_fetches_nothing(served, processor):
    with pytest.raises(BadRow, match="does not exist"):
        open_image(f"{served}/plain.png")


def test_what_cannot_be_opened_is_one_sentence_at_every_door(folder, processor, tmp_path, monkeypatch):
    content = (folder / "plain.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) - 30])
    (tmp_path / "text.png").write_text("no image")
    shutil.copy(folder / "plain.png", tmp_path / "large.png")
    messages = {
        "none.png": "none.png' does not exist$",
        "cut.png": "cut.png' is broken: ",
        "text.png": "text.png' is not in a format that can be read; expected PNG, JPEG",
    }
    for name, sentence in messages.items():
        path = str(tmp_path / name)
        for door in (processor.open_image, open_image, lambda p: chat_pixels(processor, p), images_mm.open_image):
            with pytest.raises(ValueError, match=f"^the image '.*{sentence}"):
                door(path)
    with pytest.raises(ValueError, match=r"^the image '.*cut.png' is broken"):
        processor(images=[Image.open(tmp_path / "cut.png")], text=["yes"])
    with pytest.raises(ValueError, match="its embedded bytes is broken"):
        processor(images=[content[:-30]], text=["yes"])
    with pytest.raises(ValueError, match="^the image 'data:image.* is broken: it is not valid base64"):
        processor(images=["data:image/png;base64,#"], text=["yes"])
    long = "A" * 5000
    with pytest.raises(ValueError, match="^the image 'A{200}...' "):
        processor(images=[long], text=["yes"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match="more than 20 pixels and may be a decompression bomb"):
        processor.open_image(tmp_path / "large.png")
