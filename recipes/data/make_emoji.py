# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Retrieval of emoji: train on the drawings of four vendors, search among those of a fifth.

    python -m recipes.data.make_emoji  # into runs/data/emoji; about a minute, 191 MB of packages

A row is an image and one of its captions: its Unicode name, or three of its keywords that no other emoji has together.
So a text has one correct image in its split, and an image has several correct texts, those of the rows that share it.

- train: the drawings of four vendors
- validation: drawings by two of them, one for each of 200 emoji whose other drawings are in train
- test_vendor: the drawings by Twemoji, a vendor in no other split, of the emoji in train
- test_concepts: Twemoji's drawings of 200 emoji of which train and validation have no drawing by any vendor

Emoji that differ only in sex or direction, or that a vendor draws alike, are all in test_concepts or all outside.
Names in test_vendor are in train too; sets of keywords are drawn again. Left out: skin tones, flags (several
countries share one) and families (Twemoji draws 26 of them as four). A check ensures that no two splits share nearly
the same image.

The packages are fetched with npm (Debian: `apt install npm`), in fixed versions. Their licences, which `make` also
writes into the folder: Noto Emoji and Android's blobs Apache-2.0, EmojiOne 2.2.7 and Twemoji CC-BY-4.0, Fluent Emoji
MIT; names and keywords MIT, from Unicode's data (Unicode-3.0). The drawings by Apple and Facebook on npm are not
free.
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

from .tables import command, save, write_in_parallel, write_table

SIDE = 64  # pixels
WORDS = 3  # keywords in a caption
ALIKE = 0.02  # root mean square difference of colours, from 0 to 1, up to which two images count as the same


class Vendor(NamedTuple):
    """The npm package, folder and licence of a vendor's drawings."""

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
TEST_VENDOR = "twemoji"  # has every emoji, and shares no drawing with the others
VALIDATION_VENDORS = ("emojione", "fluent")  # not Google, whose old and new drawings are too similar to separate
NAMES, KEYWORDS = "unicode-emoji-json@0.9.0", "emojilib@4.0.3"
Drawing = tuple[str, str]  # vendor and code of the emoji


class Emoji(NamedTuple):
    """An emoji with its name, group and keywords."""

    character: str
    name: str
    group: str
    keywords: frozenset[str]


def fetch(package: str, folder: Path) -> Path:
    """Path of the archive of an npm package, fetched into `folder` unless it exists.

    Raises:
        ValueError: npm is missing or fails.
    """
    path = folder / f"{package.lstrip('@').replace('/', '-').replace('@', '-')}.tgz"
    if path.exists():
        return path
    if shutil.which("npm") is None:
        raise ValueError("the program npm, which fetches the images, is missing: apt install npm")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        arguments = ["npm", "pack", package, "--pack-destination", temporary, "--loglevel", "error"]
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[0]
            raise ValueError(f"npm could not fetch {package} ({reason}); expected a package registry within reach")
        (Path(temporary) / path.name).replace(path)
    return path


def code(text: str) -> str:
    """Code points of an emoji or a file name, as in `1f469-200d-1f373`, without the variation selector FE0F."""
    points = text.lower().split("-") if text.isascii() else [f"{ord(point):04x}" for point in text]
    return "-".join(point for point in points if point != "fe0f")


