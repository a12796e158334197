# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Upload of a repository and its Space to the Hub, by one commit each.

After a fault, repeat the upload: files that arrived are not sent again, and no commit is ever partial.
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
FINAL = (401, 403, 404, 409, 412)  # these do not pass by trying again


def explain_hub_error(error: BaseException, repo_id: str) -> str:
    """One sentence about an error of the Hub, with advice."""
    status = status_of(error)
    known = {
        401: "the Hub rejects the token; set a valid one by `hf auth login` or HF_TOKEN",
        403: f"the token cannot write to '{repo_id}'; use one that has write access to '{repo_id.split('/')[0]}'",
        404: f"'{repo_id}', or the branch in it, does not exist, or the token has no access to it",
        409: f"'{repo_id}' is being changed by somebody else; nothing was pushed, push again",
        412: f"'{repo_id}' was changed by somebody else meanwhile; nothing was pushed, push again",
        429: "the Hub accepts no more requests for now; push again later, uploaded files are not sent again",
    }
    if status in known:
        return f"{known[status]} (HTTP {status})"
    if isinstance(error, LocalTokenNotFoundError):
        return "pushing needs a token; set one by `hf auth login` or HF_TOKEN"
    reason = " ".join(str(error.__cause__ or error).split()).partition(" for url")[0]
    code = "no answer" if status is None else f"HTTP {status}"
    return f"pushing to '{repo_id}' failed ({code}: {reason}); no partial commit was made, push again"


@contextlib.contextmanager
def hub_errors_explained(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub's client into one sentence.

    Raises:
        ValueError: that sentence.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        raise ValueError(explain_hub_error(error, repo_id)) from error


def with_retries(function: Callable[[], Any]) -> Any:
    """Call a function, and again after a pause if a fault may pass; calling it twice must have the effect of once."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return function()
        except (HTTPError, OSError, RuntimeError) as error:
            is_final = status_of(error) in FINAL or isinstance(error, LocalTokenNotFoundError)
            if is_final or attempt == ATTEMPTS:
                raise
            logger.warning(f"attempt {attempt} of {ATTEMPTS} failed ({error}); trying again")
            time.sleep(PAUSE)


def upload(api: HfApi, repo_id: str, folder: Path, branch: str = "main", private: bool = False) -> tuple[str, bool]:
    """Bring a branch of a repository to the files of the folder by one commit, or none if it has them.

    Files of earlier pushes that are no longer needed are deleted, and so are pickles that `Trainer` wrote, if the
    repository has only files that `Trainer` and pushing write; all other files stay.

    Returns:
        the commit with these files, and True if it is new.

    Raises:
        ValueError: the repository is public but should not be, or holds another pickle.
    """
    heads: list[str] = []

    def push() -> str:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if branch != "main":
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        info = api.model_info(repo_id, revision=branch)
        if private and not info.private:
            raise ValueError(f"'{repo_id}' is public; make it private on the Hub, or leave --private out")
        heads.append(str(info.sha))
        paths = [e.path for e in api.list_repo_tree(repo_id, recursive=True, revision=info.sha) if is_file(e)]
        pickles = removable_pickles(repo_id, paths)
        files = files_of(folder)
        operations: list[Any] = [CommitOperationAdd(path, folder / path) for path in files]
        deleted = [path for path in paths if path not in files and (is_replaced(path) or path in pickles)]
        operations += [CommitOperationDelete(path) for path in deleted]
        message = f"modeling-mm push {__version__}"
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=branch, parent_commit=info.sha
        )
        return str(commit.oid)

    revision = with_retries(push)
    return revision, revision != heads[0]


def removable_pickles(repo_id: str, paths: list[str]) -> list[str]:
    """The pickles among a repository's files, if `Trainer` wrote them all.

    Raises:
        ValueError: a pickle is of unknown origin, or there are pickles beside other files of unknown origin.
    """
    pickles = [path for path in paths if path.endswith(PICKLES)]
    if unknown := [path for path in pickles if not is_pickle_of_trainer(path)]:
        raise ValueError(f"'{repo_id}' holds the pickle '{unknown[0]}', which can run code; delete it first")
    if pickles and (others := [path for path in paths if not is_known(path)]):
        raise ValueError(
            f"'{repo_id}' holds the pickle '{pickles[0]}', which can run code, and files that neither Trainer "
            f"nor modeling-mm writes ('{others[0]}'); delete the pickle first"
        )
    if pickles:
        logger.warning(f"removed from '{repo_id}', because pickles can run code: {', '.join(pickles)}")
    return pickles


def is_file(entry: Any) -> bool:
    """True if an entry of a repository's tree is a file."""
    return isinstance(entry, RepoFile)


def push_space(api: HfApi, space: str, folder: Path, repo_id: str, revision: str, private: bool) -> str:
    """Upload a Space for the model at this revision; returns its commit."""

    def push() -> str:
        api.create_repo(space, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        for name, value in {"MM_MODEL_ID": repo_id, "MM_MODEL_REVISION": revision}.items():
            api.add_space_variable(space, name, value)
        ignored = ["**/__pycache__/**", "__pycache__/**", "*.pyc", "*.pyi", ".*"]  # gradio writes the last but one
        message = f"modeling-mm push {__version__}"
        commit = api.upload_folder(
            repo_id=space, folder_path=folder, repo_type="space", ignore_patterns=ignored, commit_message=message
        )
        return str(commit.oid)

    return with_retries(push)
