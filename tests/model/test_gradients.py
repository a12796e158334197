# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Trained parameters get gradients and frozen ones none: law 7; with checkpointing, LoRA and after merging."""

import re

import pytest
import torch
from helpers.builders import (
    DECODERS,
    REENTRANT,
    VISION,
    mixed_rows,
    mm_config,
    mm_model,
    open_gates,
    padded,
    pictures,
    text_inputs,
)
from peft import LoraConfig, PeftModel, get_peft_model

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification
from modeling_mm.model.fusion_mm import text_layers

# Parts of towers that do not reach the states for fusion and heads: poolers, norms of pooled states, mask tokens.
UNUSED = {
    "clip_vision_model": r"vision_tower\.post_layernorm\.",
    "siglip_vision_model": r"vision_tower\.head\.",
    "siglip2_vision_model": r"vision_tower\.head\.",
    "vit": r"vision_tower\.pooler\.",
    "dinov2": r"vision_tower\.embeddings\.mask_token$",
    "convnext": r"vision_tower\.layernorm\.",
    "bert": r"text_model\.pooler\.",
}
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
TEXT_LORA = {"r": 4, "target_modules": r".*text_model.*\.(q_proj|v_proj)", "modules_to_save": ["fusion"]}


def training_inputs(model):
    """A mixed batch with labels for the model's head."""
    rows, image_index = mixed_rows()
    kind, vision = model.config.text_config.model_type, model.config.vision_config.model_type
    batch = text_inputs(padded(rows), kind)
    if isinstance(model, MMForSequenceClassification):
        labels = torch.tensor([0, 1, 1, 0])
    else:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, **pictures(2, vision), "image_index": image_index, "labels": labels}


def gradients(model, inputs):
    """Gradients by parameter name after one backward pass, including None."""
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def unused(model):
    """Names of the parameters of the towers that the model does not use."""
    kinds = (model.config.vision_config.model_type, model.config.text_config.model_type)
    patterns = [UNUSED[kind] for kind in kinds if kind in UNUSED]
    return {name for name, _ in model.named_parameters() if any(re.search(pattern, name) for pattern in patterns)}


def assert_all_learn(model, inputs):
    """Assert that each trainable parameter has a gradient in step one, and a nonzero one in one of two AdamW steps."""
    left_out = unused(model)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad and n not in left_out}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    first = gradients(model, inputs)
    assert [name for name in trainable if first[name] is None] == []
    optimizer.step()
    second = gradients(model, inputs)
    assert [name for name in trainable if not (first[name].any() or second[name].any())] == []
    assert all(second[name] is None for name, p in model.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    "text,vision", [*((text, "clip_vision_model") for text in DECODERS), *(("llama", vision) for vision in VISION)]
)
def test_every_parameter_of_a_generating_model_learns(text, vision):
    model = MMForConditionalGeneration(mm_config(text, vision)).train()
    inputs = training_inputs(model)
    gates = [name for name, _ in model.named_parameters() if name.endswith("_gate")]
    first = gradients(model, inputs)
    assert all(first[name].any() for name in gates)
    assert not first["model.fusion.kv_proj.weight"].any()  # in step one, layers behind closed gates get none
    assert_all_learn(model, inputs)


@pytest.mark.parametrize("text", ["bert", "modernbert", "distilbert", "llama"])
def test_every_parameter_of_a_classifier_learns(text):
    model = MMForSequenceClassification(mm_config(text, pooling="mean", num_latents=2)).train()
    assert_all_learn(model, training_inputs(model))


@pytest.mark.parametrize("vision", VISION)
def test_only_known_parts_of_towers_are_unused(vision):
    model = MMForConditionalGeneration(mm_config("llama", vision)).train()
    found = gradients(model, training_inputs(model))
    assert {name for name, gradient in found.items() if gradient is None} == unused(model)


def test_a_frozen_part_gets_no_gradient_and_a_frozen_tower_no_graph():
    model = MMForConditionalGeneration(mm_config())
    model.model.vision_tower.requires_grad_(False)
    model.model.text_model.requires_grad_(False)
    inputs = training_inputs(model.train())
    graphs = []
    model.model.vision_tower.register_forward_hook(lambda _, __, out: graphs.append(out[0].requires_grad))
    assert_all_learn(model, inputs)
    assert graphs == [False, False]


def test_a_batch_without_images_leaves_fusion_alone():
    model = mm_model().train()
    inputs = training_inputs(model)
    del inputs["pixel_values"], inputs["image_index"]
    found = gradients(model, inputs)
    assert all(value is None for name, value in found.items() if ".fusion." in name or ".vision_tower." in name)
    assert found["model.text_model.embed_tokens.weight"].any()


