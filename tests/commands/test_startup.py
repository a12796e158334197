"""What is imported when: help and bad arguments need no torch; importing the package registers, and prints nothing."""

import re
import subprocess
import sys

import pytest
from helpers.builders import mm_model
from helpers.programs import PACKAGES_ABSENT

import modeling_mm
from modeling_mm import cli
from modeling_mm.evaluation.zero_shot import TEMPLATE
from modeling_mm.startup import is_command_line
from modeling_mm.tasks import TASKS
from modeling_mm.training.arguments import DataArguments

# The program that pip installs, which is known by its name; it fails if it has imported one of these.
SCRIPT = """
import sys
from modeling_mm.cli import main
code = main()
assert not {names} & set(sys.modules)
sys.exit(code)
"""
ONLY_IF_REGISTERED = "from transformers import AutoConfig; AutoConfig.for_model('modeling_mm')"
SPAWNING = f"""
import multiprocessing
import sys

import modeling_mm

def work():
    {ONLY_IF_REGISTERED}

if __name__ == "__main__":
    assert "torch" not in sys.modules
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0 and "torch" not in sys.modules
    assert modeling_mm.MMConfig.model_type == "modeling_mm"
    work()
"""


def run(*argv, **options):
    return subprocess.run([sys.executable, *map(str, argv)], capture_output=True, text=True, timeout=300, **options)


def remarks(text):
    """Lines by which torchao and torch report on the import of torchao."""
    return [line for line in text.splitlines() if re.search("torchao|_pytree|Failed to load", line)]


@pytest.fixture
def script(tmp_path):
    """A function from a program's text to a file that has the name of the installed script."""

    def script(text):
        path = tmp_path / "modeling-mm"
        path.write_text(text)
        return path

    return script


@pytest.mark.parametrize("argv", [["--help"], *([verb, "--help"] for verb in cli.VERBS)], ids=" ".join)
def test_help_needs_neither_torch_nor_transformers(script, argv):
    done = run(script(SCRIPT.format(names={"torch", "transformers", "numpy"})), *argv)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("usage: modeling-mm")


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["fly"], "unknown verb 'fly'"),
        (["train", "--task", "fly"], "invalid choice: 'fly'"),
        (["train", "--config", "fly"], "'fly' does not exist; .* digits_avt, easy_vqa, "),
        (["demo", "--fusion_layers", "a"], "invalid int value: 'a'"),
        (["evaluate", "--fly", "1", "--model", "x"], "unknown argument --fly"),
        (["predict"], "--model"),
        (["search", "--index", "x"], "the query is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_refused_without_torch(script, argv, sentence):
    done = run(script(SCRIPT.format(names={"torch"})), *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(sentence, done.stderr) and len(done.stderr.splitlines()) == 1


def test_the_module_answers_help_as_the_script_does():
    done = run("-X", "importtime", "-m", "modeling_mm.cli", "train", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: modeling-mm train")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "modeling_mm.startup" in imported and not {"torch", "transformers"} & imported


def test_a_program_that_imports_the_package_has_its_classes_registered(tmp_path):
    (tmp_path / "program.py").write_text(f"import modeling_mm\n{ONLY_IF_REGISTERED}\n")
    done = run(tmp_path / "program.py", "modeling-mm")
    assert done.returncode == 0 and not remarks(done.stderr), done.stderr


@pytest.mark.slow
def test_a_process_that_the_command_line_spawns_has_its_classes_registered(script):
    done = run(script(SPAWNING))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "started, argv, expected",
    [
        ("python /bin/modeling-mm train --model x", "/bin/modeling-mm train --model x", True),
        ("python -X dev -W ignore /bin/modeling-mm", "/bin/modeling-mm", True),
        ("python -u -m modeling_mm.cli train", "-m train", True),
        ("python program.py modeling-mm modeling_mm.cli", "program.py modeling-mm modeling_mm.cli", False),
        ("python -m pytest tests", "-m tests", False),
        ("python -m program modeling_mm.cli", "-m modeling_mm.cli", False),
        ("python -c code --multiprocessing-fork", "/bin/modeling-mm train --model x", False),
        ("python", "", False),
        ("python", "a b c d", False),
    ],
)
def test_the_command_line_is_known_by_how_the_process_was_started(monkeypatch, started, argv, expected):
    monkeypatch.setattr(sys, "orig_argv", started.split())
    monkeypatch.setattr(sys, "argv", argv.split())
    assert is_command_line() is expected


def test_a_verb_prints_no_remarks_of_other_libraries(tmp_path, processor):
    model = mm_model(image_token_id=processor.image_token_id)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    done = run("-m", "modeling_mm.cli", "predict", "--model", tmp_path, "--text", "is it red", "--max_new_tokens", 2)
    assert done.returncode == 0 and not remarks(done.stderr), done.stderr


def test_what_arguments_offer_is_what_the_code_knows():
    assert DataArguments.__dataclass_fields__["task"].metadata["choices"] == list(TASKS)
    (evaluate,) = cli.VERBS["evaluate"].arguments
    assert TEMPLATE in evaluate.__dataclass_fields__["prompt_templates"].metadata["help"]


def test_public_names_are_listed_and_are_there():
    extras = {"MMTrainer", "RetrievalTrainer", "MMDataset", "MMCollator", "load_checkpoint"}
    assert extras | set(modeling_mm.__all__) <= set(dir(modeling_mm)) and not extras & set(modeling_mm.__all__)
    assert all(
        getattr(modeling_mm, name).__name__ == name for name in {*extras, *modeling_mm.__all__} - {"__version__"}
    )
    with pytest.raises(AttributeError, match="no attribute 'MMNothing'"):
        modeling_mm.MMNothing  # noqa: B018


def test_a_missing_extra_is_one_sentence_that_names_it(script):
    absent = PACKAGES_ABSENT.format(names={"datasets"})
    done = run("-c", f"{absent}\nfrom modeling_mm import *\nMMModel\nfrom modeling_mm import MMDataset")
    sentence = 'needs the package datasets; pip install "modeling-mm[train]"'
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == f"ImportError: MMDataset {sentence}"
    done = run(script(absent + SCRIPT.format(names="set()")), "evaluate", "--model", "x", "--test_file", "y")
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
    assert 'the package datasets is not installed; pip install "modeling-mm[train]"' in done.stderr
