# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Two and four processes of `DistributedDataParallel` step like one with the whole batch, whichever has images. The
command in two processes is tested in test_processes.py and test_trainer.py, GradCache in test_grad_cache.py.
"""

import pytest
import torch
from helpers.builders import mm_model, padded, token_row
from helpers.processes import together
from helpers.retrieval import collate, pairs_of_rows, trained
from transformers import TrainingArguments

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification
from modeling_mm.training.trainer import MMTrainer

ROWS = 8
HEADS = {"classification": ("bert", MMForSequenceClassification), "generation": ("llama", MMForConditionalGeneration)}
WITH_IMAGE = 2  # rows with an image, all of them in the first process


def some_rows():
    """Rows of different lengths; the first have an image and its marker."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(ROWS, 3, 16, 16, generator=generator)
    torch.manual_seed(4)
    rows = [{"ids": token_row(5 + i % 4, [1] if i < WITH_IMAGE else []), "label": i % 2} for i in range(ROWS)]
    return [{**row, "picture": images[i]} if i < WITH_IMAGE else row for i, row in enumerate(rows)]


class Collate:
    """Collates rows for a task; a batch without images has no tensors for them."""

    def __init__(self, task):
        self.task = task

    def __call__(self, rows):
        batch = padded([row["ids"] for row in rows])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.task == "classification":
            batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["label"] for row in rows])}
        else:
            batch["labels"] = ids.masked_fill(mask == 0, -100)
        images = [row["picture"] for row in rows if "picture" in row]
        if not images:
            return batch
        has = torch.tensor([["picture" in row] for row in rows])
        return {**batch, "pixel_values": torch.stack(images), "image_index": torch.where(has, has.cumsum(0) - 1, -1)}


def step(task, size, folder):
    """Changes of the weights by one step of plain gradient descent, the loss, and the class of the model's wrapper."""
    text, head = HEADS[task]
    torch.manual_seed(0)
    model = mm_model(text, head=head, **({"num_labels": 2} if task == "classification" else {}))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=size, max_steps=1, learning_rate=1.0, optim="sgd",
        max_grad_norm=0.0, lr_scheduler_type="constant", use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, train_sampling_strategy="sequential", ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = MMTrainer(model=model, args=arguments, train_dataset=some_rows(), data_collator=Collate(task))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    moved = {name: value - before[name] for name, value in model.state_dict().items()}
    loss = next(log["loss"] for log in trainer.state.log_history if "loss" in log)
    return moved, loss, type(trainer.model_wrapped).__name__


def retrieval_step(count, folder):
    rows = [{**row, "key": place} for place, row in enumerate(pairs_of_rows())]  # no image on two processes
    return trained(folder, ROWS // count, rows=rows, collator=collate)


def everything(count, folder):
    steps = {task: step(task, ROWS // count, folder) for task in HEADS}
    return {**steps, "retrieval": (*retrieval_step(count, folder), "DistributedDataParallel")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return everything(1, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_step_as_one(alone, tmp_path, count):
    for found in together(count, everything, count, tmp_path / "out", folder=tmp_path):
        assert found.keys() == alone.keys()
        for name, (moved, loss, wrapped) in found.items():
            assert wrapped == "DistributedDataParallel", name
            assert loss == pytest.approx(alone[name][1], rel=1e-4), name
            assert max(float((moved[n] - alone[name][0][n]).abs().max()) for n in moved) < 1e-5, name
            assert any(step.abs().max() > 1e-4 for step in moved.values()), name
