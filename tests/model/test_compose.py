# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A model can be composed from folders, configs and loaded models, and holds exactly the weights of its towers."""

import math

import pytest
import torch
from helpers.builders import (
    DECODERS,
    ENCODERS,
    IMAGE_ID,
    TRANSFORMER,
    VISION,
    causal_model,
    mm_model,
    open_gates,
    pictures,
    text_config,
    token_row,
    vision_config,
    vision_model,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GenerationConfig,
    SiglipConfig,
    SiglipModel,
)

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel, MMProcessor
from modeling_mm.model.towers_mm import half_config, load_text_model, load_vision_tower

TEXT_HALF = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def compose(head=MMForConditionalGeneration, vision=None, text=None, **fields):
    """A model of tiny towers in evaluation mode; towers that are not passed are built from their configs."""
    vision = vision_config() if vision is None else vision
    text = text_config() if text is None else text
    return head.from_towers(vision=vision, text=text, **{"image_token_id": IMAGE_ID, **fields}).eval()


def same_weights(left, right):
    """True if two modules hold the same weights under the same names."""
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@torch.no_grad()
def logits(model, seed=3, **inputs):
    torch.manual_seed(seed)
    return model.eval()(input_ids=token_row(9, [2])[None], **inputs)[0]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def two_towers(request, tmp_path_factory):
    """A CLIP-like model with random weights, saved and loaded."""
    torch.manual_seed(0)
    if request.param == "clip":
        model = CLIPModel(CLIPConfig(text_config=TEXT_HALF, vision_config=TRANSFORMER, projection_dim=16))
    else:
        model = SiglipModel(SiglipConfig(text_config=TEXT_HALF, vision_config=TRANSFORMER))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    return str(folder), model.eval()


def test_the_vision_half_of_a_folder_is_taken(two_towers, tokenizer):
    folder, whole = two_towers
    model = compose(vision=folder)
    assert same_weights(model.model.vision_tower, whole.vision_model)
    assert model.config.vision_config.model_type == whole.config.vision_config.model_type
    images = pictures(1)
    assert torch.equal(
        model.model.get_image_features(**images).pooler_output, whole.vision_model(**images).last_hidden_state
    )
    processor = MMProcessor.from_towers(vision=folder, text=tokenizer)
    assert processor.image_processor.size == {"height": 16, "width": 16}


def test_the_vision_half_of_a_loaded_model_or_a_config_is_taken(two_towers):
    _, whole = two_towers
    assert compose(vision=whole).model.vision_tower is whole.vision_model
    assert type(compose(vision=whole.config).model.vision_tower) is type(whole.vision_model)


@pytest.mark.parametrize("two_towers", ["clip"], indirect=True)
def test_the_text_half_of_clip_is_a_backbone_too(two_towers):
    folder, whole = two_towers
    assert half_config(folder, "text_config").model_type == whole.config.text_config.model_type
    loaded, head, _ = load_text_model(folder, generates=False)
    assert head is None and same_weights(loaded, whole.text_model)
    model = compose(head=MMModel, text=whole)
    assert model.text_model is whole.text_model
    expected = logits(whole.text_model)
    assert torch.equal(logits(model, **pictures(1)), expected)
    assert not torch.equal(logits(open_gates(model), **pictures(1)), expected)


@pytest.mark.parametrize("vision", VISION)
def test_a_vision_tower_comes_from_a_folder_a_config_or_a_model(vision, tmp_path):
    tower = vision_model(vision)
    tower.save_pretrained(tmp_path)
    assert same_weights(load_vision_tower(str(tmp_path)), tower)
    assert load_vision_tower(tower) is tower
    assert type(load_vision_tower(vision_config(vision))) is type(tower)


@pytest.mark.parametrize("text", DECODERS)
def test_a_decoder_comes_from_a_folder_a_config_or_a_model(text, tmp_path, tokenizer_folder):
    backbone = causal_model(text)
    backbone.save_pretrained(tmp_path)
    loaded, head, whole = load_text_model(str(tmp_path), generates=True)
    assert same_weights(loaded, backbone.base_model)
    assert torch.equal(head.weight, backbone.lm_head.weight)
    assert same_weights(whole, backbone)
    model = compose(text=backbone)
    assert model.model.text_model is backbone.base_model and model.lm_head is backbone.lm_head
    assert type(compose(text=text_config(text)).model.text_model) is type(backbone.base_model)


@pytest.mark.parametrize("text", ENCODERS)
def test_an_encoder_comes_from_the_folder_of_a_model_with_a_head(text, tmp_path):
    whole = AutoModelForMaskedLM.from_config(text_config(text)).eval()
    whole.save_pretrained(tmp_path)
    loaded, head, _ = load_text_model(str(tmp_path), generates=False)
    assert head is None
    assert torch.equal(logits(loaded), logits(whole.base_model))
    model = compose(head=MMModel, text=whole)
    assert torch.equal(logits(model, **pictures(1)), logits(loaded))


def test_folders_compose_into_a_model_that_saves_and_loads(tmp_path, processor):
    vision, text = vision_model(), causal_model("gpt2", vocab_size=len(processor.tokenizer))
    vision.save_pretrained(tmp_path / "vision")
    text.save_pretrained(tmp_path / "text")
    processor.tokenizer.save_pretrained(tmp_path / "text")
    model = compose(vision=str(tmp_path / "vision"), text=str(tmp_path / "text"), image_token_id=None)
    assert same_weights(model.model.vision_tower, vision) and same_weights(model.model.text_model, text.base_model)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "model")
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert same_weights(loaded, model)
    images = pictures(1)
    assert torch.equal(logits(loaded, **images), logits(model, **images))
    assert torch.equal(logits(loaded, **images), logits(text))


