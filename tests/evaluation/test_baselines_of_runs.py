"""Simple baselines at the end of `train` and in `evaluate --train_file`, on real files of all modalities."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.builders import drawing
from helpers.digits import write_digits
from transformers import TrainingArguments

from modeling_mm import cli
from modeling_mm.checkpoint import load_checkpoint
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.tables import read_table
from modeling_mm.evaluation.baseline_inputs import baseline_inputs, sampled
from modeling_mm.evaluation.baseline_scores import num_fitted_rows, score_baselines
from modeling_mm.evaluation.baselines import Parts
from modeling_mm.evaluation.predictions import evaluate_rows, label_names
from modeling_mm.training.trainer import MMTrainer

TINY = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--fusion_layers", "1"]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no", "--max_steps", "2"]
QUIET += ["--learning_rate", "5e-5"]


def run(capsys, *argv):
    """The JSON of a command's last line."""
    assert cli.main(list(map(str, argv))) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def train(capsys, folder, *argv, name="t.csv", out="out"):
    files = ["--train_file", folder / name, "--validation_file", folder / name, "--output_dir", folder / out]
    return run(capsys, "train", *files, *TINY, *QUIET, *argv)


def by_name(baselines):
    return {row["model"]: row for row in baselines["table"]}


def write_rows(folder, header, rows):
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with digits, and a model that has barely begun to learn them."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, "t.csv", 0, 200, ("image", "text", "label"))
    write_digits(folder, "test.csv", 200, 60, ("image", "text", "label"))
    files = ["--train_file", folder / "t.csv", "--test_file", folder / "test.csv", "--output_dir", folder / "out"]
    assert cli.main([*map(str, ["train", "--task", "classification", *files, *TINY, *QUIET])]) == 0
    return folder


def test_train_tells_that_a_linear_model_on_digits_is_better_than_two_steps(digits):
    report = json.loads((digits / "out" / "report.json").read_text())["baselines"]
    rows = by_name(report)
    assert (
        rows["image alone"]["accuracy"] > 0.7 and rows["text alone"]["accuracy"] == rows["majority"]["accuracy"] < 0.3
    )
    assert rows["image alone"]["method"] == "logistic regression on the trained vision tower's mean state"
    assert report["verdict"].endswith("the simple model, fitted in seconds, is better.")
    assert report["fitted_rows"] + report["validation_rows"] == 200 and report["train_rows"] == 180
    assert "image alone" not in (digits / "out" / "README.md").read_text()  # the card has the model's scores only


def test_evaluate_compares_with_the_rows_of_train_file(digits, capsys):
    argv = ["evaluate", "--model", digits / "out", "--test_file", digits / "test.csv", "--device", "cpu"]
    assert "baselines" not in run(capsys, *argv)
    result = run(capsys, *argv, "--train_file", digits / "t.csv", "--validation_file", digits / "t.csv")["baselines"]
    assert (
        by_name(result)["image alone"]["accuracy"] > 0.7 and result["validation_rows"] == result["fitted_rows"] == 200
    )
    assert json.loads((digits / "out/evaluation/metrics.json").read_text())["baselines"]["best"] == result["best"]
    page = (digits / "out/evaluation/report.html").read_text()
    assert "Simple baselines" in page and "is better. The baselines were fitted in" in page
    assert (digits / "out/evaluation/baselines.png").exists()
    assert run(capsys, *argv, "--train_file", digits / "t.csv")["baselines"]["validation_rows"] == 20


def test_flags_that_do_not_fit_are_refused(digits, capsys):
    argv = ["evaluate", "--model", str(digits / "out"), "--test_file", str(digits / "test.csv")]
    assert cli.main([*argv, "--validation_file", str(digits / "t.csv")]) == 2
    assert "give their --train_file too" in capsys.readouterr().err


def test_a_medium_that_cannot_be_read_any_more_is_a_sentence(digits, tmp_path):
    write_digits(tmp_path, "t.csv", 0, 20, ("image", "text", "label"))
    model, processor = load_checkpoint(str(digits / "out"))
    table, folder = read_table(str(tmp_path / "t.csv"), "train")
    rows = MMDataset("t.csv", table, folder, Columns(target="label"), label_names(model, "classification"))
    options = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = MMTrainer(
        model, options, processing_class=processor, eval_collator=MMCollator(processor, "classification")
    )
    evaluation = evaluate_rows(trainer, "classification", rows)
    Path(tmp_path / "digit7.png").unlink()
    result = score_baselines(trainer, "classification", Parts(rows, rows, rows), evaluation, rows.labels)
    assert result["table"] == [] and "could not be fitted" in result["verdict"] and "digit7.png" in result["verdict"]


def test_no_baselines_if_turned_off(tmp_path, capsys):
    write_digits(tmp_path, "t.csv", 0, 20, ("image", "text", "answer"))
    assert "baselines" not in train(capsys, tmp_path, "--baselines", "false", "--max_new_tokens", 2)


