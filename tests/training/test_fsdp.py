# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""FSDP2 on gloo: a sharded model trains, saves and answers like a whole one, whichever media each process has."""

import json

import pytest
import torch
from helpers.audio import hearing_processor
from helpers.builders import ALL_TEXT, OLD_LIBRARY, VISION, mm_model
from helpers.fsdp import CASES, HEADS, ROWS, batch_of, by_accelerate_s_trainer, by_trainer, everything, model_of, step
from helpers.processes import together
from safetensors.torch import load_file

from modeling_mm import MMModel
from modeling_mm.model.fusion_mm import text_layers
from modeling_mm.training.fsdp import placeholder_media


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results of two processes, and the folder with the files that they saved."""
    folder = tmp_path_factory.mktemp("shards")
    return together(2, everything, folder, not OLD_LIBRARY, folder=folder / "meet"), folder


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_shards_is_that_of_one_process(found, case):
    model = model_of(case)
    loss = step(model, batch_of(case))
    first, second = (results["trained"][case] for results in found[0])
    assert first["sharded"] and not second["state"]
    assert first["loss"] == pytest.approx(loss, rel=1e-5) and second["loss"] == first["loss"]
    state = model.state_dict()
    assert first["state"].keys() == state.keys()
    assert max(float((first["state"][n] - state[n]).abs().max()) for n in state if state[n].is_floating_point()) < 1e-5


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
    model.load_state_dict(results[0]["trained"][case]["state"])
    batch = batch_of(case)
    for name in ("loss", "logits" if "logits" in model(**batch) else "text_embeds"):
        assert torch.equal(loaded(**batch)[name], model(**batch)[name])


def test_methods_outside_of_forward_say_the_same_in_shards(found):
    lengths = []
    for results in found[0]:
        for whole, sharded in zip(*results["answered"], strict=True):
            torch.testing.assert_close(sharded, whole, atol=1e-5, rtol=1e-5)
        lengths.append(results["answered"][0][0].shape[1])
    assert lengths[0] < lengths[1]  # one process finished before the other


def test_a_matching_head_learns_in_shards_what_it_learns_whole(found):
    for (loss, gradients), (same, whole) in (results["matched"] for results in found[0]):
        assert loss == pytest.approx(same, rel=1e-5)
        assert gradients.keys() == whole.keys() and whole["matching_head.agreement.weight"].any()
        for name, gradient in whole.items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)


def test_blocks_compute_in_half_precision_over_whole_weights(found):
    for losses, kinds in (results["half"] for results in found[0]):
        assert kinds == {torch.float32} and losses[-1] < losses[0]
    exact = step(model_of("generation"), batch_of("generation"))
    assert sum(results["half"][0][0] for results in found[0]) / 2 == pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize("case", ["tied", "late fusion", "sound"])
def test_accelerate_shards_our_blocks_and_the_step_is_the_same(found, case):
    model = model_of(case)
    step(model, batch_of(case))
    sharded = found[0][0]["accelerate"][case]
    assert not sharded["missed"]
    state = model.state_dict()
    assert (
        max(float((sharded["state"][n] - state[n]).abs().max()) for n in state if state[n].is_floating_point()) < 1e-5
    )


@pytest.mark.skipif(OLD_LIBRARY, reason="sharding at load came with transformers 5.23")
def test_the_trainer_trains_answers_and_saves_what_the_library_sharded(found, tmp_path):
    single = by_trainer(model_of("generation"), ROWS, tmp_path)
    saved = HEADS["generation"].from_pretrained(found[1] / "native").state_dict()
    for results in (results["native"] for results in found[0]):
        assert {"model.text_model.layers.1", "model.fusion.layers.0", "model.vision_tower.encoder.layers.0"} <= (
            results["sharded"]
        )
        assert results["losses"] == pytest.approx(single["losses"], rel=1e-3)
        assert results["loss"] == pytest.approx(single["loss"], rel=1e-3)
        assert (results["answers"] == single["answers"]).all() and results["silent"] == single["silent"]
    expected = HEADS["generation"].from_pretrained(tmp_path).state_dict()
    assert max(float((saved[name] - expected[name]).abs().max()) for name in expected) < 1e-4


@pytest.mark.slow
def test_resumed_from_shards_is_uninterrupted_and_the_end_is_saved_whole(tmp_path):
    for whole_run, resumed in together(2, by_accelerate_s_trainer, tmp_path, folder=tmp_path / "meet"):
        assert whole_run == resumed and len(whole_run[0]) == 4
        assert whole_run[1:] == (True, "SHARDED_STATE_DICT")
    saved = sorted(path.name for path in (tmp_path / "whole run" / "checkpoint-2").iterdir())
    assert {"pytorch_model_fsdp_0", "optimizer_0", "rng_state_0.pth", "rng_state_1.pth"} <= set(saved)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole run", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def declared(kind, vision="vit"):
    """A model with every optional part over a backbone."""
    return mm_model(kind, vision, head=MMModel, num_latents=2, resampler_layers=1)


@pytest.mark.parametrize("kind", ALL_TEXT)
def test_every_text_backbone_s_layers_are_blocks(kind):
    model = declared(kind)
    assert {type(layer).__name__ for layer in text_layers(model.text_model)} <= model._no_split_modules
    assert {"MMFusionLayer", "MMResamplerLayer", "ViTLayer"} <= model._no_split_modules
    assert_real_blocks(model)


@pytest.mark.parametrize("kind", VISION)
def test_every_vision_tower_has_blocks(kind):
    model = declared("llama", kind)
    in_tower = {type(module).__name__ for module in model.vision_tower.modules()}
    assert in_tower & model._no_split_modules
    assert_real_blocks(model)


def assert_real_blocks(model):
    """Check the requirements of accelerate and FSDP on blocks and weights."""
    assert model._no_split_modules <= {type(module).__name__ for module in model.modules()}
    embeddings = model.get_input_embeddings()
    for module in model.modules():
        assert type(module).__name__ not in model._no_split_modules or embeddings not in module.modules()
    assert all(parameter.dim() for parameter in model.parameters())  # FSDP shards no scalars


def test_placeholder_clips_are_as_short_as_the_processor_s():
    processor = hearing_processor()
    processor.max_seconds = 0.2
    assert placeholder_media(processor)["audio"]["input_features"].shape[0] == 1
