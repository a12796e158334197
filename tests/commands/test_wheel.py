"""The wheel: it does by itself what the checkout does, and requires every package that its code imports."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import easy_vqa
import pytest
from helpers.programs import PACKAGES_ABSENT
from helpers.push import make_model

from modeling_mm.commands.shipped import config_file, recipes, shipped_folder
from modeling_mm.commands.verbs import VERBS

ROOT = Path(__file__).parents[2]
SHIPPED = ("modeling_mm", "hub_space", "recipes")
PROJECT = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FEW = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true"]


def few_rows(folder):
    """Flags for a short training on easy-VQA."""
    rows = "".join(f"{path},what is it?,circle\n" for path in list(easy_vqa.get_test_image_paths().values())[:8])
    (folder / "few.csv").write_text(f"image,text,answer\n{rows}")
    return [*FEW, "--validation_file", folder / "few.csv", "--test_file", folder / "few.csv"]


def sources(suffix=""):
    """Files that the wheel must hold, relative to the repository."""
    for folder in SHIPPED:
        for path in sorted((ROOT / folder).rglob(f"*{suffix}")):
            if path.is_file() and path.suffix not in (".pyc", ".pyi"):
                yield path.relative_to(ROOT)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the files that the wheel installs, and nothing else of this repository."""
    work = tmp_path_factory.mktemp("wheel")
    source, folder = work / "source", work / "installed"
    for path in [*sources(), *map(Path, ("pyproject.toml", "README.md", "LICENSE"))]:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    for command in (
        ["wheel", *offline, "--no-build-isolation", "--wheel-dir", work, source],
        ["install", *offline, "--target", folder, "--find-links", work, "modeling-mm"],
    ):
        subprocess.run([*pip, *map(str, command)], check=True, timeout=300)
    shutil.rmtree(source)
    return folder


@pytest.fixture
def modeling_mm(installed, tmp_path):
    """A function that runs the installed command in an empty folder."""

    def run(*argv):
        environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "1000"}
        command = [sys.executable, installed / "bin" / "modeling-mm", *argv]
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert str(ROOT) not in done.stderr.replace(sys.prefix, ""), done.stderr  # data of packages are there
        return done

    return run


def test_the_wheel_holds_package_space_and_recipes(installed):
    files = {str(path.relative_to(installed / "modeling_mm")) for path in installed.rglob("modeling_mm/**/*")}
    wanted = {str(path).removeprefix("modeling_mm/") for path in sources()}
    assert wanted - files == set()


def test_an_installed_wheel_explains_itself_and_knows_the_recipes(modeling_mm):
    done = modeling_mm("--help")
    assert done.returncode == 0 and all(verb in done.stdout for verb in VERBS)
    page = modeling_mm("train", "--help").stdout
    assert all(name in page for name in recipes()) and "python -m modeling_mm.recipes.data.make_NAME" in page
    done = modeling_mm("train", "--config", "easy_vqa", "--task", "fly")
    assert done.returncode == 2 and "invalid choice: 'fly'" in done.stderr
    done = modeling_mm("train", "--config", "hard_vqa")
    assert done.returncode == 2 and f"{', '.join(recipes())}" in done.stderr


def test_a_file_wins_over_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file("easy_vqa") == shipped_folder("recipes") / "easy_vqa.yaml"
    (tmp_path / "easy_vqa").mkdir()
    assert config_file("easy_vqa") == shipped_folder("recipes") / "easy_vqa.yaml"
    (tmp_path / "easy_vqa").rmdir()
    (tmp_path / "easy_vqa").write_text("seed: 1\n")
    assert config_file("easy_vqa") == Path("easy_vqa")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["train", "--config", "easy_vqa"], ["demo"]], ids=" ".join)
def test_an_installed_wheel_trains_a_recipe(modeling_mm, tmp_path, command):
    done = modeling_mm(*command, *few_rows(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["evaluated_rows"] == 8 and report["output_dir"] == "runs/easy_vqa"
    assert (tmp_path / "runs" / "easy_vqa" / "model.safetensors").is_file()
    assert not re.search("torchao|_pytree", done.stderr)


@pytest.mark.slow
def test_an_installed_wheel_writes_a_recipe_s_data(installed, tmp_path):
    argv = [sys.executable, "-m", "modeling_mm.recipes.data.make_digit_matching"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "data" / "digit_matching" / "train.csv").is_file()


@pytest.mark.slow
def test_an_installed_wheel_pushes_with_a_space(modeling_mm, tmp_path):
    make_model(tmp_path / "model")
    argv = ["push", "--model", tmp_path / "model", "--repo_id", "alice/x", "--dry_run", "--space", "alice/x-demo"]
    done = modeling_mm(*argv)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] > 20
    done = modeling_mm(*argv, "--space_folder", tmp_path)
    assert done.returncode == 2 and "there is no app.py" in done.stderr


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra=None):
    """Distributions that the core and an extra require."""
    requirements = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] if extra else [])]
    found = {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}
    for inner in re.findall(r"modeling-mm\[([\w,]+)\]", " ".join(requirements)):
        found |= {name for part in inner.split(",") for name in declared(part)}
    return found - {"modeling-mm"}


def imported_packages(path):
    """Top-level packages that a file imports, also inside functions."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module", "library",
        ):  # fmt: skip
            yield from (
                argument.value.partition(".")[0] for argument in node.args if isinstance(argument, ast.Constant)
            )


def test_every_imported_package_is_declared():
    extras = set().union(
        *(declared(extra) for extra in PROJECT["optional-dependencies"] if extra not in ("dev", "all"))
    )
    of_the_project = {"modeling_mm", *(path.stem for path in sources(".py") if path.parts[0] == "hub_space")}
    distributions = importlib.metadata.packages_distributions()
    for path in sources(".py"):
        for package in {*imported_packages(path)} - sys.stdlib_module_names - of_the_project:
            names = {normal(name) for name in distributions.get(package, [package])}
            assert names & extras, f"{path} imports {package}, which pyproject.toml does not declare"


def closure(names):
    """These distributions and all installed ones that they require."""
    from packaging.requirements import Requirement

    found, waiting = set(), {(name, "") for name in names}
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, requires):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting |= {(normal(requirement.name), part) for part in ("", *requirement.extras)}
    return {name for name, _ in found}


@pytest.mark.slow
@pytest.mark.parametrize("extra", [None, *dict.fromkeys(verb.extra for verb in VERBS.values())])
def test_an_extra_suffices_for_its_verbs(extra, tmp_path):
    enough = closure(declared(extra))
    packages = importlib.metadata.packages_distributions().items()
    absent = {name for name, owners in packages if not enough & {normal(owner) for owner in owners}}
    assert "sentence_transformers" in absent and "torch" not in absent
    verbs = [verb for verb, row in VERBS.items() if row.extra == extra]
    lines = [
        PACKAGES_ABSENT.format(names=absent - {"modeling_mm"}),
        "import modeling_mm.checkpoint",
        "from modeling_mm import *",
    ]
    lines += [f"import modeling_mm.commands.{verb}" for verb in verbs]
    if extra == "demo":
        lines += ["from modeling_mm.cli import main", "assert main(['demo', *sys.argv[1:]]) == 0"]
    argv = [sys.executable, "-c", "\n".join(lines), *map(str, few_rows(tmp_path))]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
