"""A search tries what no flag sets, goes on after an interruption, and trains the best of its trials in full."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import optuna
import pytest
from helpers.builders import save_towers
from helpers.digits import write_digits
from helpers.retrieval import TESTS
from huggingface_hub import ModelCard

from modeling_mm import cli
from modeling_mm.checkpoint import read_config
from modeling_mm.training.arguments import DataArguments, ModelArguments
from modeling_mm.training.hyperparameter_search import Search, check_search, is_interrupted, trial_arguments
from modeling_mm.training.presets import DefaultsArguments
from modeling_mm.training.search_results import best_trial, importances, trials_table
from modeling_mm.training.search_space import arguments_of, search_space
from modeling_mm.training.trainer import MMTrainer

SCRATCH = {"vision_tower": "scratch-tiny", "text_model": "scratch-tiny"}


@pytest.fixture
def digits(tmp_path):
    """Flags of a training on a few digits."""
    write_digits(tmp_path, "t.csv", 0, 30, ("image", "text", "label"))
    flags = ["--train_file", tmp_path / "t.csv", "--task", "classification", "--output_dir", tmp_path / "out"]
    return [*flags, "--max_steps", 3, "--baselines", "false", "--use_cpu", "--disable_tqdm", "true"]


def train(flags, *more):
    return cli.main(["train", *map(str, [*flags, *more])])


def report_of(tmp_path):
    return json.loads((tmp_path / "out/report.json").read_text())


def space_of(explicit=(), config=None, splits=None, training=None, **fields):
    """The space of a classification of images and texts, with values by group of arguments."""
    config = config or SimpleNamespace(text_config=SimpleNamespace(num_hidden_layers=3), cross_attention=True)
    train = SimpleNamespace(present_media=lambda: {"image"}, columns=SimpleNamespace(table=()))
    args = SimpleNamespace(learning_rate=1e-3, weight_decay=0.05, label_smoothing_factor=0.05, **(training or {}))
    data = DataArguments(task="classification", text_column="text", augment_images=["crop", "rotate"])
    defaults, model = DefaultsArguments(muon_learning_rate=2e-3), ModelArguments(**{**SCRATCH, **fields})
    return search_space(defaults, model, data, args, splits or SimpleNamespace(train=train), config, explicit)


def test_what_a_flag_sets_is_not_searched():
    names = {each.name for each in space_of()}
    assert names == {
        *("learning_rate", "muon_learning_rate", "weight_decay", "label_smoothing_factor", "word_dropout"),
        *("modality_dropout", "augment_images", "text_layers", "fusion_layers", "fusion_mlp"),
    }
    assert {each.name for each in space_of(explicit=names - {"weight_decay"})} == {"weight_decay"}
    with pytest.raises(ValueError, match="--search has nothing to search: flags set learning_rate, muon_learning"):
        space_of(explicit=names)


def test_layers_are_searched_where_there_are_new_ones():
    pretrained = {"vision_tower": "a/vision", "text_model": "a/text"}
    names = {each.name for each in space_of(**pretrained)}
    assert "text_layers" not in names and {"fusion_layers", "fusion_mlp"} <= names
    further = {"vision_tower": None, "text_model": None, "model": "runs/before"}
    assert not {"text_layers", "fusion_layers", "fusion_mlp"} & {each.name for each in space_of(**further)}
    assert "lora_dropout" in {each.name for each in space_of(**pretrained, use_peft=True)}


def test_the_default_is_among_the_values():
    for each in space_of():
        if isinstance(each.default, (str, bool)):
            assert each.default in each.values
        else:
            assert each.values[0] <= each.default <= each.values[1]


def test_text_layers_leave_room_for_fusion_layers_that_a_flag_sets():
    space = {each.name: each for each in space_of(explicit={"fusion_layers"}, fusion_layers=[0, 2])}
    assert space["text_layers"].values == (3, 6)


def test_values_of_a_trial_become_those_of_arguments():
    assert arguments_of({"learning_rate": 0.1, "augment_images": "none"}, 3) == {
        "learning_rate": 0.1,
        "augment_images": [],
    }
    values = {"augment_images": "crop rotate color", "fusion_layers": "all"}
    assert arguments_of(values, 2) == {"augment_images": ["crop", "rotate", "color"], "fusion_layers": [0, 1]}
    expected = {"all": [0, 1, 2, 3, 4], "every second": [0, 2, 4], "every fourth": [0, 4], "last": [4]}
    for name, layers in expected.items():
        assert arguments_of({"text_layers": 5, "fusion_layers": name}, 3)["fusion_layers"] == layers


def test_trials_without_a_limit_are_shorter():
    args = SimpleNamespace(num_train_epochs=30, max_steps=100, warmup_steps=12, eval_steps=None)
    trial = trial_arguments(args, limited=False)
    assert (trial.num_train_epochs, trial.max_steps, trial.warmup_steps) == (10, 33, 4)
    assert args.num_train_epochs == 30 and trial.save_strategy == "no" and trial.eval_strategy == "epoch"
    assert trial_arguments(args, limited=True).num_train_epochs == 30


@pytest.mark.parametrize(
    "flags,sentence",
    [
        (["--search", -1], "--search is -1; expected a number of trials, 0 or more"),
        (["--search", 2, "--streaming", "true", "--validation_file", "v.csv"], "leave out --streaming, or --search"),
        (["--search", 2, "--time_limit", 0.5], "--time_limit 0.5 is used up before the first step"),
    ],
)
def test_a_search_that_cannot_be_is_refused(digits, capsys, flags, sentence):
    assert train(digits, *flags) == 2
    assert sentence in capsys.readouterr().err


def test_several_processes_and_a_missing_package_are_refused(monkeypatch):
    defaults, data = DefaultsArguments(search=2), DataArguments()
    with pytest.raises(ValueError, match="--search runs its trials in one process, and there are 2"):
        check_search(defaults, ModelArguments(), data, SimpleNamespace(world_size=2))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package optuna: pip install 'modeling_mm\[search_hp\]'"):
        check_search(defaults, ModelArguments(), data, SimpleNamespace(world_size=1))
    check_search(DefaultsArguments(), ModelArguments(), data, SimpleNamespace(world_size=2))


def test_the_best_trial_is_trained_in_full_and_each_trial_has_its_values(digits, tmp_path, monkeypatch, capsys):
    seen = []

    def spy(self, model=None, create=MMTrainer.create_optimizer):
        optimizer = create(self, model)
        layers, fused = self.model.config.text_config.num_hidden_layers, self.model.config.fusion_layers
        augmentation = self.data_collator.augmentation
        smoothing = next(
            c.cell_contents for c in self.compute_loss_func.__closure__ if isinstance(c.cell_contents, float)
        )
        rates = [group["lr"] for group in optimizer.param_groups]
        weights = self.model.late_fusion is not None and self.model.model.fusion.layers[0].mlp is not None
        changes = [] if augmentation is None else list(augmentation.images)
        seen.append([rates, optimizer.param_groups[0]["weight_decay"], smoothing, changes, layers, fused, weights])
        return optimizer

    monkeypatch.setattr(MMTrainer, "create_optimizer", spy)
    monkeypatch.setattr(Search, "objective", lambda self, metrics: float(len(seen) == 2))
    assert train(digits, "--search", 3, "--word_dropout", 0.1, "--text_column", "text") == 0
    report = report_of(tmp_path)
    trials = report["search"]["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    assert report["search"]["best_trial"] == 1 and report["search"]["metric"] == "accuracy"
    assert not any("word_dropout" in trial["values"] for trial in trials) and len(seen) == 4
    for trial, (rates, decay, smoothing, changes, layers, fused, mlp) in zip([*trials, trials[1]], seen, strict=True):
        values = trial["values"]
        others = [values["muon_learning_rate"], values["learning_rate"], values["learning_rate"]]
        assert rates == others and decay == values["weight_decay"] and mlp == values["fusion_mlp"]
        assert smoothing == values["label_smoothing_factor"] and layers == values["text_layers"]
        assert changes == ([] if values["augment_images"] == "none" else values["augment_images"].split())
        assert fused == arguments_of(values, 0)["fusion_layers"]
    # the first trial has the defaults
    first = {**trials[0]["values"], "fusion_layers": "all"}
    assert first == trials[0]["values"] and first["learning_rate"] == 1.5e-3 and first["text_layers"] == 3
    # what was saved is what was found
    chosen = trials[1]["values"]
    assert read_config(str(tmp_path / "out")).text_config.num_hidden_layers == chosen["text_layers"]
    assert report["defaults"]["weight_decay"] == {"value": chosen["weight_decay"], "why": "trial 1 of the search"}
    assert (tmp_path / "out/search.png").is_file() and not list((tmp_path / "out").glob("run-*"))
    assert "Of 3 trials, the best by accuracy" in ModelCard.load(tmp_path / "out/README.md").text
    assert "trial 1 is trained in full" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_goes_on_after_an_error_and_repeats_the_trial(digits, tmp_path, monkeypatch, capsys):
    set_up = Search.set_up

    def fails(self, trial):
        if trial.number == 1:
            raise ValueError("the power failed")
        return set_up(self, trial)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "set_up", fails)
        assert train(digits, "--search", 3) == 2
    assert "the power failed" in capsys.readouterr().err
    # a database as a kill leaves it: the trial is still running
    study = optuna.load_study(study_name="modeling_mm", storage=f"sqlite:///{tmp_path}/out/search/trials.db")
    study.ask().suggest_float("weight_decay", 1e-3, 0.3, log=True)
    assert is_interrupted(tmp_path / "out")
    assert train(digits, "--search", 3, "--resume_from_checkpoint", "true") == 0
    assert not is_interrupted(tmp_path / "out")
    trials = report_of(tmp_path)["search"]["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "failed", "failed", "complete", "complete"]
    assert trials[3]["values"] == trials[1]["values"]
    assert trials[4]["values"]["weight_decay"] == trials[2]["values"]["weight_decay"]
    # with all trials finished, only the best is trained, and no other flags fit
    assert train(digits, "--search", 3) == 0
    assert report_of(tmp_path)["search"]["trials"] == trials and not is_interrupted(tmp_path / "out")
    assert train(digits, "--search", 3, "--learning_rate", 0.001) == 2
    assert "holds trials of another search, whose flags differ" in capsys.readouterr().err


def test_trials_that_the_time_ends_save_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_mm.training.hyperparameter_search.TIME", 1e-3)  # of the limit, for both trials
    began = time.time()
    monkeypatch.setattr("psutil.Process.create_time", lambda process: began)  # not that of all tests
    assert train(digits, "--time_limit", 300, "--search", 2) == 0
    trials = report_of(tmp_path)["search"]["trials"]
    assert trials[0]["state"] == "complete" and not list((tmp_path / "out").glob("run-*"))
    assert json.loads((tmp_path / "out/time_limit.json").read_text())["limit"] == 300


def test_a_search_of_retrieval(tmp_path):
    write_digits(tmp_path, "t.csv", 0, 40, ("image", "which", "text"))
    flags = ["--train_file", tmp_path / "t.csv", "--task", "retrieval", "--output_dir", tmp_path / "out"]
    flags += ["--max_steps", 3, "--per_device_train_batch_size", 4, "--use_cpu", "--disable_tqdm", "true"]
    assert train(flags, "--search", 2, "--contrastive_batch_size", 8) == 0
    search = report_of(tmp_path)["search"]
    assert search["metric"] == "text_to_image_r1" and len(search["trials"]) == 2
    assert "label_smoothing_factor" not in search["trials"][0]["values"]


@pytest.mark.slow
def test_a_search_of_adapters_shares_cached_features(tmp_path, tokenizer):
    towers = save_towers(tmp_path, tokenizer)
    write_digits(tmp_path, "t.csv", 0, 30, ("image", "text", "answer"))
    flags = ["--train_file", tmp_path / "t.csv", "--output_dir", tmp_path / "out", "--max_steps", 3, "--use_cpu"]
    flags += [*towers, "--baselines", "false"]
    assert train(flags, "--task", "generation", "--search", 2, "--use_peft", "true", "--disable_tqdm", "true") == 0
    values = report_of(tmp_path)["search"]["trials"][0]["values"]
    assert values["lora_dropout"] == 0.0 and values["fusion_layers"] == "every fourth"
    assert not {"text_layers", "augment_images", "muon_learning_rate"} & values.keys()
    assert (tmp_path / "out/adapter_config.json").is_file() and len(list((tmp_path / "out/features").iterdir())) == 1


def test_the_earliest_of_equal_trials_is_the_best_and_the_table_has_all():
    study = optuna.create_study(direction="maximize")
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for value, x in ((0.5, 0.1), (0.9, 0.2), (0.9, 0.3)):
        study.add_trial(optuna.trial.create_trial(value=value, params={"x": x}, distributions=space))
    study.add_trial(optuna.trial.create_trial(value=-math.inf, params={"x": 0.5}, distributions=space))
    assert best_trial(study).number == 1
    assert importances(study, 0) == {"x": 1.0}
    rows = [{"trial": 0, "state": "pruned", "f_1": None, "seconds": 1.0, "values": {"learning_rate": 0.1}}]
    rows.append({"trial": 1, "state": "complete", "f_1": 0.25, "seconds": 2.0, "values": {"learning_rate": 0.2}})
    lines = trials_table(rows, "f_1", 1).splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["1", "complete", "0.25", "2", "0.2"],
        ["0", "pruned", "-", "1", "0.1"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_a_search_keeps_to_the_limit(tmp_path, kill):
    write_digits(tmp_path, "t.csv", 0, 300, ("image", "text", "label"))
    limit, out = 90, tmp_path / "out"
    argv = ["train", "--train_file", tmp_path / "t.csv", "--output_dir", out, "--time_limit", limit, "--use_cpu"]
    command = [sys.executable, "-m", "modeling_mm.cli", *map(str, [*argv, "--search", 4])]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    began = time.monotonic()
    if kill:
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        time.sleep(35)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert 0.8 * limit <= time.monotonic() - began <= 1.1 * limit
    report = json.loads((out / "report.json").read_text())
    states = [trial["state"] for trial in report["search"]["trials"]]
    assert states.count("complete") >= 2 and states.count("failed") == kill
    assert report["accuracy"] > 0.5 and not list(out.glob("run-*"))
