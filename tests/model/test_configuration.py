# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A config is complete, survives saving and loading, and refuses models that cannot be built."""

import json

import pytest
from helpers.builders import DECODERS, ENCODERS, VISION, mm_config, text_config, vision_config
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from modeling_mm import MMConfig, MMForConditionalGeneration
from modeling_mm.model.configuration_mm import AUTO_MAP, tower_width

FOLDER = {"_name_or_path": "", "transformers_version": ""}  # the path that a config was loaded from is not compared
# The error that `@strict` raises for a ValueError in a validator; its message ends in the original one.
REFUSED = (ValueError, StrictDataclassError)


@pytest.mark.parametrize("text", [*DECODERS, *ENCODERS])
@pytest.mark.parametrize("vision", ["clip_vision_model", "resnet"])
def test_a_config_comes_back_as_it_was(text, vision, tmp_path):
    config = mm_config(text, vision, num_latents=4, fusion_mlp=False, id2label={0: "a", 1: "b", 2: "c"})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MMConfig
    assert type(loaded.text_config) is type(config.text_config)
    assert type(loaded.vision_config) is type(config.vision_config)
    assert loaded.to_diff_dict() | FOLDER == config.to_diff_dict() | FOLDER
    assert loaded.to_dict() | FOLDER == config.to_dict() | FOLDER
    assert MMConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert loaded.num_labels == 3


def test_a_saved_config_names_every_field(tmp_path):
    mm_config().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    resolved = {
        "fusion_layers": [0, 2],
        "fusion_num_attention_heads": 4,
        "fusion_num_key_value_heads": 2,
        "fusion_head_dim": 8,
        "fusion_intermediate_size": 128,
        "pooling": "last",
        "auto_map": AUTO_MAP,
    }
    assert {name: saved[name] for name in resolved} == resolved


@pytest.mark.parametrize(
    "text,heads,key_value_heads,head_dim,pooling,tied",
    [
        ("llama", 4, 2, 8, "last", False),
        ("gpt2", 4, 4, 8, "last", True),
        ("qwen3", 4, 2, 16, "last", False),
        ("gemma2", 4, 2, 8, "last", True),
        ("bert", 4, 4, 8, "first", True),
        ("distilbert", 4, 4, 8, "first", True),
    ],
)
def test_defaults_follow_the_backbone(text, heads, key_value_heads, head_dim, pooling, tied):
    config = MMConfig(text_config=text_config(text), vision_config=vision_config())
    defaults = (config.fusion_num_attention_heads, config.fusion_num_key_value_heads, config.fusion_head_dim)
    assert defaults == (heads, key_value_heads, head_dim)
    assert config.pooling == pooling and config.tie_word_embeddings is tied
    assert config.fusion_intermediate_size == 4 * 32
    assert not config.fusion_mlp and config.num_latents is None and config.image_token_id is None


@pytest.mark.parametrize("layers,fused", [(2, [1]), (4, [3]), (5, [0, 4]), (12, [3, 7, 11])])
def test_the_last_and_every_fourth_layer_before_it_are_fused(layers, fused):
    assert MMConfig(text_config=text_config(num_hidden_layers=layers)).fusion_layers == fused


def test_other_query_heads_keep_the_width():
    config = mm_config(fusion_num_attention_heads=8, fusion_num_key_value_heads=None)
    assert (config.fusion_head_dim, config.fusion_num_key_value_heads) == (4, 2)
    assert mm_config(fusion_num_attention_heads=1).fusion_num_key_value_heads == 1


def test_without_towers_a_config_is_clip_and_llama():
    config = MMConfig()
    assert type(config.vision_config) is CLIPVisionConfig and type(config.text_config) is LlamaConfig
    assert config.audio_config is None


def test_towers_may_be_given_as_dicts():
    as_dicts = mm_config().to_dict()
    config = MMConfig(text_config=as_dicts["text_config"], vision_config=as_dicts["vision_config"])
    assert config.text_config.hidden_size == 32 and config.vision_config.hidden_size == 24


def test_the_auto_map_is_whole_whoever_saved_it():
    config = MMConfig.from_dict({**mm_config().to_dict(), "auto_map": {"AutoConfig": "configuration_mm.MMConfig"}})
    assert config.auto_map == AUTO_MAP


def test_decoders_and_encoders_are_told_apart():
    assert all(mm_config(text).is_text_decoder for text in DECODERS)
    assert not any(mm_config(text).is_text_decoder for text in ENCODERS)
    causal = text_config("bert", is_decoder=True)
    assert MMConfig(text_config=causal).is_text_decoder


@pytest.mark.parametrize("vision", VISION)
def test_every_tower_tells_its_width(vision):
    assert tower_width(vision_config(vision)) == (16 if vision in ("swin", "resnet", "convnext") else 24)


def test_a_backbone_without_attention_heads_gets_some():
    config = MMConfig(text_config=AutoConfig.for_model("mamba", hidden_size=256))
    assert (config.fusion_num_attention_heads, config.fusion_num_key_value_heads, config.fusion_head_dim) == (4, 4, 64)
    assert MMConfig(text_config=AutoConfig.for_model("mamba", hidden_size=32)).fusion_num_attention_heads == 1


@pytest.mark.parametrize(
    "vision,fields,width",
    [
        ("mobilevit", {"hidden_sizes": [8, 16], "neck_hidden_sizes": [4, 8, 24]}, 24),
        ("swiftformer", {"embed_dims": [8, 16]}, 16),
        ("efficientnet", {"hidden_dim": 40}, 40),
        ("dpt", {"hidden_size": 24, "neck_hidden_sizes": [8, 16]}, 24),
    ],
)
def test_widths_are_told_in_many_ways(vision, fields, width):
    assert tower_width(AutoConfig.for_model(vision, **fields)) == width


def test_a_tower_without_a_width_is_refused():
    with pytest.raises(ValueError, match="'timm_wrapper' holds its width in none of hidden_size, neck_hidden_sizes"):
        tower_width(AutoConfig.for_model("timm_wrapper"))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_is_refused(kind):
    with pytest.raises(REFUSED, match=f"the text backbone '{kind}' is an encoder-decoder; use an encoder"):
        MMConfig(text_config=AutoConfig.for_model(kind))


@pytest.mark.parametrize("layers", [[], [3], [-1], [0, 0]], ids=str)
def test_layers_that_the_backbone_lacks_are_refused(layers):
    with pytest.raises(REFUSED, match="must name one or more different layers between 0 and 2"):
        mm_config(fusion_layers=layers)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(REFUSED, match=r"`fusion_num_attention_heads` \(4\) must be a multiple of .* \(3\)"):
        mm_config(fusion_num_key_value_heads=3)


@pytest.mark.parametrize("fields", [{"fusion_mlp": "yes"}, {"fusion_layers": "all"}, {"pooling": "median"}])
def test_a_field_of_the_wrong_type_is_refused(fields):
    with pytest.raises(StrictDataclassError, match=next(iter(fields))):
        mm_config(**fields)


@pytest.mark.parametrize("text", ENCODERS)
def test_an_encoder_cannot_generate(text):
    with pytest.raises(REFUSED, match=f"the text backbone '{text}' is an encoder and cannot generate"):
        MMForConditionalGeneration(mm_config(text))
