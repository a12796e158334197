# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm push`: upload of a trained folder to a repository of the Hub that loads without this package.

modeling-mm push --model runs/mine --repo_id user/name --dry_run
modeling-mm push --model runs/mine --repo_id user/name --private --space user/name-demo

The repository is first written into a folder and verified there: a process without this package loads it and must get
the same logits. It is then uploaded in one commit, loaded back by its revision, and compared again. After a fault, run
the same command again: files that arrived are not sent again, and no commit is ever partial.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from ..hub.repository import files_of, stage
from ..hub.upload import hub_errors_explained, push_space, upload, with_retries
from ..hub.verification import verify_repository
from .arguments import MMParser
from .verbs import PushArguments

logger = logging.getLogger(__name__)


def check_arguments(args: PushArguments) -> None:
    """Refuse bad arguments before anything is read or sent.

    Raises:
        ValueError: a name that the Hub rejects, a missing folder, or a Space's folder without app.py.
    """
    for name in filter(None, (args.repo_id, args.space)):
        validate_repo_id(name)
        if name.count("/") != 1:
            raise ValueError(f"the repository name '{name}' is not of the form user/name")
    if not Path(args.model).is_dir():
        raise ValueError(f"--model '{args.model}' is not a folder")
    if args.space and not Path(args.space_folder, "app.py").is_file():
        raise ValueError(f"there is no app.py in '{args.space_folder}'; give the Space's folder by --space_folder")


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the verb; returns its results."""
    (args,) = MMParser(PushArguments, prog="modeling-mm push").parse(argv)
    check_arguments(args)
    api = HfApi()
    if not args.dry_run:
        with hub_errors_explained(args.repo_id):
            with_retries(api.whoami)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "repository")
        folder.mkdir()
        model, processor = stage(Path(args.model), folder, args.repo_id, args.fusion_only)
        verification = verify_repository(model, processor, Path(work))
        verification.check(str(folder), offline=not args.fusion_only)
        files = files_of(folder)
        for path, size in files.items():
            logger.warning(f"{size:>12,}  {path}")
        result: dict[str, Any] = {"repo_id": args.repo_id, "files": len(files), "bytes": sum(files.values())}
        if args.dry_run:
            return result | {"pushed": False}
        with hub_errors_explained(args.repo_id):
            revision, new = upload(api, args.repo_id, folder, args.revision, args.private)
        verification.check(args.repo_id, revision)
    result |= {"pushed": new, "revision": revision, "url": f"{api.endpoint}/{args.repo_id}"}
    if args.space:
        with hub_errors_explained(args.space):
            space = Path(args.space_folder)
            result["space_revision"] = push_space(api, args.space, space, args.repo_id, revision, args.private)
        result["space_url"] = f"{api.endpoint}/spaces/{args.space}"
    return result
