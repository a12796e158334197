"""Each task has one row of facts, whole and true; all other code asks it instead of comparing names."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from helpers.builders import causal_model, mm_model
from huggingface_hub import ModelCard
from transformers import EvalPrediction

import modeling_mm
from modeling_mm import MMConfig, MMForSequenceClassification, MMModel
from modeling_mm.data.targets import head_options, known_names
from modeling_mm.evaluation.metrics import compute_metrics_for
from modeling_mm.evaluation.retrieval import compute_retrieval_metrics
from modeling_mm.hub.model_card import LIMITS_HEADING, card_of, limits, usage, write_card
from modeling_mm.model.configuration_mm import AUTO_MAP
from modeling_mm.tasks import TASKS, Task, head_of, heads, task_of
from modeling_mm.training.arguments import DataArguments

PACKAGE = Path(__file__).parent.parent / "modeling_mm"
SPACE = PACKAGE.parent / "hub_space"
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)

# Comparisons with a task's name that are left outside of tasks.py, and what they are about.
ALLOWED = {"commands/search.py": 2}  # `matching`, a column of the results


@each_task
def test_the_head_and_its_auto_class_belong_together(task):
    head = task.head_class()
    assert head.__name__ == task.head and head is getattr(modeling_mm, task.head) and head_of([task.head]) is head
    assert getattr(transformers, task.auto_class)._model_mapping[MMConfig] is head
    assert AUTO_MAP[task.auto_class].endswith(f".{task.head}")
    assert hasattr(head, "generate") == task.generates == head.can_generate()
    assert hasattr(head, "get_text_features") == task.embeds


@each_task
def test_facts_do_not_contradict_each_other(task):
    assert task.generates + task.embeds + task.has_labels == 1
    assert task.has_labels == task.head.endswith("SequenceClassification")
    assert (task.label_column is None) == task.needs_image_and_text
    assert not (task.labels and task.has_classes) and (not task.pairs or task.labels)
    assert task.problem_type in (None, "regression", "single_label_classification", "multi_label_classification")
    assert f"`{task.main_metric.removeprefix('text_to_image_')}`" in task.scores or task.numbers
    assert "image" in task.example and task.example.splitlines()[-1].startswith("print(")
    compile(usage(task.name, adapter=False), task.name, "exec")


def predictions_of(task):
    """Outputs and labels of four rows, as the task's head gives them."""
    generator = np.random.default_rng(0)
    if task.embeds:
        embeds = generator.normal(size=(4, 8))
        keys = np.arange(8).reshape(4, 2)
        return EvalPrediction((embeds, embeds), keys), compute_retrieval_metrics
    if task.generates:
        tokenizer = SimpleNamespace(pad_token_id=0, batch_decode=lambda ids, **_: [str(row) for row in ids])
        ids = np.arange(12).reshape(4, 3)
        return EvalPrediction(ids, ids), compute_metrics_for(tokenizer, None, task.name)
    logits = generator.normal(size=(4, 2))
    several = task.numbers or task.several_labels
    truths = generator.integers(2, size=(4, 2)) if several else np.array([0, 1, 1, 0])
    return EvalPrediction(logits, truths), compute_metrics_for(None, ["a", "b"], task.name)


@each_task
def test_the_main_metric_is_among_the_metrics(task):
    prediction, compute = predictions_of(task)
    assert np.isfinite(compute(prediction)[task.main_metric])


@each_task
def test_what_a_head_is_made_with_says_which_task_it_has(task):
    targets = {"multilabel": [["a"], ["b"]], "regression": [[1.0], [2.0]]}.get(task.name, ["a", "b"])
    names = known_names(task.name, targets, task.label_column, "t.csv")
    assert (names is not None) == task.has_labels
    options = head_options(task.name, names, targets, False, "t.csv")
    backbone = "bert" if task.embeds or task.has_labels else "llama"
    assert task_of(mm_model(backbone, head=task.head_class(), **options)) == task.name


def test_a_head_without_a_problem_type_classifies_and_a_model_without_head_is_refused():
    assert task_of(mm_model("bert", head=MMForSequenceClassification)) == "classification"
    for model in (mm_model(head=MMModel), causal_model("llama")):
        with pytest.raises(ValueError, match=f"{type(model).__name__} is not the head of a task; expected MMFor"):
            task_of(model)


