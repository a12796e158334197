# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Training and evaluating retrieval: batches beyond memory, scores in chunks, a second look, the commands."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.builders import drawing, mm_model
from helpers.retrieval import (
    COLOURS,
    collate,
    command,
    embeddings_and_pairs,
    pairs_of_rows,
    processes,
    retriever,
    train,
    trained,
)
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.nn import functional
from transformers import TrainingArguments

from modeling_mm import MMForConditionalGeneration, MMForImageTextRetrieval, cli
from modeling_mm.checkpoint import load_checkpoint
from modeling_mm.data.augmentation import Augmentation
from modeling_mm.data.collator import RetrievalCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.samplers import ImageGroupSampler
from modeling_mm.data.tables import read_table
from modeling_mm.evaluation.calibration import fit_rerank_weight
from modeling_mm.evaluation.retrieval import (
    Reranked,
    RetrievalEmbeddings,
    directed_scores,
    distinct_embeddings,
    rerank,
    retrieval_scores,
)
from modeling_mm.model.losses_mm import Pairs
from modeling_mm.training.retrieval_trainer import RetrievalTrainer


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("how", [{}, {"gradient_checkpointing": True}, {"lora": True}])
def test_cached_gradients_are_those_of_the_large_batch(tmp_path, how, loss):
    large, one = trained(tmp_path, 8, contrastive_loss=loss, **how)
    for size in (2, 4):
        cached, other = trained(tmp_path, size, 8, contrastive_loss=loss, **how)
        assert other == pytest.approx(one, rel=1e-5)
        assert max(float((large[name] - cached[name]).abs().max()) for name in large) < 1e-5
    moved = [name for name, step in large.items() if step.abs().max() > 1e-4]
    assert any("logit_scale" in name for name in moved) and any("image_projection" in name for name in moved)
    assert any("lora_B" in name for name in moved) == ("lora" in how)


def test_without_the_cache_small_batches_have_other_gradients(tmp_path):
    large, _ = trained(tmp_path, 8)
    small, _ = trained(tmp_path, 4)
    assert max(float((large[name] - small[name]).abs().max()) for name in large) > 1e-3


def test_the_second_pass_draws_the_dropout_of_the_first(tmp_path):
    model = mm_model("bert", head=MMForImageTextRetrieval)  # BERT drops a tenth of its states
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=1, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.text_embeds.detach()))
    options = {"train_dataset": pairs_of_rows(), "data_collator": collate, "contrastive_batch_size": 8}
    RetrievalTrainer(model=model, args=arguments, **options).train()
    assert len(seen) == 8 and all(torch.equal(first, second) for first, second in zip(seen[:4], seen[4:], strict=True))
    assert not torch.equal(seen[0], seen[1])


def test_a_contrastive_batch_that_does_not_divide_is_refused(tmp_path):
    arguments = {"output_dir": str(tmp_path), "per_device_train_batch_size": 3, "use_cpu": True}
    with pytest.raises(ValueError, match="is 8; expected a multiple of 3"):
        RetrievalTrainer(model=retriever(), args=TrainingArguments(**arguments), contrastive_batch_size=8)
    accumulating = TrainingArguments(**arguments, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="give either --contrastive_batch_size or"):
        RetrievalTrainer(model=retriever(), args=accumulating, contrastive_batch_size=6)


