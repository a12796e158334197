"""Data of recipes/data/make_*.py: splits share nothing, files decode, seeds repeat, no modality alone is enough."""

import csv
import hashlib
import random
import shutil
from collections import Counter, defaultdict

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.tables import read_table
from recipes.data import make_budget, make_digit_matching, make_digits_avt, make_interaction, make_spoken_vqa
from recipes.data.additive import labels, likelihood, search
from recipes.data.digits import WORDS, digit_images
from recipes.data.speech import RATE, VOICES, require_espeak, speak, utterance, write_utterance
from recipes.data.tables import SPLITS

MAKERS = {
    module.__name__.split("make_")[1]: module.make
    for module in (make_budget, make_digit_matching, make_digits_avt, make_interaction, make_spoken_vqa)
}
ROWS = {"train_rows": 16, "validation_rows": 6, "test_rows": 8}
pytestmark = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")


def rows_of(folder, split):
    """The rows of one split as dictionaries."""
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    """A hash of each file in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module", params=list(MAKERS))
def made(request, tmp_path_factory):
    """The name of a maker and what it wrote for seed 0."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, MAKERS[request.param](folder, 0, **ROWS)


def test_splits_share_no_picture_and_no_voice(made):
    name, folder, counts = made
    for column in ("image", "audio"):
        cells = {split: {row.get(column, "") for row in rows_of(folder, split)} - {""} for split in SPLITS}
        assert not cells["train"] & cells["test"] and not cells["validation"] & (cells["train"] | cells["test"])
        for split in SPLITS if column == "audio" else ():
            spoken = [cell for cell in cells[split] if "/noise" not in cell]
            assert {cell.split("+")[1].split("_")[0] for cell in spoken} <= set(VOICES[split])
    assert [counts[f"{split}_rows"] for split in SPLITS] == [len(rows_of(folder, split)) for split in SPLITS]


def test_files_are_there_and_decode(made):
    name, folder, _ = made
    for row in (row for split in SPLITS for row in rows_of(folder, split)):
        assert any(row.get(column) for column in ("image", "text", "audio"))
        if row["image"]:
            Image.open(folder / row["image"]).load()
        if row.get("audio"):
            sound, rate = soundfile.read(folder / row["audio"])
            assert rate == RATE and sound.ndim == 1 and 0.2 < len(sound) / rate < 4
            assert sound.std() > 0.005 and (abs(sound) > 0.999).mean() < 0.001  # neither silent nor clipped
    assert not list(folder.rglob("*.part"))


def test_our_reader_takes_them(made, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name, folder, _ = made
    target = {"spoken_vqa": "answer", "digit_matching": "digit"}.get(name, "label")
    rows = [row for row in rows_of(folder, "train") if row["image"] or row["text"]]
    table, where = read_table(str(folder / "train.csv"))
    cells = {"numbers": ("price", "money"), "categories": ("packing",)} if name == "budget" else {}
    read = MMDataset("train.csv", table, where, Columns("image", "text", target, **cells)).check(skip=True)
    assert [read[i].target for i in range(len(read))] == [row[target] for row in rows]


def test_the_same_seed_gives_the_same_bytes(made, tmp_path):
    name, folder, _ = made
    first = contents(folder)
    MAKERS[name](tmp_path / "again", 0, **ROWS)
    assert contents(tmp_path / "again") == first


def test_another_seed_gives_other_rows(tmp_path):
    first, second = (tmp_path / "0", tmp_path / "1")
    make_digit_matching.make(first, 0, **ROWS)
    make_digit_matching.make(second, 1, **ROWS)
    assert contents(first)["test.csv"] != contents(second)["test.csv"]


def test_files_that_exist_are_kept(tmp_path):
    spoken = utterance("seven", "test", 0, 0)
    (tmp_path / spoken.file_name).write_bytes(b"kept")
    write_utterance(tmp_path, spoken)
    assert (tmp_path / spoken.file_name).read_bytes() == b"kept"


def test_no_voice_is_in_two_splits_and_no_two_sound_the_same():
    voices = [voice for split in SPLITS for voice in VOICES[split]]
    assert len(voices) == len(set(voices))
    require_espeak()
    sounds = {}
    for split in ("validation", "test"):
        for take, voice in enumerate(VOICES[split]):
            spoken = utterance("no", split, take, 0)
            assert spoken.voice == voice
            sounds[voice] = speak(spoken).tobytes()
    assert len(set(sounds.values())) == len(sounds)


def test_missing_espeak_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="apt install espeak-ng"):
        make_interaction.make(tmp_path, 0, **ROWS)


