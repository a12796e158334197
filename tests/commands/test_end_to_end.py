# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The whole way: a CSV with image, text, audio and label, a tenth of its cells empty, to a model that others use."""

import csv
import itertools
import json

import numpy as np
import pytest
import soundfile
import torch
from helpers.builders import drawing
from helpers.programs import ABSENT, run_without_package
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoProcessor

from modeling_mm import MMForSequenceClassification, MMProcessor, cli
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.tables import read_table

MODALITIES = ("image", "text", "audio")
SUBSETS = [names for count in (1, 2, 3) for names in itertools.combinations(MODALITIES, count)]
BARE = (
    ABSENT
    + """
import json
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoProcessor

try:
    import modeling_mm
    report = {"package": "here"}
except ImportError:
    report = {"package": "absent"}
model = AutoModelForSequenceClassification.from_pretrained("out", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("out", trust_remote_code=True)
report["from"] = [type(part).__module__.partition(".")[0] for part in (model, processor)]
made = processor(images="whole.png", text="<image><audio>what is it", audio="whole.wav", return_tensors="pt")
results = {f"made_{name}": value for name, value in made.items()}
inputs = load_file("inputs.safetensors")
results["rows"] = model(**inputs).logits.detach()
results["made"] = model(**made).logits.detach()
save_file({name: value.contiguous() for name, value in results.items()}, "results.safetensors")
print(json.dumps(report))
"""
)


def make_table(folder, rows=20):
    """Write t.csv, with six of its 60 cells beside the labels empty at random, and subsets.csv, a row per subset."""
    generator = np.random.default_rng(0)
    cells = []
    for i in range(rows):
        drawing((12 * i, 240 - 12 * i, 90)).save(folder / f"{i}.png")
        tone = np.sin(2 * np.pi * generator.uniform(200, 2000) * np.arange(8000) / 16000)
        soundfile.write(folder / f"{i}.wav", tone.astype(np.float32), 16000)
        cells.append({"image": f"{i}.png", "text": f"what is it {i % 3}", "audio": f"{i}.wav", "label": "ab"[i % 2]})
    places = [(i, name) for i in range(rows) for name in MODALITIES]
    for place in generator.permutation(len(places))[: len(places) // 10]:
        cells[places[place][0]][places[place][1]] = ""
    whole = {"image": "0.png", "text": "what is it", "audio": "0.wav", "label": "a"}
    subsets = [{name: whole[name] if name in (*subset, "label") else "" for name in whole} for subset in SUBSETS]
    for name, table in (("t.csv", cells), ("subsets.csv", subsets)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "text", "audio", "label"])
            writer.writeheader()
            writer.writerows(table)
    (folder / "whole.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "whole.wav").write_bytes((folder / "0.wav").read_bytes())
    return [cell[name] for cell in cells for name in MODALITIES].count("")


def train(folder, *argv):
    """Run `modeling-mm train` on t.csv."""
    towers = [word for name in ("vision_tower", "text_model", "audio_tower") for word in (f"--{name}", "scratch-tiny")]
    argv = [
        "train", "--task", "classification", "--train_file", folder / "t.csv", "--audio_column", "audio", *towers,
        "--max_seconds", "1", "--output_dir", folder / "out", "--max_steps", "3", "--per_device_train_batch_size", "6",
        "--learning_rate", "1e-2", "--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy",
        "no", "--validation_file", folder / "t.csv", *argv,
    ]  # fmt: skip
    assert cli.main([*map(str, argv)]) == 0


def batch_of(folder, processor, columns=("image", "text", "audio", "label")):
    """The batch that the command makes of all rows of subsets.csv, without labels."""
    image, text, audio, label = columns
    table = str(folder / "subsets.csv")
    dataset = MMDataset(table, *read_table(table), Columns(image, text, label, audio), ["a", "b"])
    rows = [dataset[i] for i in range(len(SUBSETS))]
    return {name: value for name, value in MMCollator(processor, "classification")(rows).items() if name != "labels"}


@torch.no_grad()
def check_subsets(folder, capsys, model, processor):
    """Check that `predict` with each subset of modalities equals the CSV row with these cells, in a batch of rows."""
    logits = model(**batch_of(folder, processor)).logits
    media = {"image": folder / "0.png", "text": "what is it", "audio": folder / "0.wav"}
    for subset, expected in zip(SUBSETS, logits.softmax(dim=-1), strict=True):
        flags = [word for name in subset for word in (f"--{name}", media[name])]
        capsys.readouterr()
        assert cli.main([*map(str, ["predict", "--model", folder / "out", "--device", "cpu", *flags])]) == 0
        (result,) = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
        probabilities = [result["probabilities"][name] for name in ("a", "b")]
        assert probabilities == pytest.approx(expected.tolist(), abs=1e-4), subset
    assert len({round(float(row), 4) for row in logits[:, 0]}) == len(SUBSETS)  # no modality is lost


@pytest.fixture
def trained(tmp_path, capsys):
    def run(*argv):
        assert make_table(tmp_path) == 6
        train(tmp_path, *argv)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        assert type(model) is MMForSequenceClassification and type(processor) is MMProcessor
        return tmp_path, model, processor

    return run


def test_one_command_makes_of_a_table_with_holes_a_model_that_answers_any_subset(trained, capsys):
    folder, *model = trained()
    check_subsets(folder, capsys, *model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["concat", "weighted", "gated", "product"])
def test_late_fusion_answers_any_subset(trained, capsys, kind):
    folder, *model = trained("--late_fusion", kind)
    check_subsets(folder, capsys, *model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fusion", [[], ["--late_fusion", "gated", "--cross_attention", "true"]], ids=["cross", "both"]
)
def test_the_folder_is_a_model_and_a_processor_without_the_package(trained, fusion):
    folder, model, processor = trained(*fusion)
    batch = batch_of(folder, processor)
    save_file({name: value.contiguous() for name, value in batch.items()}, folder / "inputs.safetensors")
    stdout = run_without_package(BARE, folder)
    report, results = json.loads(stdout.splitlines()[-1]), load_file(folder / "results.safetensors")
    assert report == {"package": "absent", "from": ["transformers_modules", "transformers_modules"]}
    with torch.no_grad():
        assert torch.equal(results["rows"], model(**batch).logits)
    media = {"images": str(folder / "0.png"), "audio": str(folder / "0.wav")}
    made = processor(text="<image><audio>what is it", return_tensors="pt", **media)
    assert all(torch.equal(results[f"made_{name}"], value) for name, value in made.items())
    with torch.no_grad():
        assert torch.equal(results["made"], model(**made).logits)