STEP = """
import sys
from pathlib import Path
import torch
from helpers.retrieval import pairs_of_rows, trained

count, folder = int(sys.argv[1]), Path(sys.argv[2])
rows = [dict(row, key=place) for place, row in enumerate(pairs_of_rows())]  # no picture on two processes
moved, loss = trained(folder, 8 // count // 2, 8, rows=rows)
assert torch.distributed.get_world_size() == count
if torch.distributed.get_rank() == 0:
    torch.save((moved, loss), folder / "step.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_cached_gradients_on_several_processes_are_those_of_one(tmp_path, count):
    processes(STEP, count, str(tmp_path), tmp_path=tmp_path)
    theirs, other = torch.load(tmp_path / "step.pt")
    ours, loss = trained(tmp_path, 8, rows=[dict(row, key=place) for place, row in enumerate(pairs_of_rows())])
    assert other == pytest.approx(loss, rel=1e-4)
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours) < 1e-5


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_scores_in_chunks_are_the_definitions(chunk):
    texts, media, pairs, true = embeddings_and_pairs()
    ways = [
        (texts, media, (pairs.texts, pairs.media, pairs.texts, pairs.media_of_texts), true),
        (media, texts, (pairs.media, pairs.texts, pairs.media_of_texts, pairs.texts), true.T),
    ]
    for queries, candidates, keys, right in ways:
        said = directed_scores(queries, candidates, keys, chunk=chunk)
        scores, right = (queries @ candidates.T).numpy(), right.numpy()
        kept = right.any(axis=1)
        first = np.array([1 + (s > s[r].max()).sum() for s, r in zip(scores[kept], right[kept], strict=True)])
        for k in (1, 5, 10):
            assert said[f"r{k}"] == pytest.approx((first <= k).mean())
        assert said["median_rank"] == np.median(first)
        precision = [average_precision_score(r, s) for r, s in zip(right[kept], scores[kept], strict=True)]
        assert said["map"] == pytest.approx(np.mean(precision), abs=1e-5)


def test_equal_scores_do_not_flatter():
    keys = torch.arange(6)
    same = torch.ones(6, 2)
    said = directed_scores(same, same, (keys, keys, keys, keys))
    assert said["r1"] == said["r5"] == 0 and said["median_rank"] == 6 and said["map"] == pytest.approx(1 / 6)


def test_a_picture_of_several_rows_is_one_candidate():
    shown = functional.normalize(torch.randn(4, 3), dim=1).numpy()
    rows = [0, 1, 1, 2, 3, 0]
    keys = np.array([[10 + row, 100 + item] for row, item in enumerate(rows)])
    of = distinct_embeddings(shown[rows], shown[rows], keys)
    assert of.media.shape == (4, 3) and of.first_rows.tolist() == [0, 1, 3, 4]
    assert all(value == 1 for name, value in retrieval_scores(of).items())


def test_ranking_again_reorders_the_best_and_nothing_else():
    keys = torch.arange(4)
    queries = candidates = torch.eye(4)
    of = RetrievalEmbeddings(queries, candidates, Pairs(keys, keys, keys), keys)
    top = torch.tensor([[q, (q + 1) % 4] for q in range(4)])
    wrong_first = {"text_to_image": Reranked(top, torch.zeros(4, 2), torch.tensor([[-9.0, -3.0]] * 4))}
    scores = retrieval_scores(of, wrong_first)
    assert scores["text_to_image_r1"] == 0 and scores["text_to_image_median_rank"] == 2
    assert scores["image_to_text_r1"] == 1


@pytest.fixture
def folder(tmp_path):
    """Images of one colour with two captions each, in `t.csv`."""
    lines = ["image,caption"]
    for i, name in itertools.islice(zip(itertools.count(), itertools.cycle(COLOURS)), 16):
        drawing([min(255, c + i) for c in COLOURS[name]], 64).save(tmp_path / f"{i}.png")
        lines += [f"{i}.png,a {name} square", f"{i}.png,number {i}"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_commands_train_score_and_rank_again(folder, capsys):
    report = command(
        capsys, *train(folder, "--language_weight", 0.5, "--rerank", 3, "--eval_strategy", "epoch", "--test_file",
        folder / "t.csv", "--contrastive_batch_size", 16),
    )  # fmt: skip
    ways = [f"{way}_{name}" for way in ("text_to_image", "image_to_text") for name in ("r1", "r5", "r10", "map")]
    assert {*ways, *(f"reranked_{name}" for name in ways)} <= set(report)
    assert report["rows"] == 32 and report["pictures"] == 16
    model, processor = load_checkpoint(str(folder / "out"))
    assert type(model) is MMForImageTextRetrieval and model.lm_head is not None
    again = command(
        capsys, "evaluate", "--model", folder / "out", "--test_file", folder / "t.csv", "--text_column", "caption",
        "--device", "cpu", "--rerank", 3, "--batch_size", 5,
    )  # fmt: skip
    assert {name: again[name] for name in ways} == {name: report[name] for name in ways}
    rows = [json.loads(line) for line in (folder / "out/evaluation/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 32 and all(len(row["found"]) == 3 for row in rows)
    writer = MMForConditionalGeneration.from_pretrained(folder / "out").eval()
    chat = [{"role": "user", "content": [{"type": "image", "url": str(folder / "0.png")}]}]
    asked = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert writer.generate(**asked, max_new_tokens=8).shape[1] > asked["input_ids"].shape[1]


def test_the_matching_head_counts_as_much_as_it_should():
    drawn = torch.Generator().manual_seed(0)
    similar, odds = torch.randn(2, 4000, 6, generator=drawn)
    right = (similar + odds).softmax(dim=1).multinomial(1, generator=drawn)
    true = torch.zeros(4000, 6, dtype=torch.bool).scatter(1, right, True)
    true[:50] = False  # their right ones are not among the candidates
    for both in (1, 5):  # embeddings and head as sure as they may be, and both five times as sure
        found = fit_rerank_weight(both * similar.numpy(), both * 3 * odds.numpy(), true.numpy())
        assert 0.3 < found < 0.37
    flat = fit_rerank_weight(np.zeros((4000, 6)), odds.numpy(), true.numpy())
    nothing = fit_rerank_weight(similar.numpy(), odds.numpy(), np.zeros((4000, 6), dtype=bool))
    assert flat == pytest.approx(1, abs=0.01) and nothing == 1


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--calibrate", "true", "--matching_weight", 0], "need a matching head"),
        (["--rerank", 5, "--matching_weight", 0], "need a matching head"),
        (["--group_size", 2], "needs --group_by_image true"),
        (["--concept_column", "which"], "has no column 'which'"),
        (["--task", "matching", "--concept_column", "caption"], "--task matching does not use it"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_could_not_be_used_after_training_is_refused_before(folder, capsys, argv, said):
    assert cli.main([str(part) for part in train(folder, *argv)]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "out" / "model.safetensors").exists()


def test_a_calibrated_matching_head_is_weighed(folder, capsys):
    report = command(
        capsys, *train(folder, "--calibrate", "true", "--validation_file", folder / "t.csv", "--rerank", 5)
    )
    assert 0 <= report["reranked_text_to_image_r1"] <= 1
    model, processor = load_checkpoint(str(folder / "out"))
    weight = model.config.rerank_weight
    assert 0.01 <= weight <= 20 and weight != 1 and model.config.calibration_temperature is None
    inputs = processor(
        text=["a red square", "blue"], images=[Image.new("RGB", (32, 32))] * 2, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits, similar = model.match(**inputs), torch.tensor([3.0, 1.0])
    torch.testing.assert_close(model.ranking_scores(similar, logits), similar + weight * (logits[:, 1] - logits[:, 0]))


def test_rows_of_one_concept_match_each_other(folder, capsys):
    lines = (folder / "t.csv").read_text().splitlines()
    concepts = [lines[0] + ",concept", *(f"{line},{i // 4}" for i, line in enumerate(lines[1:]))]
    (folder / "c.csv").write_text("\n".join(concepts))
    source = str(folder / "c.csv")
    columns = Columns(text="caption", target=None, concept="concept")
    dataset = MMDataset(source, *read_table(source, "train"), columns, task="retrieval")
    command(capsys, *train(folder, "--max_steps", 1, "--train_file", source, "--concept_column", "concept"))
    model, processor = load_checkpoint(str(folder / "out"))
    collator = RetrievalCollator(processor, "retrieval")
    rows = [dataset[i] for i in range(8)]  # of two images each, in two concepts
    batch = collator(rows)
    assert batch["text_keys"].unique().numel() == 2
    with torch.no_grad():
        output = model(**batch)
        logits = model(**{**batch, "return_loss": False}).logits_per_text.float()  # (8, 4)
    even = torch.block_diag(torch.ones(4, 2), torch.ones(4, 2))
    text = -(logits.log_softmax(1) * even / even.sum(1, keepdim=True)).sum(1).mean()
    image = -(logits.T.log_softmax(1) * even.T / even.T.sum(1, keepdim=True)).sum(1).mean()
    torch.testing.assert_close(output.contrastive_loss, (text + image) / 2, atol=1e-5, rtol=1e-5)
    by_picture, by_concept = dataset.groups(), dataset.groups(by_concept=True)
    assert by_picture[:2] == [[0, 1], [2, 3]] and by_concept[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    kept, held = (part.groups(by_concept=True) for part in dataset.hold_out(0.5, seed=0))
    assert len(kept) + len(held) == len(by_concept)


def test_texts_that_lost_words_are_still_the_same_text(folder, capsys):
    command(capsys, *train(folder, "--max_steps", 1, "--word_dropout", 0.4))
    model, processor = load_checkpoint(str(folder / "out"))
    source = str(folder / "t.csv")
    dataset = MMDataset(source, *read_table(source, "train"), Columns(text="caption", target=None), task="retrieval")
    rows = [dataset[0], replace(dataset[6], text=dataset[0].text), dataset[12]]
    changes = Augmentation(word_dropout=0.4)
    collator = RetrievalCollator(processor, "retrieval", augmentation=changes)
    heard = set()
    for epoch in range(5):
        changes.epoch.fill_(epoch)
        batch = collator(rows)
        said = [processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]
        heard.add(said[0])
        assert all(set(said[i].split()) <= set(row.text.split()) for i, row in enumerate(rows))
        first, same, other = batch["text_keys"]
        assert first == same != other
    assert len(heard) > 1  # words went


def test_few_rows_of_a_group_stand_together_and_others_in_each_epoch():
    groups = [[0, 1, 2, 3, 4], [5, 6], [7]]
    sampler = ImageGroupSampler(groups, seed=0, size=2)
    first = list(sampler)
    sampler.set_epoch(1)
    assert sorted(first) == sorted(sampler) == list(range(8)) and first != list(sampler)
    place = {row: i for i, row in enumerate(first)}
    assert abs(place[5] - place[6]) == 1
    together = sum(a < 5 and b < 5 for a, b in itertools.pairwise(first))  # of five rows two pairs and one alone
    assert together >= 2 and len(sampler) == 8


def test_adapters_are_trained_saved_and_merged(folder, capsys):
    command(capsys, *train(folder, "--use_peft", "true", "--lora_r", 4))
    model, _ = load_checkpoint(str(folder / "out"))
    assert type(model) is MMForImageTextRetrieval and model.matching_head is not None


def test_a_second_look_at_all_candidates_is_every_match(folder, capsys):
    command(capsys, *train(folder, "--max_steps", 1))
    model, processor = load_checkpoint(str(folder / "out"))
    with torch.no_grad():
        for name, gate in model.named_parameters():
            if name.endswith("_gate"):
                gate.fill_(0.5)
    source = str(folder / "t.csv")
    dataset = MMDataset(source, *read_table(source, "train"), Columns(text="caption", target=None), task="retrieval")
    collator = RetrievalCollator(processor, "retrieval")
    rows = [dataset[i] for i in range(0, 12)]
    batch = collator(rows)
    with torch.no_grad():
        output = model(**{**batch, "return_loss": False})
    own = batch["image_index"][:, 0]
    keys = np.stack([np.arange(12), batch["image_keys"][own].numpy()], axis=1)
    of = distinct_embeddings(output.text_embeds.numpy(), output.image_embeds[own].numpy(), keys)
    said = rerank(model, of, dataset, collator, 100, batch_size=5)["text_to_image"]
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for item in range(6):
        shown = batch["pixel_values"][item : item + 1].expand(12, -1, -1, -1)
        with torch.no_grad():
            logits = model.match(**texts, pixel_values=shown)
        expected = logits[:, 1] - logits[:, 0] + output.logits_per_text[:, item]
        found = said.scores[(said.top == item)]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_rows_without_a_picture_are_refused(folder, capsys):
    with (folder / "t.csv").open("a") as file:
        file.write(",nothing\n")
    assert cli.main([*map(str, train(folder))]) == 2
    assert "row 33: 'image' is empty; retrieval needs an image and a text" in capsys.readouterr().err


def test_what_retrieval_does_not_learn_from_is_named(folder, capsys):
    for flags, named in (
        (["--audio_column", "caption", "--audio_tower", "scratch-tiny"], "--audio_column and --audio_tower"),
        (["--audio_tower", "scratch-tiny"], "--audio_tower"),
        (["--video_column", "caption", "--num_frames", 2], "--video_column and --num_frames"),
        (["--late_fusion", "sum"], "--late_fusion"),
    ):
        assert cli.main([*map(str, train(folder, *flags))]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.endswith(f"--task retrieval uses images and texts only; leave out {named}")
