"""Simple baselines: each sees its modality alone, validation chooses, failures have a reason, the verdict is right."""

import json

import numpy as np
import pytest
from scipy import sparse

from modeling_mm.evaluation.baseline_inputs import table_inputs
from modeling_mm.evaluation.baseline_scores import answer_targets, compare, verdict
from modeling_mm.evaluation.baselines import Baseline, Inputs, Parts, Targets, fit_baselines, scaled
from modeling_mm.evaluation.metrics import head_metrics
from modeling_mm.evaluation.predictions import Evaluation

SIZES = (400, 200, 300)
NAMES = ["a", "b"]


def noise(seed=0, width=6):
    """Features of all rows without any meaning."""
    rng = np.random.default_rng(seed)
    return Parts(*(rng.normal(size=(size, width)) for size in SIZES))


def everywhere():
    """A modality that every row has."""
    return Parts(*(np.ones(size, dtype=bool) for size in SIZES))


def ids(*features):
    """Classes by the sign of the sum of the first column of these features."""
    return Parts(*((sum(block[:, 0] for block in blocks) > 0).astype(int) for blocks in zip(*features, strict=True)))


def inputs(name, features, present=None, **options):
    return Inputs(name, present or everywhere(), {"planted features": features}, **options)


def scores(targets, *modalities, metric="accuracy"):
    """The metric of each baseline on the evaluated rows, by name."""
    return {
        baseline.name: head_metrics(targets.task, baseline.outputs.test, targets.values.test)[metric]
        for baseline in fit_baselines(targets, modalities)
        if not baseline.reason
    }


@pytest.mark.parametrize("deciding", ["image", "text", "both"])
def test_a_baseline_sees_its_modality_and_no_other(deciding):
    image, text = noise(1), noise(2)
    deciders = {"image": [image], "text": [text], "both": [image, text]}[deciding]
    found = scores(Targets("classification", ids(*deciders), NAMES), inputs("image", image), inputs("text", text))
    assert found["majority"] < 0.6 and found["late fusion"] > 0.95
    for name in ("image", "text"):
        alone = found[f"{name} alone"]
        assert 0.65 < alone < 0.85 if deciding == "both" else alone > 0.95 if deciding == name else alone < 0.6


def test_permuted_labels_score_chance_however_many_features():
    labels = Parts(*(np.random.default_rng(3).integers(0, 2, size) for size in SIZES))
    image = noise(1, width=500)  # more features than rows: training rows can be learned by heart
    found = scores(Targets("classification", labels, NAMES), inputs("image", image), inputs("text", noise(2)))
    assert max(found.values()) < 0.6


def test_validation_chooses_the_features_and_the_evaluated_rows_do_not():
    good, bad = noise(1), noise(2)
    labels = ids(good)
    labels = labels._replace(test=(bad.test[:, 0] > 0).astype(int))  # would prefer the other features
    both = Inputs("image", everywhere(), {"bad": bad, "good": good})
    alone = fit_baselines(Targets("classification", labels, NAMES), [both])[1]
    assert alone.method == "logistic regression on good" and alone.score > 0.95
    flipped = fit_baselines(Targets("classification", labels._replace(test=1 - labels.test), NAMES), [both])[1]
    np.testing.assert_array_equal(alone.outputs.test, flipped.outputs.test)


def test_rows_without_a_modality_are_scored_by_the_other():
    image, text = noise(1), noise(1)
    rng = np.random.default_rng(4)
    has_image = Parts(*(rng.random(size) < 0.5 for size in SIZES))
    has_text = Parts(*(~part for part in has_image))
    targets = Targets("classification", ids(image), NAMES)
    found = scores(targets, inputs("image", image, has_image), inputs("text", text, has_text))
    assert found["image alone"] < 0.85 and found["text alone"] < 0.85 and found["late fusion"] > 0.95


@pytest.mark.parametrize("as_sparse", [False, True])
def test_absent_rows_are_zero_but_for_a_mark_and_the_norm_is_one(as_sparse):
    kind = sparse.csr_matrix if as_sparse else np.asarray
    present = Parts(*(np.arange(size) % 2 == 0 for size in SIZES))
    block = scaled(Parts(*map(kind, noise())), present).train
    block = block.toarray() if as_sparse else block
    assert (block[1::2, :-1] == 0).all() and (block[1::2, -1] == 1).all() and (block[::2, -1] == 0).all()
    assert (block[::2] ** 2).sum(axis=1).mean() == pytest.approx(1)
    changed = Parts(*(kind(np.where(has[:, None], part, 7.0)) for part, has in zip(noise(), present, strict=True)))
    again = scaled(changed, present).train
    np.testing.assert_allclose(again.toarray() if as_sparse else again, block)


def test_one_class_in_training_is_a_reason_not_an_error():
    labels = ids(noise(1))._replace(train=np.zeros(SIZES[0], dtype=int))
    table = inputs("table", noise(2), table=noise(2))
    majority, linear, boosted = fit_baselines(Targets("classification", labels, NAMES), [table])
    assert majority.outputs is not None
    assert linear.reason == boosted.reason == "the training rows have only 'a'; expected two or more"


def test_a_modality_in_no_training_row_and_a_class_in_none():
    image, nowhere = noise(1), everywhere()._replace(train=np.zeros(SIZES[0], dtype=bool))
    targets = Targets("classification", ids(image), [*NAMES, "c"])
    targets.values.test[0] = 2
    majority, alone, text = fit_baselines(targets, [inputs("image", image), inputs("text", noise(2), nowhere)])
    assert alone.outputs.test.shape == (SIZES[2], 3) and alone.score > 0.95
    assert text.reason == "no training row has text"


