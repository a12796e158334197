# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""What is pushed to the Hub is whole, proved, and loads from there without this package; faults leave nothing half.

The client reads the Hub's address when it is imported, so that everything that pushes or loads runs in a process of
its own, against one `LoopbackHub` for all tests.
"""

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import SENTENCES, causal_model, drawing, mm_model, text_config, vision_config, vision_model
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from test_remote_code import LOAD_WITHOUT_THE_PACKAGE
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPImageProcessorPil, PreTrainedTokenizerFast

from modeling_mm import MMForSequenceClassification, MMProcessor, cli
from modeling_mm.configuration_mm import AUTO_MAP
from modeling_mm.proof import make_proof
from modeling_mm.repository import PICKLES, files_of, is_replaced, stage
from modeling_mm.scratch import audio_config, feature_extractor, train_tokenizer

ABSENT = LOAD_WITHOUT_THE_PACKAGE.partition("import torch")[0]  # blocks the package


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


def python(hub, folder, *argv, token="write"):
    """A process of its own that talks to the Hub."""
    environment = hub.environment(folder, token)
    done = [sys.executable, *map(str, argv)]
    return subprocess.run(done, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


def push(hub, folder, *argv, token="write"):
    """`modeling-mm push`: its result, or the sentence that it ends with."""
    done = python(hub, folder, "-m", "modeling_mm.cli", "push", *argv, token=token)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 2, done.stderr[-3000:]
    return done.stderr.strip().splitlines()[-1]


def make_table(folder, rows=8):
    lines = ["image,text,answer,caption"]
    for i in range(rows):
        drawing((30 * i, 240 - 30 * i, 90)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,what is it {i % 3},{'yes' if i % 2 else 'no'},number {i}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")


def train(folder, *argv):
    """A trained folder of two steps."""
    if not (folder / "t.csv").exists():
        make_table(folder)
    argv = [
        "train", "--train_file", folder / "t.csv", "--validation_file", folder / "t.csv", "--max_steps", "2",
        "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--use_cpu", *argv,
    ]  # fmt: skip
    assert cli.main([*map(str, argv)]) == 0


SCRATCH = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny"]


def code_of(card):
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return block


def check_repository(hub, name, revision):
    """No pickle, nothing but what is on the list and the card's pictures; the card's metadata is valid and whole."""
    files = hub.repositories["model", name].commits[revision].files
    card = files["README.md"].data.decode()
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card)
    assert set(shown) <= set(files)
    assert [path for path in files if not is_replaced(path) and path not in (".gitattributes", *shown)] == []
    assert not any(path.endswith(PICKLES) or path == "training_args.bin" for path in files)
    data = ModelCard(card).data
    assert data.library_name == "transformers" and data.pipeline_tag
    return files, card, data


def check_card_runs(hub, folder, card):
    """The code block, in a process without the package and with empty caches."""
    done = python(hub, folder, "-c", ABSENT + code_of(card), token=None)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout  # a line at least: an answer may be empty


def test_a_trained_folder_is_pushed_in_one_commit_and_loads_back(hub, tmp_path):
    train(tmp_path, "--task", "generation", *SCRATCH, "--max_new_tokens", "2", "--output_dir", tmp_path / "out")
    result = push(hub, tmp_path, "--model", tmp_path / "out", "--repo_id", "alice/answers")
    repository = hub.repositories["model", "alice/answers"]
    assert result["pushed"] and repository.at().oid == result["revision"]
    assert len(repository.commits) == 2  # the Hub's own and ours
    files, card, data = check_repository(hub, "alice/answers", result["revision"])
    assert {"model.safetensors", "chat_template.jinja", "curves.png", "samples.png"} <= set(files)
    scores = {own.metric_type: own.metric_value for own in data.eval_results}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert scores == {name: report[name] for name in ("accuracy", "loss", "blind_accuracy")}
    assert str(tmp_path / "out") not in code_of(card) and "alice/answers" in code_of(card)
    assert not [body for body in hub.validated if body["errors"]] and hub.validated


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [["generation"], ["classification", "--label_column", "answer"], ["retrieval", "--text_column", "caption"]],
    ids=lambda t: t[0],
)
def test_each_head_s_card_runs_anywhere_and_pushing_twice_is_once(hub, tmp_path, task):
    name = f"alice/{task[0]}"
    train(tmp_path, "--task", *task, *SCRATCH, "--output_dir", tmp_path / "out")
    check_card_runs(hub, tmp_path / "out", (tmp_path / "out" / "README.md").read_text())
    result = push(hub, tmp_path, "--model", tmp_path / "out", "--repo_id", name)
    assert isinstance(result, dict) and result["pushed"], result
    _, card, _ = check_repository(hub, name, result["revision"])
    check_card_runs(hub, tmp_path, card)
    before = len(hub.log)
    again = push(hub, tmp_path, "--model", tmp_path / "out", "--repo_id", name)
    assert again["revision"] == result["revision"] and not again["pushed"]
    assert not [path for method, path, _ in hub.log[before:] if method == "PUT" or "/commit/" in path]
    assert len(hub.repositories["model", name].commits) == 2


@pytest.mark.slow
def test_an_adapter_is_pushed_as_one(hub, tmp_path):
    train(
        tmp_path,
        "--task",
        "generation",
        *SCRATCH,
        "--use_peft",
        "true",
        "--learning_rate",
        "1e-2",
        "--output_dir",
        tmp_path / "out",
    )
    result = push(hub, tmp_path, "--model", tmp_path / "out", "--repo_id", "alice/adapter", "--revision", "second")
    repository = hub.repositories["model", "alice/adapter"]
    assert set(repository.branches) == {"main", "second"} and list(repository.at().files) == [".gitattributes"]
    files, card, _ = check_repository(hub, "alice/adapter", result["revision"])
    assert {"adapter_model.safetensors", "model.safetensors", "modeling_mm.py"} <= set(files)
    assert str(tmp_path) not in files["adapter_config.json"].data.decode()
    repository.branches["main"] = result["revision"]
    check_card_runs(hub, tmp_path, card)
    asked = ["--image", tmp_path / "0.png", "--text", "what is it?", "--device", "cpu", "--max_new_tokens", "3"]
    said = [
        python(hub, tmp_path, "-m", "modeling_mm.cli", "predict", "--model", source, *asked)
        for source in ("alice/adapter", tmp_path / "out")
    ]
    assert [done.returncode for done in said] == [0, 0], said[0].stderr[-2000:]
    results = [json.loads(done.stdout.splitlines()[-1])["results"] for done in said]
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_space_goes_beside_a_private_model(hub, tmp_path):
    make_model(tmp_path / "model")
    space = tmp_path / "hub_space"
    (space / "__pycache__").mkdir(parents=True)
    (space / "__pycache__" / "app.pyc").write_bytes(b"no")
    (space / "app.py").write_text("print()\n")
    (space / "requirements.txt").write_text("gradio\n")
    (space / "README.md").write_text("---\nsdk: gradio\ntitle: t\n---\n")
    argv = ["--model", tmp_path / "model", "--repo_id", "alice/secret", "--private"]
    argv += ["--space", "alice/secret-demo", "--space_folder", space]
    result = push(hub, tmp_path, *argv)
    shown = hub.repositories["space", "alice/secret-demo"]
    assert shown.private and hub.repositories["model", "alice/secret"].private
    assert shown.variables == {"MM_MODEL_ID": "alice/secret", "MM_MODEL_REVISION": result["revision"]}
    assert set(shown.at().files) == {".gitattributes", "app.py", "requirements.txt", "README.md"}
    assert push(hub, tmp_path, *argv)["space_revision"] == result["space_revision"]
    assert len(shown.commits) == 2


def make_model(folder, head=MMForSequenceClassification):
    """A model with a processor, as saved without training: it has no card."""
    size = {"height": 16, "width": 16}
    tokenizer = train_tokenizer(SENTENCES, "scratch-tiny")
    processor = MMProcessor(CLIPImageProcessorPil(size=size, crop_size=size), tokenizer)
    model = mm_model("bert", head=head)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A saved model, and a folder to stage it in."""
    make_model(tmp_path / "model")
    (tmp_path / "staged").mkdir()
    return tmp_path


