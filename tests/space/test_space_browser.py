# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tests of every tab in a browser with real images, on desktop and phone screens, in light and dark mode.

Screenshots for review are written to SPACE_SCREENSHOTS. MM_SPACE_MODELS gives trained models in place of the tiny
random ones: folders separated by ":", in the order of `helpers.space.save_all`.
"""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio")
pytest.importorskip("soundfile")
playwright = pytest.importorskip("playwright.sync_api")

from helpers.space import folders, serve, stop  # noqa: E402, F401
from PIL import Image, ImageDraw  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
VIEWS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
LONG = 30_000  # milliseconds

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs Chromium")]


@pytest.fixture(scope="module")
def spaces(folders, tmp_path_factory):
    """The address of a Space of each kind."""
    chosen = os.environ.get("MM_SPACE_MODELS")
    server = serve(
        *(chosen.split(":") if chosen else folders), GRADIO_TEMP_DIR=str(tmp_path_factory.mktemp("uploads"))
    )
    yield dict(zip(("ask", "classify", "search"), server.urls.values(), strict=True))
    stop(server)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=options)
        yield browser
        browser.close()


@pytest.fixture(params=[(view, scheme) for view in VIEWS for scheme in ("light", "dark")], ids="-".join)
def visit(request, chromium, tmp_path):
    """A function that opens a URL; afterwards there must be no errors and no requests to other hosts."""
    view, scheme = request.param
    context = chromium.new_context(viewport=VIEWS[view], color_scheme=scheme, has_touch=view == "phone")
    errors, hosts = [], set()

    def opened(url):
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda got: errors.append(f"{got.status} {got.url}") if got.status >= 400 else None)
        page.on("request", lambda sent: hosts.add(urlsplit(sent.url).hostname))
        page.goto(url)
        page.get_by_role("heading", level=1).wait_for(timeout=LONG)
        return page

    opened.name, opened.folder = f"{view}-{scheme}", Path(os.environ.get("SPACE_SCREENSHOTS", tmp_path))
    yield opened
    context.close()
    assert errors == []
    assert hosts - {None, ""} <= {"127.0.0.1"}


@pytest.fixture
def files(tmp_path):
    """Paths of two images, and of a truncated one."""
    for name, place in (("red", (8, 12, 34, 38)), ("blue", (30, 20, 50, 40))):
        image = Image.new("RGB", (64, 64), (240, 244, 248))
        ImageDraw.Draw(image).ellipse(place, name)
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def keep(visit, page, name):
    """Save a screenshot of the whole page when it is loaded; the page must not be wider than the window."""
    page.get_by_text("Loading...").first.wait_for(state="hidden", timeout=LONG)
    page.wait_for_function("[...document.images].every(image => image.complete)", timeout=LONG)
    visit.folder.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(1000)
    page.screenshot(path=visit.folder / f"{name}-{visit.name}.png", full_page=True)
    wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0, f"{name} is {wider} pixels wider than the window"


def toast(page):
    """The text of an error message."""
    message = page.locator("[data-testid=toast-body]").first
    message.wait_for(timeout=LONG)
    return message.inner_text()


def put(page, label, path):
    """Upload a file to the component with this label in the open tab."""
    box = page.locator(".block:visible").filter(has_text=label).filter(has=page.locator("input[type=file]")).first
    box.locator("input[type=file]").first.set_input_files(path)


# collects the text of the answer with this number whenever the page changes
WATCH = """number => {
    window.texts = new Set();
    new MutationObserver(() => {
        const answer = document.querySelectorAll("[data-testid=bot]")[number];
        if (answer) window.texts.add(answer.innerText.trim());
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def ask(page, text, *paths):
    """Ask about images; return all texts of the growing answer."""
    before = page.locator("[data-testid=bot]").count()
    if paths:
        page.locator("input[type=file]").first.set_input_files(list(paths))
        page.locator(".thumbnail-item, .thumbnail-image").nth(len(paths) - 1).wait_for(timeout=LONG)
    page.evaluate(WATCH, before)
    page.locator("textarea").first.fill(text)
    page.keyboard.press("Enter")
    page.locator("[data-testid=bot]").nth(before).wait_for(timeout=LONG)
    page.wait_for_timeout(2000)
    return set(page.evaluate("[...window.texts]")) - {""}


def test_ask(visit, spaces, files):
    page = visit(spaces["ask"])
    page.locator("textarea").first.wait_for(timeout=LONG)
    keep(visit, page, "ask-empty")
    texts = ask(page, "what shape is in the image?", files["red"])
    if not os.environ.get("MM_SPACE_MODELS"):  # a trained model may say one word
        assert len(texts) > 1, "the answer did not grow"
    ask(page, "what is the color of the shape?", files["blue"])
    keep(visit, page, "ask")
    page.locator("input[type=file]").first.set_input_files(files["broken"])
    page.locator(".thumbnail-item, .thumbnail-image").first.wait_for(timeout=LONG)
    page.locator("textarea").first.fill("and this?")
    page.keyboard.press("Enter")
    assert "The image cannot be read" in toast(page)
    keep(visit, page, "ask-error")
    ask(
        page, "and this <img src=x onerror=alert(1)> **bold**?", files["red"], files["blue"]
    )  # the conversation continues
    assert "<img src=x onerror=alert(1)> **bold**" in page.locator("[data-testid=user]").last.inner_text()
    assert page.locator("img[src=x]").count() == 0


def test_look(visit, spaces, files):
    page = visit(spaces["ask"])
    page.get_by_role("tab", name="Look").click()
    put(page, "Image", files["red"])
    page.get_by_role("textbox", name="Question").fill("what shape is in the image?")
    page.get_by_role("button", name="Look").click()
    page.locator(
        "[role=tabpanel]:visible .grid-container img, [role=tabpanel]:visible .thumbnail-item img"
    ).first.wait_for(timeout=LONG)
    keep(visit, page, "look")


def test_classify(visit, spaces, files):
    page = visit(spaces["classify"])
    put(page, "Image", files["blue"])
    page.get_by_label("Text").first.fill("i think it is <b>an odd number</b>")
    page.get_by_role("button", name="Classify").click()
    page.locator(".brought").wait_for(timeout=LONG)
    for heading in ("How it works", "Limits"):
        page.get_by_role("button", name=heading).click()
    keep(visit, page, "classify")


def test_search(visit, spaces, files):
    page = visit(spaces["search"])
    page.get_by_label("Text").first.fill("a red circle")
    page.get_by_role("button", name="Search").click()
    page.get_by_text(re.compile(r"1\. -?[01]\.")).first.wait_for(timeout=LONG)
    keep(visit, page, "search")
    right = "[...document.querySelectorAll('.grid-container img')].map(one => one.getBoundingClientRect().right)"
    assert max(page.evaluate(right)) <= page.viewport_size["width"], "an image is cut off"
    page.get_by_label("Rerank").click()
    page.get_by_role("button", name="Search").click()
    page.get_by_text(re.compile(r"1\. match")).first.wait_for(timeout=LONG)
    put(page, "Similar to image", files["broken"])
    page.get_by_role("button", name="Search").click()
    assert "The image cannot be read" in toast(page)


def test_an_example_is_one_click(visit, spaces):
    page = visit(spaces["ask"])
    page.get_by_text("what shape is in the image?").first.click()
    page.locator("[data-testid=bot]").first.wait_for(timeout=LONG)