def test_numbers_are_predicted_in_their_unit():
    image, text = noise(1), noise(2)
    pairs = zip(image, text, strict=True)
    values = Parts(*(np.stack([1000 + 50 * (i[:, 0] + t[:, 0]), i[:, 1]], axis=1) for i, t in pairs))
    targets = Targets("regression", values, ["price", "size"])
    boosted = inputs("table", text, table=text)
    found = scores(targets, inputs("image", image), boosted, metric="r2")
    assert abs(found["mean"]) < 0.1 and 0.6 < found["image alone"] < 0.85 and found["late fusion"] > 0.99
    assert 0.1 < found["table alone, boosted"] < 0.3  # half of one of two columns
    assert fit_baselines(targets, [boosted])[0].outputs.test[0] == pytest.approx(values.train.mean(axis=0))


def test_several_labels_have_a_classifier_each_and_constant_ones_none():
    image, text = noise(1), noise(2)
    values = Parts(*(
        np.stack([i[:, 0] > 0, t[:, 0] > 0, np.zeros(len(i)), np.ones(len(i))], axis=1).astype(float)
        for i, t in zip(image, text, strict=True)
    ))  # fmt: skip
    targets = Targets("multilabel", values, list("abcd"))
    found = scores(targets, inputs("image", image), inputs("text", text), metric="macro_f1")
    assert found["late fusion"] > 0.7 > max(found["image alone"], found["text alone"])  # the third label has no F1
    *_, fused = fit_baselines(targets, [inputs("image", image), inputs("text", text)])
    assert (fused.outputs.test[:, 2] < 0).all() and (fused.outputs.test[:, 3] > 0).all()


def test_a_table_with_gaps_and_unknown_categories():
    rng = np.random.default_rng(0)

    def rows(size, towns):
        return [
            {"age": float(rng.integers(20, 60)), "town": str(rng.choice(towns)), "empty": None, "other": "x"}
            for _ in range(size)
        ]

    tables = Parts(rows(400, ["ab", "cd"]), rows(200, ["ab", "cd"]), rows(300, ["ab", "cd", "new"]))
    labels = Parts(*(np.array([int((row["age"] > 40) == (row["town"] == "ab")) for row in part]) for part in tables))
    for row in tables.train[::7]:
        row.pop("age")
    for row in tables.test[::50]:
        row |= {"age": None, "town": None, "other": None}
    found = table_inputs(tables)
    assert found.categories.tolist() == [False, True, True] and found.table.train.shape == (400, 3)
    assert np.isnan(found.table.train[::7, 0]).all() and not found.present.test[::50].any()
    result = scores(Targets("classification", labels, NAMES), found)
    assert result["table alone, boosted"] > 0.75 > 0.65 > result["table alone"]  # an interaction, a third unknown
    assert table_inputs(Parts([{}], [{}], [{"age": 1}])) is None


def test_many_categories_share_codes():
    tables = Parts(*([{"id": f"{n}"} for n in range(size)] for size in SIZES))
    found = table_inputs(tables)
    assert np.nanmax(found.table.train) < 255
    assert "table alone, boosted" in scores(Targets("classification", ids(noise(1)), NAMES), found)


def evaluation_of(outputs, truths):
    return Evaluation(head_metrics("classification", outputs, truths), list(outputs), list(truths), outputs, truths)


@pytest.mark.parametrize(
    "share, words",
    [
        (1.0, "above the best simple baseline (image alone: planted), more than chance explains (paired bootstrap"),
        (0.2, ": the simple model, fitted in seconds, is better."),
        (0.62, "not clearly better than that of the best simple baseline (image alone: planted)"),
    ],
)
def test_the_verdict_follows_the_interval(share, words):
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 2, 300)

    def right_in(share):
        return np.eye(2)[np.where(rng.random(300) < share, truths, 1 - truths)]

    baselines = [
        Baseline("majority", "", Parts(None, None, np.zeros((300, 2)))),
        Baseline("image alone", "planted", Parts(None, None, right_in(0.6))),
        Baseline("text alone", "", reason="none"),
    ]
    result = compare("classification", baselines, NAMES, evaluation_of(right_in(share), truths))
    assert words in result["verdict"] and result["best"] == "image alone"
    low, high = result["difference_interval"]
    assert low <= result["difference"] <= high and (low > 0) == (share == 1.0) and (high < 0) == (share == 0.2)
    assert [row["model"] for row in result["table"]] == ["this model", "majority", "image alone", "text alone"]
    assert result["table"][3]["failed"] == "none" and result["table"][3]["accuracy"] is None
    json.dumps(result, allow_nan=False)


def test_one_row_is_too_few_for_a_verdict():
    assert verdict("accuracy", -1.0, None, Baseline("majority", "frequent")).endswith("; the rows are too few.")


def test_answers_are_classes_unless_there_are_too_many():
    few = answer_targets(Parts(["Two", "two ", "three"], ["two"], ["four"]))
    assert few.names == ["two", "three"] and few.values.test.tolist() == [2]
    many = answer_targets(Parts([str(n) for n in range(101)] + ["7"], ["7"], ["8"]))
    assert many.names == ["7"] and many.values.validation.tolist() == [0]
    [most] = fit_baselines(many, [])
    assert most.outputs.test.shape == (1, 1)  # the other hundred answers, together more frequent, are no answer
