# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Late fusion: a missing modality does not count, a row depends on itself alone, and every part learns."""

import pytest
import torch
from helpers.builders import mixed_rows, mm_config, mm_model, padded, pictures, text_inputs, token_row
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForSequenceClassification

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification
from modeling_mm.model.late_fusion_mm import MMLateFusion

KINDS = ["linear", "concat", "sum", "weighted", "gated", "product", "product_mlp"]
NAMES = ("text", "image", "audio")


def fusion(kind, width=8):
    """Late fusion of three modalities with different weights."""
    module = MMLateFusion(kind, width, dict.fromkeys(NAMES, width))
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor) if "var" not in name else torch.nn.init.uniform_(tensor, 0.5, 2)
    return module.eval()


def classifier(kind, vision="clip_vision_model", **fields):
    return mm_model("bert", vision, MMForSequenceClassification, late_fusion=kind, num_labels=3, **fields)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_modality_is_one_that_is_not_given(kind, dtype):
    module = fusion(kind).to(dtype)
    states = [torch.randn(4, 8, dtype=dtype) for _ in NAMES]
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]).bool()
    states[1][1] = torch.nan  # the embedding of a missing modality is ignored
    whole = module(states, present)
    for row in range(4):
        inputs = [state[row : row + 1] if has else None for state, has in zip(states, present[row], strict=True)]
        torch.testing.assert_close(module(inputs, present[row : row + 1])[0], whole[row])
    assert whole.dtype is dtype and whole.shape == (4, module.output_width)
    whole, missing = (whole[:, :-3], whole[:, -3:]) if kind == "linear" else (whole, None)
    assert whole[3].eq(0).all() and whole[:3].isfinite().all() and whole[2].ne(0).any()
    assert missing is None or missing.bool().equal(~present)


def test_batch_norm_is_by_the_rows_that_have_a_modality():
    module = MMLateFusion("product_mlp", 8, dict.fromkeys(NAMES, 8))
    states, present = [torch.randn(6, 8) + 5 for _ in NAMES], torch.ones(6, 3).bool()
    present[3:, 1] = present[1:, 2] = False
    states[1][3:] = torch.nan
    assert module(states, present).isfinite().all()
    statistics = [mlp.norm.running_mean for mlp in module.mlps]
    torch.testing.assert_close(statistics[0], 0.1 * states[0].mean(dim=0))
    torch.testing.assert_close(statistics[1], 0.1 * states[1][:3].mean(dim=0))
    assert statistics[2].eq(0).all()  # one row has no variance


@torch.no_grad()
def test_each_kind_computes_what_it_says():
    states, present = [torch.randn(2, 8) for _ in NAMES], torch.ones(2, 3).bool()
    t, i, a = fusion("sum").projected(states, present).unbind(1)
    assert not torch.allclose(t, i)
    for kind, expected in {
        "concat": lambda t, i, a: torch.cat([t, i, a], 1),
        "sum": lambda t, i, a: t + i + a,
        "product": lambda t, i, a: torch.cat([t, i, a, t * i, t * a, i * a, t * i * a], 1),
    }.items():
        module = fusion(kind)
        t, i, a = module.projected(states, present).unbind(1)
        torch.testing.assert_close(module(states, present), expected(t, i, a))
    module, joined = fusion("linear"), torch.cat([*states, torch.zeros(2, 3)], 1)
    torch.testing.assert_close(module(states, present)[:, :24], (joined[:, :24] - module.mean) * module.scale)
    module = fusion("product_mlp")
    mapped = [mlp(state, has) for mlp, state, has in zip(module.mlps, states, present.T, strict=True)]
    mixed = module.mixer(module.multiplied(module.normalised(mapped, present)))
    projected = module.projected(states, present)
    expected = torch.cat([projected.flatten(1), module.multiplied(projected), mixed], 1)
    torch.testing.assert_close(module(states, present), expected)
    module = fusion("weighted")
    weights, normalised = module.modality_weights(), module.projected(states, present).unbind(1)
    torch.testing.assert_close(
        module(states, present), sum(weights[n] * h for n, h in zip(NAMES, normalised, strict=True))
    )
    assert list(weights) == list(NAMES) and sum(weights.values()) == pytest.approx(1)


@torch.no_grad()
def test_the_gate_of_two_modalities_is_a_sigmoid():
    module = MMLateFusion("gated", 8, dict.fromkeys(NAMES[:2], 8))
    states, present = [torch.randn(5, 8) for _ in range(2)], torch.ones(5, 2).bool()
    t, i = module.projected(states, present).unbind(1)
    a = module.gate(torch.cat([t, i], 1)).sigmoid()
    torch.testing.assert_close(module(states, present), a * t + (1 - a) * i)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "concat", "sum", "weighted"])
def test_additive_kinds_are_sums_of_what_single_modalities_say(kind):
    module, head = fusion(kind), torch.nn.Linear(fusion(kind).output_width, 2)
    first, second = ([torch.randn(1, 8) for _ in NAMES] for _ in range(2))
    present = torch.ones(1, 3).bool()
    # changing one modality moves the score by the same amount, whatever the others are
    moves = [
        head(module([first[0], *others], present)) - head(module([second[0], *others], present))
        for others in (first[1:], second[1:])
    ]
    torch.testing.assert_close(*moves)


