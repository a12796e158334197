"""recipes/data/make_emoji.py on made-up packages: splits share nothing, a text has one right image, drawings stay."""

import csv
import hashlib
import io
import itertools
import json
import random
import shutil
import sys
import tarfile
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image

from recipes import dual_encoder
from recipes.data import make_emoji_groups
from recipes.data.make_emoji import (
    KEYWORDS,
    NAMES,
    TEST_VENDOR,
    VALIDATION_VENDORS,
    VENDORS,
    code,
    family,
    fetch,
    make,
)
from recipes.dual_encoder import recalls

SPLITS = ("train", "validation", "test_vendor", "test_concepts")
RUNNER, MAN_RUNNING, COOK, WOMAN_COOK = "🏃", "🏃‍♂️", "🧑‍🍳", "👩‍🍳"
ANIMALS = [chr(0x1F400 + number) for number in range(24)]
NAMED = {
    **{animal: f"animal number {number}" for number, animal in enumerate(ANIMALS)},
    **{RUNNER: "person running", MAN_RUNNING: "man running", COOK: "cook", WOMAN_COOK: "woman cook", "☂️": "umbrella"},
}
LEFT_OUT = {"🇫🇷": ("flag: France", "Flags"), "👨‍👩‍👧": ("family: man, woman, girl", "People & Body")}
WORDS = [f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
COUNTS = {"concepts": 6, "validation_pictures": 5, "captions": 3}
COLOURS = dict(zip(VENDORS, [(240, 130, 20), (0, 0, 200), (0, 150, 0), (90, 90, 90), (200, 0, 200)], strict=True))


def drawn(vendor, emoji):
    """Coloured squares (64, 64, 4) on a transparent ground; the blobs have one drawing of both runners."""
    if vendor == "blob" and emoji == MAN_RUNNING:
        emoji = RUNNER
    chance = np.random.default_rng(random.Random(f"{vendor} {emoji}").getrandbits(64))
    picture = np.zeros((64, 64, 4), dtype=np.uint8)
    squares = COLOURS[vendor] if emoji == "☂️" else chance.integers(0, 256, (6, 6, 3))
    picture[8:56, 8:56, :3] = np.kron(np.broadcast_to(squares, (6, 6, 3)), np.ones((8, 8, 1)))
    picture[8:56, 8:56, 3] = 255
    return picture


def write_archive(folder, package, files):
    """An npm package of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(
        folder / f"{package.lstrip('@').replace('/', '-').replace('@', '-')}.tgz", "w:gz", compresslevel=1
    ) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def encoded(picture, side):
    """A PNG file, enlarged to `side`."""
    file = io.BytesIO()
    Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def write_packages(folder, draw=drawn):
    """All packages that `make` reads, into `folder/packages`, where it finds them in place of npm's."""
    facts = {emoji: {"name": name, "group": "Animals & Nature"} for emoji, name in NAMED.items()}
    facts |= {emoji: {"name": name, "group": group} for emoji, (name, group) in LEFT_OUT.items()}
    chance = random.Random(0)
    words = {emoji: [facts[emoji]["name"].replace(" ", "_"), *chance.sample(WORDS, 5)] for emoji in facts}
    write_archive(folder / "packages", NAMES, {"data-by-emoji.json": json.dumps(facts).encode()})
    write_archive(folder / "packages", KEYWORDS, {"dist/emoji-en-US.json": json.dumps(words).encode()})
    for vendor, source in VENDORS.items():
        side = 256 if vendor == "fluent" else 64
        files = {}
        for emoji in facts:
            name = "-".join(f"{ord(point):04x}" for point in emoji)
            files[f"{source.folder}/{name}.png"] = encoded(draw(vendor, emoji), side)
        files[f"{source.folder}/1f3c3-1f3fb.png"] = encoded(draw(vendor, "a pale skin"), side)
        write_archive(folder / "packages", source.package, files)


def rows_of(folder, split):
    """The rows of one split as dictionaries."""
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    """A hash of each file that was made."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "packages")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that seed 0 gives, and the counts."""
    folder = tmp_path_factory.mktemp("emoji")
    write_packages(folder)
    return folder, make(folder, 0, **COUNTS)


def test_splits_share_no_picture(made):
    folder, counts = made
    pixels = {}
    for split in SPLITS:
        names = {row["image"] for row in rows_of(folder, split)}
        pixels[split] = {Image.open(folder / name).tobytes() for name in names}
        assert len(pixels[split]) == len(names) == counts[f"{split}_pictures"] > 0
        assert len(rows_of(folder, split)) == counts[f"{split}_rows"]
    assert sum(map(len, pixels.values())) == len(set.union(*pixels.values()))


def test_the_test_vendor_and_the_new_concepts_are_in_no_training_row(made):
    folder, _ = made
    vendors = {split: {row["vendor"] for row in rows_of(folder, split)} for split in SPLITS}
    emoji = {split: {row["emoji"] for row in rows_of(folder, split)} for split in SPLITS}
    assert vendors["train"] == set(VENDORS) - {TEST_VENDOR} and vendors["validation"] <= set(VALIDATION_VENDORS)
    assert vendors["test_vendor"] == vendors["test_concepts"] == {TEST_VENDOR}
    assert emoji["test_vendor"] == emoji["train"] and emoji["validation"] <= emoji["train"]
    assert len(emoji["test_concepts"]) >= COUNTS["concepts"]
    assert emoji["test_concepts"] | emoji["train"] == set(NAMED) and not emoji["test_concepts"] & emoji["train"]
    families = {split: {family(code(character)) for character in emoji[split]} for split in SPLITS}
    assert not families["test_concepts"] & families["train"]


@pytest.mark.parametrize("split", SPLITS[1:])
def test_a_text_has_one_right_picture(made, split):
    pictures, rows = defaultdict(set), rows_of(made[0], split)
    for row in rows:
        pictures[row["text"]].add(row["image"])
    assert max(map(len, pictures.values())) == 1
    assert {row["text"] for row in rows} >= {NAMED[row["emoji"]] for row in rows}
    assert any("," in row["text"] for row in rows)


def test_keywords_tell_an_emoji_from_every_other(made):
    with tarfile.open(made[0] / "packages" / "emojilib-4.0.3.tgz") as archive:
        words = json.load(archive.extractfile("package/dist/emoji-en-US.json"))
    for row in (row for split in SPLITS for row in rows_of(made[0], split)):
        if "," in row["text"]:
            text_words = set(row["text"].split(", "))
            assert [character for character in NAMED if text_words <= set(words[character])] == [row["emoji"]]


def test_pictures_are_the_drawings_on_white(made):
    folder, _ = made
    for vendor, colour in COLOURS.items():
        for path in (folder / "images" / vendor).glob("2602.png"):
            picture = np.asarray(Image.open(path))
            assert picture.shape == (64, 64, 3)
            assert (picture[:6] == 255).all() and (picture[:, 58:] == 255).all()
            assert (picture[10:54, 10:54] == colour).all()
    names = [row["image"] for split in SPLITS for row in rows_of(folder, split) if row["vendor"] == "noto"]
    for name in names:
        expected = Image.new("RGBA", (64, 64), "white")
        character = next(known for known in NAMED if code(known) == name.split("/")[-1].removesuffix(".png"))
        expected.alpha_composite(Image.fromarray(drawn("noto", character)))
        assert Image.open(folder / name).tobytes() == expected.convert("RGB").tobytes()


def test_emoji_drawn_alike_share_the_picture(made, tmp_path):
    shutil.copytree(made[0] / "packages", tmp_path / "packages")
    make(tmp_path, 0, **{**COUNTS, "concepts": 0})
    shown = defaultdict(set)
    for row in rows_of(tmp_path, "train"):
        if row["emoji"] in (RUNNER, MAN_RUNNING):
            shown[row["vendor"], row["emoji"]].add(row["image"])
    assert shown["blob", RUNNER] == shown["blob", MAN_RUNNING] != set()
    assert shown["noto", RUNNER] != shown["noto", MAN_RUNNING]


def test_each_vendor_is_in_the_licences(made):
    text = (made[0] / "LICENSES").read_text(encoding="utf-8")
    assert all(source.package in text and source.licence in text for source in VENDORS.values())


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(made, tmp_path):
    shutil.copytree(made[0] / "packages", tmp_path / "packages")
    make(tmp_path, 0, **COUNTS)
    assert contents(tmp_path) == contents(made[0])
    make(tmp_path, 1, **COUNTS)
    assert contents(tmp_path)["test_concepts.csv"] != contents(made[0])["test_concepts.csv"]


def test_a_test_picture_in_training_is_refused(tmp_path):
    write_packages(tmp_path, lambda vendor, emoji: drawn("noto" if emoji == ANIMALS[3] else vendor, emoji))
    with pytest.raises(ValueError, match=f"of train looks like .*{TEST_VENDOR}.* of test_vendor; expected distinct"):
        make(tmp_path, 0, **{**COUNTS, "concepts": 0})


def test_missing_or_failing_npm_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="apt install npm"):
        fetch(NAMES, tmp_path)
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(ValueError, match="could not fetch unicode-emoji-json.*E404.*expected a package registry"):
        fetch(NAMES, tmp_path)
    assert not list(tmp_path.glob("*.tgz"))


