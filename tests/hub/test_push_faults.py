# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Whatever goes wrong on the way to the Hub: the push ends well or in one sentence, and nothing is ever half there."""

import hashlib
import json

import numpy as np
import pytest
from helpers.push import python

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
    "401": ({"path": "/commit/", "status": 401}, "rejects the token"),
    "403": ({"path": "/commit/", "status": 403}, "cannot write to 'alice/403'"),
    "404": ({"path": "/commit/", "status": 404}, "'alice/404', or the branch in it, does not exist"),
    "409": ({"path": "/commit/", "status": 409}, "is being changed by somebody else"),
    "412": ({"path": "/commit/", "status": 412}, "was changed by somebody else meanwhile"),
    "429-once": ({"path": "/commit/", "status": 429}, None),
    "429-always": ({"path": "/commit/", "status": 429, "times": 9}, "accepts no more requests"),
}
UPLOAD_ALL = """
import json, os, sys
from pathlib import Path
from huggingface_hub import HfApi
from modeling_mm.hub import upload
from modeling_mm.checkpoint import load_checkpoint

upload.PAUSE = 0.1
said = {}

def told(name, do):
    try:
        with upload.hub_errors_explained(f"alice/{name}"):
            said[name] = do()
    except ValueError as error:
        said[name] = f"sentence: {error}"

for name in json.loads(sys.argv[1]):
    told(name, lambda: upload.upload(HfApi(), f"alice/{name}", Path(name)))
folder = Path("slow")
told("read token", lambda: upload.upload(HfApi(token="read"), "alice/slow", folder))
told("of somebody else", lambda: upload.upload(HfApi(token="other"), "alice/slow", folder))
told("unknown token", HfApi(token="nonsense").whoami)
token = os.environ.pop("HF_TOKEN")
told("no token", HfApi().whoami)
os.environ["HF_TOKEN"] = token
told("public", lambda: upload.upload(HfApi(), "alice/slow", folder, private=True))
told("pickled", lambda: upload.upload(HfApi(), "alice/pickled", folder))
told("trained", lambda: upload.upload(HfApi(), "alice/trained", folder))
told("mixed", lambda: upload.upload(HfApi(), "alice/mixed", folder))
told("nested", lambda: upload.upload(HfApi(), "alice/nested", folder))
told("again", lambda: upload.upload(HfApi(), "alice/500-always-in-the-commit", Path("500-always-in-the-commit")))
told("branch", lambda: upload.upload(HfApi(), "alice/slow", folder, branch="other"))
(folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
told("fewer", lambda: upload.upload(HfApi(), "alice/slow", folder))
for name, source, token in [("missing", "alice/none", "write"), ("private", "alice/closed", "other"),
                            ("wrong token", "alice/closed", "nonsense")]:
    os.environ["HF_TOKEN"] = token
    told(f"load {name}", lambda: load_checkpoint(source))
print(json.dumps(said))
"""


# what `Trainer` with `push_to_hub` left there, and the pickles among it
TRAINER_PICKLES = ["training_args.bin", "checkpoint-5/optimizer.pt", "checkpoint-5/rng_state_0.pth"]
TRAINED = [
    *TRAINER_PICKLES, "README.md", "config.json", "tokenizer.json", "trainer_state.json", "all_results.json",
    "checkpoint-5/model.safetensors", "checkpoint-5/trainer_state.json", "runs/today/events.out", "curves.png",
    "base/model.safetensors",
]  # fmt: skip


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
    hub.add("alice/trained", {name: b"of Trainer" for name in TRAINED})
    hub.add("alice/mixed", {"training_args.bin": b"pickle", "notes.txt": b"of somebody"})
    hub.add("alice/nested", {"data/training_args.bin": b"pickle"})
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
    "read token": "cannot write to 'alice/read token'",
    "of somebody else": "cannot write",
    "unknown token": "rejects the token",
    "no token": "pushing needs a token",
    "public": "'alice/slow' is public; make it private on the Hub, or leave --private out",
    "pickled": "'alice/pickled' holds the pickle 'pytorch_model.bin'",
    "mixed": "'alice/mixed' holds the pickle 'training_args.bin', which can run code, and is not only what Trainer",
    "nested": "'alice/nested' holds the pickle 'data/training_args.bin'",
    "load missing": "'alice/none' is neither a folder with a model nor a known Hub id",
    "load private": "'alice/closed' is neither a folder with a model nor a known Hub id",
    "load wrong token": "'alice/closed' is neither a folder with a model nor a known Hub id (the Hub rejects",
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


def test_pickles_of_the_trainer_go_and_all_else_of_it_stays(hub, uploads):
    repository = hub.repositories["model", "alice/trained"]
    assert uploads["trained"] == [repository.at().oid, True]
    replaced = {"README.md", "tokenizer.json", *TRAINER_PICKLES}  # the pushed folder has neither card nor tokenizer
    assert set(repository.at().files) == {*TRAINED, "model.safetensors", ".gitattributes"} - replaced
    for name in ("alice/mixed", "alice/nested"):
        assert any(path.endswith("training_args.bin") for path in hub.repositories["model", name].at().files)
