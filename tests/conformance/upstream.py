# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""transformers' own test suites as an importable package `tests`, out of the sdist of the installed version.

- pip downloads the sdist once, into the folder that MM_CONFORMANCE_CACHE names (default ~/.cache/mm-conformance).
  Nothing of it is kept in this repository.
- The sdist holds the files directly under tests/ only. What they import beside these is stood in for here, without
  any test: the export and generation suites, the launcher of several processes, a downloader of samples.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from pathlib import Path

import numpy as np
import soundfile
import transformers
from PIL import Image

CACHE = Path(os.environ.get("MM_CONFORMANCE_CACHE", Path.home() / ".cache" / "mm-conformance"))
SAMPLES = tempfile.TemporaryDirectory(prefix="mm-conformance-")
# What the config suite passes to every config class and expects back.
COMMON_CONFIG_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


class NoExportTests:
    """A stand-in for the export suites."""


class GenerationTesterMixin:
    """A stand-in for the generation suite, which test_generate.py replaces; the common suite imports the class."""


def not_in_sdist(*args, **kwargs):
    """A stand-in for the helpers that start several processes."""
    raise unittest.SkipTest("distributed_testing_utils is not shipped in the transformers sdist")


def url_to_local_path(url: str, **kwargs) -> str:
    """Path of a drawn 48 x 64 image, or of half a second of noise, for such an address; another one as it is."""
    random = np.random.default_rng(0)
    path = Path(SAMPLES.name) / url.rpartition("/")[2]
    if url.endswith((".png", ".jpg", ".jpeg")):
        Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
    elif url.endswith((".wav", ".mp3")):
        soundfile.write(path, random.uniform(-0.5, 0.5, 11025), 22050)
    else:
        return url
    return str(path)


def sdist_tests(version: str) -> Path:
    """The folder of test files of that version, downloaded and unpacked where the cache lacks it.

    Raises:
        FileNotFoundError: the sdist does not hold the common suites.
    """
    root = CACHE / f"transformers-{version}"
    common = root / "tests" / "test_modeling_common.py"
    if not common.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        archive = CACHE / f"transformers-{version}.tar.gz"
        if not archive.is_file():
            source_only = ["--no-deps", "--no-binary", "transformers"]
            where = ["--dest", str(CACHE), f"transformers=={version}"]
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *source_only, *where], check=True)
        with tarfile.open(archive) as tar:
            tar.extractall(CACHE, filter="data")
    if not common.is_file():
        raise FileNotFoundError(f"the sdist of transformers {version} holds no {common.relative_to(root)}")
    (root / "tests" / "__init__.py").touch()  # the config suite opens it
    return root / "tests"


def provide(name: str, **members) -> None:
    """Make a module of these members importable."""
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


launchers = ("_get_distributed_backend", "_get_distributed_device_type", "_get_rank_device", "_set_rank_device")
launchers += ("_start_rank_processes", "run_distributed")

provide("tests", __path__=[str(sdist_tests(transformers.__version__))])
provide("tests.exporters", __path__=[])
provide("tests.exporters.test_export", ExportTesterMixin=NoExportTests, ExportGenerateTesterMixin=NoExportTests)
provide("tests.generation", __path__=[])
provide("tests.generation.test_utils", GenerationTesterMixin=GenerationTesterMixin)
provide("tests.utils", __path__=[])
provide("tests.utils.test_configuration_utils", config_common_kwargs=COMMON_CONFIG_FIELDS)
provide("tests.distributed_testing_utils", **dict.fromkeys(launchers, not_in_sdist))
provide("fetch_hub_objects_for_ci", url_to_local_path=url_to_local_path)
