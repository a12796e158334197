# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""FSDP2 on gloo: a model in shards trains, saves and answers as a whole one, whatever each process has to show."""

import json

import pytest
import torch
from conftest import ALL_TEXT, VISION, mm_config, mm_model, text_config, vision_config
from in_shards import CASES, HEADS, all_trained, batch_of, model_of, step
from together import together

from modeling_mm import MMModel
from modeling_mm.fusion_mm import text_layers


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found, and the folder with what they saved."""
    folder = tmp_path_factory.mktemp("shards")
    return together(2, all_trained, folder, folder=folder / "meet"), folder


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_shards_is_that_of_one_process(found, case):
    model = model_of(case)
    loss = step(model, batch_of(case))
    first, second = (results[case] for results in found[0])
    assert first["sharded"] and not second["state"]
    assert first["loss"] == pytest.approx(loss, rel=1e-5) and second["loss"] == first["loss"]
    own = model.state_dict()
    assert first["state"].keys() == own.keys()
    assert max(float((first["state"][n] - own[n]).abs().max()) for n in own if own[n].is_floating_point()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_what_was_saved_from_shards_is_loaded_as_it_was(found, case):
    results, folder = found
    head = HEADS[CASES[case][0]]
    config = json.loads((folder / case / "config.json").read_text())
    assert config["architectures"] == [head.__name__]
    assert all("FSDP" not in place for place in config["auto_map"].values())
    assert not (folder / case / "_fully_shard.py").exists() and (folder / case / "modeling_mm.py").exists()
    loaded, model = head.from_pretrained(folder / case).eval(), model_of(case).eval()
    model.load_state_dict(results[0][case]["state"])
    batch = batch_of(case)
    for name in ("loss", "logits" if "logits" in model(**batch) else "text_embeds"):
        assert torch.equal(loaded(**batch)[name], model(**batch)[name])
