# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm <verb>`, the command line.

The last line on standard output is one line of JSON with the results; `search` prints a table there, or a line for
each image found. All else goes to standard error. Bad input gives one clear sentence and exit code 2;
`MODELING_MM_TRACEBACK=1` shows the traceback.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from .commands.verbs import VERBS, help_page, usage
from .startup import register


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code. Help and bad arguments are answered before torch is imported."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's large tensors on huge pages: faster on a CPU
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print_result(usage())
        return 0 if arguments else 2
    verb = arguments[0]
    if verb not in VERBS:
        print(f"modeling-mm: unknown verb '{verb}'; expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    if {"-h", "--help"} & set(arguments):
        print_result(help_page(verb))
        return 0
    try:
        with contextlib.redirect_stdout(sys.stderr), process_group_destroyed():
            result = run(verb, arguments[1:])
    except KeyboardInterrupt:
        print(f"modeling-mm {verb}: interrupted; what was saved is kept", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("MODELING_MM_TRACEBACK") or not is_about_input(error):
            raise
        print(f"modeling-mm {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if result is not None:
        print_result(result if isinstance(result, str) else json.dumps(result))
    return 0


def print_result(text: str) -> None:
    """Print to standard output; a reader that stopped reading, such as `head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush fails too


@contextlib.contextmanager
def process_group_destroyed() -> Iterator[None]:
    """Destroy the process group that a verb made; its threads could abort the interpreter as it ends.

    After an error this is left to the interpreter unless the backend is gloo: NCCL would first wait for the other
    processes, which may never come.
    """
    had_group, failed = has_process_group(), True
    try:
        yield
        failed = False
    finally:
        if has_process_group() and not had_group:
            distributed = sys.modules["torch.distributed"]
            if not failed or distributed.get_backend() == "gloo":
                distributed.destroy_process_group()


def has_process_group() -> bool:
    """True if the default process group exists; does not import torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def run(verb: str, arguments: list[str]) -> Any:
    """Run a verb with its arguments and return its result.

    Raises:
        ValueError: bad input, or a package that the verb needs is not installed.
    """
    try:
        importlib.import_module("modeling_mm.commands.arguments").check_arguments(verb, arguments)
        register()
        command = importlib.import_module(f"modeling_mm.commands.{verb}")
    except ModuleNotFoundError as error:
        if (error.name or "modeling_mm").startswith("modeling_mm"):
            raise
        extra = f'pip install "modeling-mm[{VERBS[verb].extra}]"'
        raise ValueError(f"the package {error.name} is not installed; {extra}") from error
    return command.main(arguments)


def is_about_input(error: Exception) -> bool:
    """True if the error is about bad input, so that its message is for the user."""
    from huggingface_hub.errors import StrictDataclassError

    return isinstance(error, (ValueError, OSError, StrictDataclassError))


if __name__ == "__main__":
    sys.exit(main())