def test_rows_without_images_give_finite_gradients():
    model = mm_model().train()
    inputs = training_inputs(model)
    inputs["image_index"] = torch.full_like(inputs["image_index"], -1)
    found = gradients(model, inputs)
    assert all(value.isfinite().all() for value in found.values() if value is not None)
    assert not any(found[name].any() for name in found if ".fusion." in name)


@pytest.mark.parametrize("text", ["llama", "gpt2", "qwen3", "gemma2"])
@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=REENTRANT)])
def test_gradient_checkpointing_changes_no_gradient(text, reentrant):
    model = mm_model(text).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs = training_inputs(model)
    calls = []
    layer = text_layers(model.model.text_model)[0]
    next(layer.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    expected = gradients(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_equal_gradients(gradients(model, inputs), expected)
    assert len(calls) == 1 + 2  # the second backward pass computed the layer again


def assert_equal_gradients(found, expected):
    assert [name for name in expected if (found[name] is None) != (expected[name] is None)] == []
    for name, value in expected.items():
        if value is not None:
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def lora_model(checkpointing=False):
    """A model with LoRA on the text backbone, a fully trained fusion and a frozen vision tower."""
    torch.manual_seed(1)
    model = mm_model(gate=0.0)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    return get_peft_model(model, LoraConfig(**TEXT_LORA)).train()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_and_fusion_learn_and_nothing_else(checkpointing):
    model = lora_model(checkpointing)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "fusion.modules_to_save" in name for name in trainable)
    assert sum("lora_B" in name for name in trainable) == 2 * 3  # two projections of three text layers
    fusion = model.base_model.model.model.fusion.modules_to_save["default"]
    assert sum("fusion" in name for name in trainable) == len(list(fusion.parameters()))
    assert_all_learn(model, training_inputs(model.base_model.model))


def test_checkpointing_changes_no_gradient_under_lora():
    plain, checkpointed = lora_model(), lora_model(checkpointing=True)
    for model in (plain, checkpointed):
        open_gates(model, 0.5)
    inputs = training_inputs(plain.base_model.model)
    assert_equal_gradients(gradients(checkpointed, inputs), gradients(plain, inputs))


@pytest.fixture
def adapted():
    """A LoRA model after a few steps, in evaluation mode; its base weights before them; and inputs."""
    model = lora_model()
    base = {name: value.clone() for name, value in mm_base_state(model).items()}
    inputs = training_inputs(model.base_model.model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(3):
        gradients(model, inputs)
        optimizer.step()
    inputs.pop("labels")
    return model.eval(), base, inputs


def mm_base_state(model):
    """The state dict of the model under the adapter, with its original names."""
    with model.disable_adapter():
        state = model.base_model.model.state_dict()
    renamed = {name.replace(".base_layer", "").replace(".original_module", ""): v for name, v in state.items()}
    return {name: v for name, v in renamed.items() if "lora_" not in name and "modules_to_save" not in name}


def fresh_base(base):
    """A new model with the base weights."""
    model = mm_model(gate=0.0)
    model.load_state_dict(base)
    return model


@torch.no_grad()
def test_a_saved_adapter_gives_the_same_logits(adapted, tmp_path):
    model, base, inputs = adapted
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    untouched = fresh_base(base)
    assert (untouched(**inputs).logits - expected).abs().max() > 1e-2
    loaded = PeftModel.from_pretrained(untouched, tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, expected)
    names = [path.name for path in tmp_path.iterdir()]
    assert "adapter_model.safetensors" in names and not any(name.endswith((".bin", ".pt")) for name in names)


@torch.no_grad()
def test_a_merged_adapter_gives_the_same_logits_and_saves_as_a_plain_model(adapted, tmp_path):
    model, base, inputs = adapted
    expected = model(**inputs).logits
    merged = model.merge_and_unload()
    assert type(merged) is MMForConditionalGeneration
    torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert set(merged.state_dict()) == set(base)
    merged.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**inputs).logits, merged(**inputs).logits)


@torch.no_grad()
def test_an_adapted_model_generates_with_what_it_learned(adapted):
    model, _, inputs = adapted
    ids, media = inputs["input_ids"][2:3], {"pixel_values": inputs["pixel_values"][None]}
    generated = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, **media)
    merged = model.merge_and_unload()
    assert torch.equal(merged.generate(ids, max_new_tokens=4, do_sample=False, **media), generated)
