# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tiny retrieval models, pairs with their naive losses, a training step, and the command on a table of colours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from helpers.builders import mm_model
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import TrainingArguments

from modeling_mm import MMForImageTextRetrieval, cli
from modeling_mm.model.losses_mm import NO_MEDIUM, Pairs
from modeling_mm.training.retrieval_trainer import RetrievalTrainer

TESTS = Path(__file__).parents[1]
EARS = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8}
EARS["max_source_positions"] = 8


def retriever(text="llama", **fields):
    return mm_model(text, head=MMForImageTextRetrieval, **fields)


def naive(kind, texts, media, true, scale, bias):
    """The losses as in the papers, over the whole matrix."""
    logits = scale * texts @ media.T
    if kind == "sigmoid":
        sign = torch.where(true, 1.0, -1.0)
        return -functional.logsigmoid(sign * (logits + bias)).sum() / len(texts)
    losses = []
    for matrix, target in ((logits, true.float()), (logits.T, true.T.float())):
        anchors = target.any(dim=1)
        share = target[anchors] / target[anchors].sum(dim=1, keepdim=True)
        losses.append(functional.cross_entropy(matrix[anchors], share))
    return torch.stack(losses).mean()


def embeddings_and_pairs(count=23, seed=0):
    """Texts and fewer images, with equal texts and a text without image; and the true pairs, found by brute force."""
    generator = torch.Generator().manual_seed(seed)
    texts, media = torch.randn(count, 8, generator=generator), torch.randn(count - 6, 8, generator=generator)
    keys = torch.randint(0, 15, (count,), generator=generator)
    index = torch.cat([torch.arange(len(media)), torch.randint(0, len(media), (6,), generator=generator)])
    index[-1] = -1
    true = torch.zeros(count, len(media), dtype=torch.bool)
    for text in range(count):
        for row in range(count):
            if keys[text] == keys[row] and index[row] >= 0:
                true[text, index[row]] = True
    names = torch.arange(len(media)) * 7
    pairs = Pairs(keys, names, torch.where(index < 0, NO_MEDIUM, names[index]))
    assert torch.equal(pairs.true_pairs(), true) and true.sum() > count
    return functional.normalize(texts, dim=1), functional.normalize(media, dim=1), pairs, true


def processes(script, count, *arguments, tmp_path):
    """The output of a script in `count` processes, all of which must succeed."""
    (tmp_path / "script.py").write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command = [*launch, str(tmp_path / "script.py"), str(count), *arguments]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as started:
        try:
            output, errors = started.communicate(timeout=300)
        finally:
            started.terminate()  # a killed launcher would leave its processes behind
    assert started.returncode == 0, errors[-3000:]
    return output


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}
SCRATCH = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--fusion_layers", "0", "1"]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no"]


def pairs_of_rows(count=8):
    """Rows of equal length with one image each; the first and the last row have the same image."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    image_numbers = [*range(count - 1), 0]
    ids = torch.randint(5, 90, (count, 6), generator=generator)
    return [{"ids": ids[row], "picture": images[number], "key": number} for row, number in enumerate(image_numbers)]


def collate(rows):
    """A batch in the format of the collator, with each distinct image once."""
    keys = list(dict.fromkeys(row["key"] for row in rows))
    ids = torch.stack([row["ids"] for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.stack([next(row["picture"] for row in rows if row["key"] == key) for key in keys]),
        "image_index": torch.tensor([[keys.index(row["key"])] for row in rows]),
        "image_keys": torch.tensor(keys),
        "return_loss": True,
    }


def trained(folder, batch_size, contrastive_batch_size=None, lora=False, rows=None, collator=collate, **fields):
    """Change of each weight and buffer by a step of plain gradient descent over the rows, and the logged loss."""
    torch.manual_seed(0)
    checkpointing = fields.pop("gradient_checkpointing", False)
    model = retriever("bert", matching_weight=0.0, **fields)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if lora:
        heads = ["text_projection", "image_projection", "temperature"]
        config = LoraConfig(target_modules=model.lora_targets("text"), modules_to_save=heads, init_lora_weights=False)
        model = get_peft_model(model, config)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch_size, max_steps=1, learning_rate=1.0, optim="sgd",
        max_grad_norm=0.0, lr_scheduler_type="constant", use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, gradient_checkpointing=checkpointing,
        ddp_find_unused_parameters=False,  # as in the command
    )  # fmt: skip
    options = {"train_dataset": rows or pairs_of_rows(), "data_collator": collator}
    trainer = RetrievalTrainer(model=model, args=arguments, **options, contrastive_batch_size=contrastive_batch_size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    changes = {name: value - before[name] for name, value in model.state_dict().items()}
    return changes, next(log["loss"] for log in trainer.state.log_history if "loss" in log)


def command(capsys, *argv):
    """The result of a command that must succeed."""
    assert cli.main([*map(str, argv)]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def train(folder, *argv):
    few = ["--num_train_epochs", 2, "--per_device_train_batch_size", 8, "--learning_rate", "2e-3"]
    columns = ["--task", "retrieval", "--text_column", "caption", "--output_dir", folder / "out"]
    return ["train", "--train_file", folder / "t.csv", *columns, *SCRATCH, *QUIET, *few, *argv]
