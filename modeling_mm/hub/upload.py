# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A repository and its Space brought to the Hub, by one commit each.

After a fault, do the same again: what is up is not sent twice, and nothing is ever half there.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError  # the first is of httpx or httpx2

from ..checkpoint import status_of
from ..version import __version__
from .repository import PICKLES, files_of, is_known, is_pickle_of_trainer, is_replaced

logger = logging.getLogger(__name__)

ATTEMPTS, PAUSE = 3, 2.0  # seconds; the client itself tries each upload of a file six times
FINAL = (401, 403, 404, 409, 412)  # trying again would not help


def explain_hub_error(error: BaseException, repo_id: str) -> str:
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
def hub_errors_explained(repo_id: str) -> Iterator[None]:
    """Turns what the client raises into a sentence.

    Raises:
        ValueError: that sentence.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        raise ValueError(explain_hub_error(error, repo_id)) from error


def with_retries(do: Callable[[], Any]) -> Any:
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

    Files of earlier pushes that are no longer needed go, and so do the pickles that `Trainer` left in a repository
    with nothing but what it and pushing write; all others stay.

    Returns:
        the commit that has them, and whether it is new.

    Raises:
        ValueError: the repository is public but should not be, or holds another pickle.
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
        pickles = removable_pickles(repo_id, there)
        files = files_of(folder)
        operations: list[Any] = [CommitOperationAdd(path, folder / path) for path in files]
        gone = [path for path in there if path not in files and (is_replaced(path) or path in pickles)]
        operations += [CommitOperationDelete(path) for path in gone]
        message = f"modeling-mm push {__version__}"
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=branch, parent_commit=info.sha
        )
        return str(commit.oid)

    revision = with_retries(once)
    return revision, revision != heads[0]


def removable_pickles(repo_id: str, there: list[str]) -> list[str]:
    """The pickles among a repository's files, all of which `Trainer` wrote.

    Raises:
        ValueError: one is of unknown origin, or the repository holds something else that is.
    """
    pickles = [path for path in there if path.endswith(PICKLES)]
    if unknown := [path for path in pickles if not is_pickle_of_trainer(path)]:
        raise ValueError(f"'{repo_id}' holds the pickle '{unknown[0]}', which can run code; delete it first")
    if pickles and (others := [path for path in there if not is_known(path)]):
        raise ValueError(
            f"'{repo_id}' holds the pickle '{pickles[0]}', which can run code, and is not only what Trainer and "
            f"modeling-mm write ('{others[0]}'); delete the pickle first"
        )
    if pickles:
        logger.warning(f"taken out of '{repo_id}', as pickles can run code: {', '.join(pickles)}")
    return pickles


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

    return with_retries(once)
