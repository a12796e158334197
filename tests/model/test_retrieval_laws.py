# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The laws for retrieval, over text backbones and vision towers: a row alone equals the row in any batch (3), saved
equals loaded (6), every part learns (7), distinct media are encoded once (10).

Large batches in parts and across processes (8) are tested in test_retrieval_training.py and test_grad_cache.py.
"""

import pytest
import torch
from helpers.builders import drawing, mixed_rows, padded, pictures, text_inputs
from helpers.laws import row_media
from helpers.retrieval import EARS, retriever
from torch.utils.data import Subset
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, TrainingArguments

from modeling_mm import MMForImageTextRetrieval, MMModel
from modeling_mm.data.collator import RetrievalCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.tables import read_table
from modeling_mm.evaluation.retrieval import distinct_embeddings, rerank
from modeling_mm.training.retrieval_trainer import RetrievalTrainer

over_texts = pytest.mark.parametrize("text", ["llama", "qwen3", "bert"])
over_towers = pytest.mark.parametrize("vision", ["clip_vision_model", "resnet", "siglip2_vision_model"])
SIDES = ("right", "left")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def batch_of(vision, side="right"):
    """Rows with no, one and two images, one of them without a marker."""
    rows, index = mixed_rows()
    return rows, text_inputs(padded(rows, side), "bert"), {**pictures(2, vision), "image_index": index}


def hearing(**fields):
    return retriever(audio_config=AutoConfig.for_model("whisper", **EARS), audio_token_id=97, **fields)


@torch.no_grad()
@pytest.mark.parametrize("text, side", [(t, s) for t in ("llama", "qwen3") for s in SIDES] + [("bert", "right")])
@over_towers
def test_a_row_alone_equals_the_row_in_any_batch(text, vision, side):
    """Holds on both padding sides, but for BERT: it counts positions from the first column, so it is padded right."""
    model = retriever(text, vision=vision)
    rows, batch, media = batch_of(vision, side)
    together, matched = model(**batch, **media), model.match(**batch, **media)
    for row, ids in enumerate(rows):
        alone = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        shown = row_media(media, row)
        torch.testing.assert_close(model.match(**alone, **shown)[0], matched[row], **CLOSE)
        torch.testing.assert_close(
            model.get_text_features(**alone).pooler_output[0], together.text_embeds[row], **CLOSE
        )
        if shown:
            items, output = media["image_index"][row][media["image_index"][row] >= 0], model(**alone, **shown)
            torch.testing.assert_close(output.image_embeds, together.image_embeds[items], **CLOSE)
            torch.testing.assert_close(
                output.logits_per_text[0], together.logits_per_text[row, items], atol=1e-4, rtol=0
            )
    assert torch.equal(matched[0], model.match(**batch)[0])
    assert not torch.allclose(matched[1:], model.match(**batch)[1:], atol=1e-3)


@torch.no_grad()
def test_a_row_alone_equals_the_row_among_pictures_and_sounds():
    model = hearing()
    rows, batch, media = batch_of("clip_vision_model")
    sounds = torch.tensor([[-1], [0], [-1], [1]])
    media |= {"input_features": torch.randn(2, 8, 16), "audio_index": sounds}
    together, matched = model(**batch, **media), model.match(**batch, **media)
    for row, ids in enumerate(rows):
        alone = row_media(media, row)
        torch.testing.assert_close(model.match(ids[None], **alone)[0], matched[row], **CLOSE)
        if sounds[row] >= 0:
            embeds = model(ids[None], **alone).audio_embeds
            torch.testing.assert_close(embeds, together.audio_embeds[sounds[row]], **CLOSE)
    assert torch.equal(matched[0], model.match(**batch)[0])


@torch.no_grad()
@over_towers
@over_texts
def test_saved_and_loaded_is_bit_equal(text, vision, tmp_path):
    fields = {} if text == "bert" else {"language_weight": 0.5}
    model = hearing(text=text, vision=vision, contrastive_loss="sigmoid", **fields)
    _, batch, media = batch_of(vision)
    media |= {"input_features": torch.randn(2, 8, 16), "audio_index": torch.tensor([[-1], [0], [-1], [1]])}
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is MMForImageTextRetrieval and not any(info[kind] for kind in info)
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.eval().state_dict().items())
    ours, theirs = model(**batch, **media), loaded(**batch, **media)
    for name in ("logits_per_image", "logits_per_audio", "text_embeds"):
        assert torch.equal(ours[name], theirs[name])
    assert torch.equal(model.match(**batch, **media), loaded.match(**batch, **media))
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert type(base) is MMModel
    states = [variant(**batch, **media).last_hidden_state for variant in (base, model.model)]
    assert torch.equal(*states)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


@over_towers
@over_texts
def test_every_weight_that_can_reach_the_loss_learns(text, vision):
    """Poolers of towers cannot reach it: mean pooling does not use the vision tower's, and nothing uses BERT's."""
    model = hearing(text=text, vision=vision).train()
    _, batch, media = batch_of(vision)
    media["image_index"] = torch.tensor([[0], [1], [1], [0]])
    media |= {"input_features": torch.randn(2, 8, 16), "audio_index": torch.tensor([[1], [0], [0], [1]])}
    model(**batch, **media, return_loss=True).loss.backward()
    silent = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    unreached = ("pooler", "post_layernorm", ".head.", "k_proj.bias", "key.bias")  # softmax ignores key biases
    assert not [name for name in silent if not any(part in name for part in unreached)]


@pytest.fixture
def dataset(tmp_path):
    """Twelve rows about three images."""
    lines = ["image,caption"]
    for place in range(3):
        drawing((80 * place, 200 - 60 * place, 90)).save(tmp_path / f"{place}.png")
    lines += [f"{row % 3}.png,number {row}" for row in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    source = str(tmp_path / "t.csv")
    return MMDataset(source, *read_table(source, "train"), Columns(text="caption", target=None), task="retrieval")


def encoded(model):
    """A list that records the number of images in each call of the vision tower."""
    seen = []
    tower = model.model.vision_tower
    tower.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True)
    return seen


@over_texts
def test_rows_about_one_picture_cost_one_encoding(text, dataset, processor, tmp_path):
    """Holds in each pass of training, in evaluation, and in reranking of every text's candidates."""
    model, collator = retriever(text), RetrievalCollator(processor, "retrieval")
    model.resize_token_embeddings(len(processor.tokenizer))
    seen = encoded(model)
    model.train()(**collator([dataset[row] for row in range(12)])).loss.backward()
    assert seen == [3]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=6, per_device_eval_batch_size=12, max_steps=1,
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    options = {"train_dataset": dataset, "data_collator": collator, "contrastive_batch_size": 12}
    trainer = RetrievalTrainer(model=model, args=arguments, **options)
    seen.clear()
    trainer.train()
    assert seen == [3, 3, 3, 3]  # two small batches, two passes
    seen.clear()
    predicted = trainer.predict(Subset(dataset, range(12)))
    assert seen == [3]
    embeddings = distinct_embeddings(*predicted.predictions, predicted.label_ids)
    seen.clear()
    rerank(model.eval(), embeddings, dataset, collator, 12, batch_size=2)
    assert seen == [2, 1]


@torch.no_grad()
def test_states_are_returned_where_they_are_asked_for():
    model = hearing()
    _, batch, media = batch_of("clip_vision_model")
    assert model(**batch, **media).hidden_states is None
    output = model(**batch, **media, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    sounds = torch.randn(2, 8, 16)
    plain, asked = (model.get_audio_features(sounds, output_hidden_states=flag) for flag in (False, True))
    assert plain.hidden_states is None and len(asked.hidden_states) == 3
    assert torch.equal(plain.pooler_output, asked.pooler_output)


def test_evaluation_without_pictures_is_refused(tmp_path):
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True}
    trainer = RetrievalTrainer(model=hearing(), args=TrainingArguments(**arguments))
    batch = {"input_ids": torch.arange(12).view(2, 6), "input_features": torch.randn(2, 8, 16), "return_loss": True}
    loss, *rest = trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
    assert loss.isfinite() and rest == [None, None]
    with pytest.raises(ValueError, match="evaluation ranks images, and this batch has none"):
        trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
