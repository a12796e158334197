# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Retrieval: embeddings independent of the batch, losses in chunks and across processes, hard negatives."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.builders import drawing, mm_config, open_gates, padded, pictures, text_inputs, token_row
from helpers.retrieval import EARS, embeddings_and_pairs, naive, processes, retriever
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional
from transformers import AutoConfig, AutoModelForZeroShotImageClassification, pipeline

from modeling_mm import MMForConditionalGeneration, MMForImageTextRetrieval, MMForSequenceClassification, MMModel
from modeling_mm.model import matching_mm
from modeling_mm.model.embedding_mm import EmbeddedMedia
from modeling_mm.model.losses_mm import Pairs, contrastive_loss, hard_negatives, text_keys

BACKBONES = ["llama", "gpt2", "bert", "modernbert"]


def four_texts_of_three_pictures():
    """Token ids padded on the right, images, and their index: two texts share the first image."""
    batch = text_inputs(padded([token_row(n) for n in (5, 9, 7, 6)]), "bert")
    return {**batch, **pictures(3), "image_index": torch.tensor([[0], [1], [0], [2]])}


@torch.no_grad()
@pytest.mark.parametrize("text", BACKBONES)
def test_a_text_s_embedding_is_its_own(text):
    model, batch = retriever(text), four_texts_of_three_pictures()
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with_pictures, others = model(**batch), model(**{**batch, **pictures(3)})
    assert torch.equal(with_pictures.text_embeds, others.text_embeds)
    assert torch.equal(with_pictures.text_embeds, model.get_text_features(**texts).pooler_output)
    assert not torch.allclose(with_pictures.image_embeds, others.image_embeds, atol=1e-2)
    for row, length in enumerate((5, 9, 7, 6)):
        alone = model.get_text_features(batch["input_ids"][row : row + 1, :length]).pooler_output
        torch.testing.assert_close(alone[0], with_pictures.text_embeds[row], atol=1e-5, rtol=0)
    alone = model.get_image_features(batch["pixel_values"][1:2]).pooler_output
    torch.testing.assert_close(alone[0], with_pictures.image_embeds[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(with_pictures.text_embeds.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(with_pictures.image_embeds.norm(dim=1), torch.ones(3))


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
@pytest.mark.parametrize("text", ["llama", "gpt2", "modernbert"])
def test_padding_on_either_side_changes_nothing(text, pooling):
    model, rows = retriever(text, pooling=pooling), [token_row(n) for n in (5, 9, 7)]
    sides = [text_inputs(padded(rows, side), "bert") for side in ("right", "left")]
    right, left = (model.get_text_features(**side).pooler_output for side in sides)
    torch.testing.assert_close(right, left, atol=1e-5, rtol=0)
    scores = [model.match(**side, **pictures_of_ones(3)) for side in sides]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def pictures_of_ones(count):
    return {"pixel_values": torch.linspace(-1, 1, count)[:, None, None, None].expand(-1, 3, 16, 16)}


@torch.no_grad()
@pytest.mark.parametrize("how", ["mean", "first", "tower"])
@pytest.mark.parametrize("vision", ["clip_vision_model", "resnet", "siglip2_vision_model"])
def test_pictures_are_pooled_as_the_config_says(vision, how):
    model, media = retriever(vision=vision, image_pooling=how), pictures(3, vision)
    tower = model.model.vision_tower(**media)
    states = tower.last_hidden_state
    states = states.flatten(2).transpose(1, 2) if states.dim() == 4 else states
    expected = {"mean": states.mean(dim=1), "first": states[:, 0], "tower": tower.pooler_output.flatten(1)}[how]
    if how == "mean" and "pixel_attention_mask" in media:
        mask = media["pixel_attention_mask"][..., None]
        expected = (states * mask).sum(dim=1) / mask.sum(dim=1)
    expected = functional.normalize(model.image_projection(expected), dim=-1)
    torch.testing.assert_close(model.get_image_features(**media).pooler_output, expected)


@torch.no_grad()
def test_each_picture_given_to_the_processor_has_an_embedding(processor):
    model, shown = retriever(), [drawing((200, 30, 30)), drawing((30, 30, 200))]
    distinct = model.get_image_features(processor(images=shown, return_tensors="pt")["pixel_values"]).pooler_output
    batch = processor(images=[shown[1], shown[0], shown[1]], return_tensors="pt")  # the same object twice
    torch.testing.assert_close(model.get_image_features(**batch).pooler_output, distinct[[1, 0, 1]])
    with pytest.raises(ValueError, match=r"one image or audio clip per row, but the rows have \[2, 0\]"):
        model.get_image_features(**processor(images=[shown, []], return_tensors="pt"))


@torch.no_grad()
def test_with_closed_gates_the_matching_head_reads_the_backbone_s_own_states():
    model, batch = retriever(gate=0.0), four_texts_of_three_pictures()
    compared, alone = model.match(**batch), model.match(batch["input_ids"], batch["attention_mask"])
    model.matching_head.agreement.weight.zero_()
    fused = model.match(**batch)
    assert torch.equal(fused, alone) and not torch.allclose(fused, compared, atol=1e-4)
    assert not torch.equal(open_gates(model).match(**batch), fused)


@torch.no_grad()
def test_a_picture_encoded_once_is_ranked_with_many_texts():
    model, batch = retriever(), four_texts_of_three_pictures()
    encoded = model.encode_media(batch["pixel_values"])
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    again = model.match(**texts, media_key_values=encoded[batch["image_index"][:, 0]])
    torch.testing.assert_close(again, model.match(**batch), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_saved_is_loaded_by_the_auto_class(tmp_path, loss):
    model, batch = retriever(contrastive_loss=loss, image_pooling="tower"), four_texts_of_three_pictures()
    model.temperature.logit_scale.fill_(1.5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path).eval()
    assert type(loaded) is MMForImageTextRetrieval
    assert torch.equal(loaded(**batch).logits_per_image, model(**batch).logits_per_image)
    assert torch.equal(loaded(**batch, return_loss=True).loss, model(**batch, return_loss=True).loss)


@pytest.mark.parametrize("loss, start, bias", [("infonce", 1 / 0.07, None), ("sigmoid", 10, -10)])
def test_the_temperature_starts_as_its_loss_has_it_and_stays_below_a_hundred(loss, start, bias):
    model, batch = retriever(contrastive_loss=loss), four_texts_of_three_pictures()
    scale, logit_bias = model.temperature()
    assert scale.item() == pytest.approx(start) and (logit_bias is None if bias is None else logit_bias.item() == bias)
    weight = model.temperature.logit_scale
    with torch.no_grad():
        weight.fill_(9.0)
    assert model.temperature()[0].item() == pytest.approx(100)
    model.train()(**batch, return_loss=True).loss.backward()
    assert weight.item() == pytest.approx(math.log(100)) and weight.grad.abs() > 0


def value_and_gradients(function, *leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True)]


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_losses_in_chunks_equal_the_whole_matrix(kind, chunk):
    texts, media, pairs, true = embeddings_and_pairs()
    leaves = (texts, media, torch.tensor(14.0), torch.tensor(-3.0))
    bias = (lambda b: None) if kind == "infonce" else (lambda b: b)
    ours = value_and_gradients(
        lambda t, m, s, b: contrastive_loss(kind, t, m, pairs, s, bias(b), chunk=chunk), *leaves
    )
    theirs = value_and_gradients(lambda t, m, s, b: naive(kind, t, m, true, s, b), *leaves)
    for gradient, expected in zip(ours, theirs, strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_no_matrix_of_all_pairs_is_held():
    """No tensor, saved for the backward pass or temporary, is larger than a chunk of logits or pair masks."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            sizes.extend(o.numel() for o in torch.utils._pytree.tree_leaves(output) if torch.is_tensor(o))
            return output

    count = 256
    texts, media = (functional.normalize(torch.randn(count, 4), dim=1).requires_grad_() for _ in range(2))
    keys = torch.arange(count)
    with Watch():
        contrastive_loss("infonce", texts, media, Pairs(keys, keys, keys), torch.tensor(9.0), chunk=8).backward()
    assert max(sizes) <= 8 * 2 * count < count * count


LOSS_IN_PARTS = """
import sys
import torch
import torch.distributed as dist
from helpers.retrieval import embeddings_and_pairs, naive
from modeling_mm.model.losses_mm import Pairs, contrastive_loss

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
assert world == int(sys.argv[1])
for kind in ("infonce", "sigmoid"):
    texts, media, pairs, true = embeddings_and_pairs()
    whole = [value.clone().requires_grad_() for value in (texts, media, torch.tensor(14.0), torch.tensor(-3.0))]
    expected = naive(kind, whole[0], whole[1], true, *whole[2:])
    expected.backward()
    rows = torch.arange(len(texts)).split([23 - 3 * (world - 1), *[3] * (world - 1)])[rank]  # not the same number
    items = torch.arange(len(media))[rank::world]  # the pictures lie on other processes than their texts
    leaves = [texts[rows], media[items], torch.tensor(14.0), torch.tensor(-3.0)]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    own = Pairs(pairs.texts[rows], pairs.media[items], pairs.media_of_texts[rows])
    bias = leaves[3] if kind == "sigmoid" else None
    loss = contrastive_loss(kind, *leaves[:2], own, leaves[2], bias, across=True, chunk=4)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / world, expected.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(leaves[0].grad / world, whole[0].grad[rows], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(leaves[1].grad / world, whole[1].grad[items], atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(leaves[2:], whole[2:]):
        if ours.grad is not None:
            dist.all_reduce(ours.grad)
            torch.testing.assert_close(ours.grad / world, theirs.grad, atol=1e-6, rtol=1e-5)
print("equal")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_losses_across_processes_equal_the_whole_matrix(count, tmp_path):
    assert processes(LOSS_IN_PARTS, count, tmp_path=tmp_path).count("equal") == count


def test_a_text_s_key_tells_its_tokens_and_no_padding():
    rows = [token_row(5), token_row(7), token_row(5)]
    rows.append(rows[0].flip(0))
    rows.append(rows[0].clone())
    right, left = (padded(rows, side) for side in ("right", "left"))
    keys = text_keys(right["input_ids"], right["attention_mask"])
    assert torch.equal(keys, text_keys(left["input_ids"], left["attention_mask"]))
    assert torch.equal(keys[:1], text_keys(rows[0][None], None))
    assert keys[0] == keys[4] and len(set(keys.tolist())) == 4 and (keys >= 0).all()


@pytest.mark.parametrize("sample", [True, False])
def test_negatives_are_never_true_pairs(sample):
    texts, media, _, true = embeddings_and_pairs()
    true[3] = True
    logits = 100 * texts @ media.T + 1000 * true  # the positives are the most similar by far
    for _ in range(20):
        chosen = hard_negatives(logits, true, sample)
        assert chosen[3] == -1
        kept = chosen >= 0
        assert kept.sum() == len(texts) - 1 and not true[kept, chosen[kept]].any()
    if not sample:
        assert torch.equal(chosen[kept], logits.masked_fill(true, -1e9).argmax(dim=1)[kept])


def test_the_matching_head_learns_from_true_pairs_and_hard_negatives(monkeypatch):
    model, batch = retriever().train(), four_texts_of_three_pictures()
    batch["input_ids"][3], batch["attention_mask"][3] = batch["input_ids"][1], batch["attention_mask"][1]
    seen, learnt = [], []
    match, cross_entropy = model.matching_logits, matching_mm.functional.cross_entropy
    monkeypatch.setattr(model, "matching_logits", lambda **inputs: seen.append(inputs) or match(**inputs))
    losses = SimpleNamespace(
        cross_entropy=lambda logits, labels: learnt.append(labels) or cross_entropy(logits, labels)
    )
    monkeypatch.setattr(matching_mm, "functional", losses)
    for _ in range(10):
        model(**batch, return_loss=True)
    encoded = model.encode_media(batch["pixel_values"])
    same = {0: [0], 1: [1, 2], 2: [0], 3: [1, 2]}  # the texts 1 and 3 are equal, so both images are their positives
    right = []
    for inputs in seen:
        for ids, mask, held in zip(
            *(inputs[k] for k in ("input_ids", "attention_mask", "media_key_values")), strict=True
        ):
            kept = batch["attention_mask"].sum(1) == mask.sum()
            text = next(
                r for r in kept.nonzero()[:, 0].tolist() if torch.equal(batch["input_ids"][r, : len(ids)], ids)
            )
            item = next(i for i in range(3) if torch.allclose(encoded[i], held, atol=1e-5))
            right.append(item in same[text])
    assert torch.cat(learnt).bool().tolist() == right
    assert all(labels.sum() == 4 and len(labels) == 4 + 4 + 3 for labels in learnt)
    widths = [inputs["input_ids"].shape[1] for inputs in seen]
    assert min(widths) < 9 == max(widths)


def test_the_matching_head_learns_which_text_is_whose_before_any_gate_opens():
    model, held = open_gates(retriever("bert"), 0.0), pictures(4)
    rows = torch.arange(4).repeat_interleave(4)  # every text with every image
    ids = padded([token_row(n) for n in (5, 9, 7, 6)])
    texts = {name: value[rows] for name, value in text_inputs(ids, "bert").items()}
    index = torch.arange(4).repeat(4)[:, None]
    optimizer = torch.optim.Adam(model.matching_head.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        logits = model.match(**texts, **held, image_index=index)
        losses.append(functional.cross_entropy(logits, (rows == index[:, 0]).long()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.1  # a constant prediction of the share of true pairs has a loss of 0.56
    assert all(gate["cross_attention"] == 0 for gate in model.fusion_gates())


def test_every_process_reads_as_many_buckets():
    for count in range(1, 8):
        mask = (torch.arange(9) < torch.randint(1, 10, (count, 1))).long()
        buckets = matching_mm.length_buckets(mask)
        assert len(buckets) == matching_mm.BUCKETS and all(len(pairs) for pairs, _ in buckets)
        taken = torch.cat([pairs for pairs, _ in buckets]).bincount(minlength=count)
        assert (taken == taken[0]).all()
        assert all(width == mask[pairs].sum(1).max() for pairs, width in buckets)


def test_a_batch_without_any_pair_to_match_teaches_nothing():
    model = retriever().train()
    medium = EmbeddedMedia("image", torch.zeros(1, 4), torch.zeros(1, 4, 8), index=torch.full((2, 1), -1))
    loss = model.medium_matching_loss({}, medium, torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and all(p.grad is not None for p in model.matching_head.parameters())


@pytest.mark.parametrize("text", BACKBONES)
@pytest.mark.parametrize("texts", [4, 1])
def test_pairs_read_in_buckets_teach_what_they_teach_at_once(text, texts, monkeypatch):
    model, batch = retriever(text, contrastive_weight=0.0), four_texts_of_three_pictures()
    for name in ("input_ids", "attention_mask", "image_index"):
        batch[name] = batch[name][:texts]
    gradients = {}
    for parts in (1, matching_mm.BUCKETS, 2 * matching_mm.BUCKETS):
        monkeypatch.setattr(matching_mm, "BUCKETS", parts)
        model.zero_grad()
        loss = model(**batch, return_loss=True).loss
        loss.backward()
        gradients[parts] = [loss, *(p.grad for p in model.parameters() if p.grad is not None)]
    once, *others = gradients.values()
    assert sum(bool(gradient.detach().any()) for gradient in once) > 10
    for other in others:
        for gradient, same in zip(once, other, strict=True):
            torch.testing.assert_close(same, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", [MMForConditionalGeneration, MMForSequenceClassification, MMModel])
def test_a_checkpoint_trained_for_retrieval_loads_in_the_other_heads(tmp_path, head):
    model = retriever(language_weight=0.5, contrastive_loss="sigmoid")
    model.save_pretrained(tmp_path)
    loaded, info = head.from_pretrained(tmp_path, output_loading_info=True)
    ours = {"text_projection", "image_projection", "temperature", "matching_head", "lm_head"}
    theirs = {"classifier"} if head is MMForSequenceClassification else set()
    if head is MMForConditionalGeneration:
        ours -= {"lm_head"}
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    parts = [
        {name.removeprefix("model.").split(".")[0] for name in info[k]} for k in ("missing_keys", "unexpected_keys")
    ]
    assert parts == [theirs, ours] and not info["mismatched_keys"]
    weights = loaded.base_model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())


def test_one_pass_gives_the_weighted_sum_and_its_parts():
    model = retriever(language_weight=0.5, matching_weight=2.0, contrastive_weight=3.0)
    batch = four_texts_of_three_pictures()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, labels=labels, return_loss=True)
    parts = (output.contrastive_loss, output.matching_loss, output.language_loss)
    torch.testing.assert_close(output.loss, 3 * parts[0] + 2 * parts[1] + 0.5 * parts[2])
    decoder = MMForConditionalGeneration(model.config, lm_head=model.lm_head).eval()
    decoder.model.load_state_dict(model.model.state_dict())
    torch.testing.assert_close(parts[2], decoder(**batch, labels=labels).loss)
    output.loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert all("post_layernorm" in name for name in silent)  # CLIP's pooled output, which mean pooling does not use


def test_matching_learns_from_as_many_rows_as_asked_for_and_is_scored_on_all():
    model, few = retriever(), retriever(matching_rows=1)
    few.load_state_dict(model.state_dict())
    batch = four_texts_of_three_pictures()
    assert torch.equal(model(**batch, return_loss=True).matching_loss, few(**batch, return_loss=True).matching_loss)
    seen = []
    few.matching_logits = lambda input_ids, **rest: (
        seen.append(len(input_ids)) or MMForImageTextRetrieval.matching_logits(few, input_ids, **rest)
    )
    few.train()(**batch, return_loss=True).loss.backward()
    with pytest.raises(StrictDataclassError, match="`matching_rows` is 0; expected 1 or more"):
        retriever(matching_rows=0)
    assert sum(seen) == 3  # a true pair, its text with a negative image, an image with a negative text


def test_what_a_model_cannot_learn_is_refused():
    with pytest.raises(ValueError, match="captioning needs a decoder"):
        retriever("bert", language_weight=1.0)
    with pytest.raises(ValueError, match="`matching_weight` needs `cross_attention`"):
        MMForImageTextRetrieval(mm_config(late_fusion="sum", fusion_layers=[]))
    batch = four_texts_of_three_pictures()
    with pytest.raises(ValueError, match="3 media came with 4 texts"):
        retriever()(**{**batch, "image_index": None}, return_loss=True)
    with pytest.raises(ValueError, match="needs media beside the texts"):
        retriever()(batch["input_ids"], return_loss=True)
    with pytest.raises(ValueError, match="no matching head"):
        retriever(matching_weight=0.0).match(batch["input_ids"])


def test_a_picture_is_encoded_once_for_all_losses():
    model, batch = retriever(language_weight=1.0).train(), four_texts_of_three_pictures()
    seen = []
    model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    model(**batch, labels=batch["input_ids"], return_loss=True)
    assert seen == [3]


def test_a_text_without_a_picture_belongs_to_none():
    model, batch = retriever(language_weight=1.0), four_texts_of_three_pictures()
    batch["image_index"][3] = -1
    output = model(**batch, labels=batch["input_ids"], return_loss=True)
    logits = model(**{**batch, "return_loss": False}).logits_per_text
    true = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    scale, _ = model.temperature()
    expected = naive("infonce", output.text_embeds, output.image_embeds, true, scale, None)
    torch.testing.assert_close(output.contrastive_loss, expected)
    assert output.loss.isfinite() and logits.shape == (4, 3)


def contrastive_of(model, texts, media):
    """The softmax loss of four texts and three images or clips; the first and third text belong to the first."""
    true = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)
    return naive("infonce", texts, media, true, model.temperature()[0], None)


def test_sound_is_embedded_compared_and_matched():
    ears = AutoConfig.for_model("whisper", **EARS)
    model, batch = retriever(audio_config=ears, audio_token_id=97), four_texts_of_three_pictures()
    heard = {"input_features": torch.randn(3, 8, 16), "audio_index": batch.pop("image_index")}
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    output = model(**batch, **heard)
    clips = model.get_audio_features(heard["input_features"]).pooler_output
    assert torch.equal(output.audio_embeds, clips) and output.image_embeds is None
    assert torch.equal(output.logits_per_audio, model.similarities(clips, output.text_embeds))
    learnt = model(**batch, **heard, return_loss=True)
    learnt.loss.backward()
    assert learnt.matching_loss > 0 and model.audio_projection.weight.grad.any()
    both = model(**batch, **heard, **pictures(3), image_index=heard["audio_index"], return_loss=True)
    seen_alone = contrastive_of(model, both.text_embeds, both.image_embeds)
    torch.testing.assert_close(both.contrastive_loss, (learnt.contrastive_loss + seen_alone) / 2)


@pytest.mark.parametrize("text", ["llama", "bert"])
def test_the_zero_shot_pipeline_says_what_the_embeddings_say(tmp_path, processor, text, caplog):
    model = retriever(text)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ask = pipeline("zero-shot-image-classification", model=str(tmp_path))
    assert type(ask.model) is MMForImageTextRetrieval and "not supported" not in caplog.text
    names = ["a small green triangle", "yes", "is there a red square"]
    results = ask(drawing((200, 30, 30)), names, hypothesis_template="{}")
    scores = {result["label"]: result["score"] for result in results}
    with torch.no_grad():
        texts = model.get_text_features(**processor.tokenizer(names, padding=True, return_tensors="pt")).pooler_output
        shown = processor(images=drawing((200, 30, 30)), return_tensors="pt")["pixel_values"]
        expected = model.similarities(model.get_image_features(shown).pooler_output, texts)[0].softmax(dim=0)
    assert [scores[name] for name in names] == pytest.approx(expected.tolist(), abs=1e-5)
