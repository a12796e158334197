# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arguments of the commands: dataclass fields, a YAML file, and the command line over both."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser


class MMParser(HfArgumentParser):
    """`HfArgumentParser` with `--config file.yaml`, whose keys any `--key value` overrides."""

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """Dataclass instances from the arguments.

        Raises:
            ValueError: the YAML file is missing, malformed, or has a key that is no argument.
        """
        arguments = list(argv)
        inline = next((i for i, word in enumerate(arguments) if word.startswith("--config=")), None)
        if inline is not None:
            arguments[inline : inline + 1] = arguments[inline].split("=", 1)
        if "--config" in arguments:
            at = arguments.index("--config")
            if at + 1 == len(arguments):
                raise ValueError("--config needs the path of a YAML file")
            arguments = [*self.arguments_of(Path(arguments[at + 1])), *arguments[:at], *arguments[at + 2 :]]
        *parsed, rest = self.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
        if rest:
            raise ValueError(f"unknown argument {rest[0]}; see {self.prog} --help")
        return tuple(parsed)

    def arguments_of(self, path: Path) -> list[str]:
        """The file's keys as command line arguments, so that both are read alike; `env` goes to the environment."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ValueError(f"the config file '{path}' does not exist") from None
        except yaml.YAMLError as error:
            raise ValueError(f"the config file '{path}' is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ValueError(f"the config file '{path}' must hold 'key: value' lines")
        os.environ.update({key: str(value) for key, value in (values.pop("env", None) or {}).items()})
        known = {action.dest for action in self._actions}
        if unknown := sorted(str(key) for key in set(values) - known):
            raise ValueError(f"the config file '{path}' has keys that are no arguments: {', '.join(unknown)}")
        arguments: list[str] = []
        for key, value in values.items():
            if value is False and key.endswith("_strategy"):
                value = "no"  # what YAML makes of a bare no
            if isinstance(value, dict):
                value = json.dumps(value)
            if isinstance(value, list):
                arguments += [f"--{key}", *map(str, value)]
            elif value is not None:
                arguments.append(f"--{key}={value}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """One sentence in place of argparse's page of usage."""
        raise ValueError(f"{message}; see {self.prog} --help")
