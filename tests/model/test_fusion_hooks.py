# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The fusion context reaches the layers of backbones that pass no keyword arguments down to them."""

import threading
from functools import partial

import pytest
import torch
from helpers.builders import IMAGE_ID, open_gates, padded, pictures, text_config, token_row, vision_config
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_mm import MMForConditionalGeneration, MMModel
from modeling_mm.model.fusion_mm import CURRENT_CONTEXT, text_layers

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
CONTEXT_ONLY = ["bloom", "deberta-v2"]


def backbone(kind="bloom"):
    """A text backbone without dropout; of the kinds here, only Llama passes keyword arguments to its layers."""
    config = AutoConfig.for_model(kind, **SIZES) if kind != "llama" else text_config(kind)
    model = (AutoModelForCausalLM if kind in ("bloom", "llama") else AutoModel).from_config(config).eval()
    for module in model.modules():
        if hasattr(module, "p") or "Dropout" in type(module).__name__:
            module.p = module.drop_prob = 0.0
    return model


def seeing(text, head=MMModel, **fields):
    """A model over the backbone with open gates."""
    fields = {"image_token_id": IMAGE_ID, "fusion_layers": [0, 2], "initializer_range": 0.2, **fields}
    return open_gates(head.from_towers(vision=vision_config(), text=text, **fields).eval())


def inputs(rows=2):
    return {**padded([token_row(7, [1]) for _ in range(rows)]), **pictures(rows)}


def states(model, **batch):
    with torch.no_grad():
        return model(**batch)[0]


def gradients(model, batch):
    model.zero_grad()
    model(**batch)[0].square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Strict(nn.Module):
    """A backbone whose forward takes no keyword arguments other than its own."""

    def __init__(self, text):
        super().__init__()
        self.text, self.config, self.dtype = text, text.config, text.dtype

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, return_dict=None):
        return self.text(input_ids=input_ids, attention_mask=attention_mask, return_dict=return_dict)


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_a_backbone_that_knows_its_own_arguments_only_is_given_no_other(kind):
    text, batch = backbone(kind).base_model, inputs()
    reference = seeing(text)
    model = MMModel(reference.config, vision_tower=reference.vision_tower, text_model=Strict(text)).eval()
    model.fusion = reference.fusion
    batch["position_ids"] = None
    assert torch.equal(states(model, **batch), states(reference, **batch))


@pytest.mark.parametrize("kind", CONTEXT_ONLY)
def test_nothing_of_a_call_is_left_behind(kind):
    model, batch = seeing(backbone(kind)), inputs()
    text_only = {name: batch[name] for name in ("input_ids", "attention_mask")}
    plain = states(model.text_model, **text_only)
    states(model, **batch)
    assert CURRENT_CONTEXT.get() is None
    assert torch.equal(states(model.text_model, **text_only), plain)
    with pytest.raises(IndexError):
        model(**{**batch, "input_ids": batch["input_ids"] + 1000})
    assert CURRENT_CONTEXT.get() is None


@pytest.mark.parametrize("kind", CONTEXT_ONLY)
@pytest.mark.parametrize("inner", ["another model", "the same backbone without images", "another backbone"])
def test_a_pass_within_a_pass_sees_nothing_of_the_outer(kind, inner):
    text, batch, other = backbone(kind), inputs(), inputs()
    outer, beside = seeing(text), seeing(text, fusion_layers=[0, 1])
    text_only = {name: other[name] for name in ("input_ids", "attention_mask")}
    run = {
        "another model": lambda: states(beside, **other),
        "the same backbone without images": lambda: states(beside, **text_only),
        "another backbone": lambda: states(foreign.text_model, **text_only),
    }[inner]
    foreign = seeing(backbone(kind))
    alone, expected, found = run(), states(outer, **batch), []

    def nested(*_):
        if not found:
            found.append(None)
            found[0] = run()

    text_layers(outer.text_model)[1].register_forward_hook(nested)
    assert torch.equal(states(outer, **batch), expected)
    assert torch.equal(found[0], alone)