def test_the_marker_comes_from_the_processor(processor):
    text = causal_model("llama", vocab_size=50)
    model = MMForConditionalGeneration.from_towers(vision=vision_config(), text=text, processor=processor)
    assert model.config.image_token_id == processor.image_token_id
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    assert model.lm_head.out_features == len(processor.tokenizer)


def test_how_the_backbone_generates_is_kept():
    text = causal_model()
    text.generation_config = GenerationConfig(eos_token_id=[7, 8], pad_token_id=0, repetition_penalty=1.3)
    settings = compose(text=text).generation_config
    assert (settings.eos_token_id, settings.pad_token_id, settings.repetition_penalty) == ([7, 8], 0, 1.3)


def test_the_whole_model_takes_the_dtype_of_the_backbone_or_the_one_asked_for():
    kinds = {parameter.dtype for parameter in compose(text=causal_model().to(torch.bfloat16)).parameters()}
    assert kinds == {torch.bfloat16}
    model = compose(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("text", ["llama", "gemma2", "modernbert"])
def test_half_precision_leaves_the_backbone_as_it_was(text, tmp_path):
    auto_class = AutoModelForCausalLM if text in DECODERS else AutoModel
    auto_class.from_config(text_config(text)).save_pretrained(tmp_path)
    backbone = auto_class.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = token_row(40, [2])[None]
    expected = backbone(ids)[0]
    model = compose(head=MMForConditionalGeneration if text in DECODERS else MMModel, text=backbone)
    assert torch.equal(model(ids, **pictures(1))[0], expected)  # rotary frequencies must stay in float32


def test_gates_are_closed_and_fusion_is_initialised():
    model = compose(num_latents=2, fusion_layers=[0, 1, 2], fusion_mlp=True, text=causal_model())
    gates = [p for name, p in model.named_parameters() if name.endswith("_gate")]
    assert len(gates) == 6 and not any(gate.any() for gate in gates)
    assert all(p.isfinite().all() for p in model.parameters())
    assert 0.075 < model.model.fusion.kv_proj.weight.std() < 0.125  # the backbone's own initializer_range, 0.1


def test_fields_reach_the_config():
    model = compose(head=MMForSequenceClassification, num_labels=5, pooling="mean", fusion_mlp=True, num_latents=3)
    assert model.classifier.out_features == 5 and model.config.pooling == "mean"
    assert model.model.fusion.layers[0].mlp is not None and model.model.fusion.resampler.latents.shape[0] == 3


def test_towers_keep_their_attention():
    text = AutoModelForCausalLM.from_config(text_config(), attn_implementation="eager").eval()
    model = compose(text=text)
    assert model.model.text_model.config._attn_implementation == "eager"
    assert model.config.text_config is model.model.text_model.config
    assert model.config.vision_config is model.model.vision_tower.config


@pytest.mark.parametrize("vision,text,what", [("no-such/tower", None, "vision tower"), (None, "no-such/text", "text")])
def test_an_unknown_tower_is_named(vision, text, what):
    with pytest.raises(ValueError, match=f"{what}.* 'no-such/t[a-z]+' is neither a folder with a model nor a known"):
        compose(vision=vision, text=text)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"vision tower '{tmp_path}' is neither a folder with a model"):
        compose(vision=str(tmp_path))


def test_a_folder_with_other_weights_is_refused(tmp_path):
    causal_model().save_pretrained(tmp_path)
    vision_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not hold the weights of a clip_vision_model tower"):
        compose(vision=str(tmp_path))


def test_an_encoder_cannot_be_composed_to_generate():
    with pytest.raises(ValueError, match="the text backbone 'bert' is an encoder and cannot generate"):
        compose(text=text_config("bert"))


def test_a_tower_that_does_not_hear_is_refused():
    with pytest.raises(ValueError, match="takes `input_ids`, not audio"):
        compose(audio=text_config("bert"))
    with pytest.raises(ValueError, match="audio tower 'nowhere' is neither a folder with a model nor a known Hub id"):
        compose(audio="nowhere")


def test_composing_twice_over_one_backbone_is_harmless():
    backbone = causal_model()
    expected = logits(backbone)
    compose(text=backbone)
    model = compose(text=backbone, fusion_layers=[1])
    images = pictures(1)
    assert torch.equal(logits(model, **images), expected) and torch.equal(logits(backbone), expected)
    open_gates(model)
    reference = mm_model(fusion_layers=[1], fusion_mlp=False)
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(model, **images), logits(reference, **images))


def test_gates_start_open_over_a_backbone_with_random_weights():
    model = MMForSequenceClassification.from_towers(vision_model(), text_config(), num_labels=2, fusion_mlp=True)
    for gate in model.fusion_gates():
        assert gate["cross_attention"] == gate["mlp"] == pytest.approx(math.tanh(0.5))
    closed = MMForSequenceClassification.from_towers(vision_model(), text_config(), num_labels=2, fusion_gate_init=0.0)
    assert not any(gate["cross_attention"] for gate in closed.fusion_gates())


def test_positions_of_image_states_change_what_is_attended_only_if_configured():
    shuffled = [3, 1, 0, 2]
    for positions in (False, True):
        torch.manual_seed(0)
        fusion = mm_model(head=MMModel, image_positions=positions).fusion
        states = torch.randn(1, 4, fusion.image_projector[0].normalized_shape[0])
        projected = fusion.project(states)
        assert torch.allclose(fusion.project(states[:, shuffled]), projected[:, shuffled], atol=1e-6) is not positions
