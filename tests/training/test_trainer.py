"""MMTrainer: evaluation, frozen parts, gradient audit; batches, steps and processes do not change the result."""

import copy
import json
import logging
import os
import subprocess
import sys

import datasets
import pytest
import torch
from helpers.builders import causal_model, drawing, model_for
from safetensors.torch import load_file
from transformers import TrainingArguments

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, cli
from modeling_mm.checkpoint import load_checkpoint
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.samplers import ImageGroupSampler
from modeling_mm.evaluation.metrics import compute_metrics_for
from modeling_mm.training.trainable import freeze_unused, set_trainable, trainable_parameters
from modeling_mm.training.trainer import MMTrainer

LABELS = ["blue", "no", "yes"]
TEXTS = ["what colour is the circle", "is there a red square", "blue", "a small green triangle"]
ANSWERS = ["yes", "blue", "no", "is there a red square", "what colour", "yes no yes"]
SCRATCH = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--fusion_layers", "0", "1"]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no", "--max_new_tokens", "2"]


@pytest.fixture
def rows(tmp_path):
    """A function that makes a dataset of `count` rows: most with an image, some with none or two."""

    def make(count=8, labels=None):
        for p in range(4):
            drawing((60 * p, 200 - 50 * p, 90)).save(tmp_path / f"p{p}.png")
        images = [f"p{i % 3}.png" + (";p3.png" if i % 5 == 0 else "") if i % 4 != 2 else None for i in range(count)]
        answers = [labels[i % len(labels)] if labels else ANSWERS[i % len(ANSWERS)] for i in range(count)]
        texts = [TEXTS[i * 7 % 4] for i in range(count)]
        table = datasets.Dataset.from_dict({"image": images, "text": texts, "answer": answers})
        return MMDataset("rows", table, tmp_path, Columns("image", "text", "answer"), labels)

    return make


def task_of(model):
    return "generation" if isinstance(model, MMForConditionalGeneration) else "classification"


def trainer_for(model, processor, folder, dataset, **options):
    """An MMTrainer on the CPU that logs to no service and saves nothing."""
    trainer_options = {name: options.pop(name) for name in ("group_by_image", "max_new_tokens") if name in options}
    options = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1, **options}
    collator = MMCollator(processor, task_of(model))
    generates = task_of(model) == "generation"
    return MMTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder / "out"), use_cpu=True, **options),
        data_collator=collator,
        eval_collator=MMCollator(processor, task_of(model), with_prompts=generates),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=processor,
        compute_metrics=compute_metrics_for(processor.tokenizer, dataset.labels),
        **trainer_options,
    )


def test_evaluation_generates_what_each_row_alone_would(processor, rows, tmp_path):
    model, dataset = model_for(processor), rows(9)
    trainer = trainer_for(model, processor, tmp_path, dataset, per_device_eval_batch_size=4, max_new_tokens=6)
    tokens = trainer.predict(dataset).predictions
    answers = processor.batch_decode(torch.tensor(tokens).clamp(min=0), skip_special_tokens=True)
    expected = []
    for index in range(len(dataset)):
        row = dataset[index]
        row.target = None
        batch = MMCollator(processor, "generation")([row])
        answer = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]
        expected.append(processor.decode(answer, skip_special_tokens=True))
    assert answers == expected
    assert len(set(answers)) > 3