def test_what_is_not_on_the_list_does_not_travel(work):
    for name in ("training_args.bin", "optimizer.pt", "predictions.jsonl", "notes.txt", "secret.png", "own.py"):
        (work / "model" / name).write_bytes(b"not for others")
    (work / "model" / "modules.json").write_text("[]")
    (work / "model" / "1_Pooling").mkdir()
    (work / "model" / "1_Pooling" / "config.json").write_text("{}")
    (work / "model" / "README.md").write_text(
        '![a](curves.png) ![b](/etc/x.png) ![c](training_args.bin)\nsource = "."\n'
    )
    (work / "model" / "curves.png").write_bytes(b"png")
    stage(work / "model", work / "staged", "alice/x")
    paths = set(files_of(work / "staged"))
    assert {"modules.json", "1_Pooling/config.json", "curves.png", "model.safetensors", "modeling_mm.py"} <= paths
    assert all(is_replaced(path) or path == "curves.png" for path in paths)
    assert 'source = "alice/x"' in (work / "staged" / "README.md").read_text()
    assert json.loads((work / "staged" / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_pickled_weights_are_refused(work):
    weights = load_file(work / "model" / "model.safetensors")
    torch.save(weights, work / "model" / "pytorch_model.bin")
    (work / "model" / "model.safetensors").unlink()
    with pytest.raises((ValueError, OSError), match="safetensors"):
        stage(work / "model", work / "staged", "alice/x")


@pytest.mark.slow
def test_the_proof_asks_about_sound_and_video_too(tmp_path):
    size = {"height": 16, "width": 16}
    tokenizer = train_tokenizer(SENTENCES, "scratch-tiny", audio=True, video=True)
    parts = {"image_processor": CLIPImageProcessorPil(size=size, crop_size=size), "tokenizer": tokenizer}
    processor = MMProcessor(**parts, audio=feature_extractor(1.0), max_seconds=1.0, max_frames=2)
    markers = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("image", "audio", "video")
    }
    model = mm_model("llama", audio_config=audio_config("scratch-tiny"), num_frames=2, **markers)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "staged").mkdir()
    proof = make_proof(*stage(tmp_path / "model", tmp_path / "staged", "alice/x"), tmp_path)
    asked = {"input pixel_values", "input input_features", "input pixel_values_videos", "logits"}
    assert asked <= set(proof.expected)
    proof.check(str(tmp_path / "staged"), offline=True)


