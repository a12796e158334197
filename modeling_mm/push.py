# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm push`: a trained folder as a repository of the Hub that loads anywhere, without this package.

modeling-mm push --model runs/mine --repo_id user/name --dry_run
modeling-mm push --model runs/mine --repo_id user/name --private --space user/name-demo

The repository is written into a folder first and proved there: a process without this package loads it and must get
the same logits. Then all goes up in one commit, and is loaded back from there by its revision and compared again.
After a fault, run the same command again: what is up is not sent twice, and nothing is ever half there.
"""

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError  # the first is of httpx or httpx2
from huggingface_hub.utils import validate_repo_id

from .arguments import MMParser
from .checkpoint import status_of
from .proof import make_proof
from .repository import PICKLES, files_of, is_replaced, stage
from .version import __version__

logger = logging.getLogger(__name__)

ATTEMPTS, PAUSE = 3, 2.0  # seconds; the client itself tries each upload of a file six times
FINAL = (401, 403, 404, 409, 412)  # trying again would not help
SPACE = Path(__file__).parent.parent / "hub_space"


@dataclass
class PushArguments:
    """What goes where."""

    model: str = field(metadata={"help": "trained folder, whole or a LoRA adapter"})
    repo_id: str = field(metadata={"help": "where to: user/name; made if it does not exist"})
    private: bool = field(default=False, metadata={"help": "make the repositories private; a public one is refused"})
    revision: str = field(default="main", metadata={"help": "branch to push to; made if it does not exist"})
    fusion_only: bool = field(
        default=False, metadata={"help": "leave out frozen towers of the Hub; loading fetches them at their revision"}
    )
    dry_run: bool = field(default=False, metadata={"help": "prove the repository and list its files, push nothing"})
    space: str | None = field(default=None, metadata={"help": "user/name of a Space that shows the model"})
    space_folder: str = field(default=str(SPACE), metadata={"help": "folder with app.py, requirements.txt, README.md"})


def sentence(error: BaseException, repo_id: str) -> str:
    """What went wrong in one sentence, with what to do."""
    status = status_of(error)
    known = {
        401: "the Hub does not know the token; give a valid one by `hf auth login` or HF_TOKEN",
        403: f"the token may not write to '{repo_id}'; use one that has write access to '{repo_id.split('/')[0]}'",
        404: f"'{repo_id}', or the branch in it, does not exist or is closed to this token",
        409: f"'{repo_id}' is being changed by somebody else; it is as they left it, push again",
        412: f"'{repo_id}' was changed by somebody else meanwhile; it is as they left it, push again",
        429: "the Hub takes no more requests for now; push again later, what is up is not sent twice",
    }
    if status in known:
        return f"{known[status]} (HTTP {status})"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token to push with; give one by `hf auth login` or HF_TOKEN"
    reason = " ".join(str(error.__cause__ or error).split()).partition(" for url")[0]
    code = "no answer" if status is None else f"HTTP {status}"
    return f"pushing to '{repo_id}' failed ({code}: {reason}); nothing is half there, push again"


@contextlib.contextmanager
def in_one_sentence(repo_id: str) -> Iterator[None]:
    """Turns what the client raises into a sentence.

    Raises:
        ValueError: that sentence.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        raise ValueError(sentence(error, repo_id)) from error


