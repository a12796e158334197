# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The Space serves any model without the package, answers on every endpoint, and refuses with one sentence."""

import ast
import io
import re
import shutil
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.builders import drawing
from PIL import Image

gradio = pytest.importorskip("gradio")
soundfile = pytest.importorskip("soundfile")

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from helpers.hostile_inputs import SECRET, cases  # noqa: E402
from helpers.space import SPACE, folders, serve, server, stop  # noqa: E402, F401
from peft import LoraConfig, get_peft_model  # noqa: E402

from modeling_mm import MMForSequenceClassification, cli  # noqa: E402
from modeling_mm.checkpoint import load_checkpoint  # noqa: E402
from modeling_mm.report import figures  # noqa: E402

SENTENCE = r"[A-Z][^\n<>/\\]{10,200}\."  # one sentence, without paths and markup
ENDPOINTS = {"asked": ["/ask", "/look"], "classified": ["/classify", "/look"], "found": ["/search"]}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Paths of two images and an audio clip."""
    folder = tmp_path_factory.mktemp("media")
    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
        drawing(colour).save(folder / f"{name}.png")
    soundfile.write(folder / "tone.wav", np.sin(np.arange(8000) / 8).astype(np.float32), 16000)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def modules(monkeypatch):
    """The modules of the Space, imported into this process."""
    monkeypatch.syspath_prepend(str(SPACE))
    import asking
    import attention
    import limits
    import loading

    yield {"asking": asking, "limits": limits, "loading": loading, "attention": attention}
    for name in ("asking", "limits", "loading", "attention", "example_media", "cache"):
        sys.modules.pop(name)


@pytest.fixture
def client(server):
    """A function that returns a client of the Space with a name."""
    return lambda name: Client(server.urls[name], verbose=False)


def as_files(media, *names):
    return [handle_file(str(media[name])) for name in names]


def test_the_page_offers_what_the_model_can_do(client):
    for name, endpoints in ENDPOINTS.items():
        described = client(name).view_api(return_format="dict", print_info=False)["named_endpoints"]
        assert sorted(described) == sorted(endpoints)
        for endpoint in described.values():
            assert len(endpoint["description"]) > 30  # from the docstring, by which MCP clients choose a tool


def test_answers_come_word_by_word_about_one_picture_or_several(client, media):
    space = client("asked")
    job = space.submit({"text": "what is it", "files": as_files(media, "red")}, False, 24, api_name="/chat")
    job.result()
    pieces = job.outputs()
    assert len(pieces) > 1 and all(later.startswith(sooner) for sooner, later in zip(pieces, pieces[1:], strict=False))
    asked = space.predict("what is it", *as_files(media, "red"), None, 24, api_name="/ask")
    assert asked == pieces[-1]
    for names in (("red", "blue"), ("red", "tone")):
        message = {"text": "what is it", "files": as_files(media, *names)}
        assert client("asked").predict(message, False, 24, api_name="/chat")


def test_a_question_without_files_is_about_the_latest_ones(client, media):
    first, second = client("asked"), client("asked")
    first.predict({"text": "yes", "files": as_files(media, "blue")}, False, 4, api_name="/chat")
    again = first.predict({"text": "what is it", "files": []}, False, 4, api_name="/chat")
    assert again == second.predict(
        {"text": "what is it", "files": as_files(media, "blue")}, False, 4, api_name="/chat"
    )
    assert first.predict({"text": "is it", "files": []}, True, 4, api_name="/chat")


def test_following_up_sends_all_turns_and_otherwise_the_question_stands_alone(modules, folders, media, monkeypatch):
    monkeypatch.setattr(modules["limits"], "get_upload_folder", lambda: str(media["red"].parent))
    asker = modules["asking"].Asker(modules["loading"].load(str(folders[0])))
    file = {"type": "file", "file": {"path": str(media["red"])}}
    history = [
        {"role": "user", "content": [file]},
        {"role": "user", "content": [{"type": "text", "text": "what <image> is it"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a square"}]},
    ]
    message = {"text": "is it red", "files": []}
    alone = {"role": "user", "text": "is it red", "files": [media["red"]]}
    assert modules["asking"].conversation(asker, message, history, False) == [alone]
    assert modules["asking"].conversation(asker, message, history, True) == [
        {"role": "user", "text": "what   is it", "files": [media["red"]]},
        {"role": "assistant", "text": "a square", "files": []},
        {"role": "user", "text": "is it red", "files": []},
    ]


def test_the_answer_is_the_model_s_own_and_a_picture_is_encoded_once(modules, folders, media):
    loaded = modules["loading"].load(str(folders[0]))
    asker, runs = modules["asking"].Asker(loaded), []
    loaded.model.model.vision_tower.register_forward_hook(lambda *_: runs.append("image"))
    files = [media["red"], media["tone"]]
    answers = [
        list(asker.answer([{"role": "user", "text": text, "files": files}], 12))[-1] for text in ("what", "is it red")
    ]
    assert runs == ["image"]
    model, processor = load_checkpoint(str(folders[0]))
    for text, answer in zip(("what", "is it red"), answers, strict=True):
        content = [{"type": "image", "path": str(media["red"])}, {"type": "audio", "path": str(media["tone"])}]
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        batch = processor.apply_chat_template(
            turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        generated = model.generate(**batch, max_new_tokens=12, do_sample=False)[:, batch["input_ids"].shape[1] :]
        assert answer == processor.batch_decode(generated, skip_special_tokens=True)[0].strip()


def test_an_answer_that_nobody_reads_any_more_ends(modules, folders, media):
    asker = modules["asking"].Asker(modules["loading"].load(str(folders[0])))
    steps = []
    asker.loaded.model.lm_head.register_forward_hook(lambda *_: steps.append(time.sleep(0.05)))
    reader = asker.answer([{"role": "user", "text": "what", "files": [media["red"]]}], 40)
    next(reader)
    reader.close()
    time.sleep(0.2)
    steps_then = len(steps)
    time.sleep(0.3)
    assert len(steps) == steps_then < 40


def test_any_subset_is_classified_and_what_each_brought_adds_up(client, media, folders):
    space = client("classified")
    model, processor = load_checkpoint(str(folders[1]))
    for names in (["red"], ["text"], ["tone"], ["red", "text", "tone"]):
        image = handle_file(str(media["red"])) if "red" in names else None
        audio = handle_file(str(media["tone"])) if "tone" in names else None
        text = "is it red" if "text" in names else ""
        label, found = space.predict(image, text, audio, api_name="/classify")
        assert set(found["brought"]) == {{"red": "image", "tone": "audio"}.get(name, name) for name in names}
        assert sum(score["confidence"] for score in label["confidences"]) == pytest.approx(1, abs=1e-3)
        if names == ["red", "text", "tone"]:
            batch = processor(
                images=[[str(media["red"])], []],
                text=["<image><audio>is it red", "<audio>is it red"],
                audio=[[str(media["tone"])], [str(media["tone"])]],
                padding=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                full, without = model(**batch).logits.softmax(dim=-1)
            assert found["score"] == pytest.approx(full.max().item(), abs=1e-4)
            change = full.max() - without[full.argmax()]
            assert found["brought"]["image"] == pytest.approx(change.item(), abs=2e-4)


def test_a_gallery_is_searched_by_text_and_by_picture(client, server, media, folders):
    gallery, drawn = [], []
    for number in range(5):
        stored = io.BytesIO()
        drawn.append(Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)))
        drawn[-1].save(stored, "PNG")
        gallery.append({"image": server.upload("found", stored.getvalue()), "caption": None})
    (found, hits), error = server.call("found", "search", "", gallery[3]["image"], gallery, False, 3)
    assert error is None and len(found) == 3
    assert hits[0] == {"picture": 3, "similarity": 1.0}  # an image is most like itself
    (_, plain), _ = server.call("found", "search", "a small green triangle", None, gallery, False, 5)
    (_, again), _ = server.call("found", "search", "a small green triangle", None, gallery, True, 5)
    assert sorted(hit["picture"] for hit in plain) == sorted(hit["picture"] for hit in again)
    assert [hit["similarity"] for hit in plain] == sorted((hit["similarity"] for hit in plain), reverse=True)
    model, processor = load_checkpoint(str(folders[2]))
    tokens = processor.tokenizer(["a small green triangle"] * 5, return_tensors="pt")
    pixels = processor.image_processor(drawn, return_tensors="pt")
    with torch.no_grad():
        similar, matches = model(**tokens, **pixels).logits_per_text[0], model.match(**tokens, **pixels)
    order = model.ranking_scores(similar, matches).argsort(descending=True).tolist()
    assert [hit["picture"] for hit in again] == order
    chances = matches.softmax(dim=1)[order, 1].tolist()
    assert [hit["match"] for hit in again] == pytest.approx(chances, abs=1e-3)


@pytest.mark.parametrize("name", ["asked", "classified"])
def test_there_is_a_map_for_each_word(client, media, name):
    answer, found = client(name).predict(handle_file(str(media["red"])), "is it red", api_name="/look")
    assert 1 <= len(found) <= 12
    assert [image["caption"] for image in found] == answer.split()[:12]
    if name == "classified":
        assert answer == "is it red"
    with Image.open(found[0]["image"]) as drawn:
        assert max(drawn.size) == 384


def hostile(server, every):
    """Send every `every`-th hostile input; return the number of all inputs, and counts of refusals and answers."""
    counts, wrong = {"refused": 0, "answered": 0}, []
    all_cases = cases(server)
    for title, name, data in all_cases[::every]:
        value, error = server.call(name, *data())
        if value and re.fullmatch(SENTENCE, str(value[0])):  # in a conversation, the refusal is the answer
            value, error = None, value[0]
        counts["answered" if error is None else "refused"] += 1
        if error is None:  # texts are harmless if nothing renders them, and so are some clips and numbers
            passed = value is not None and title.startswith(("text", "length", "most", "audio", "message"))
        else:
            passed = re.fullmatch(SENTENCE, error) and "Something went wrong" not in error  # an expected error
        if not passed or SECRET in f"{value} {error}":
            wrong.append((title, value, error))
    assert wrong == []
    value, error = server.call("classified", "classify", None, "is it red", None)  # the Space still works
    assert error is None and value[1]["answer"] and server.process.poll() is None
    return len(all_cases), counts


def test_hostile_inputs_get_a_sentence_each(server):
    _, counts = hostile(server, every=10)
    assert counts["refused"] > 20 and counts["answered"]


@pytest.mark.slow
def test_all_hostile_inputs_get_a_sentence_each(server):
    count, counts = hostile(server, every=1)
    print(f"{count} hostile inputs: {counts}")
    assert count >= 200 and counts["refused"] > 200 and counts["answered"] > 20


def test_nothing_but_uploads_can_be_fetched(server):
    import httpx

    for name, url in server.urls.items():
        for path in (SPACE / "app.py", "/etc/passwd", "app.py", SPACE / ".." / "pyproject.toml", "../README.md"):
            assert httpx.get(f"{url}gradio_api/file={path}").status_code in (403, 404), (name, path)
        assert httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"0" * 10_000_001)}).status_code == 413


def test_each_session_has_its_share_of_a_minute(modules):
    class Request:
        session_hash = "a"
        client = None

    limiter, refused = modules["limits"].RateLimiter(3), modules["limits"].Refused
    for _ in range(3):
        limiter.admit(Request())
    with pytest.raises(refused, match="more than 3 requests in a minute"):
        limiter.admit(Request())
    for number in range(27):  # many sessions of one address share ten times the limit
        Request.session_hash = f"other {number}"
        limiter.admit(Request())
    Request.session_hash = "one more"
    with pytest.raises(refused, match="more than 30 requests in a minute"):
        limiter.admit(Request())


@pytest.mark.slow
def test_a_password_and_the_rate_limit_hold(folders, media):
    protected = serve(folders[1], MM_PASSWORD="open sesame", MM_REQUESTS_PER_MINUTE="2")
    try:
        url = protected.urls["classified"]
        for wrong in (None, ("demo", "sesame"), ("", "open sesame")):
            with pytest.raises(Exception, match="(?i)auth|credential|login|401"):
                Client(url, verbose=False, auth=wrong).predict(None, "yes", None, api_name="/classify")
        allowed = Client(url, verbose=False, auth=("demo", "open sesame"))
        for _ in range(2):
            allowed.predict(None, "yes", None, api_name="/classify")
        with pytest.raises(AppError, match="more than 2 requests in a minute"):
            allowed.predict(None, "yes", None, api_name="/classify")
    finally:
        stop(protected)


def test_a_hub_model_stays_at_one_commit_and_without_pickles(modules, monkeypatch, folders):
    loading, asked = modules["loading"], []

    class Hub:
        def model_info(self, model_id, revision):
            asked.append(revision)
            return type("Info", (), {"sha": "a" * 40})

    def snapshot(model_id, revision, allow_patterns):
        asked.append(revision)
        assert not any(pattern in ("*", "*.bin", "*.pt", "*.pkl") for pattern in allow_patterns)
        return str(folders[0])

    monkeypatch.setattr(loading, "HfApi", Hub)
    monkeypatch.setattr(loading, "snapshot_download", snapshot)
    assert loading.fetch("someone/model", None)[1] == "a" * 40
    assert loading.fetch("someone/model", "b" * 40)[1] == "b" * 40
    assert asked == ["main", "a" * 40, "b" * 40]


def test_a_model_without_places_offers_no_look(modules, tmp_path):
    from helpers.space import MMForConditionalGeneration, save_tiny

    loaded = modules["loading"].load(str(save_tiny(tmp_path / "m", MMForConditionalGeneration, num_latents=4)))
    assert not modules["attention"].has_attention_maps(loaded)


def test_a_checkpoint_with_older_code_offers_no_look_and_opens_pictures(modules, folders, tmp_path):
    loaded = modules["loading"].load(str(folders[0]))
    assert modules["attention"].has_attention_maps(loaded)
    loaded.model, loaded.processor = SimpleNamespace(config=loaded.model.config), SimpleNamespace()
    assert not modules["attention"].has_attention_maps(loaded)
    Image.new("I;16", (4, 4), 30000).save(tmp_path / "a.png")
    opened = modules["limits"].open_image(tmp_path / "a.png", loaded.processor)
    assert opened.mode == "RGB" and opened.getpixel((0, 0)) == (117, 117, 117)


def test_the_space_draws_the_maps_of_the_command(modules, folders, media, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(figures, "draw_attention", lambda *call: drawn.append(call))
    for folder in folders[:2]:
        loaded, text = modules["loading"].load(str(folder)), "is there a red square"
        answer, found = modules["attention"].draw_maps(loaded, Image.open(media["red"]), text, 4)
        flags = ["--text", text, "--max_new_tokens", "4", "--explain", str(tmp_path / "look.png")]
        assert cli.main(["predict", "--model", str(folder), "--image", str(media["red"]), *flags]) == 0
        image, maps, _, _ = drawn.pop()
        assert [word for word, _ in maps] == [word for _, word in found][:8]
        assert answer == " ".join(word for _, word in found)
        for (_, grid), (overlaid, _) in zip(maps, found, strict=False):
            expected = modules["attention"].overlay(image, grid)
            assert np.abs(np.asarray(expected).astype(int) - np.asarray(overlaid)).max() <= 1


def test_an_adapter_is_shown_as_trained_or_not_at_all(modules, folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders[1], tmp_path / "adapted")
    model = MMForSequenceClassification.from_pretrained(folder)
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], init_lora_weights=False))
    adapted.save_pretrained(folder)
    loading = modules["loading"]
    loaded = dict(loading.load(str(folder)).model.named_parameters())
    name = next(name for name in loaded if "lora_B" in name)
    assert loaded[name].abs().sum() > 0
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="is an adapter; add `peft` to requirements.txt"):
        loading.load(str(folder))


def test_the_limits_of_the_card_are_found(modules):
    section = modules["loading"].section
    assert section("# A\nx\n## Limitations\nNo text.\nNo maps.\n## Use\ny", "limit") == "No text.\nNo maps."
    assert section("# A\nx\n## Use\ny", "limit") == ""


def test_the_front_matter_is_what_the_hub_takes():
    values = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert values["sdk"] == "gradio" and values["app_file"] == "app.py" and (SPACE / "app.py").is_file()
    assert values["sdk_version"] == gradio.__version__
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {values["colorFrom"], values["colorTo"]} <= colours
    assert len(values["short_description"]) <= 60
    assert not re.search(r"(?m)^(gradio|modeling)", (SPACE / "requirements.txt").read_text())


def test_the_space_imports_neither_the_package_nor_anything_it_does_not_require():
    modules = {path.stem for path in SPACE.glob("*.py")}
    required = {re.split(r"[<>=]", line)[0] for line in (SPACE / "requirements.txt").read_text().split()}
    known = {*modules, *required, "gradio", "huggingface_hub", "PIL", *sys.stdlib_module_names}
    for path in SPACE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= known, path.name