@pytest.mark.slow
def test_a_staged_folder_that_is_not_the_model_is_found_out(work):
    model, processor = stage(work / "model", work / "staged", "alice/x")
    proof = make_proof(model, processor, work)
    proof.check(str(work / "staged"))
    weights = load_file(work / "staged" / "model.safetensors")
    weights["classifier.bias"] += 1e-3
    save_file(weights, work / "staged" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="loaded without this package, gives another 'logits' than the model itself"):
        proof.check(str(work / "staged"))
    (work / "staged" / "fusion_mm.py").unlink()
    with pytest.raises(ValueError, match="does not load without this package: .*fusion_mm"):
        proof.check(str(work / "staged"))


# What each fault does: the end of the sentence, or None where the push ends well; how many tries of which request
FAULTS = {
    "500-once-in-a-put": ({"method": "PUT", "path": "/lfs/", "status": 500}, None),
    "500-once-in-the-commit": ({"path": "/commit/", "status": 500}, None),
    "500-always-in-the-commit": ({"path": "/commit/", "status": 500, "times": 3}, "HTTP 500"),
    "answer-lost-after-the-commit": ({"path": "/commit/", "status": 500, "after": True}, None),
    "cut-in-the-middle-of-a-put": ({"method": "PUT", "path": "/lfs/", "breaks": True}, None),
    "cut-in-the-middle-of-the-commit": ({"path": "/commit/", "breaks": True}, None),
    "wrong-sha": ({"method": "PUT", "path": "/lfs/", "corrupts": True}, None),
    "wrong-sha-always": ({"method": "PUT", "path": "/lfs/", "corrupts": True, "times": 9}, "HTTP 400"),
    "stale-parent": ({"path": "/commit/", "intrudes": True}, "changed by somebody else meanwhile"),
    "slow": ({"path": "/preupload/", "slow": 2.0}, None),
    "401": ({"path": "/commit/", "status": 401}, "does not know the token"),
    "403": ({"path": "/commit/", "status": 403}, "may not write to 'alice/403'"),
    "404": ({"path": "/commit/", "status": 404}, "'alice/404', or the branch in it, does not exist"),
    "409": ({"path": "/commit/", "status": 409}, "is being changed by somebody else"),
    "412": ({"path": "/commit/", "status": 412}, "was changed by somebody else meanwhile"),
    "429-once": ({"path": "/commit/", "status": 429}, None),
    "429-always": ({"path": "/commit/", "status": 429, "times": 9}, "takes no more requests"),
}
UPLOAD_ALL = """
import json, os, sys
from pathlib import Path
from huggingface_hub import HfApi
from modeling_mm import push
from modeling_mm.checkpoint import load_checkpoint

push.PAUSE = 0.1
said = {}

def told(name, do):
    try:
        with push.in_one_sentence(f"alice/{name}"):
            said[name] = do()
    except ValueError as error:
        said[name] = f"sentence: {error}"

for name in json.loads(sys.argv[1]):
    told(name, lambda: push.upload(HfApi(), f"alice/{name}", Path(name)))
folder = Path("slow")
told("read token", lambda: push.upload(HfApi(token="read"), "alice/slow", folder))
told("of somebody else", lambda: push.upload(HfApi(token="other"), "alice/slow", folder))
told("unknown token", HfApi(token="nonsense").whoami)
token = os.environ.pop("HF_TOKEN")
told("no token", HfApi().whoami)
os.environ["HF_TOKEN"] = token
told("public", lambda: push.upload(HfApi(), "alice/slow", folder, private=True))
told("pickled", lambda: push.upload(HfApi(), "alice/pickled", folder))
told("again", lambda: push.upload(HfApi(), "alice/500-always-in-the-commit", Path("500-always-in-the-commit")))
told("branch", lambda: push.upload(HfApi(), "alice/slow", folder, branch="other"))
(folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
told("fewer", lambda: push.upload(HfApi(), "alice/slow", folder))
for name, source, token in [("missing", "alice/none", "write"), ("private", "alice/closed", "other"),
                            ("wrong token", "alice/closed", "nonsense")]:
    os.environ["HF_TOKEN"] = token
    told(f"load {name}", lambda: load_checkpoint(source))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def uploads(hub, tmp_path_factory):
    """What became of an upload under each fault, and of those that may not be; all in one process."""
    work = tmp_path_factory.mktemp("faults")
    for name, (fault, _) in FAULTS.items():
        (work / name).mkdir()
        weights = np.random.default_rng(list(FAULTS).index(name)).bytes(300_000)
        (work / name / "model.safetensors").write_bytes(weights)
        (work / name / "config.json").write_text("{}")
        where = hashlib.sha256(weights).hexdigest() if fault["path"] == "/lfs/" else f"alice/{name}{fault['path']}"
        hub.fail(**{"method": "POST", **fault, "path": where})
    hub.add("alice/pickled", {"pytorch_model.bin": b"pickle"})
    hub.add("alice/closed", private=True)
    done = python(hub, work, "-c", UPLOAD_ALL, json.dumps(list(FAULTS)))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_well_or_in_a_sentence_and_never_in_between(hub, uploads, name):
    sentence = FAULTS[name][1]
    repository = hub.repositories["model", f"alice/{name}"]
    ours = [commit for commit in repository.commits.values() if commit.title.startswith("modeling-mm push")]
    ours = [commit for commit in ours if commit.oid != uploads["again"][0]]
    if sentence is None:
        assert uploads[name] == [ours[0].oid, True]
        assert len(ours) == (2 if name == "slow" else 1)  # another is pushed to this one below
        assert set(ours[0].files) == {".gitattributes", "config.json", "model.safetensors"}
    else:
        assert uploads[name].startswith("sentence: ") and sentence in uploads[name] and "\n" not in uploads[name]
        assert not ours
        if name == "500-always-in-the-commit":
            return  # pushed once more below
        assert set(repository.at().files) - {"theirs.txt"} == {".gitattributes"}


REFUSED = {
    "read token": "may not write to 'alice/read token'",
    "of somebody else": "may not write",
    "unknown token": "does not know the token",
    "no token": "there is no token to push with",
    "public": "'alice/slow' is public; make it private on the Hub, or leave --private out",
    "pickled": "'alice/pickled' holds the pickle 'pytorch_model.bin'",
    "load missing": "'alice/none' is neither a folder with a model nor a known Hub id",
    "load private": "'alice/closed' is neither a folder with a model nor a known Hub id",
    "load wrong token": "'alice/closed' is neither a folder with a model nor a known Hub id (the Hub does not know",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_not_be_is_one_sentence(uploads, name):
    assert uploads[name].startswith("sentence: ") and REFUSED[name] in uploads[name], uploads[name]


def test_pushed_again_after_a_fault_nothing_is_sent_twice(hub, uploads):
    repository = hub.repositories["model", "alice/500-always-in-the-commit"]
    assert uploads["again"] == [repository.at().oid, True] and len(repository.commits) == 2
    sent = hashlib.sha256(repository.at().files["model.safetensors"].data).hexdigest()
    assert [own[2] for own in hub.log if sent in own[1]] == [200]


def test_a_branch_is_made_and_files_no_longer_needed_go(hub, uploads):
    repository = hub.repositories["model", "alice/slow"]
    assert uploads["branch"][0] == repository.branches["other"] and not uploads["branch"][1]
    expected = {".gitattributes", "config.json", "model-00001-of-00001.safetensors"}
    assert set(repository.at().files) == expected and "model.safetensors" in repository.at("other").files


@pytest.fixture(scope="module")
def towers(hub, tmp_path_factory):
    """A vision tower and a text model on the Hub, of which the second has no image marker yet, and no padding."""
    folder = tmp_path_factory.mktemp("towers")
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4}
    tokenizer = train_tokenizer(SENTENCES, "scratch-tiny")
    unmarked = tokenizer.backend_tokenizer.to_str().replace("<image>", "<other>")
    tokens = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(unmarked), **tokens)
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder / "vision")
    vision_model("clip_vision_model").save_pretrained(folder / "vision")
    plain.save_pretrained(folder / "text")
    causal_model("llama", vocab_size=len(plain), **wide).save_pretrained(folder / "text")
    card = b"---\nlicense: mit\n---\n"
    for name in ("vision", "text"):
        files = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        hub.add(f"towers/{name}", files | {"README.md": card})
    return folder


FROM_HUB = ["--vision_tower", "towers/vision", "--text_model", "towers/text"]


@pytest.fixture(scope="module")
def composed(hub, towers):
    """A model trained over towers from the Hub, which stayed frozen."""
    make_table(towers)
    argv = ["train", "--train_file", "t.csv", "--validation_file", "t.csv", "--max_steps", "2", "--output_dir", "out"]
    argv += ["--save_strategy", "no", "--report_to", "none", "--use_cpu", "--max_new_tokens", "2"]
    done = python(hub, towers, "-m", "modeling_mm.cli", *argv, *FROM_HUB, "--learning_rate", "1e-1")
    assert done.returncode == 0, done.stderr[-3000:]
    return towers


def weight_bytes(files):
    return sum(size for path, size in files.items() if path.endswith(".safetensors"))


@pytest.mark.slow
def test_fusion_only_holds_what_was_trained_and_loads_to_equal_logits(hub, composed):
    config = json.loads((composed / "out" / "config.json").read_text())
    sources = config["tower_sources"]
    assert {part: own["id"] for part, own in sources.items()} == {
        "vision_tower": "towers/vision",
        "text_model": "towers/text",
    }
    assert sources["text_model"]["revision"] == hub.repositories["model", "towers/text"].at().oid
    card = (composed / "out" / "README.md").read_text()
    assert "| mit | frozen |" in card and ModelCard(card).data.base_model == ["towers/vision", "towers/text"]
    argv = ["--model", composed / "out", "--repo_id", "alice/fusion", "--fusion_only"]
    result = push(hub, composed, *argv)  # proves it before and after, without the package, towers fetched
    assert isinstance(result, dict) and result["pushed"], result
    assert push(hub, composed, *argv)["revision"] == result["revision"]
    files, card, _ = check_repository(hub, "alice/fusion", result["revision"])
    check_card_runs(hub, composed, card)
    model = load_file(composed / "out" / "model.safetensors")
    trained = sum(value.nbytes for name, value in model.items() if ".fusion." in name)
    pushed = weight_bytes({path: len(content.data) for path, content in files.items()})
    assert trained < pushed <= 1.1 * trained
    assert pushed < weight_bytes(files_of(composed / "out")) / 2
    # the package loads it too, and what it saves again is whole
    done = python(hub, composed, "-c", SAVE_AGAIN, "alice/fusion", result["revision"])
    assert done.returncode == 0, done.stderr[-3000:]
    again = load_file(composed / "again" / "model.safetensors")
    assert again.keys() == model.keys() and all(torch.equal(value, again[name]) for name, value in model.items())
    # its tower's revision is gone
    tower = hub.repositories["model", "towers/text"]
    commits, branches = dict(tower.commits), dict(tower.branches)
    tower.commit("main", {"README.md": tower.at().files["README.md"]}, "all anew")
    del tower.commits[sources["text_model"]["revision"]]
    told = python(hub, composed, "-c", SAVE_AGAIN, "alice/fusion", result["revision"])
    tower.commits, tower.branches = commits, branches
    last = told.stderr.strip().splitlines()[-1]
    where = f"'towers/text' at revision {sources['text_model']['revision']}"
    assert f"the text_model of this model is that of {where}, which could not be fetched: " in last


SAVE_AGAIN = """
import shutil, sys
from huggingface_hub import constants
from modeling_mm.checkpoint import load_checkpoint
shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
model, _ = load_checkpoint(sys.argv[1], revision=sys.argv[2])
assert model.config.fetched_towers is None and model.config.tower_sources
model.save_pretrained("again")
"""


@pytest.mark.slow
def test_fusion_only_is_refused_where_there_is_nothing_to_leave_out(hub, work):
    argv = ["--model", work / "model", "--repo_id", "alice/x", "--fusion_only", "--dry_run"]
    assert "the config of this model names none that are" in push(hub, work, *argv)


EVERY_KIND = """
import json, torch
from pathlib import Path
from modeling_mm import MMForConditionalGeneration, MMForImageTextRetrieval, MMForSequenceClassification, MMModel
from modeling_mm.fusion_only import save_fusion_only

