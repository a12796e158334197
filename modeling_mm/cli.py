# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""`modeling-mm <verb>`: one command each.

The last line on standard output is one line of JSON with the results; `search` prints a table there, or a line for
each picture found. All else goes to standard error. Bad input is one clear sentence and exit code 2.
`MODELING_MM_TRACEBACK=1` shows where it was raised.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Sequence

VERBS = {
    "train": "train a model on a CSV, a folder or a data set",
    "evaluate": "metrics, a picture report and predictions of a trained model on a test file",
    "predict": "answer or label for one picture and text; --explain draws where the model looked",
    "index": "embed a folder or a table of pictures, to be searched; resumes after a kill",
    "search": "pictures of an index by text, by picture or by both",
    "push": "a trained folder to the Hub, proved before and after, with a Space if wanted",
    "export": "ONNX or torch.export graphs of a trained model, checked against it",
}


def usage() -> str:
    lines = [f"  {verb:<10}{what}" for verb, what in VERBS.items()]
    return "\n".join(["usage: modeling-mm <verb> [--config file.yaml] [--key value ...]", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    verb = arguments[0]
    if verb not in VERBS:
        print(f"modeling-mm: there is no verb '{verb}'; it can {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        asks_for_help = {"-h", "--help"} & set(arguments)
        with contextlib.nullcontext() if asks_for_help else contextlib.redirect_stdout(sys.stderr):
            result = importlib.import_module(f"modeling_mm.commands.{verb}").main(arguments[1:])
    except KeyboardInterrupt:
        print(f"modeling-mm {verb}: interrupted; what was saved is kept", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("MODELING_MM_TRACEBACK") or not is_about_input(error):
            raise
        print(f"modeling-mm {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if result is not None:
        print(result if isinstance(result, str) else json.dumps(result), flush=True)
    return 0


def is_about_input(error: Exception) -> bool:
    """Whether the message is meant for the person at the keyboard, not for us."""
    from huggingface_hub.errors import StrictDataclassError

    return isinstance(error, (ValueError, OSError, StrictDataclassError))


if __name__ == "__main__":
    sys.exit(main())
