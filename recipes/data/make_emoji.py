# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Emoji as four artists draw them, searched for among the drawings of a fifth: image + text, for retrieval.

    python -m recipes.data.make_emoji  # into runs/data/emoji; about a minute, 191 MB of packages

A row is an image and one of its captions: its Unicode name, or three of its keywords of which no other emoji has all.
So a text has one right image in its split, and an image several right texts, those of the rows that share it.

- train: the drawings of four vendors
- validation: drawings by two of them, one for each of 200 emoji whose other drawings are in train
- test_vendor: all drawings of Twemoji, which is in no other split, of the emoji in train
- test_concepts: Twemoji's drawings of 200 emoji of which train and validation have no drawing by anyone

Emoji that differ in sex or direction only, and any that a vendor draws alike, are together in or out of test_concepts.
Names of test_vendor are in train too; keywords are drawn anew. Left out: skin tones, flags (many countries share one)
and families (Twemoji draws 26 of them as four). No image of one split is nearly that of another, which is checked.

The packages come by npm (Debian: `apt install npm`), in fixed versions. Their licences, which `make` writes beside the
data too: Noto Emoji and Android's blobs Apache-2.0, EmojiOne 2.2.7 and Twemoji CC-BY-4.0, Fluent Emoji MIT; names and
keywords MIT, after Unicode's data (Unicode-3.0). The drawings by Apple and Facebook that npm has as well are not free.
"""

import io
import json
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from scipy.sparse.csgraph import connected_components

from .tables import command, save, side_by_side, write_table

SIDE = 64  # pixels
WORDS = 3  # keywords in a caption
ALIKE = 0.02  # root mean square difference of colours, 0 to 1, below which two images look the same


class Vendor(NamedTuple):
    """Where the drawings of a vendor are."""

    package: str
    folder: str
    licence: str


VENDORS = {
    "noto": Vendor("emoji-datasource-google@16.0.0", "img/google/64", "Noto Emoji 2.048, Google, Apache-2.0"),
    "blob": Vendor("emoji-datasource-google@3.0.0", "img/google/64", "Android 7, Open Source Project, Apache-2.0"),
    "emojione": Vendor("emoji-datasource-emojione@3.0.0", "img/emojione/64", "EmojiOne 2.2.7, Ranks.com, CC-BY-4.0"),
    "fluent": Vendor("@lobehub/fluent-emoji-3d@1.1.0", "assets", "Fluent Emoji, Microsoft and LobeHub, MIT"),
    "twemoji": Vendor("emoji-datasource-twitter@16.0.0", "img/twitter/64", "Twemoji 16.0.1, Twitter, CC-BY-4.0"),
}
TEST_VENDOR = "twemoji"  # draws every emoji, and shares no drawing with the others
VALIDATION_VENDORS = ("emojione", "fluent")  # the old and the new drawings of Google are too close to part
NAMES, KEYWORDS = "unicode-emoji-json@0.9.0", "emojilib@4.0.3"
Drawing = tuple[str, str]  # vendor and code of the emoji


class Emoji(NamedTuple):
    """What is said of an emoji."""

    character: str
    name: str
    group: str
    keywords: frozenset[str]


def fetch(package: str, folder: Path) -> Path:
    """The archive of an npm package, fetched into `folder` unless it is there.

    Raises:
        ValueError: npm is missing or fails.
    """
    path = folder / f"{package.lstrip('@').replace('/', '-').replace('@', '-')}.tgz"
    if path.exists():
        return path
    if shutil.which("npm") is None:
        raise ValueError("the program npm, which fetches the pictures, is missing: apt install npm")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        arguments = ["npm", "pack", package, "--pack-destination", part, "--loglevel", "error"]
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[0]
            raise ValueError(f"npm could not fetch {package} ({reason}); expected a package registry within reach")
        (Path(part) / path.name).replace(path)
    return path


def code(text: str) -> str:
    """Code points as in `1f469-200d-1f373`, of an emoji or of a file name, without the variation selector FE0F."""
    points = text.lower().split("-") if text.isascii() else [f"{ord(point):04x}" for point in text]
    return "-".join(point for point in points if point != "fe0f")


def flatten(data: bytes) -> np.ndarray:
    """An encoded image on white: (SIDE, SIDE, 3), 0 to 255."""
    with Image.open(io.BytesIO(data)) as picture:
        drawn = ImageOps.pad(picture.convert("RGBA"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", drawn.size, "white")
    return np.asarray(Image.alpha_composite(ground, drawn).convert("RGB"))


def pictures_of(archive: Path, folder: str, wanted: dict[str, Emoji]) -> dict[str, np.ndarray]:
    """The drawings in a package, by code."""
    found = {}
    with tarfile.open(archive) as files:
        for member in files:
            path = Path(member.name)
            if path.parent == Path("package", folder) and code(path.stem) in wanted:
                found[code(path.stem)] = flatten(files.extractfile(member).read())
    return found


def read_emoji(packages: Path) -> dict[str, Emoji]:
    """All emoji but flags and families, in Unicode's order, by code."""
    with tarfile.open(fetch(NAMES, packages)) as files:
        named = json.load(files.extractfile("package/data-by-emoji.json"))
    with tarfile.open(fetch(KEYWORDS, packages)) as files:
        words = json.load(files.extractfile("package/dist/emoji-en-US.json"))
    told = {code(character): some for character, some in words.items()}
    known = {}
    for character, facts in named.items():
        if facts["group"] != "Flags" and not facts["name"].startswith("family"):
            name = facts["name"].lower()  # several words are a name, and some of them that of another emoji
            said = (word for word in told.get(code(character), []) if re.fullmatch("[a-z]{2,}", word) and word != name)
            known[code(character)] = Emoji(character, name, facts["group"], frozenset(said))
    return known


def distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Root mean square differences of images (n, SIDE, SIDE, 3), (m, SIDE, SIDE, 3), at half their size: (n, m)."""

    def small(pictures: np.ndarray) -> np.ndarray:
        half = pictures.reshape(len(pictures), SIDE // 2, 2, SIDE // 2, 2, 3).mean((2, 4), dtype=np.float32)
        return half.reshape(len(pictures), 3 * (SIDE // 2) ** 2) / 255

    a, b = small(some), small(others)
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.sqrt(squares.clip(0) / a.shape[1])


def same_picture(drawings: dict[Drawing, np.ndarray]) -> dict[Drawing, Drawing]:
    """For each drawing the first one of its vendor that looks the same."""
    first = {}
    for vendor in VENDORS:
        some = [drawing for drawing in drawings if drawing[0] == vendor]
        pixels = np.stack([drawings[drawing] for drawing in some])
        _, labels = connected_components(distances(pixels, pixels) <= ALIKE)
        heads: dict[int, Drawing] = {}
        first.update({drawing: heads.setdefault(label, drawing) for drawing, label in zip(some, labels, strict=True)})
    return first


def family(emoji: str) -> str:
    """What emoji share that differ in sex or direction only: of a woman cook the pan."""
    points = [point for point in emoji.split("-") if point not in ("200d", "2640", "2642", "27a1")]
    rest = [point for point in points if point not in ("1f468", "1f469", "1f9d1")]  # man, woman, person
    return "-".join(rest or points)


def hold_out(emoji: list[str], same: dict[Drawing, Drawing], count: int, chance: random.Random) -> set[str]:
    """At least `count` emoji, with every one that is too close to one of them."""
    place = {one: number for number, one in enumerate(emoji)}
    near = np.zeros((len(emoji), len(emoji)), dtype=bool)
    first: dict[str, str] = {}
    for one in emoji:
        near[place[one], place[first.setdefault(family(one), one)]] = True
    for (_, one), (_, other) in same.items():
        near[place[one], place[other]] = True
    groups = defaultdict(list)
    for one, label in zip(emoji, connected_components(near, directed=False)[1], strict=True):
        groups[label].append(one)
    held: set[str] = set()
    for group in chance.sample(list(groups.values()), len(groups)):
        if len(held) < count:
            held.update(group)
    return held


def hold_drawings(
    same: dict[Drawing, Drawing], held: set[str], count: int, chance: random.Random
) -> dict[Drawing, list[Drawing]]:
    """About `count` images for validation, each with all emoji that it shows; no emoji twice."""
    shows = defaultdict(list)
    for drawing, first in same.items():
        shows[first].append(drawing)
    possible = [first for first in shows if first[0] in VALIDATION_VENDORS and first[1] not in held]
    chosen: dict[Drawing, list[Drawing]] = {}
    used: set[str] = set()
    for first in chance.sample(possible, len(possible)):
        emoji = {emoji for _, emoji in shows[first]}
        if len(chosen) < count and not emoji & used:
            chosen[first] = shows[first]
            used |= emoji
    return chosen


def texts_of(emoji: Emoji, bearers: dict[str, set[str]], count: int, chance: random.Random) -> list[str]:
    """The emoji's name, and at most `count` sets of its keywords, told by `bearers` to be no other emoji's."""
    texts = {frozenset([emoji.name]): emoji.name}
    for _ in range(10 * count if len(emoji.keywords) >= WORDS else 0):
        drawn = chance.sample(sorted(emoji.keywords), WORDS)
        if len(texts) <= count and len(set.intersection(*(bearers[word] for word in drawn))) == 1:
            texts.setdefault(frozenset(drawn), ", ".join(drawn))
    return list(texts.values())


def check_apart(drawings: dict[Drawing, np.ndarray], splits: dict[str, list[Drawing]]) -> None:
    """See that no two splits share an image.

    Raises:
        ValueError: two of their images look the same.
    """
    shape = (-1, SIDE, SIDE, 3)  # of a split without images too
    pixels = {
        split: np.array([drawings[drawing] for drawing in some]).reshape(shape) for split, some in splits.items()
    }
    for one, other in combinations(splits, 2):
        near = np.argwhere(distances(pixels[one], pixels[other]) <= ALIKE)
        if len(near):
            first, second = splits[one][near[0][0]], splits[other][near[0][1]]
            raise ValueError(f"{first} of {one} looks like {second} of {other}; expected distinct pictures")


def read_drawings(emoji: dict[str, Emoji], packages: Path) -> dict[Drawing, np.ndarray]:
    """The images that the vendors have of what the test vendor draws."""
    drawings: dict[Drawing, np.ndarray] = {}
    for vendor, source in VENDORS.items():
        found = pictures_of(fetch(source.package, packages), source.folder, emoji)
        drawings.update({(vendor, one): found[one] for one in emoji if one in found})
    return {(vendor, one): some for (vendor, one), some in drawings.items() if (TEST_VENDOR, one) in drawings}


def split_pictures(
    same: dict[Drawing, Drawing], concepts: int, validation_pictures: int, seed: int
) -> dict[str, list[Drawing]]:
    """The distinct images of each split."""
    chance = random.Random(f"{seed} emoji")
    emoji = [one for vendor, one in same if vendor == TEST_VENDOR]
    held = hold_out(emoji, same, concepts, chance)
    validation = hold_drawings(same, held, validation_pictures, chance)
    pictures = [first for first in dict.fromkeys(same.values()) if first not in validation]
    train = [(vendor, one) for vendor, one in pictures if vendor != TEST_VENDOR and one not in held]
    drawn = {one for (_, one), first in same.items() if first in set(train)}
    tests = [(vendor, one) for vendor, one in pictures if vendor == TEST_VENDOR]
    return {
        "train": train,
        "validation": [first for first in validation if first[1] in drawn],
        "test_vendor": [first for first in tests if first[1] in drawn],
        "test_concepts": [first for first in tests if first[1] in held],
    }


def make(folder: Path, seed: int, concepts: int, validation_pictures: int, captions: int) -> dict[str, Any]:
    """Write the splits to `folder`, with `captions` sets of keywords for an emoji beside its name; returns counts."""
    emoji = read_emoji(folder / "packages")
    drawings = read_drawings(emoji, folder / "packages")
    same = same_picture(drawings)
    splits = split_pictures(same, concepts, validation_pictures, seed)
    check_apart(drawings, splits)
    shows, bearers = defaultdict(list), defaultdict(set)
    for (_, one), first in same.items():
        shows[first].append(one)
    for one, told in emoji.items():
        for word in told.keywords:
            bearers[word].add(one)
    counts: dict[str, Any] = {"output_dir": str(folder), "emoji": len({one for _, one in same})}
    for split, pictures in splits.items():
        table = []
        for vendor, head in pictures:
            for one in shows[vendor, head]:
                chance = random.Random(f"{seed} {split} {vendor} {one}")
                facts = (emoji[one].character, vendor, emoji[one].group)
                texts = texts_of(emoji[one], bearers, captions, chance)
                table += [(image_name(vendor, head), text, *facts) for text in texts]
        write_table(folder, split, ["image", "text", "emoji", "vendor", "group"], table)
        counts |= {f"{split}_rows": len(table), f"{split}_pictures": len(pictures)}
    licences = "".join(f"{name}: {source.licence} (npm: {source.package})\n" for name, source in VENDORS.items())
    (folder / "LICENSES").write_text(f"{licences}names, keywords: MIT (npm: {NAMES}, {KEYWORDS})\n", encoding="utf-8")
    used = [drawing for pictures in splits.values() for drawing in pictures]
    side_by_side(lambda drawing: write_picture(folder / image_name(*drawing), drawings[drawing]), used, "Pictures")
    return counts


def image_name(vendor: str, emoji: str) -> str:
    return f"images/{vendor}/{emoji}.png"


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """A PNG file, unless it was written before."""
    if not path.exists():
        save(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))


if __name__ == "__main__":
    command(make, __doc__, concepts=200, validation_pictures=200, captions=4)
