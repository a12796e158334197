# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Laws 1 and 6 for backbones of other families; none is silently left without images or with another head."""

import pytest
import torch
from conftest import (
    COMMON,
    IMAGE_ID,
    OTHER_DECODERS,
    OTHER_ENCODERS,
    causal_model,
    open_gates,
    pictures,
    text_config,
    token_row,
    vision_config,
    vision_model,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modeling_mm import MMForConditionalGeneration, MMModel


@torch.no_grad()
@pytest.mark.parametrize("text", [*OTHER_DECODERS, *OTHER_ENCODERS])
def test_a_backbone_is_kept_gets_images_and_comes_back(text, tmp_path):
    decoder = text in OTHER_DECODERS
    head = MMForConditionalGeneration if decoder else MMModel
    backbone = causal_model(text) if decoder else AutoModel.from_config(text_config(text)).eval()
    if getattr(backbone, "lm_head", None) is not None and backbone.lm_head.bias is not None:
        backbone.lm_head.bias.normal_()
    ids, images = token_row(9, [2])[None], pictures(1)
    expected = backbone(ids)[0]
    model = head.from_towers(vision=vision_config(), text=backbone, image_token_id=IMAGE_ID, fusion_layers=[0, 2])
    assert torch.equal(model.eval()(ids, **images)[0], expected)
    with_images = open_gates(model)(ids, **images)[0]
    assert (with_images - expected).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    assert torch.equal(head.from_pretrained(tmp_path).eval()(ids, **images)[0], with_images)


def test_a_backbone_that_swallows_our_argument_is_refused():
    text = AutoModel.from_config(AutoConfig.for_model("megatron-bert", **COMMON))
    with pytest.raises(ValueError, match="megatron-bert"):
        model = MMModel.from_towers(vision=vision_config(), text=text, image_token_id=IMAGE_ID)
        model(token_row(9, [2])[None], **pictures(1))


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


@pytest.mark.parametrize("kind", ["falcon", "gptj", "gpt_neo"])
def test_a_backbone_that_swallows_the_call_is_refused_when_composed(kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99}
    extra = {"rotary_dim": 8} if kind == "gptj" else {}
    extra = {"attention_types": [[["global"], 2]]} if kind == "gpt_neo" else extra
    text = AutoConfig.for_model(kind, **sizes, **extra)
    with pytest.raises(ValueError, match="does not pass keyword arguments down"):
        MMForConditionalGeneration.from_towers(vision=vision_model(), text=text)


def test_a_head_that_does_more_than_ours_is_refused():
    whole = causal_model("llama")
    forward = whole.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    whole.forward = scaled
    with pytest.raises(ValueError, match="does more to its logits"):
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