def flatten(data: bytes) -> np.ndarray:
    """An encoded image decoded on a white background: (SIDE, SIDE, 3), 0 to 255."""
    with Image.open(io.BytesIO(data)) as file:
        image = ImageOps.pad(file.convert("RGBA"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    background = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(background, image).convert("RGB"))


def read_package(archive: Path, folder: str, emoji: dict[str, Emoji]) -> dict[str, np.ndarray]:
    """The drawings of these emoji in a package, by code."""
    found = {}
    with tarfile.open(archive) as files:
        for member in files:
            path = Path(member.name)
            if path.parent == Path("package", folder) and code(path.stem) in emoji:
                found[code(path.stem)] = flatten(files.extractfile(member).read())
    return found


def read_emoji(packages: Path) -> dict[str, Emoji]:
    """All emoji except flags and families, in Unicode's order, by code."""
    with tarfile.open(fetch(NAMES, packages)) as files:
        named = json.load(files.extractfile("package/data-by-emoji.json"))
    with tarfile.open(fetch(KEYWORDS, packages)) as files:
        words = json.load(files.extractfile("package/dist/emoji-en-US.json"))
    keywords = {code(character): listed for character, listed in words.items()}
    emoji = {}
    for character, facts in named.items():
        if facts["group"] != "Flags" and not facts["name"].startswith("family"):
            name = facts["name"].lower()  # several words make a name, and one of them may be the name of another emoji
            listed = keywords.get(code(character), [])
            single_words = (word for word in listed if re.fullmatch("[a-z]{2,}", word) and word != name)
            emoji[code(character)] = Emoji(character, name, facts["group"], frozenset(single_words))
    return emoji


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Root mean square differences (n, m) of images (n, SIDE, SIDE, 3) and (m, SIDE, SIDE, 3), at half their size."""

    def small(images: np.ndarray) -> np.ndarray:
        half = images.reshape(len(images), SIDE // 2, 2, SIDE // 2, 2, 3).mean((2, 4), dtype=np.float32)
        return half.reshape(len(images), 3 * (SIDE // 2) ** 2) / 255

    a, b = small(first), small(second)
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.sqrt(squares.clip(0) / a.shape[1])


def first_duplicates(drawings: dict[Drawing, np.ndarray]) -> dict[Drawing, Drawing]:
    """The first drawing by the same vendor that looks like each drawing."""
    first = {}
    for vendor in VENDORS:
        of_vendor = [drawing for drawing in drawings if drawing[0] == vendor]
        pixels = np.stack([drawings[drawing] for drawing in of_vendor])
        _, labels = connected_components(distances(pixels, pixels) <= ALIKE)
        heads: dict[int, Drawing] = {}
        for drawing, label in zip(of_vendor, labels, strict=True):
            first[drawing] = heads.setdefault(label, drawing)
    return first


def family(emoji: str) -> str:
    """The code points that emoji share if they differ only in sex or direction: the pan of a woman cook."""
    points = [point for point in emoji.split("-") if point not in ("200d", "2640", "2642", "27a1")]
    rest = [point for point in points if point not in ("1f468", "1f469", "1f9d1")]  # man, woman, person
    return "-".join(rest or points)


def hold_out(emoji: list[str], same: dict[Drawing, Drawing], count: int, rng: random.Random) -> set[str]:
    """At least `count` emoji, together with all that are too similar to one of them."""
    place = {emoji_code: number for number, emoji_code in enumerate(emoji)}
    near = np.zeros((len(emoji), len(emoji)), dtype=bool)
    first: dict[str, str] = {}
    for emoji_code in emoji:
        near[place[emoji_code], place[first.setdefault(family(emoji_code), emoji_code)]] = True
    for (_, emoji_code), (_, duplicate) in same.items():
        near[place[emoji_code], place[duplicate]] = True
    groups = defaultdict(list)
    for emoji_code, label in zip(emoji, connected_components(near, directed=False)[1], strict=True):
        groups[label].append(emoji_code)
    held_out: set[str] = set()
    for group in rng.sample(list(groups.values()), len(groups)):
        if len(held_out) < count:
            held_out.update(group)
    return held_out


def hold_drawings(
    same: dict[Drawing, Drawing], held_out: set[str], count: int, rng: random.Random
) -> dict[Drawing, list[Drawing]]:
    """About `count` images for validation, each with all drawings that look like it; no emoji occurs twice."""
    duplicates = defaultdict(list)
    for drawing, first in same.items():
        duplicates[first].append(drawing)
    possible = [first for first in duplicates if first[0] in VALIDATION_VENDORS and first[1] not in held_out]
    chosen: dict[Drawing, list[Drawing]] = {}
    used: set[str] = set()
    for first in rng.sample(possible, len(possible)):
        emoji = {emoji for _, emoji in duplicates[first]}
        if len(chosen) < count and not emoji & used:
            chosen[first] = duplicates[first]
            used |= emoji
    return chosen


def texts_of(emoji: Emoji, bearers: dict[str, set[str]], count: int, rng: random.Random) -> list[str]:
    """The name of an emoji, and at most `count` sets of its keywords that no other emoji has together.

    Args:
        bearers: the emoji that have each keyword.
    """
    texts = {frozenset([emoji.name]): emoji.name}
    for _ in range(10 * count if len(emoji.keywords) >= WORDS else 0):
        drawn = rng.sample(sorted(emoji.keywords), WORDS)
        if len(texts) <= count and len(set.intersection(*(bearers[word] for word in drawn))) == 1:
            texts.setdefault(frozenset(drawn), ", ".join(drawn))
    return list(texts.values())


def check_apart(drawings: dict[Drawing, np.ndarray], splits: dict[str, list[Drawing]]) -> None:
    """Check that no two splits share an image.

    Raises:
        ValueError: two of their images look the same.
    """
    shape = (-1, SIDE, SIDE, 3)  # for a split without images too
    pixels = {
        split: np.array([drawings[drawing] for drawing in images]).reshape(shape) for split, images in splits.items()
    }
    for split, other in combinations(splits, 2):
        near = np.argwhere(distances(pixels[split], pixels[other]) <= ALIKE)
        if len(near):
            first, second = splits[split][near[0][0]], splits[other][near[0][1]]
            raise ValueError(f"{first} of {split} looks like {second} of {other}; expected distinct images")


def read_drawings(emoji: dict[str, Emoji], packages: Path) -> dict[Drawing, np.ndarray]:
    """The vendors' drawings of all emoji that the test vendor has."""
    drawings: dict[Drawing, np.ndarray] = {}
    for vendor, source in VENDORS.items():
        found = read_package(fetch(source.package, packages), source.folder, emoji)
        drawings.update({(vendor, emoji_code): found[emoji_code] for emoji_code in emoji if emoji_code in found})
    return {drawing: pixels for drawing, pixels in drawings.items() if (TEST_VENDOR, drawing[1]) in drawings}


def split_images(
    same: dict[Drawing, Drawing], concepts: int, validation_pictures: int, seed: int
) -> dict[str, list[Drawing]]:
    """The distinct images of each split."""
    rng = random.Random(f"{seed} emoji")
    emoji = [emoji_code for vendor, emoji_code in same if vendor == TEST_VENDOR]
    held_out = hold_out(emoji, same, concepts, rng)
    validation = hold_drawings(same, held_out, validation_pictures, rng)
    images = [first for first in dict.fromkeys(same.values()) if first not in validation]
    train = [drawing for drawing in images if drawing[0] != TEST_VENDOR and drawing[1] not in held_out]
    drawn = {emoji_code for (_, emoji_code), first in same.items() if first in set(train)}
    tests = [drawing for drawing in images if drawing[0] == TEST_VENDOR]
    return {
        "train": train,
        "validation": [first for first in validation if first[1] in drawn],
        "test_vendor": [first for first in tests if first[1] in drawn],
        "test_concepts": [first for first in tests if first[1] in held_out],
    }


def make(folder: Path, seed: int, concepts: int, validation_pictures: int, captions: int) -> dict[str, Any]:
    """Write the splits to `folder`, with the name and `captions` sets of keywords of each emoji; return counts."""
    emoji = read_emoji(folder / "packages")
    drawings = read_drawings(emoji, folder / "packages")
    same = first_duplicates(drawings)
    splits = split_images(same, concepts, validation_pictures, seed)
    check_apart(drawings, splits)
    codes, bearers = defaultdict(list), defaultdict(set)
    for (_, emoji_code), first in same.items():
        codes[first].append(emoji_code)
    for emoji_code, entry in emoji.items():
        for word in entry.keywords:
            bearers[word].add(emoji_code)
    counts: dict[str, Any] = {"output_dir": str(folder), "emoji": len({emoji_code for _, emoji_code in same})}
    for split, images in splits.items():
        table = []
        for vendor, head in images:
            for emoji_code in codes[vendor, head]:
                rng = random.Random(f"{seed} {split} {vendor} {emoji_code}")
                entry = emoji[emoji_code]
                facts = (entry.character, vendor, entry.group)
                texts = texts_of(entry, bearers, captions, rng)
                table += [(image_name(vendor, head), text, *facts) for text in texts]
        write_table(folder, split, ["image", "text", "emoji", "vendor", "group"], table)
        counts |= {f"{split}_rows": len(table), f"{split}_pictures": len(images)}
    write_licences(folder)
    used = [drawing for images in splits.values() for drawing in images]
    write_in_parallel(lambda drawing: write_image(folder / image_name(*drawing), drawings[drawing]), used, "Images")
    return counts


def write_licences(folder: Path) -> None:
    """Write the licences of all packages to `folder/LICENSES`."""
    licences = "".join(f"{name}: {source.licence} (npm: {source.package})\n" for name, source in VENDORS.items())
    (folder / "LICENSES").write_text(f"{licences}names, keywords: MIT (npm: {NAMES}, {KEYWORDS})\n", encoding="utf-8")


def image_name(vendor: str, emoji: str) -> str:
    return f"images/{vendor}/{emoji}.png"


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG file, unless it exists."""
    if not path.exists():
        save(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))


if __name__ == "__main__":
    command(make, __doc__, concepts=200, validation_pictures=200, captions=4)
