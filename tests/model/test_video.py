# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The laws for models with video: rows with text, an image, an audio clip, a video or several of them, in one batch.

Shapes: B rows, N videos per row, V distinct videos, F frames, T text tokens.
"""

import pytest
import torch
from helpers.audio import AUDIO_ID, ears
from helpers.builders import (
    IMAGE_ID,
    causal_model,
    mm_config,
    mm_model,
    open_gates,
    padded,
    pictures,
    token_row,
    vision_config,
)
from helpers.laws import GREEDY, assert_generates_alike, row_media

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel

VIDEO_ID, FRAMES = 96, 3
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])
KINDS = [{}, {"num_latents": 2}, {"vision": "resnet"}]


def seeing(head=MMForConditionalGeneration, text="llama", gate=1.0, **fields):
    """A model for video, images and audio, with open gates and a nonzero frame embedding."""
    fields = {"num_frames": FRAMES, "video_token_id": VIDEO_ID, "audio_token_id": AUDIO_ID, **fields}
    model = mm_model(text, head=head, gate=gate, audio_config=ears("resnet"), **fields)
    if model.config.num_frames is not None:
        torch.nn.init.normal_(model.base_model.fusion.frame_embedding)
    return model


def videos(count):
    """`count` different videos; the second has two frames, and noise in place of its third."""
    mask = torch.ones(count, FRAMES).long()
    mask[1:2, 2] = 0
    return {"pixel_values_videos": torch.randn(count, FRAMES, 3, 16, 16), "video_mask": mask}


def watched_row(length, images=(), sounds=(), clips=()):
    """A row of token ids with markers at the given columns."""
    row = token_row(length, images)
    row[list(sounds)], row[list(clips)] = AUDIO_ID, VIDEO_ID
    return row


def mixed():
    """Token ids and media of rows with text only, an image, a clip, a video, all three, and two videos."""
    rows = [watched_row(9), watched_row(7, [2]), watched_row(8, (), [1]), watched_row(8, (), (), [2])]
    rows += [watched_row(10, [1], [4], [6]), watched_row(6, (), (), [0, 3])]
    index = {
        "image_index": torch.tensor([[-1], [0], [-1], [-1], [1], [-1]]),
        "audio_index": torch.tensor([[-1], [-1], [0], [-1], [1], [-1]]),
        "video_index": torch.tensor([[-1, -1], [-1, -1], [-1, -1], [0, -1], [1, -1], [1, 0]]),
    }
    return rows, {**pictures(2), "input_features": torch.randn(2, 8, 16), **videos(2), **index}


def one_video(length=8, at=3):
    """A row with one video of three frames."""
    return watched_row(length, (), (), [at])[None], {"pixel_values_videos": torch.randn(1, FRAMES, 3, 16, 16)}


@torch.no_grad()
@pytest.mark.parametrize("fields", KINDS, ids=str)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_row_alone_equals_the_row_in_any_batch(fields, side):
    model = seeing(**fields)
    rows, media = mixed()
    together = model(**padded(rows, side), **media).logits
    for row, ids in enumerate(rows):
        alone = model(**padded([ids]), **row_media(media, row)).logits[0]
        columns = slice(0, len(ids)) if side == "right" else slice(-len(ids), None)
        torch.testing.assert_close(together[row, columns], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(together[0], model(**padded(rows, side)).logits[0])


@torch.no_grad()
@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_a_video_is_seen_from_its_marker_on(fields):
    model, (row, media) = seeing(**fields), one_video()
    before = model(row, **media).logits
    after = model(row, pixel_values_videos=torch.randn_like(media["pixel_values_videos"])).logits
    assert torch.equal(before[:, :3], after[:, :3])
    assert ((before[:, 3:] - after[:, 3:]).abs().amax(-1) > 1e-4).all()


@torch.no_grad()
def test_closed_gates_give_the_backbone_s_output():
    backbone = causal_model("llama")
    rows, media = mixed()
    expected = backbone(**padded(rows)).logits
    markers = {"image_token_id": IMAGE_ID, "audio_token_id": AUDIO_ID, "video_token_id": VIDEO_ID}
    model = MMForConditionalGeneration.from_towers(
        vision=vision_config(), text=backbone, audio=ears("resnet"), num_frames=FRAMES, **markers
    )
    assert torch.equal(model.eval()(**padded(rows), **media).logits, expected)
    assert not model.model.fusion.frame_embedding.any()
    assert not torch.equal(open_gates(model)(**padded(rows), **media).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_a_video_of_one_frame_is_a_picture_until_its_embedding_is_learnt(fields):
    model, (row, media) = seeing(**fields), one_video()
    frame = media["pixel_values_videos"][:, :1]
    pictured = torch.where(row == VIDEO_ID, IMAGE_ID, row)
    embeddings = model.get_input_embeddings().weight
    embeddings[VIDEO_ID] = embeddings[IMAGE_ID]
    expected = model(pictured, pixel_values=frame[:, 0]).logits
    assert not torch.allclose(model(row, pixel_values_videos=frame).logits, expected, atol=1e-3)
    model.model.fusion.frame_embedding.zero_()
    torch.testing.assert_close(model(row, pixel_values_videos=frame).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_the_order_of_frames_is_seen_only_through_their_embedding(fields):
    model, (row, media) = seeing(**fields), one_video()
    backwards = {"pixel_values_videos": media["pixel_values_videos"].flip(1)}
    assert not torch.allclose(model(row, **media).logits, model(row, **backwards).logits, atol=1e-3)
    model.model.fusion.frame_embedding.zero_()
    torch.testing.assert_close(model(row, **media).logits, model(row, **backwards).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("vision", ["clip_vision_model", "resnet"])
def test_a_video_s_features_are_its_frames_one_after_another(vision):
    model, media = seeing(vision=vision), videos(2)
    output = model.get_video_features(**media)
    frames = model.get_image_features(media["pixel_values_videos"].flatten(0, 1)).pooler_output  # (6, P, V)
    expected = (frames.unflatten(0, (2, FRAMES)) * media["video_mask"][..., None, None]).flatten(1, 2)
    torch.testing.assert_close(output.pooler_output, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(output.last_hidden_state, output.pooler_output)
    whole = model.get_video_features(media["pixel_values_videos"][:1]).pooler_output
    torch.testing.assert_close(whole, expected[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [*KINDS, {"late_fusion": "gated", "cross_attention": True}], ids=str)
def test_frames_that_are_not_real_never_matter(fields):
    model = seeing(MMForSequenceClassification, **fields).train()  # not even in the statistics of batch norms
    row, media = one_video()
    media["video_mask"] = torch.tensor([[1, 1, 0]])
    outputs, pixels = [], media["pixel_values_videos"]
    for last in (pixels[:, 2], torch.full_like(pixels[:, 2], torch.nan)):
        model.zero_grad()
        media["pixel_values_videos"] = torch.cat([pixels[:, :2], last[:, None]], dim=1)
        output = model(row, **media, labels=LABELS[:1])
        output.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        outputs.append([output.logits, *gradients])
    assert all(torch.equal(first, second) for first, second in zip(*outputs, strict=True))
    short = model(row, pixel_values_videos=pixels[:, :2]).logits
    torch.testing.assert_close(short, outputs[0][0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_however_it_generates_the_tokens_are_the_same():
    assert_generates_alike(seeing(), *mixed())


@torch.no_grad()
@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_encoded_videos_are_the_videos(fields):
    model = seeing(**fields)
    rows, media = mixed()
    batch = padded(rows, "left")
    expected = model(**batch, **media)
    encoded, start = model.model.cross_attention_inputs(batch["input_ids"], **media)
    assert torch.equal(model.encode_media(**media), encoded) and torch.equal(encoded, expected.media_key_values)
    again = model(**batch, media_key_values=encoded, media_start=start)
    assert torch.equal(again.logits, expected.logits)
    batch.pop("position_ids")
    generated = model.generate(**batch, media_key_values=encoded, media_start=start, **GREEDY)
    assert torch.equal(generated, model.generate(**batch, **media, **GREEDY))


@torch.no_grad()
def test_a_later_turn_adds_a_video():
    model = seeing()
    ids, pixels = watched_row(12, (), (), [2, 8])[None], torch.randn(2, FRAMES, 3, 16, 16)
    both = {"pixel_values_videos": pixels, "video_index": torch.tensor([[0, 1]])}
    expected = model(ids, **both).logits[:, 6:]
    first = model(ids[:, :6], pixel_values_videos=pixels[:1], use_cache=True)
    later = model(ids[:, 6:], **both, past_key_values=first.past_key_values).logits
    torch.testing.assert_close(later, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_video_is_looked_at_once_and_only_its_real_frames():
    model, calls = seeing(), []
    model.model.vision_tower.register_forward_hook(lambda module, args, output: calls.append(output[0].shape[0]))
    row = watched_row(6, (), (), [1])
    model(**padded([row] * 4), **videos(2), video_index=torch.tensor([[0], [1], [1], [0]]))
    assert calls == [5]


@torch.no_grad()
@pytest.mark.parametrize("head", [MMModel, MMForConditionalGeneration, MMForSequenceClassification])
def test_a_model_that_takes_video_comes_back_to_the_bit(head, tmp_path):
    model = seeing(head)
    rows, media = mixed()
    expected = model(**padded(rows), **media)[0]
    model.save_pretrained(tmp_path)
    again = head.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**padded(rows), **media)[0], expected)


@torch.no_grad()
def test_a_picture_model_that_gets_video_starts_where_it_was(tmp_path):
    pictured = mm_model()
    assert not any("frame" in name for name in pictured.state_dict())
    row, image = token_row(7, [2])[None], pictures(1)
    expected = pictured(row, **image).logits
    pictured.save_pretrained(tmp_path)
    model = MMForConditionalGeneration.from_pretrained(tmp_path, num_frames=FRAMES, video_token_id=VIDEO_ID).eval()
    assert torch.equal(model(row, **image).logits, expected) and not model.model.fusion.frame_embedding.any()
    watched, media = one_video()
    assert model(watched, **media).logits.isfinite().all()


@pytest.mark.parametrize("fields", [*KINDS, {"late_fusion": "gated", "cross_attention": True}], ids=str)
def test_every_frame_s_embedding_gets_a_gradient(fields):
    model = seeing(MMForSequenceClassification, **fields).train()
    rows, media = mixed()
    model(**padded(rows), **media, labels=LABELS).loss.backward()
    assert model.model.fusion.frame_embedding.grad.any(dim=1).all()
    model.zero_grad()
    model.model.touch_unused_parts().backward()
    assert torch.equal(model.model.fusion.frame_embedding.grad, torch.zeros(FRAMES, 32))


@torch.no_grad()
@pytest.mark.parametrize("late_fusion", ["concat", "sum", "weighted", "gated", "product", "product_mlp"])
def test_late_fusion_takes_video_and_misses_it_as_if_it_had_none(late_fusion):
    model = seeing(MMForSequenceClassification, late_fusion=late_fusion)
    assert model.late_fusion.modalities == ("text", "image", "audio", "video")
    rows, media = mixed()
    together = model(**padded(rows), **media).logits
    for row, ids in enumerate(rows):
        alone = model(**padded([ids]), **row_media(media, row)).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)
    other = {**media, "pixel_values_videos": media["pixel_values_videos"] + 1}
    changed = (model(**padded(rows), **other).logits - together).abs().amax(-1) > 1e-6
    assert changed.tolist() == [False, False, False, True, True, True]


def test_a_compiled_model_takes_video():
    model, (row, media) = seeing(), one_video()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(row, **media).logits
        torch.testing.assert_close(compiled, model(row, **media).logits)


@torch.no_grad()
def test_bad_use_is_one_sentence():
    row, media = one_video()
    with pytest.raises(ValueError, match="this model takes none; compose it with `num_frames`"):
        mm_model()(row, **media)
    model = seeing()
    with pytest.raises(ValueError, match=r"shape \(1, 4, 3, 16, 16\); expected \(V, F, C, H, W\), F at most 3"):
        model(row, pixel_values_videos=torch.randn(1, 4, 3, 16, 16))
    with pytest.raises(ValueError, match=r"`video_mask` has shape \(1, 2\); expected \(1, 3\)"):
        model(row, **media, video_mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"`video_index` has shape \(1,\)"):
        model(row, **media, video_index=torch.tensor([0]))
    with pytest.raises(ValueError, match="row 0: 1 videos came with 2 video markers"):
        model.generate(watched_row(5, (), (), [1, 2])[None], **media, video_index=torch.tensor([[0]]), **GREEDY)
    with pytest.raises(ValueError, match="with video need the `media_start`"):
        model(row, media_key_values=model.encode_media(**media), video_index=torch.tensor([[0]]))
    with pytest.raises(Exception, match="`num_frames` is 0; expected 1 or more"):
        mm_config(num_frames=0)
