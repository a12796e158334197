# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""pytest plugin of the conformance run: knows the marks of transformers' suites, and writes docs/conformance.md."""

import textwrap
from collections import Counter, defaultdict
from pathlib import Path

import torch
import transformers

MARKS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "generate")
MARKS += ("is_expert_parallel_test", "is_fsdp_test", "is_tensor_parallel_test", "is_training_test")
MARKS += ("torch_compile_test",)
COLUMNS = ("Llama", "LlamaClassifier", "Hearing", "Watching", "Retrieval", "Bert", "ModernBert")
COLUMNS += ("Processor", "HearingProcessor")
SUITES = ("modeling", "config", "training", "parallel_plans", "generation", "processing")
PAGE = """# Conformance with transformers' own test suites

    make conformance

runs the common test suites of transformers {transformers} on our classes (here with torch {torch} on a {device}), and
writes this page. pip downloads the suites, which are part of the library's source distribution, into
`~/.cache/mm-conformance` (`MM_CONFORMANCE_CACHE` names another folder); nothing of them is kept in this repository.
Our side is in `tests/conformance`; all models are tiny, random and run offline.

| suite | {columns} |
| --- |{rule}
{rows}

Cells: passed / failed / skipped; "-": does not apply, or would repeat the column before.

- Llama: `MMModel` and `MMForConditionalGeneration` on a Llama backbone with a SigLIP tower; LlamaClassifier: `MMModel`
  and `MMForSequenceClassification` on the same; Hearing: all three with a Whisper encoder beside, and sound in every
  row; Watching: all three with a video of two frames in every row; Retrieval: `MMModel` and
  `MMForImageTextRetrieval`, its loss asked for by `return_loss`, on what Hearing has; Bert, ModernBert: `MMModel` and
  `MMForSequenceClassification` on these encoders.
- `modeling` is ModelTesterMixin, `config` ConfigTester, `training` TrainingTesterMixin (one batch is learned by
  heart), `parallel_plans` FSDPTesterMixin and TensorParallelTesterMixin, `processing` ProcessorTesterMixin.
- `generation` are 28 checks of our own: the library's GenerationTesterMixin is not part of its source distribution.
- No failure is waived. Two things are set on our side. BERT's pooler is behind the states that we use, so for Bert
  `test_all_params_have_gradient` is off (the trainer freezes such weights). And
  `test_processor_to_json_string` is off for HearingProcessor: it wants each saved argument as an attribute of its
  name, which another test forbids for `audio`.

## Why tests were skipped

Counted over all columns, in the environment of make; a test skipped for one of its classes counts as skipped.

| suite | reason | count |
| --- | --- | --- |
{skips}
"""


class Recorder:
    """Keeps each test's outcome; of a test with parts, the worst."""

    def __init__(self, page: Path):
        self.page = page
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report):
        test = report.nodeid
        before = self.outcomes.setdefault(test, "passed")
        if report.failed:
            self.outcomes[test] = "failed"
        elif report.skipped and before != "failed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.outcomes[test], self.reasons[test] = "skipped", reason.removeprefix("Skipped: ")

    def pytest_sessionfinish(self):
        counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
        skips: Counter = Counter()
        for test, outcome in self.outcomes.items():
            file, _, name = test.partition("::")
            column, _, suite = ("Llama__generation" if "generate" in file else name.partition("::")[0]).partition("__")
            counts[suite, column][outcome] += 1
            if outcome == "skipped":
                skips[suite, textwrap.shorten(self.reasons[test].replace("|", "/"), 110, placeholder=" ...")] += 1
        self.page.parent.mkdir(exist_ok=True)
        self.page.write_text(self.render(counts, skips), encoding="utf-8")

    def render(self, counts, skips) -> str:
        """The page."""

        def cell(found):
            return f"{found['passed']} / {found['failed']} / {found['skipped']}" if found else "-"

        rows = [[suite, *(cell(counts.get((suite, column))) for column in COLUMNS)] for suite in SUITES]
        ordered = sorted(skips.items(), key=lambda pair: (SUITES.index(pair[0][0]), -pair[1], pair[0][1]))
        return PAGE.format(
            transformers=transformers.__version__,
            torch=torch.__version__.partition("+")[0],
            device="GPU" if torch.cuda.is_available() else "CPU",
            columns=" | ".join(COLUMNS),
            rule=" --- |" * len(COLUMNS),
            rows="\n".join(f"| {' | '.join(row)} |" for row in rows),
            skips="\n".join(f"| {suite} | {reason} | {count} |" for (suite, reason), count in ordered),
        )


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' suites")
    if page := config.getoption("conformance_page"):
        config.pluginmanager.register(Recorder(Path(page)))