def test_answers_of_a_generation_are_classes(tmp_path, capsys):
    write_digits(tmp_path, "t.csv", 0, 60, ("image", "text", "answer"))
    rows = by_name(train(capsys, tmp_path, "--max_new_tokens", 2)["baselines"])
    assert rows["image alone"]["accuracy"] > 0.8 > 0.3 > rows["majority"]["accuracy"]


def test_too_many_answers_have_the_majority_only(tmp_path, capsys):
    drawing((9, 9, 9), 32).save(tmp_path / "a.png")
    write_rows(tmp_path, "image,text,answer", [("a.png", "who?", answer) for answer in ["all", "all", *range(101)]])
    baselines = train(capsys, tmp_path, "--max_new_tokens", 2)["baselines"]
    rows = by_name(baselines)
    assert rows["majority"]["accuracy"] == pytest.approx(2 / 103, abs=1e-4)
    assert rows["late fusion"]["failed"].endswith("between 2 and 100 distinct answers")
    table, folder = read_table(str(tmp_path / "t.csv"), "train")
    many = MMDataset("t.csv", table, folder, Columns(target="answer"), task="generation")
    assert num_fitted_rows("generation", many, many, 0) == 0


def test_matching_has_the_majority_only(tmp_path, capsys):
    rows = []
    for i in range(8):
        drawing((30 * i, 0, 90), 32).save(tmp_path / f"{i}.png")
        rows.append((f"{i}.png", f"text {i}"))
    write_rows(tmp_path, "image,text", rows)
    baselines = train(capsys, tmp_path, "--task", "matching")["baselines"]
    assert [row["model"] for row in baselines["table"]] == ["this model", "majority"]
    assert by_name(baselines)["majority"]["accuracy"] == 0.5


def test_audio_decides_and_rows_lack_modalities(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(48):
        tone = np.sin(2 * np.pi * (300 if i % 2 else 2000) * np.arange(4000) / 16000) + 0.1 * rng.normal(size=4000)
        soundfile.write(tmp_path / f"{i}.wav", 0.3 * tone, 16000)
        drawing((5 * i, 0, 90), 32).save(tmp_path / f"{i}.png")
        rows.append(("" if i % 3 == 0 else f"{i}.png", "" if i % 5 == 0 else "high or low?", f"{i}.wav", f"{i % 2}"))
    write_rows(tmp_path, "image,text,audio,label", rows)
    audio = ["--audio_column", "audio", "--audio_tower", "scratch-tiny", "--max_seconds", "1"]
    table = by_name(train(capsys, tmp_path, "--task", "regression", *audio)["baselines"])
    assert list(table) == ["this model", "mean", "image alone", "audio alone", "text alone", "late fusion"]
    assert table["audio alone"]["r2"] > 0.9 > 0.5 > table["text alone"]["r2"] and table["late fusion"]["r2"] > 0.9


def test_the_mean_over_frames_of_videos(tmp_path, capsys):
    rows = []
    for i in range(24):
        for frame in range(2):
            drawing((200 if i % 2 else 20, 10 * i, 9), 32).save(tmp_path / f"{i}-{frame}.png")
        rows.append((f"{i}-0.png;{i}-1.png", "which?", "ab"[i % 2]))
    write_rows(tmp_path, "video,text,label", rows)
    argv = ["--task", "classification", "--video_column", "video", "--image_column", "", "--num_frames", 3]
    table = by_name(train(capsys, tmp_path, *argv)["baselines"])
    assert table["video alone"]["accuracy"] == 1.0 and "image alone" not in table


def test_rows_are_drawn_by_seed(digits):
    table, folder = read_table(str(digits / "t.csv"), "train")
    rows = MMDataset("t.csv", table, folder, Columns(target="label"), task="classification")
    assert sampled(rows, 200, 0) is rows
    first, again, other = (sampled(rows, 10, seed).kept for seed in (0, 0, 1))
    assert first == again == sorted(set(first)) != other and len(first) == 10
    counts = [num_fitted_rows(task, rows, rows, 0) for task in ("classification", "matching", "retrieval")]
    assert counts == [400, 0, 0]


def test_a_row_s_features_do_not_depend_on_the_batch(digits):
    model, processor = load_checkpoint(str(digits / "out"))
    table, folder = read_table(str(digits / "test.csv"), "train")
    rows = MMDataset("test.csv", table, folder, Columns(target="label"), label_names(model, "classification"))
    collator = MMCollator(processor, "classification")
    found = [
        baseline_inputs(model.base_model, collator, Parts(rows, rows, rows), size, (), True)[0] for size in (7, 60)
    ]
    for one_size, other_size in zip(*found, strict=True):
        for name, parts in one_size.features.items():
            if not name.startswith("TF-IDF"):
                np.testing.assert_allclose(parts.test, other_size.features[name].test, atol=1e-5)