def test_recalls_equal_those_counted_one_by_one():
    torch.manual_seed(0)
    images, texts = torch.randn(12, 4), torch.randn(40, 4)
    picture = torch.cat([torch.arange(12), torch.randint(12, (28,))])
    found = recalls(images, texts, picture)
    scores = texts @ images.T
    for k in (1, 5, 10):
        right = [picture[n] in scores[n].topk(k).indices for n in range(40)]
        assert found[f"text_to_image_recall@{k}"] == pytest.approx(np.mean(right), abs=1e-4)
        right = [p in picture[scores[:, p].topk(k).indices] for p in range(12)]
        assert found[f"image_to_text_recall@{k}"] == pytest.approx(np.mean(right), abs=1e-4)
    equal = recalls(torch.ones(12, 4), torch.ones(40, 4), picture)
    assert equal["text_to_image_recall@10"] == equal["image_to_text_recall@10"] == 0  # nothing told apart


@pytest.mark.slow
def test_the_dual_encoder_learns_and_keeps_its_towers(made, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(dual_encoder.time, "process_time", itertools.count().__next__)  # a step takes a second
    arguments = ["--towers", str(tmp_path), "--vision_tower", "convnext", "--batch_size", "64", "--seconds"]
    results, kept = [], set()
    for seconds in (["2"], ["250", "--augment_images", "rotate"]):
        monkeypatch.setattr(sys, "argv", ["dual_encoder", str(made[0]), *arguments, *seconds])
        dual_encoder.main()
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        kept.add(hashlib.sha256((tmp_path / "text" / "model.safetensors").read_bytes()).hexdigest())
    assert len(kept) == 1 and results[0]["epochs"] < results[1]["epochs"]
    before, after = (result["train"]["image_to_text_recall@1"] for result in results)
    assert before < 0.5 < 0.9 < after


def test_groups_are_tested_on_an_unseen_vendor_and_unseen_emoji(made, tmp_path):
    (tmp_path / "packages").symlink_to(made[0] / "packages")
    counts = {"validation_rows": 8, "test_rows": 30, "validation_emoji": 4, "test_emoji": 6}
    result = make_emoji_groups.make(tmp_path, 0, train_rows=200, **counts)
    rows = {split: rows_of(tmp_path, split) for split in ("train", "validation", "test")}
    assert [result[f"{split}_rows"] for split in rows] == [200, 8, 30] == [len(part) for part in rows.values()]
    paths = {split: [row["image"].split("/")[1:] for row in part] for split, part in rows.items()}
    assert {vendor for vendor, _ in paths["test"]} == {TEST_VENDOR}
    assert not {vendor for split in ("train", "validation") for vendor, _ in paths[split]} & {TEST_VENDOR}
    emoji = [{family(name.removesuffix(".png")) for _, name in part} for part in paths.values()]
    assert all(emoji) and sum(map(len, emoji)) == len(set.union(*emoji))
    assert all(len(set(row["text"].split(", "))) == 2 and row["label"] for part in rows.values() for row in part)
    make_emoji_groups.make(tmp_path, 0, train_rows=20, **counts)
    again = {split: rows_of(tmp_path, split) for split in rows}
    assert again == {**rows, "train": rows["train"][:20]}