said = {}
for name, head, text, audio, options in [
    ("whole clip, tied head", MMForConditionalGeneration, "towers/tied", "towers/whisper", {}),
    ("encoder", MMForSequenceClassification, "towers/bert", None, {"num_labels": 3}),
    ("retrieval that writes", MMForImageTextRetrieval, "towers/text", None, {"language_weight": 1.0}),
    ("half precision", MMForConditionalGeneration, "towers/text", None, {"dtype": torch.bfloat16}),
]:
    model = head.from_towers("towers/clip", text, audio, **options)
    save_fusion_only(model, Path(name))
    again = head.from_pretrained(name, dtype=model.dtype)
    own, other = model.state_dict(), again.state_dict()
    base = MMModel.from_pretrained(name, dtype=model.dtype).state_dict()
    parts = {"vision_tower", "text_model"} | ({"audio_tower"} if audio else set())
    said[name] = {
        "fetched": set(json.loads(Path(name, "config.json").read_text())["fetched_towers"]) == parts,
        "equal": own.keys() == other.keys() and all(torch.equal(own[n], other[n]) for n in own),
        "base": all(torch.equal(value, base[n]) for n, value in model.model.state_dict().items()),
        "tied": (again.get_output_embeddings() is not None
                 and again.get_output_embeddings().weight is again.get_input_embeddings().weight),
    }
