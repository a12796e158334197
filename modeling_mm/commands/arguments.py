# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arguments of the commands: dataclass fields, a YAML file, and the command line over both."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers.hf_argparser import HfArgumentParser

from ..training.arguments import RENAMED
from .shipped import config_file
from .verbs import TRAIN, VERBS


class MMParser(HfArgumentParser):
    """`HfArgumentParser` with `--config file.yaml` or a recipe's name, whose keys any `--key value` overrides."""

    explicit: frozenset[str] = frozenset()  # names of the arguments that `parse` got, by file or command line

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """Dataclass instances from the arguments; sets `explicit`.

        Raises:
            ValueError: the YAML file is missing, malformed, or has a key that is no argument.
        """
        arguments = self.with_config(argv)
        *parsed, rest = self.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
        if rest:
            raise ValueError(f"unknown argument {rest[0]}; see {self.prog} --help")
        flags, known = [word.split("=")[0] for word in arguments if word.startswith("--")], self._option_string_actions
        short = [flag for flag in flags if flag not in known]  # argparse completes them
        self.explicit = frozenset(
            action.dest for option, action in known.items() if option in flags or option.startswith(tuple(short))
        )
        return tuple(parsed)

    def refuse_renamed(self, names: Iterable[str]) -> None:
        """Refuse former names of arguments.

        Raises:
            ValueError: names the argument's present name.
        """
        for name in names:
            if name in RENAMED:
                raise ValueError(f"--{name} was renamed to --{RENAMED[name]}; see {self.prog} --help")

    def check_known(self, argv: Sequence[str]) -> None:
        """Refuse bad values of the arguments that this parser knows, and ignore all others.

        Raises:
            ValueError: see `parse`.
        """
        arguments = self.with_config(argv, known_only=True)
        self.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)

    def with_config(self, argv: Sequence[str], known_only: bool = False) -> list[str]:
        """The arguments, preceded by those of the `--config` file."""
        arguments = list(argv)
        self.refuse_renamed(word.removeprefix("--").split("=")[0] for word in arguments if word.startswith("--"))
        inline = next((i for i, word in enumerate(arguments) if word.startswith("--config=")), None)
        if inline is not None:
            arguments[inline : inline + 1] = arguments[inline].split("=", 1)
        if "--config" not in arguments:
            return arguments
        position = arguments.index("--config")
        if position + 1 == len(arguments):
            raise ValueError("--config needs the path of a YAML file or the name of a recipe")
        path = config_file(arguments[position + 1])
        return [*self.arguments_of(path, known_only), *arguments[:position], *arguments[position + 2 :]]

    def arguments_of(self, path: Path, known_only: bool) -> list[str]:
        """The file's keys as command line arguments, so that both are parsed alike; `env` sets the environment."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"the config file '{path}' is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ValueError(f"the config file '{path}' must hold 'key: value' lines")
        os.environ.update({key: str(value) for key, value in (values.pop("env", None) or {}).items()})
        self.refuse_renamed(map(str, values))
        known = {action.dest for action in self._actions}
        if known_only:
            values = {key: value for key, value in values.items() if key in known}
        if unknown := sorted(str(key) for key in set(values) - known):
            raise ValueError(f"the config file '{path}' has keys that are no arguments: {', '.join(unknown)}")
        arguments: list[str] = []
        for key, value in values.items():
            if value is False and key.endswith("_strategy"):
                value = "no"  # YAML reads a bare no as false
            if isinstance(value, dict):
                value = json.dumps(value)
            if isinstance(value, list):
                arguments += [f"--{key}", *map(str, value)]
            elif value is not None:
                arguments.append(f"--{key}={value}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Raise one sentence in place of argparse's usage message."""
        raise ValueError(f"{message}; see {self.prog} --help")


def check_arguments(verb: str, argv: Sequence[str]) -> None:
    """Refuse bad arguments of a verb, as far as that is possible without torch, whose import takes seconds.

    Raises:
        ValueError: names the argument.
    """
    classes, prog = VERBS[verb].arguments, f"modeling-mm {verb}"
    if classes == TRAIN:  # `TrainingArguments` imports torch; short forms of its names must not be taken for ours
        MMParser(classes, prog=prog, allow_abbrev=False).check_known(argv)
    else:
        MMParser(classes, prog=prog).parse(argv)