def test_two_threads_see_their_own_pictures():
    model, batches = seeing(backbone()), [inputs(1) for _ in range(4)]
    expected, found, together = [states(model, **batch) for batch in batches], {}, threading.Barrier(4)
    text_layers(model.text_model)[0].register_forward_hook(lambda *_: (together.wait(30), None)[1])

    def run(index):
        found[index] = states(model, **batches[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert all(torch.equal(found[index], value) for index, value in enumerate(expected))


def test_a_draft_over_the_same_backbone_generates_the_same():
    text = backbone()
    model, draft = (seeing(text, MMForConditionalGeneration, fusion_layers=layers) for layers in ([0, 2], [1]))
    row = {"input_ids": token_row(8, [1])[None], **pictures(1)}
    options = {"max_new_tokens": 8, "do_sample": False}
    plain = model.generate(**row, **options)
    assert torch.equal(model.generate(**row, **options, assistant_model=draft), plain)
    assert torch.equal(model.generate(**row, **options, prompt_lookup_num_tokens=2), plain)


@pytest.fixture
def layers_checkpointed_with_their_hooks(monkeypatch):
    """Checkpointing of transformers before 5.23, which recomputes a layer with its hooks, not only its `forward`."""

    def call(self, *args, **kwargs):
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(partial(nn.Module.__call__, self, **kwargs), *args)
        return nn.Module.__call__(self, *args, **kwargs)

    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", call)


@pytest.mark.parametrize("kind", CONTEXT_ONLY)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient_or_is_refused(kind, reentrant):
    model, batch = seeing(backbone(kind)).train(), inputs()
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if GradientCheckpointingLayer.__call__ is not nn.Module.__call__:
        with pytest.raises(ValueError, match="cannot be trained with gradient checkpointing"):
            gradients(model, batch)
        return
    found = gradients(model, batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", CONTEXT_ONLY)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_layers_with_their_hooks_is_refused(kind, reentrant, layers_checkpointed_with_their_hooks):
    model, batch = seeing(backbone(kind)).train(), inputs()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    with pytest.raises(ValueError, match="cannot be trained with gradient checkpointing in this version"):
        gradients(model, batch)
    states(model.eval(), **batch)  # no recomputation, so no error


def test_checkpointing_of_layers_with_their_hooks_keeps_a_keyword(layers_checkpointed_with_their_hooks):
    model, batch = seeing(backbone("llama")).train(), inputs()
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = gradients(model, batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("part", [pytest.param("model", marks=pytest.mark.slow), "text_model", "layers"])
def test_a_compiled_backbone_that_no_keyword_reaches_is_refused(part):
    model, batch = seeing(backbone()), inputs()
    torch._dynamo.reset()
    if part == "layers":
        [layer.compile(backend="eager") for layer in text_layers(model.text_model)]
    else:
        (model if part == "model" else model.text_model).compile(backend="eager")
    with pytest.raises(ValueError, match="fusion entered the text backbone 'bloom' at 0 of 2 layers"):
        model(**batch)
    torch._dynamo.reset()


def test_an_export_that_no_keyword_reaches_is_refused():
    model, batch = seeing(backbone()), inputs(1)
    media = model.cross_attention_inputs(batch["input_ids"], pixel_values=batch["pixel_values"])
    media = {"media_key_values": media[0], "media_start": media[1]}
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="to be compiled or exported, pass keyword arguments down"):
        torch.export.export(model, (), kwargs={**text, **media, "use_cache": False}, strict=False)


def test_layers_that_were_left_out_on_purpose_are_no_error():
    fields = {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "layerdrop": 0.999}
    model = seeing(AutoModel.from_config(AutoConfig.for_model("opt", **fields)))
    states(model.train(), **inputs())
