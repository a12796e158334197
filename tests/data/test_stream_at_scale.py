# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""100,000 rows through two workers: memory does not grow, and a kill in the middle loses and repeats no row."""

import itertools
import json

import pytest

from benchmarks.streaming import held_at, noted, seen_after_a_kill, watched, write_shards

KINDS = {"parquet": (100_000, 50), "tar": (10_000, 10)}  # rows and shards


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_and_a_kill_changes_nothing(tmp_path, kind):
    rows, shards = KINDS[kind]
    source = write_shards(tmp_path / "shards", rows, shards, kind)
    curve = watched(source, tmp_path / "whole", rows, workers=2)
    batches = [numbers for _, numbers in noted(tmp_path / "whole")]
    assert sorted(itertools.chain(*batches)) == list(range(rows))
    end = curve[-1][0]
    for second in (60, end / 10) if end > 20 else (end,):
        assert held_at(curve, end) == pytest.approx(held_at(curve, second), rel=0.1)
    killed, step, seen = seen_after_a_kill(source, tmp_path / "killed", rows, workers=2)
    assert 0 < step and killed < len(batches)
    assert seen == batches
    whole, killed = (json.loads((tmp_path / name / "figures.json").read_text()) for name in ("whole", "killed"))
    assert whole["losses"] == killed["losses"] and len(whole["losses"]) == len(batches)
