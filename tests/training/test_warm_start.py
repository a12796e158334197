"""Linear late fusion starts as a regression that is fitted to the features of frozen towers."""

import json

import numpy as np
import pytest
import torch
from helpers.builders import save_towers
from helpers.digits import write_digits
from helpers.tables import write_rows
from sklearn.linear_model import LogisticRegression, Ridge
from transformers import AutoModelForSequenceClassification

from modeling_mm import cli
from modeling_mm.model.late_fusion_mm import MMLateFusion
from modeling_mm.training.warm_start import head_weights, standardise, with_single_modalities

WIDTHS = {"text": 3, "image": 2}


def joined(rows=40):
    """The output of a new linear late fusion of two modalities, one of which every fourth row lacks."""
    module = MMLateFusion("linear", 3, WIDTHS)
    generator = torch.Generator().manual_seed(0)
    states = [5 + 9 * torch.randn(rows, width, generator=generator) for width in WIDTHS.values()]
    states[0][:, 1] = 4.0  # constant
    present = torch.ones(rows, 2).bool()
    present[::4, 1] = False
    return module, states, present, module(states, present).numpy()


def test_features_are_standardised_where_there_are_any():
    module, states, present, raw = joined()
    assert not module.is_fitted()
    standardise(module, raw)
    assert module.is_fitted()
    features = module(states, present).numpy()
    np.testing.assert_allclose(with_single_modalities(module, raw)[0][:40], features, atol=1e-5)
    assert not features[:, 1].any() and not features[::4, 3:5].any() and features[::4, 6].all()
    np.testing.assert_allclose(features[:, [0, 2]].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose((features[:, :3] ** 2).mean(0) * 3, [1, 0, 1], atol=1e-5)
    assert module.scale[:3].isfinite().all() and module.scale[1] > 0  # fusion may make it vary
    np.testing.assert_allclose((features[present[:, 1].numpy(), 3:5] ** 2).sum(1).mean(), 1, atol=1e-5)


def test_each_modality_counts_alone_too():
    module, states, present, raw = joined()
    standardise(module, raw)
    features, rows, weights = with_single_modalities(module, raw)
    assert len(features) == len(rows) == len(weights) == 40 + 40 + 30
    image = module([None, states[1][rows[80:]]], torch.tensor([[False, True]]).expand(30, 2))
    np.testing.assert_allclose(features[80:], image.numpy(), atol=1e-5)
    assert np.isclose(weights[0] + weights[40] + weights[80], 1)
    alone = raw.copy()
    alone[:, 6] = 1
    _, rows, weights = with_single_modalities(module, alone)
    assert len(rows) == 40 and set(weights) == {1}


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_has_the_outputs_of_the_regression(classes):
    rng = np.random.default_rng(0)
    features, truths = rng.normal(size=(60, 5)), rng.integers(0, classes, 60)
    fitted = LogisticRegression().fit(features, truths)
    weight, bias = head_weights("classification", [fitted], 5, classes + 1)  # one class is in no row
    logits = features @ weight.T + bias
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(shares[:, :classes], fitted.predict_proba(features), atol=1e-4)


def test_several_labels_and_numbers_have_an_output_each():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5))
    labels = LogisticRegression().fit(features, features[:, 0] > 0)
    weight, bias = head_weights("multilabel", [labels, 1.0], 5, 2)
    np.testing.assert_allclose(features @ weight[0] + bias[0], labels.decision_function(features))
    assert bias[1] > 5 and not weight[1].any()
    ridge = Ridge().fit(features, features[:, 1])
    weight, bias = head_weights("regression", [ridge], 5, 1)
    np.testing.assert_allclose(features @ weight[0] + bias[0], ridge.predict(features))


@pytest.fixture
def towers(tmp_path, tokenizer):
    """Flags of small pretrained towers."""
    return save_towers(tmp_path / "towers", tokenizer)


def train(folder, *flags):
    quiet = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--baselines", "false"]
    argv = ["train", "--output_dir", folder / "out", "--num_train_epochs", 2, *quiet, *flags]
    assert cli.main([str(part) for part in argv]) == 0
    return json.loads((folder / "out" / "report.json").read_text())


def test_training_starts_there_and_is_never_below_it_in_validation(towers, tmp_path):
    rows = ("image", "text", "label")
    files = ["--train_file", write_digits(tmp_path, "t.csv", 0, 200, rows)]
    files += ["--validation_file", write_digits(tmp_path, "v.csv", 200, 100, rows)]
    report = train(tmp_path, *towers, *files, "--learning_rate", "0.5")  # so high that training spoils the start
    assert report["warm_start"]["rows"] == 200 and report["defaults"]["late_fusion"]["value"] == "linear"
    assert report["accuracy"] == report["warm_start"]["validation"] > 0.3  # chance is 0.1
    first, second = (
        AutoModelForSequenceClassification.from_pretrained(folder)
        for folder in (tmp_path / "out", next((tmp_path / "out").glob("checkpoint-*")))
    )
    assert torch.equal(first.classifier.weight, second.classifier.weight) and first.late_fusion.is_fitted()
    again = train(tmp_path, "--model", tmp_path / "out", "--task", "classification", *files)
    assert "warm_start" not in again


def test_weighted_classes_count_by_their_weights(towers, tmp_path):
    path = write_digits(tmp_path, "t.csv", 0, 120, ("image", "text", "label"))
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    write_rows(path, ["image", "text", "label"], [(*row[:2], "yes" if row[2] == "two" else "no") for row in rows])
    found = []
    for weights in ([], ["--class_weights", "balanced"]):  # the learning rate of the only step is 0
        train(tmp_path, *towers, "--train_file", path, "--validation_file", path, "--max_steps", 1, *weights)
        lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
        found.append(sum(json.loads(line)["prediction"] == "yes" for line in lines))
    assert found[0] < found[1]


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_other_labels_start_there_too(towers, tmp_path, task):
    path = write_digits(tmp_path, "t.csv", 0, 160, ("image", "text", "label"))
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    value = {
        "regression": lambda name: len(name),
        "multilabel": lambda name: "|".join(sorted(set(name) & set("efiort"))),
    }
    write_rows(path, ["image", "text", "label"], [(image, text, value[task](name)) for image, text, name in lines])
    report = train(tmp_path, *towers, "--train_file", path, "--task", task)
    assert report["warm_start"]["validation"] > 0


@pytest.mark.parametrize("flags", [["--use_peft", "true"], ["--streaming", "true", "--validation_file", "v.csv"]])
def test_a_start_that_cannot_be_fitted_is_refused(towers, tmp_path, capsys, flags):
    rows = write_digits(tmp_path, "t.csv", 0, 8, ("image", "text", "label"))
    argv = ["--task", "classification", "--late_fusion", "linear", "--train_file", rows, "--output_dir", tmp_path]
    assert cli.main(["train", *map(str, [*argv, *towers]), *flags]) == 2
    assert "--late_fusion linear starts as a fitted regression" in capsys.readouterr().err