def persistently(do: Callable[[], Any]) -> Any:
    """`do()`, again after a pause where a fault may pass; what it does twice must be the same as once."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return do()
        except (HTTPError, OSError, RuntimeError) as error:
            hopeless = status_of(error) in FINAL or isinstance(error, LocalTokenNotFoundError)
            if hopeless or attempt == ATTEMPTS:
                raise
            logger.warning(f"attempt {attempt} of {ATTEMPTS} failed ({error}); trying again")
            time.sleep(PAUSE)


def upload(api: HfApi, repo_id: str, folder: Path, branch: str = "main", private: bool = False) -> tuple[str, bool]:
    """Bring a branch of a repository to the files of the folder by one commit, or none if it has them.

    Files of earlier pushes that are no longer needed go, all others stay.

    Returns:
        the commit that has them, and whether it is new.

    Raises:
        ValueError: the repository is public but should not be, or holds a pickle.
    """
    heads: list[str] = []

    def once() -> str:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if branch != "main":
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        info = api.model_info(repo_id, revision=branch)
        if private and not info.private:
            raise ValueError(f"'{repo_id}' is public; make it private on the Hub, or leave --private out")
        heads.append(str(info.sha))
        there = [e.path for e in api.list_repo_tree(repo_id, recursive=True, revision=info.sha) if is_file(e)]
        if pickles := [path for path in there if path.endswith(PICKLES)]:
            raise ValueError(f"'{repo_id}' holds the pickle '{pickles[0]}', which can run code; delete it first")
        files = files_of(folder)
        operations: list[Any] = [CommitOperationAdd(path, folder / path) for path in files]
        operations += [CommitOperationDelete(path) for path in there if is_replaced(path) and path not in files]
        message = f"modeling-mm push {__version__}"
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=branch, parent_commit=info.sha
        )
        return str(commit.oid)

    revision = persistently(once)
    return revision, revision != heads[0]


def is_file(entry: Any) -> bool:
    """Whether an entry of a repository's tree is a file."""
    return isinstance(entry, RepoFile)


def push_space(api: HfApi, space: str, folder: Path, repo_id: str, revision: str, private: bool) -> str:
    """Upload a Space that shows the model at this revision; returns its commit."""

    def once() -> str:
        api.create_repo(space, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        for name, value in {"MM_MODEL_ID": repo_id, "MM_MODEL_REVISION": revision}.items():
            api.add_space_variable(space, name, value)
        left_out = ["**/__pycache__/**", "__pycache__/**", "*.pyc", "*.pyi", ".*"]  # gradio writes the last but one
        message = f"modeling-mm push {__version__}"
        commit = api.upload_folder(
            repo_id=space, folder_path=folder, repo_type="space", ignore_patterns=left_out, commit_message=message
        )
        return str(commit.oid)

    return persistently(once)


def check_arguments(args: PushArguments) -> None:
    """Refuse what cannot work before anything is read or sent.

    Raises:
        ValueError: a name that the Hub does not take, no such folder, or no Space in its folder.
    """
    for name in filter(None, (args.repo_id, args.space)):
        validate_repo_id(name)
        if name.count("/") != 1:
            raise ValueError(f"'{name}' must be user/name")
    if not Path(args.model).is_dir():
        raise ValueError(f"--model '{args.model}' is no folder")
    if args.space and not Path(args.space_folder, "app.py").is_file():
        raise ValueError(f"there is no app.py in '{args.space_folder}'; name the Space's folder by --space_folder")


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the verb; returns its results."""
    (args,) = MMParser(PushArguments, prog="modeling-mm push").parse(argv)
    check_arguments(args)
    api = HfApi()
    if not args.dry_run:
        with in_one_sentence(args.repo_id):
            persistently(api.whoami)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "repository")
        folder.mkdir()
        model, processor = stage(Path(args.model), folder, args.repo_id, args.fusion_only)
        proof = make_proof(model, processor, Path(work))
        proof.check(str(folder), offline=not args.fusion_only)
        files = files_of(folder)
        for path, size in files.items():
            logger.warning(f"{size:>12,}  {path}")
        result: dict[str, Any] = {"repo_id": args.repo_id, "files": len(files), "bytes": sum(files.values())}
        if args.dry_run:
            return result | {"pushed": False}
        with in_one_sentence(args.repo_id):
            revision, new = upload(api, args.repo_id, folder, args.revision, args.private)
        proof.check(args.repo_id, revision)
    result |= {"pushed": new, "revision": revision, "url": f"{api.endpoint}/{args.repo_id}"}
    if args.space:
        with in_one_sentence(args.space):
            space = Path(args.space_folder)
            result["space_revision"] = push_space(api, args.space, space, args.repo_id, revision, args.private)
        result["space_url"] = f"{api.endpoint}/spaces/{args.space}"
    return result
