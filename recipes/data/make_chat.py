# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Conversations about the images of easy-VQA: questions, questions that refer back, and a second image.

    python -m recipes.data.make_chat  # into runs/data/chat; seconds

A conversation is one JSON line with `messages` and `images`. It begins with a question of easy-VQA about an image.
One to four others follow: about the same image; one that means what the question before was about ("and its color?");
or one with a second image, about which the rest then is. Each answer has its `kind`: first, next, back or second. All
images and questions of the test split are those of easy-VQA's; validation has images that are in no other split.
"""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from modeling_mm.data.tables import read_easy_vqa

from .make_spoken_vqa import copy
from .tables import command, save, write_in_parallel

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
BACK = {
    "color": ("and its color?", "and what color is it?", "what about its color?"),
    "shape": ("and its shape?", "and what shape is it?", "what about its shape?"),
}
SECOND = ("now this one: {}", "and here: {}", "another image: {}")
TURNS = 2, 5
BACK_SHARE, SECOND_SHARE = 0.4, 0.35  # of the turns after the first, where possible

Asked = dict[str, list[tuple[str, str]]]  # questions and answers by image


def known_attributes(asked: list[tuple[str, str]]) -> dict[str, str]:
    """Shape and color of an image, as far as its questions tell."""
    found: dict[str, str] = {}
    for question, answer in asked:
        words = question.rstrip("?").split()
        for name, values in (("shape", SHAPES), ("color", COLORS)):
            if answer in values:
                found[name] = answer
            elif answer == "yes" and not {"no", "not"} & set(words):
                found.update((name, word) for word in words if word in values)
    return found


def turn(question: str, answer: str, kind: str, with_image: bool) -> list[dict[str, Any]]:
    """The two messages of a question and its answer."""
    text = {"type": "text", "text": question}
    content: Any = [{"type": "image"}, text] if with_image else question
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer, "kind": kind}]


def conversation(images: tuple[str, str], asked: Asked, rng: random.Random) -> dict[str, Any]:
    """A conversation that begins about the first image and may go on about the second."""
    image, other = images
    question, answer = rng.choice(asked[image])
    messages, shown = turn(question, answer, "first", True), [image]
    facts, last = known_attributes(asked[image]), answer
    for _ in range(rng.randint(*TURNS) - 1):
        missing = [name for name, value in facts.items() if last not in (SHAPES if name == "shape" else COLORS)]
        draw = rng.random()
        if draw < BACK_SHARE and missing:
            name = rng.choice(missing)
            last = facts[name]
            messages += turn(rng.choice(BACK[name]), last, "back", False)
        elif draw < BACK_SHARE + SECOND_SHARE and len(shown) == 1:
            shown.append(other)
            image, facts = other, known_attributes(asked[other])
            question, last = rng.choice(asked[other])
            messages += turn(rng.choice(SECOND).format(question), last, "second", True)
        else:
            question, last = rng.choice(asked[image])
            messages += turn(question, last, "next" if len(shown) == 1 else "second", False)
    return {"messages": messages, "images": shown}


def make(folder: Path, seed: int, train_rows: int, validation_rows: int, test_rows: int) -> dict[str, Any]:
    """Write the three splits to `folder`; return counts."""
    asked: dict[str, Asked] = {}
    for source in ("train", "test"):
        table = read_easy_vqa(source)
        by_image: Asked = defaultdict(list)
        for path, question, answer in zip(table["image"], table["text"], table["answer"], strict=True):
            by_image[path].append((question, answer))
        asked[source] = by_image
    order = sorted(asked["train"])
    random.Random(f"{seed} images").shuffle(order)
    held_out = len(order) // 20
    images = {"train": order[held_out:], "validation": order[:held_out], "test": sorted(asked["test"])}
    numbers = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    counts: dict[str, Any] = {"output_dir": str(folder)}
    copied: dict[str, str] = {}
    for split, paths in images.items():
        rng, source = random.Random(f"{seed} {split}"), "test" if split == "test" else "train"
        lines = []
        for number in range(numbers[split]):
            first, other = paths[number % len(paths)], rng.choice(paths)
            row = conversation((first, other), asked[source], rng)
            names = {path: f"images/{source}{Path(path).name}" for path in row["images"]}
            copied |= {name: path for path, name in names.items()}
            lines.append(json.dumps({**row, "images": [names[path] for path in row["images"]]}))
        text = "\n".join(lines) + "\n"
        save(folder / f"{split}.jsonl", lambda file, text=text: file.write(text.encode()))
        counts[f"{split}_rows"] = len(lines)
    counts["images"] = write_in_parallel(lambda name: copy(copied[name], folder / name), copied, "Images")
    return counts


if __name__ == "__main__":
    command(make, __doc__, train_rows=12_000, validation_rows=400, test_rows=1_000)