def test_tasks_are_what_the_command_takes():
    (choices,) = [
        f.metadata["choices"] for f in vars(DataArguments)["__dataclass_fields__"].values() if f.name == "task"
    ]
    assert choices == list(TASKS) and [task.name for task in TASKS.values()] == choices
    assert len(heads()) == 3 and head_of(["BertModel"]) is None
    with pytest.raises(ValueError, match="unknown task 'classify'; expected one of generation, retrieval"):
        TASKS["classify"]


def test_reading_the_tasks_imports_no_torch():
    code = "import importlib.util, sys; spec = importlib.util.spec_from_file_location('t', sys.argv[1]); "
    code += (
        "module = importlib.util.module_from_spec(spec); sys.modules['t'] = module; spec.loader.exec_module(module); "
    )
    code += "assert module.TASKS and not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(PACKAGE / "tasks.py")], check=True)


def names_in(node):
    """Names of tasks among the literals that a node is, or that a tuple, a list or a set holds."""
    parts = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return [part.value for part in parts if isinstance(part, ast.Constant) and part.value in set(TASKS)]


def compared_names(tree):
    """Comparisons with a task's name, tables of tasks that a name looks up, and questions for a head's class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(names_in(part) for part in [node.left, *node.comparators]):
            yield node
        if isinstance(node, ast.Dict) and len([key for key in node.keys if key and names_in(key)]) > 1:
            yield node
        if isinstance(node, ast.MatchValue) and names_in(node.value):
            yield node
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            if {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)} & set(heads()):
                yield node


def test_no_other_module_compares_names_of_tasks():
    found = Counter()
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE).as_posix()
        if not file.startswith("model/") and file != "tasks.py":
            found[file] += len([*compared_names(ast.parse(path.read_text(encoding="utf-8")))])
    metrics = {"evaluation/metrics.py": 1}  # the table of functions that score the tasks
    assert {file: count for file, count in found.items() if count} == ALLOWED | metrics


@pytest.mark.parametrize(
    "code",
    [
        'task == "retrieval"', 'data.task != "generation"', 'task in ("matching", "retrieval")',
        'x = "regression" == t',
        '{"generation": 1, "retrieval": 2}[task]', "isinstance(model, MMForConditionalGeneration)",
        'match t:\n    case "multilabel":\n        pass',
    ],
)  # fmt: skip
def test_a_comparison_would_be_found(code):
    assert len([*compared_names(ast.parse(code))]) == 1


def test_the_table_is_frozen():
    assert Task.__dataclass_params__.frozen


def settings_of(task):
    towers = {"vision_tower": "scratch-tiny", "audio_tower": None, "text_model": "scratch-tiny", "model": None}
    return {"task": task.name, "dataset": None, "train_file": "t.csv", "test_file": None, **towers}


@pytest.fixture
def space(monkeypatch):
    """The Space's module that opens models."""
    monkeypatch.syspath_prepend(str(SPACE))
    import loading

    yield loading
    sys.modules.pop("loading")


@each_task
def test_the_space_finds_the_limits_in_the_card(task, space, tmp_path):
    folder = tmp_path / "no-limits"  # the word is in the title too
    folder.mkdir()
    report = {"train_seconds": 1.0, "train_rows": 3, task.main_metric: 0.5, "evaluated_rows": 2}
    write_card(
        folder, mm_model("bert", head=MMForSequenceClassification), report, settings_of(task), ["--x", "{{ y }}"]
    )
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert space.LIMITS_HEADING == LIMITS_HEADING and f"\n## {LIMITS_HEADING}\n" in card
    assert space.limits_of(card) == limits(task.name, "images", report)
    assert task.use in card and task.scores in card and task.example in card
    assert "modeling-mm train --x '{{ y }}'" in card
    assert ("samples.png" in card) == ("blind" in card) == (not task.embeds)


def test_the_space_finds_other_cards_limits_but_no_title(space, tmp_path):
    assert space.limits_of("---\na: b\n---\n# A\nx\n## Limitations\nNo text.\n## Use\ny") == "No text."
    short = card_of(tmp_path, "alice/unlimited", "regression")
    assert "Nothing is recorded" in short and space.limits_of(short) == ""


@each_task
def test_a_card_says_what_the_hub_sorts_by(task, tmp_path):
    card = card_of(tmp_path, "alice/x", task.name)
    data = ModelCard(card).data
    assert data.pipeline_tag == task.pipeline_tag and set(task.libraries) <= set(data.tags)
    assert usage(task.name, False, "alice/x") in card and task.auto_class in card
