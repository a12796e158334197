# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arguments of the commands: dataclass fields, a YAML file, and the command line over both."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        if "--config" in arguments:
            at = arguments.index("--config")
            if at + 1 == len(arguments):
                raise ValueError("--config needs the path of a YAML file")
            self.use_defaults_of(Path(arguments[at + 1]))
            del arguments[at : at + 2]
        return self.parse_args_into_dataclasses(args=arguments)

    def use_defaults_of(self, path: Path) -> None:
        """Take the file's values as defaults; a block `env` is put into the environment."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ValueError(f"the config file '{path}' does not exist") from None
        except yaml.YAMLError as error:
            raise ValueError(f"the config file '{path}' is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ValueError(f"the config file '{path}' must hold 'key: value' lines")
        os.environ.update({key: str(value) for key, value in values.pop("env", {}).items()})
        known = {action.dest: action for action in self._actions}
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"the config file '{path}' has keys that are no arguments: {', '.join(unknown)}")
        for key, value in values.items():
            known[key].required = False
            # YAML reads 1e-3 as a string; the argument's own type knows better
            if isinstance(value, str) and callable(known[key].type):
                value = known[key].type(value)
            self.set_defaults(**{key: value})