@torch.no_grad()
@pytest.mark.parametrize("cross_attention", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_equals_the_row_in_a_batch(kind, cross_attention):
    model = classifier(kind, cross_attention=cross_attention)
    rows, image_index = mixed_rows()
    images = pictures(2)["pixel_values"]
    present = torch.tensor([True, True, False, True])
    inputs = {**text_inputs(padded(rows), "bert"), "pixel_values": images, "image_index": image_index}
    together = model(**inputs, text_present=present).logits
    for row, ids in enumerate(rows):
        items = image_index[row][image_index[row] >= 0]
        media = {"pixel_values": images[items], "image_index": torch.arange(len(items))[None]} if len(items) else {}
        alone = model(input_ids=ids[None], text_present=present[row : row + 1], **media).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_sees_pictures_only_with_cross_attention():
    ids, media = token_row(7, [2])[None], pictures(1)
    for cross_attention in (False, True):
        model = classifier("sum", cross_attention=cross_attention)
        states = []
        model.late_fusion.register_forward_hook(lambda module, args, output, seen=states: seen.append(args[0][0]))
        model(input_ids=ids, **media)
        model(input_ids=ids)
        assert torch.equal(*states) is not cross_attention


@torch.no_grad()
@pytest.mark.parametrize("vision", ["siglip2_vision_model", "resnet"])
def test_patches_that_only_pad_a_picture_do_not_count(vision):
    model, media = classifier("gated", vision, cross_attention=True), pictures(2, vision)
    ids = torch.stack([token_row(6), token_row(6)])
    together = model(input_ids=ids, **media, image_index=torch.tensor([[0], [1]])).logits
    for row in range(2):
        row_media = {name: value[row : row + 1] for name, value in media.items()}
        alone = model(input_ids=ids[row : row + 1], **row_media, image_index=torch.tensor([[0]])).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("present", [True, False], ids=["all given", "no image in the batch"])
@pytest.mark.parametrize("cross_attention", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_the_fusion_gets_a_gradient(kind, cross_attention, present):
    model = classifier(kind, cross_attention=cross_attention).train()
    model.model.vision_tower.post_layernorm.requires_grad_(False)  # for the unused pooler
    ids, labels = torch.stack([token_row(6, [1]), token_row(6, [1])]), torch.tensor([0, 2])
    model(input_ids=ids, labels=labels, **(pictures(2) if present else {})).loss.backward()
    media = [model.model.vision_tower]  # whose states linear late fusion joins without a projection
    media += [] if kind == "linear" and not cross_attention else [model.model.fusion]
    parts = [model.late_fusion, model.classifier] + media * present
    silent = [
        name
        for part in parts
        for name, p in part.named_parameters()
        if p.requires_grad and (p.grad is None or present and not p.grad.any() and "k_proj.bias" not in name)
    ]
    assert not silent


@torch.no_grad()
@pytest.mark.parametrize("vision, has_token", [("clip_vision_model", True), ("siglip_vision_model", False)])
def test_linear_late_fusion_joins_the_states_of_the_tower(vision, has_token):
    model, media = classifier("linear", vision), pictures(1, vision)
    joined = []
    model.late_fusion.register_forward_hook(lambda module, args, output: joined.append(args[0][1]))
    model(input_ids=token_row(6)[None], **media)
    states = model.model.get_image_features(**media, return_dict=True).pooler_output
    torch.testing.assert_close(joined[0], states[:, 0] if has_token else states.mean(dim=1))
    assert model.config.pooling == "mean"


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_the_model(kind, tmp_path):
    model = classifier(kind)
    for buffer in filter(torch.is_floating_point, model.late_fusion.buffers()):
        torch.nn.init.uniform_(buffer, 0.5, 2)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "late_fusion_mm.py").is_file()
    inputs = {"input_ids": torch.stack([token_row(6, [1]) for _ in range(4)]), **pictures(4)}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.config.late_fusion == kind and not loaded.config.cross_attention


def test_late_fusion_builds_no_cross_attention_unless_asked_to():
    alone, both = classifier("sum"), classifier("sum", cross_attention=True)
    assert not any("kv_proj" in name or ".layers." in name for name, _ in alone.model.fusion.named_parameters())
    assert len(both.model.fusion.layers) == 2 and alone.config.fusion_layers == []
    assert classifier(None).late_fusion is None and classifier(None).config.cross_attention


def test_what_late_fusion_cannot_do_is_refused():
    with pytest.raises(StrictDataclassError, match="media would not be used"):
        mm_config(cross_attention=False)
    with pytest.raises(StrictDataclassError):
        mm_config(late_fusion="attention")
    model = mm_model(head=MMForConditionalGeneration, late_fusion="sum")
    with pytest.raises(ValueError, match="has no cross-attention"):
        model(input_ids=token_row(6, [1])[None], **pictures(1))
    model = classifier("sum", cross_attention=True)
    media = model.model.encode_media(**pictures(1))
    with pytest.raises(ValueError, match="pass `pixel_values` instead of `media_key_values`"):
        model(input_ids=token_row(6, [1])[None], media_key_values=media)
    with pytest.raises(ValueError, match="got 2 embeddings and a mask for 2; expected one for each of text, image"):
        fusion("sum")([None, None], torch.ones(1, 2).bool())