print(json.dumps(said))
"""


@pytest.mark.slow
def test_fusion_only_leaves_out_towers_of_every_kind(hub, towers):
    """Half of a CLIP, the encoder of a Whisper, heads tied and not; the base model loads from the same checkpoint."""
    whisper = {"d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    whisper |= {"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "num_mel_bins": 8}
    whisper |= {"vocab_size": 99, "max_source_positions": 20, "pad_token_id": 0, "decoder_start_token_id": 1}
    halves = {"text_config": text_config("bert").to_dict() | {"projection_dim": 16}, "projection_dim": 16}
    made = {
        "clip": AutoModel.from_config(CLIPConfig(vision_config=vision_config().to_dict(), **halves)),
        "whisper": AutoModel.from_config(AutoConfig.for_model("whisper", **whisper)),
        "tied": causal_model("llama", tie_word_embeddings=True, vocab_size=270),
        "bert": AutoModel.from_config(text_config("bert", vocab_size=270)),
    }
    tokenizer = {path.name: path.read_bytes() for path in (towers / "text").glob("token*.json")}
    for name, model in made.items():
        model.save_pretrained(towers / name)
        hub.add(f"towers/{name}", tokenizer | {path.name: path.read_bytes() for path in (towers / name).iterdir()})
    done = python(hub, towers, "-c", EVERY_KIND)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert {name: own["tied"] for name, own in said.items()} == {name: "tied" in name for name in said}
    assert all(own["fetched"] and own["equal"] and own["base"] for own in said.values()), said
