# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm push`: a trained folder as a repository of the Hub that loads anywhere, without this package.

modeling-mm push --model runs/mine --repo_id user/name --dry_run
modeling-mm push --model runs/mine --repo_id user/name --private --space user/name-demo

The repository is written into a folder first and proved there: a process without this package loads it and must get
the same logits. Then all goes up in one commit, and is loaded back from there by its revision and compared again.
After a fault, run the same command again: what is up is not sent twice, and nothing is ever half there.
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
        with hub_errors_explained(args.repo_id):
            with_retries(api.whoami)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "repository")
        folder.mkdir()
        model, processor = stage(Path(args.model), folder, args.repo_id, args.fusion_only)
        proof = verify_repository(model, processor, Path(work))
        proof.check(str(folder), offline=not args.fusion_only)
        files = files_of(folder)
        for path, size in files.items():
            logger.warning(f"{size:>12,}  {path}")
        result: dict[str, Any] = {"repo_id": args.repo_id, "files": len(files), "bytes": sum(files.values())}
        if args.dry_run:
            return result | {"pushed": False}
        with hub_errors_explained(args.repo_id):
            revision, new = upload(api, args.repo_id, folder, args.revision, args.private)
        proof.check(args.repo_id, revision)
    result |= {"pushed": new, "revision": revision, "url": f"{api.endpoint}/{args.repo_id}"}
    if args.space:
        with hub_errors_explained(args.space):
            space = Path(args.space_folder)
            result["space_revision"] = push_space(api, args.space, space, args.repo_id, revision, args.private)
        result["space_url"] = f"{api.endpoint}/spaces/{args.space}"
    return result
