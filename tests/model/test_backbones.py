# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Backbones that fusion cannot enter, or with an unsupported head or cache, are refused; others: test_matrix.py."""

import pytest
import torch
from helpers.builders import (
    COMMON,
    IMAGE_ID,
    TRANSFORMER,
    causal_model,
    open_gates,
    pictures,
    text_config,
    token_row,
    vision_config,
    vision_model,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modeling_mm import MMConfig, MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.training import scratch


@pytest.mark.parametrize("kind,groups", [("albert", 1), ("xlm", None)])
def test_a_backbone_without_one_list_of_layers_is_refused(kind, groups):
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    fields = {**sizes, **({"intermediate_size": 48, "num_hidden_groups": groups} if groups else {})}
    with pytest.raises(ValueError, match="lists of its 3 layers, where fusion needs one to enter"):
        MMModel(MMConfig(vision_config=vision_config(), text_config=AutoConfig.for_model(kind, **fields)))


def test_albert_with_a_layer_of_its_own_at_each_depth_gets_images():
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = AutoModel.from_config(AutoConfig.for_model("albert", intermediate_size=48, num_hidden_groups=3, **sizes))
    ids = token_row(9, [2])[None]
    expected = text.eval()(ids)[0]
    model = MMModel.from_towers(vision=vision_config(), text=text, image_token_id=IMAGE_ID).eval()
    assert torch.equal(model(ids, **pictures(1))[0], expected)
    assert not torch.equal(open_gates(model)(ids, **pictures(1))[0], expected)


@pytest.mark.parametrize("text", ["canine", "xlnet"])
def test_a_backbone_whose_layers_see_no_token_each_is_refused_when_composed(text):
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    xlnet_sizes = {"vocab_size": 99, "d_model": 32, "n_layer": 3, "n_head": 4, "d_head": 8, "d_inner": 48}
    config = AutoConfig.for_model(text, **(xlnet_sizes if text == "xlnet" else {**sizes, "intermediate_size": 48}))
    with pytest.raises(ValueError, match="gives its layers states of shape .* where fusion expects one for each"):
        MMModel.from_towers(vision=vision_config(), text=config)


def test_a_decoder_that_keeps_its_past_elsewhere_cannot_generate_but_sees():
    text = AutoConfig.for_model("mamba", vocab_size=99, hidden_size=32, num_hidden_layers=3, state_size=4)
    fields = {"vision": vision_config(), "image_token_id": IMAGE_ID, "initializer_range": 0.2}
    with pytest.raises(ValueError, match="'mamba' takes no `past_key_values`, which generation needs"):
        MMForConditionalGeneration.from_towers(text=text, **fields)
    model = open_gates(MMForSequenceClassification.from_towers(text=text, **fields)).eval()
    ids = token_row(9)[None]
    assert not torch.equal(model(ids, **pictures(1)).logits, model(ids).logits)


@pytest.mark.parametrize("vision", ["pixtral", "sam_vision_model"])
def test_a_tower_that_gives_other_states_than_one_set_for_each_image_is_refused(vision):
    config = AutoConfig.for_model(vision, **TRANSFORMER)
    model = MMModel.from_towers(vision=config, text=text_config("bert"))
    with pytest.raises(ValueError, match=rf"'{vision}' returns states of shape .* for 2 images, where fusion expects"):
        model(token_row(5)[None].expand(2, -1), **pictures(2))


def test_a_head_that_is_more_than_one_layer_is_refused_or_kept():
    fields = {"cls_token_id": 1, "sep_token_id": 1}
    text = AutoModelForCausalLM.from_config(AutoConfig.for_model("modernbert-decoder", **COMMON, **fields)).eval()
    ids = token_row(9)[None]
    expected = text(ids).logits
    try:
        model = MMForConditionalGeneration.from_towers(vision=vision_config(), text=text, image_token_id=IMAGE_ID)
    except ValueError as error:
        assert "modernbert-decoder" in str(error)
    else:
        assert torch.equal(model.eval()(ids, **pictures(1)).logits, expected)


def test_a_decoder_without_a_head_is_refused():
    text = AutoModel.from_config(text_config("gpt2"))
    with pytest.raises(ValueError, match="GPT2Model has no language modelling head"):
        MMForConditionalGeneration.from_towers(vision=vision_config(), text=text, image_token_id=IMAGE_ID)


def test_a_head_that_does_more_than_ours_is_refused():
    whole = causal_model("llama")
    forward = whole.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    whole.forward = scaled
    with pytest.raises(ValueError, match="transforms its logits"):
        MMForConditionalGeneration.from_towers(vision=vision_model(), text=whole)


def test_proposals_to_a_recurrent_backbone_are_refused_as_the_library_does():
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 99, "head_dim": 16}
    linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    linear |= {"linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1}
    more = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    text = AutoConfig.for_model("qwen3_next", num_hidden_layers=4, intermediate_size=32, **sizes, **linear, **more)
    model = MMForConditionalGeneration.from_towers(vision=vision_model(), text=text).eval()
    with pytest.raises(ValueError, match="stateful"):
        model.generate(torch.randint(5, 90, (1, 6)), prompt_lookup_num_tokens=2, max_new_tokens=3)


def test_a_scratch_backbone_has_the_layers_asked_for(tokenizer):
    for decoder, layers in ((False, 3), (True, 2)):
        deep = scratch.text_config("scratch-tiny", tokenizer, decoder, layers=5)
        assert (deep.num_hidden_layers, deep.hidden_size) == (5, 96)
        assert scratch.text_config("scratch-tiny", tokenizer, decoder).num_hidden_layers == layers
