"""The command line: a YAML file under flags, bad input in one sentence, JSON alone on standard output."""

import contextlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields

import pytest
from helpers.builders import mm_model
from torch import distributed
from transformers import TrainingArguments

from modeling_mm import cli
from modeling_mm.commands.arguments import MMParser
from modeling_mm.commands.verbs import VERBS
from modeling_mm.training.arguments import DataArguments, ModelArguments


@dataclass
class Dials:
    """A few arguments of every kind."""

    name: str = field(metadata={"help": "needed"})
    rate: float = 0.5
    count: int | None = None
    kind: str = field(default="a", metadata={"choices": ["a", "b"]})
    quick: bool = False
    careful: bool = True
    maybe: bool | None = None
    layers: list[int] | None = None


@pytest.fixture
def parse(tmp_path):
    """A function from the text of a YAML file and flags to `Dials`."""

    def parse(text, *flags):
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        (dials,) = MMParser(Dials, prog="dials").parse(["--config", str(path), *flags])
        return dials

    return parse


def test_flags_override_the_file(parse):
    assert parse("name: x\nrate: 2\nlayers: [0, 1]") == Dials("x", rate=2.0, layers=[0, 1])
    assert parse("name: x\nrate: 2\nlayers: [0, 1]", "--rate", "3", "--layers", "5", "--name", "y") == Dials(
        "y", rate=3.0, layers=[5]
    )
    assert parse("rate: 2", "--name", "y") == Dials("y", rate=2.0)
    assert parse("", "--name", "y") == Dials("y")


def test_values_get_their_argument_s_type(parse):
    assert parse("name: 007\nrate: 1e-3\ncount: '3'\nlayers: ['1', 2]") == Dials("7", 1e-3, 3, layers=[1, 2])
    assert parse("name: '007'\ncount: null").name == "007"
    assert parse("name: '--x'").name == "--x"
    assert parse("name: -3\nrate: -1e-3") == Dials("-3", -1e-3)


