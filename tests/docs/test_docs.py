"""The code in the documentation runs, and the files and flags that it names exist."""

import re
import shlex
from pathlib import Path

import easy_vqa
import pytest
import yaml
from helpers.builders import causal_model, vision_model  # noqa: F401
from transformers import AutoTokenizer, CLIPImageProcessorPil, HfArgumentParser, TrainingArguments

from modeling_mm import cli
from modeling_mm.commands.arguments import MMParser
from modeling_mm.commands.verbs import TRAIN, VERBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tokenizer_folder):
    """A folder with a demo model trained for one step, and local towers in place of Hub ids."""
    folder = tmp_path_factory.mktemp("docs")
    image = easy_vqa.get_test_image_paths()[0]
    table = folder / "t.csv"
    other = easy_vqa.get_test_image_paths()[1]
    table.write_text("image,text,answer\n" + f"{image},what is it?,blue\n{other},which shape?,circle\n" * 8)
    recipe = yaml.safe_load((ROOT / "recipes" / "easy_vqa.yaml").read_text())
    for key in ("dataset", "test_split"):
        del recipe[key]
    few = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
    output = folder / "runs" / "easy_vqa"
    (folder / "c.yaml").write_text(yaml.safe_dump({**recipe, **few, "train_file": str(table)}))
    assert cli.main(["train", "--config", str(folder / "c.yaml"), "--output_dir", str(output)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    causal_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    vision_model("clip_vision_model").save_pretrained(folder / "vision")
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder / "vision")
    return folder


@pytest.mark.parametrize(
    "block", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=lambda b: b.split("\n")[0]
)
def test_readme_python_runs(block, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    block = block.replace("google/siglip2-base-patch16-224", "vision")
    exec(compile(block.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "text"), "README", "exec"), {})


def test_model_card_python_runs(workplace, monkeypatch):
    folder = workplace / "runs" / "easy_vqa"
    monkeypatch.chdir(folder)
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(compile(block.replace("picture.png", easy_vqa.get_test_image_paths()[0]), "card", "exec"), {})


def commands():
    """Every `modeling-mm verb ...` line in README, docs, recipes and docstrings."""
    sources = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "recipes").glob("*.yaml"),
        *(ROOT / "modeling_mm").rglob("*.py"),
    ]
    for path in sources:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ").replace("\n#  ", " ")
        for line in re.findall(rf"^[ #]*modeling-mm ((?:{'|'.join(VERBS)}) --.*)$", text, re.MULTILINE):
            yield pytest.param(line, id=f"{path.name}: {line[:40]}")


@pytest.mark.parametrize("line", commands())
def test_documented_commands_have_these_arguments(line):
    verb, *argv = shlex.split(line)
    classes = VERBS[verb].arguments + ((TrainingArguments,) if VERBS[verb].arguments == TRAIN else ())
    known = {option for action in HfArgumentParser(classes)._actions for option in action.option_strings}
    used = {word for word in argv if word.startswith("--")}
    assert used <= known | {"--config"}


def test_readme_is_short_and_its_paths_exist():
    assert len(README.splitlines()) < 150
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`|^    make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{''.join(name)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_has_no_gaps():
    assert "_OUTPUT" not in README


def test_card_of_an_adapter_runs_where_the_folder_was_moved_to(workplace, tmp_path, monkeypatch):
    folder = tmp_path / "first"
    argv = ["--model", workplace / "runs" / "easy_vqa", "--train_file", workplace / "t.csv", "--use_peft", "true"]
    few = ["--max_steps", 1, "--save_strategy", "no", "--use_cpu", "--output_dir", folder]
    assert cli.main(["train", *map(str, [*argv, *few])]) == 0
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    (block,) = re.findall(r"```python\n(.*?)```", (moved / "README.md").read_text(), re.DOTALL)
    exec(compile(block.replace("picture.png", easy_vqa.get_test_image_paths()[0]), "card", "exec"), {})


@pytest.mark.slow
def test_export_document_runs_from_top_to_bottom(workplace, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torchao")
    monkeypatch.chdir(workplace)
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    scope: dict = {}
    for command, block in re.findall(r"^    modeling-mm ([^\n]*)|^```python\n(.*?)```", text, re.M | re.S):
        if block:
            exec(compile(block, "export.md", "exec"), scope)
        else:
            few = ["--test_file", "t.csv"] if "--dataset" in command else []
            assert cli.main([*shlex.split(command.replace("--dataset easy-vqa", "")), *few]) == 0


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_hold_arguments_of_train(recipe):
    parser = MMParser((*TRAIN, TrainingArguments), prog="train")
    _, _, data, _, args = parser.parse(["--config", str(recipe)])
    assert (data.train_file or data.dataset) and args.output_dir == f"runs/{recipe.stem}"