def test_in_an_interaction_no_single_modality_tells_anything():
    table = labels()
    for axis in range(3):  # operation, drawn, spoken: given any value of one, all ten labels are equally likely
        for value in range(table.shape[axis]):
            counts = np.bincount(np.take(table, value, axis).ravel(), minlength=10)
            assert len(set(counts.tolist())) == 1
    for operation in table:  # nor text and image, nor text and sound together
        assert all(sorted(line) == list(range(10)) for line in (*operation.tolist(), *operation.T.tolist()))
    pairs = np.moveaxis(table, 0, -1).reshape(100, -1).tolist()  # image and sound: the likeliest label
    assert sum(Counter(pair).most_common(1)[0][1] for pair in pairs) / table.size == 0.44


def test_in_an_interaction_added_scores_stay_below_one_half():
    assert likelihood(labels()) == pytest.approx(0.1)
    assert 0.2 < search(labels(), seed=0, sweeps=10, noise=0.3) < 0.5
    seen = np.broadcast_to(np.arange(10)[None, :, None], labels().shape)  # a task that addition solves
    assert likelihood(seen) == 1 and search(seen, seed=0, sweeps=10, noise=0.3) > 0.9


def test_training_rows_of_an_interaction_are_balanced(tmp_path, monkeypatch):
    monkeypatch.setattr(make_interaction, "write_in_parallel", lambda *arguments: 0)  # the table only
    make_interaction.make(tmp_path, 0, 2000, 400, 500)
    for split in SPLITS:
        rows = rows_of(tmp_path, split)
        counts = Counter(row["label"] for row in rows)
        assert len(counts) == 10 and (split == "test" or len(set(counts.values())) == 1)
        naming = {phrase for phrases in make_interaction.NAMING.values() for phrase in phrases}
        assert sum(row["text"] in naming for row in rows) == (800 if split == "train" else 0)


def test_digits_need_more_than_one_modality():
    best = make_digits_avt.ceilings()
    fused = best["picture+sound+hint"]
    assert fused > max(best[name] for name in ("picture", "sound", "hint")) + 0.1
    assert fused > max(best[name] for name in ("picture+sound", "picture+hint", "sound+hint")) + 0.02
    assert sum(case.probability for case in make_digits_avt.cases()) == pytest.approx(1)
    assert all(case.picture or case.sound or case.hint for case in make_digits_avt.cases())


def test_rows_of_digits_follow_the_construction(tmp_path, monkeypatch):
    monkeypatch.setattr(make_digits_avt, "write_in_parallel", lambda *arguments: 0)
    make_digits_avt.make(tmp_path, 0, 4000, 10, 10)
    rows = rows_of(tmp_path, "train")
    clear = [row for row in rows if row["image"] and "noise" not in row["image"]]
    assert len(clear) / len(rows) == pytest.approx(0.5, abs=0.03)
    assert sum(not row["text"] for row in rows) / len(rows) == pytest.approx(0.15, abs=0.03)
    noisy = defaultdict(set)
    for row in rows:
        if "noise" in row["image"]:
            noisy[row["image"]].add(row["label"])
    assert min(map(len, noisy.values())) > 1  # a noise image goes with any label


def test_matching_pairs_match(tmp_path):
    make_digit_matching.make(tmp_path, 0, 50, 20, 20)
    for row in (row for split in SPLITS for row in rows_of(tmp_path, split)):
        digit = digit_images()[1][int(row["image"].split("digit")[1].split(".")[0])]
        named = WORDS[digit] in row["text"].replace(",", "").split() or str(digit) in row["text"]
        assert named and row["digit"] == WORDS[digit]


@pytest.mark.parametrize("made", ["spoken_vqa"], indirect=True)
def test_spoken_questions_have_picture_and_sound_but_no_text(made):
    _, folder, _ = made
    for row in rows_of(folder, "test"):
        assert row["text"] == "" and row["image"] and row["audio"] and row["answer"]
    assert len({row["image"] for row in rows_of(folder, "test")}) == ROWS["test_rows"]


def test_a_budget_needs_the_image_and_the_table():
    """The best guess from one of the two is right in about three quarters of the rows."""
    rng, right, rows = random.Random(0), {"image": 0, "table": 0}, 0
    for number in range(20_000):
        items = number % 10
        (price, money, packing), label = make_budget.purchase(items, rng)
        if price:
            rows += 1
            affordable = float(money) / (float(price) * make_budget.PACKINGS[packing])
            right["image"] += (items < 5) == (label == "yes")
            right["table"] += (affordable > 4.5) == (label == "yes")
    assert all(0.72 < count / rows < 0.78 for count in right.values())
    assert 0.97 < rows / 20_000 < 0.99