@pytest.mark.parametrize("said, meant", [("true", True), ("false", False), ("yes", True), ("no", False)])
def test_words_of_truth(parse, said, meant):
    expected = Dials("x", quick=meant, careful=meant, maybe=meant)
    assert parse(f"name: x\nquick: {said}\ncareful: {said}\nmaybe: {said}") == expected
    assert parse("name: x", "--quick", said, "--careful", said, "--maybe", said) == expected
    assert parse(f"name: x\nquick: {said}\n", "--quick", str(not meant)).quick is not meant
    assert parse("name: x", "--quick", "--no_careful") == Dials("x", quick=True, careful=False)
    assert parse("name: x\ncareful: true", "--no_careful").careful is False


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("kind: c", "invalid choice: 'c'"),
        ("count: many", "--count: invalid int value: 'many'"),
        ("layers: [a]", "--layers: invalid int value: 'a'"),
        ("quick: perhaps", "--quick"),
        ("nam: x", "has keys that are no arguments: nam"),
        ("3: x", "has keys that are no arguments: 3"),
        ("- a", "must hold 'key: value' lines"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_bad_value_in_the_file_is_one_sentence(parse, text, sentence):
    with pytest.raises(ValueError, match="^[^\n]*" + sentence.replace("[", r"\[")):
        parse(text, *() if text.startswith(("-", "a")) else ("--name", "x"))


@pytest.mark.parametrize("flags", [["--kind", "c"], ["--count", "many"], ["--config"], ["--fly", "1"], []])
def test_a_bad_flag_is_one_sentence(flags):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        MMParser(Dials, prog="dials").parse(flags)


def test_the_env_block_reaches_the_environment(parse, monkeypatch):
    monkeypatch.setenv("MM_TEST_A", "before")
    assert parse("name: x\nenv:\n  MM_TEST_A: 1\n").name == "x"
    assert os.environ["MM_TEST_A"] == "1"
    assert parse("name: x\nenv:\n").name == "x"


def test_training_arguments_come_from_the_file_as_from_flags(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "task: classification\noutput_dir: o\nlearning_rate: 1e-3\nsave_strategy: no\neval_strategy: epoch\n"
        "warmup_steps: 0.1\nuse_cpu: true\nreport_to: [tensorboard]\nfusion_layers: [0, 1]\ntf32: null\n"
        "gradient_checkpointing_kwargs: {use_reentrant: false}\nfusion_mlp: true\nvision_trainable: true\n"
    )
    parser = MMParser((ModelArguments, DataArguments, TrainingArguments), prog="train")
    model, data, args = parser.parse(["--config", str(tmp_path / "c.yaml"), "--max_steps", "3"])
    assert (data.task, model.fusion_layers, model.fusion_mlp, model.vision_trainable) == (
        "classification", [0, 1], True, True,
    )  # fmt: skip
    assert (args.learning_rate, args.warmup_steps, args.max_steps, args.report_to) == (1e-3, 0.1, 3, ["tensorboard"])
    assert args.save_strategy == "no" and args.eval_strategy == "epoch"
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_usage_lists_the_verbs(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in cli.VERBS)
    assert cli.main([]) == 2 and cli.main(["fly"]) == 2


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"]])
def test_a_closed_pipe_is_no_error(argv, buffering):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | buffering
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-m", "modeling_mm.cli", *argv], **pipes) as process:
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_its_arguments(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    page = capsys.readouterr().out
    known = {action.dest for action in MMParser(VERBS[verb].arguments)._actions} - {"help"}
    assert set(re.findall(r"^  --(\w+)", page, re.MULTILINE)) == known | {"config"}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_argument_has_a_help_text_of_words(verb):
    for arguments in VERBS[verb].arguments:
        for entry in fields(arguments):
            text = entry.metadata.get("help", "")
            assert len(text.split()) >= 3 and not text.startswith("default"), f"--{entry.name}: '{text}'"


@pytest.mark.parametrize("verb, flags", [("train", ["--task", "fly"]), ("predict", []), ("evaluate", ["--fly", "1"])])
def test_bad_flags_of_a_verb_give_one_line_and_code_2(capsys, verb, flags):
    assert cli.main([verb, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith(f"modeling-mm {verb}: ")


def raising(error):
    def main(argv):
        raise error

    return main


def test_interrupted_is_130(monkeypatch, capsys):
    monkeypatch.setattr("modeling_mm.commands.predict.main", raising(KeyboardInterrupt()))
    assert cli.main(["predict", "--model", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_our_own_mistakes_are_not_hidden(monkeypatch, capsys):
    monkeypatch.setattr("modeling_mm.commands.predict.main", raising(ValueError("one\n  two")))
    assert cli.main(["predict", "--model", "x"]) == 2
    assert capsys.readouterr().err == "modeling-mm predict: one two\n"
    monkeypatch.setenv("MODELING_MM_TRACEBACK", "1")
    with pytest.raises(ValueError):
        cli.main(["predict", "--model", "x"])
    monkeypatch.delenv("MODELING_MM_TRACEBACK")
    monkeypatch.setattr("modeling_mm.commands.predict.main", raising(TypeError("a bug")))
    with pytest.raises(TypeError):
        cli.main(["predict", "--model", "x"])


@pytest.mark.parametrize("error", [None, ValueError("bad input"), TypeError("a bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_from_outside", [False, True])
def test_a_verb_destroys_the_process_group_that_it_made(monkeypatch, tmp_path, error, is_from_outside):
    def make_group():
        distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", world_size=1, rank=0)

    def main(argv):
        if not is_from_outside:
            make_group()
        if error is not None:
            raise error

    monkeypatch.setattr("modeling_mm.commands.predict.main", main)
    if is_from_outside:
        make_group()
    try:
        with contextlib.suppress(TypeError):
            cli.main(["predict", "--model", "x"])
        assert distributed.is_initialized() == is_from_outside
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def test_what_a_verb_prints_does_not_mix_with_its_result(monkeypatch, capsys):
    monkeypatch.setattr("modeling_mm.commands.predict.main", lambda argv: print("loading ...") or {"a": 1})
    assert cli.main(["predict", "--model", "x"]) == 0
    captured = capsys.readouterr()
    assert captured.out == '{"a": 1}\n' and captured.err == "loading ...\n"
    monkeypatch.setattr("modeling_mm.commands.predict.main", lambda argv: None)
    assert cli.main(["predict", "--model", "x"]) == 0 and capsys.readouterr().out == ""


def test_json_is_all_that_stands_on_standard_output(tmp_path, processor):
    model = mm_model(image_token_id=processor.image_token_id)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    argv = [sys.executable, "-m", "modeling_mm.cli", "predict", "--model", str(tmp_path), "--text", "is it red"]
    done = subprocess.run([*argv, "--max_new_tokens", "2"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and set(json.loads(done.stdout)["results"][0]) == {"text", "answer"}
    done = subprocess.run(
        [*argv[:5], str(tmp_path / "no"), "--text", "x"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "") and "Traceback" not in done.stderr