def test_evaluation_loss_is_the_mean_over_the_trained_tokens(processor, rows, tmp_path):
    model, dataset = model_for(processor), rows(6)
    trainer = trainer_for(model, processor, tmp_path, dataset, per_device_eval_batch_size=6, max_new_tokens=2)
    losses = []
    for index in range(len(dataset)):
        batch = MMCollator(processor, "generation")([dataset[index]])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            scores = model(**batch).logits[0, :-1].log_softmax(dim=-1)
        losses += [-scores[t, token] for t, token in enumerate(labels.tolist()) if token != -100]
    result = trainer.evaluate()
    assert result["eval_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert 0 <= result["eval_accuracy"] <= 1


def test_evaluation_loss_of_a_classification_is_the_mean_over_rows(processor, rows, tmp_path):
    model = model_for(processor, MMForSequenceClassification, "bert", num_labels=3)
    dataset = rows(6, LABELS)
    trainer = trainer_for(model, processor, tmp_path, dataset, per_device_eval_batch_size=4)
    losses, right = [], []
    for index in range(len(dataset)):
        batch = MMCollator(processor, "classification")([dataset[index]])
        label = batch.pop("labels")[0]
        with torch.no_grad():
            scores = model(**batch).logits[0].log_softmax(dim=-1)
        losses.append(-scores[label])
        right.append(float(scores.argmax() == label))
    result = trainer.evaluate()
    assert result["eval_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert result["eval_accuracy"] == pytest.approx(sum(right) / 6)


def test_parameters_that_cannot_reach_the_loss_are_frozen_and_all_else_is_as_before(processor, rows):
    model = model_for(processor, MMForSequenceClassification, "bert", "vit", num_labels=3).train()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    unused = freeze_unused(model, MMCollator(processor, "classification")([rows(2, LABELS)[0]]))
    assert unused and all(".pooler." in name for name in unused)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == set(unused)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and model.training


def test_looking_for_unused_parameters_moves_no_batch_norm(processor, rows):
    model = model_for(processor, vision="resnet").train()
    set_trainable(model, vision=True, fusion=True, text=False)
    before = copy.deepcopy(model.state_dict())
    unused = freeze_unused(model, MMCollator(processor, "generation")([rows(2)[0]]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(".fusion." in name or ".text_model." in name for name in unused)


def test_words_freeze_and_train_each_part(processor):
    model = model_for(processor)
    whole = trainable_parameters(model)
    parts = {"vision": "vision_tower", "fusion": "fusion", "text": "text_model"}
    for part, attribute in parts.items():
        counts = set_trainable(model, **{name: name == part for name in parts})
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained and all(f".{attribute}." in name or (part == "text" and "lm_head" in name) for name in trained)
        assert counts[part] == whole[part] and sum(counts.values()) == counts[part] + counts["head"]
    head = model_for(processor, MMForSequenceClassification, "bert", num_labels=3)
    assert set_trainable(head, vision=False, fusion=True, text=False)["head"] > 0
    assert set_trainable(head, vision=False, fusion=False, text=True)["head"] == 0


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if "got no gradient" in r.getMessage()]


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_parameter_without_a_gradient_is_named(processor, rows, tmp_path, caplog, forgotten):
    model, dataset = model_for(processor, vision="vit", gate=0.0), rows(8)
    freeze_unused(model, MMCollator(processor, "generation")([dataset[0]]))
    if forgotten:
        model.model.fusion.forgotten = torch.nn.Parameter(torch.zeros(2))
    with caplog.at_level(logging.WARNING, logger="modeling_mm.training.trainer"):
        trainer_for(model, processor, tmp_path, dataset, max_steps=5, per_device_train_batch_size=4).train()
    messages = warnings_of(caplog)
    if forgotten:
        assert len(messages) == 1 and messages[0].startswith("1 trainable parameters")
        assert "model.fusion.forgotten" in messages[0]
    else:
        assert messages == []


def one_step(model, processor, folder, dataset, size, accumulated):
    """The model's weights and logged loss after one SGD step over `size * accumulated` rows."""
    model = copy.deepcopy(model)
    trainer = trainer_for(
        model, processor, folder, dataset, max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0,
        lr_scheduler_type="constant", per_device_train_batch_size=size, gradient_accumulation_steps=accumulated,
    )  # fmt: skip
    trainer.train()
    return model.state_dict(), next(log["loss"] for log in trainer.state.log_history if "loss" in log)


@pytest.mark.parametrize("head, text", [(MMForConditionalGeneration, "llama"), (MMForSequenceClassification, "bert")])
def test_small_batches_accumulated_are_one_large_batch(processor, rows, tmp_path, head, text):
    fields = {"num_labels": 3} if head is MMForSequenceClassification else {}
    model = model_for(processor, head, text, **fields)
    model.config.text_config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    dataset = rows(8, LABELS if fields else None)
    (large, large_loss), (small, small_loss) = (
        one_step(model, processor, tmp_path, dataset, size, 8 // size) for size in (8, 2)
    )
    start = model.state_dict()
    moved = max(float((large[name] - start[name]).abs().max()) for name in large)
    worst = max(float((large[name] - small[name]).abs().max()) for name in large)
    assert moved > 1e-2 and worst < 1e-4 * moved
    assert small_loss == pytest.approx(large_loss, rel=1e-4)


@pytest.mark.parametrize(
    "vision, trained, accumulated, count",
    [("resnet", True, 2, 1), ("resnet", True, 1, 0), ("resnet", False, 2, 0), ("vit", True, 2, 0)],
)
def test_one_warning_where_batch_norms_make_accumulation_inexact(
    processor, rows, tmp_path, caplog, vision, trained, accumulated, count
):
    model = model_for(processor, vision=vision)
    set_trainable(model, vision=trained, fusion=True, text=True)
    with caplog.at_level(logging.WARNING, logger="modeling_mm.training.callbacks"):
        trainer_for(
            model, processor, tmp_path, rows(8), max_steps=2, per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulated,
        ).train()  # fmt: skip
    messages = [record.getMessage() for record in caplog.records if "batch norm" in record.getMessage()]
    assert len(messages) == count
    if messages:
        assert "2 batches of 2 rows will not equal a batch of 4 rows" in messages[0] and "vision_tower" in messages[0]


@pytest.mark.parametrize("trained", [False, True])
def test_a_frozen_tower_s_batch_norms_do_not_drift(processor, rows, tmp_path, trained):
    model = model_for(processor, vision="resnet")
    set_trainable(model, vision=trained, fusion=True, text=True)
    before = {name: b.clone() for name, b in model.named_buffers() if "running_" in name}
    trainer_for(model, processor, tmp_path, rows(8), max_steps=2, per_device_train_batch_size=4).train()
    same = [torch.equal(b, before[name]) for name, b in model.named_buffers() if name in before]
    assert same and (not any(same) if trained else all(same))


def test_rows_of_a_picture_stay_together_in_a_new_order_each_epoch(processor, rows, tmp_path):
    dataset = rows(8)
    trainer = trainer_for(
        model_for(processor), processor, tmp_path, dataset, group_by_image=True, per_device_train_batch_size=8
    )
    assert isinstance(trainer._get_train_sampler(), ImageGroupSampler)
    loader, epochs = trainer.get_train_dataloader(), []
    for epoch in range(3):
        loader.set_epoch(epoch)
        epochs.append([batch["input_ids"].tolist() for batch in loader])
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    plain = trainer_for(model_for(processor), processor, tmp_path, dataset)
    assert not isinstance(plain._get_train_sampler(), ImageGroupSampler)


def test_rows_of_one_length_stay_together_and_evaluation_keeps_its_order(processor, rows, tmp_path):
    dataset = rows(48)
    trainers = {
        name: trainer_for(
            model_for(processor), processor, tmp_path, dataset, train_sampling_strategy=name,
            per_device_train_batch_size=4, per_device_eval_batch_size=4,
        )
        for name in ("random", "group_by_length")
    }  # fmt: skip
    padded = {name: [] for name in trainers}
    for name, trainer in trainers.items():
        loader = trainer.get_train_dataloader()
        for epoch in range(3):
            loader.set_epoch(epoch)
            batches = [batch["attention_mask"] for batch in loader]
            padded[name].append(sum(int((mask == 0).sum()) for mask in batches))
            assert sum(len(mask) for mask in batches) == 48
    assert max(padded["group_by_length"]) < min(padded["random"]) / 2
    sampler = trainers["group_by_length"]._get_train_sampler()
    first = list(sampler)
    sampler.set_epoch(1)
    assert sorted(first) == sorted(sampler) == list(range(48)) and first != list(sampler)
    lengths = trainers["random"].data_collator.lengths(dataset)
    batch = trainers["random"].data_collator([dataset[i] for i in range(48)])
    assert lengths == batch["attention_mask"].sum(dim=1).tolist()
    ids = {n: [b["prompt_input_ids"].tolist() for b in t.get_eval_dataloader()] for n, t in trainers.items()}
    assert ids["group_by_length"] == ids["random"]


@pytest.mark.parametrize("by_name", [True, False])
def test_several_gpus_in_one_process_are_refused(processor, tmp_path, monkeypatch, by_name):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="2 GPUs in one process.*torchrun --nproc_per_node 2"):
        if by_name:
            MMTrainer(model=model_for(processor), args=args)
        else:
            MMTrainer(model_for(processor), args)


@pytest.mark.parametrize("dispatch", [None, True])
def test_batches_of_iterable_data_are_not_dealt_out_by_accelerate_unless_asked(processor, tmp_path, dispatch):
    config = {"dispatch_batches": dispatch}
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, accelerator_config=config)
    assert MMTrainer(model=model_for(processor), args=args).accelerator.dispatch_batches is bool(dispatch)


@pytest.fixture
def table(tmp_path):
    """A CSV whose first four rows have no image, with answers and labels."""
    for p in range(4):
        drawing((60 * p, 200 - 50 * p, 90), size=64).save(tmp_path / f"p{p}.png")
    lines = [f",{TEXTS[i % 4]},{ANSWERS[i % 6]},{'abc'[i % 3]}" for i in range(4)]
    lines += [f"p{i % 4}.png,{TEXTS[i * 3 % 4]},{ANSWERS[i % 6]},{'abc'[i % 3]}" for i in range(20)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["image,text,answer,label", *lines]) + "\n")
    return path


def command(capsys, *argv):
    """The results of a verb that must succeed."""
    assert cli.main([*map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def train(capsys, table, out, *argv):
    sizes = ["--per_device_train_batch_size", 8, "--per_device_eval_batch_size", 8]
    argv = ["--validation_file", table, "--max_steps", 3, *sizes, *QUIET, *argv]
    return command(capsys, "train", "--train_file", table, *SCRATCH, "--output_dir", out, *argv)


def test_rows_without_a_picture_at_the_start_do_not_freeze_the_fusion(table, tmp_path, capsys):
    out = tmp_path / "out"
    train(capsys, table, out, "--learning_rate", "1e-2")
    gates = {name: value for name, value in load_file(out / "model.safetensors").items() if name.endswith("_gate")}
    assert gates and all(value.abs().max() > 0 for value in gates.values())


def test_report_to_tensorboard_writes_events(table, tmp_path, capsys):
    train(capsys, table, tmp_path / "out", "--report_to", "tensorboard", "--logging_steps", 1)
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_what_trains_beside_lora_is_saved_with_it(table, tmp_path, capsys, task):
    out = tmp_path / "out"
    report = train(capsys, table, out, "--task", task, "--use_peft", "true", "--learning_rate", "1e-2")
    assert report["loss"] > 0
    base = dict(load_checkpoint(str(out / "base"))[0].named_parameters())
    moved = {n for n, p in load_checkpoint(str(out))[0].named_parameters() if not torch.equal(p, base[n])}
    assert any(".vision_tower." in n for n in moved) and any(".fusion." in n for n in moved)
    assert task == "generation" or any(n.startswith("classifier.") for n in moved)
    again = command(capsys, "evaluate", "--model", out, "--test_file", table, "--device", "cpu", "--batch_size", 8)
    assert again["loss"] == pytest.approx(report["loss"], rel=1e-4)


def test_a_fusion_kept_frozen_stays_so_beside_lora(table, tmp_path, capsys):
    out = tmp_path / "out"
    train(capsys, table, out, "--use_peft", "true", "--fusion_trainable", "false", "--learning_rate", "1e-2")
    base = dict(load_checkpoint(str(out / "base"))[0].named_parameters())
    moved = {n for n, p in load_checkpoint(str(out))[0].named_parameters() if not torch.equal(p, base[n])}
    assert moved and not any(".fusion." in n for n in moved)


def test_a_model_trained_further_keeps_the_order_of_its_labels(table, tmp_path, capsys):
    first, second, fewer = tmp_path / "first", tmp_path / "second", tmp_path / "fewer.csv"
    train(capsys, table, first, "--task", "classification")
    lines = table.read_text().splitlines()
    fewer.write_text("\n".join([lines[0], *(line for line in lines[1:] if not line.endswith(",a"))]) + "\n")
    report = command(
        capsys, "train", "--task", "classification", "--model", first, "--train_file", fewer, "--validation_file",
        fewer, "--output_dir", second, "--max_steps", 1, "--learning_rate", "1e-9", *QUIET,
    )  # fmt: skip
    again = command(capsys, "evaluate", "--model", second, "--test_file", fewer, "--device", "cpu")
    assert (again["accuracy"], again["loss"]) == (report["accuracy"], pytest.approx(report["loss"], rel=1e-4))


def test_labels_beyond_ten_keep_their_order(processor, tmp_path):
    names = {i: f"label {i}" for i in range(12)}
    model = model_for(processor, MMForSequenceClassification, "bert", id2label=names)
    model.save_pretrained(tmp_path)
    loaded = MMForSequenceClassification.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    again = MMForSequenceClassification.from_pretrained(tmp_path / "again").config.id2label
    assert again == names and list(again.values()) == list(names.values())


def in_processes(count, table, out, *argv, size=8):
    """Train in `count` processes, `size` rows a step in all; returns the report."""
    start = [sys.executable, "-m", *(["torch.distributed.run", "--nproc_per_node", str(count), "-m"] * (count > 1))]
    argv = [
        *start, "modeling_mm.cli", "train", "--train_file", table, "--validation_file", table, "--use_cpu",
        "--vision_tower", "scratch-tiny", "--fusion_layers", "0", "1", "--text_trainable", "true",
        "--disable_tqdm", "true", "--num_train_epochs", "1", "--per_device_train_batch_size", str(size // count),
        "--optim", "sgd", "--learning_rate", "0.05", "--max_grad_norm", "0", "--logging_steps", "1",
        "--save_strategy", "epoch", "--max_new_tokens", "2", "--vision_trainable", "false", "--output_dir", out, *argv,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, argv)), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.strip().splitlines()
    return json.loads(line)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["generation", "classification"])
def test_one_process_is_two_processes(table, tmp_path, task, tokenizer):
    single, double, text = tmp_path / "one", tmp_path / "two", tmp_path / "text"
    tokenizer.save_pretrained(text)
    causal_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(text)
    reports = [
        in_processes(n, table, out, "--task", task, "--text_model", text) for n, out in ((1, single), (2, double))
    ]
    # 24 rows, of which each process takes 4 a step: with a world of one it would have been 6 steps
    states = [json.loads((out / "checkpoint-3" / "trainer_state.json").read_text()) for out in (single, double)]
    assert [state["train_batch_size"] for state in states] == [8, 4]
    losses = [[log["loss"] for log in state["log_history"] if "loss" in log] for state in states]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    first, second = (load_file(out / "model.safetensors") for out in (single, double))
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"], rel=0.2)
    assert reports[0]["accuracy"] == reports[1]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_process_without_pictures_does_not_stop_the_others(table, tmp_path, checkpointing):
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[1:5], *lines[5:9], *lines[1:5], *lines[1:5]]) + "\n")
    single, double = tmp_path / "one", tmp_path / "two"
    flags = ["--text_model", "scratch-tiny", "--gradient_checkpointing", checkpointing, "--learning_rate", "5e-5"]
    for count, out in ((1, single), (2, double)):
        in_processes(count, table, out, *flags, size=2)
        assert (out / "checkpoint-8" / "trainer_state.json").exists()  # 16 rows, two a step: the world is `count`
    first, second = (load_file(out / "model.safetensors") for out in (single, double))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5


def test_a_token_on_the_command_line_is_not_in_the_card(table, tmp_path, capsys):
    out = tmp_path / "an out"
    train(capsys, table, out, "--hub_token", "hf_secret", "--hub_strategy=end")
    card = (out / "README.md").read_text()
    assert "hf_secret" not in card and "--hub_token" not in card
    assert f"--output_dir '{out}'" in card and "--hub_strategy=end" in card


def test_rows_held_out_by_one_run_are_not_trained_in_it(rows):
    rest, held = rows(16).hold_out(0.25, seed=0)
    images = [{row.images[0] for row in part if row.images} for part in (rest, held)]
    assert images[0].isdisjoint(images[1])
