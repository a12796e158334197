# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The trainers of TRL, if it is installed: each runs, and scores a row as a direct forward pass of that row does.

TRL stacks rows itself, passes on the tensors whose names it knows (`image_index` is not one of them) and slices
`pixel_values` by the number of images of each row. Checked with trl 1.16.
"""

import re
from pathlib import Path

import pytest
import torch
from helpers.builders import drawing, mm_model, save_with_processor

trl = pytest.importorskip("trl")

import datasets  # noqa: E402

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
# Question, images, a good answer and a bad one. As many images as rows, so that a guess of one per row goes unnoticed.
ROWS = [
    ("what colour is the circle", [RED], "blue", "yes"),
    ("is there a red square", [], "no", "blue"),
    ("a small green triangle", [GREEN, BLUE], "yes", "no"),
    ("is there a small circle", [BLUE], "no", "a small green triangle"),
    ("what colour is there", [], "blue", "no"),
    ("is the triangle a square", [BLUE, RED], "yes", "blue"),
    ("what colour is the triangle", [GREEN], "no", "yes"),
    ("is there a circle", [RED], "yes", "no"),
]
COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


TWO_STEPS = {"per_device_train_batch_size": 8, "steps_per_generation": 2}  # two answers to each of eight questions


def dialogue(role, text):
    return [{"role": role, "content": text}]


def table(**columns):
    """A dataset with `columns` and the images of `ROWS` as embedded files."""
    images = datasets.List(datasets.Image())
    rows = datasets.Dataset.from_dict({**columns, "images": [[drawing(c) for c in row[1]] for row in ROWS]})
    return rows.cast_column("images", images)


def questions():
    return [dialogue("user", question) for question, *_ in ROWS]


def answers(column):
    return [dialogue("assistant", row[column]) for row in ROWS]


def sft_messages(**overrides):
    rows = table(messages=[question + answer for question, answer in zip(questions(), answers(2), strict=True)])
    return trl.SFTTrainer, {"args": trl.SFTConfig(**{**COMMON, **overrides}), "train_dataset": rows}


def sft_assistant_only(**overrides):
    """The assistant's turns alone are learned, by the marks of the processor's chat template."""
    return sft_messages(**{"assistant_only_loss": True, **overrides})


def sft_placed_images(**overrides):
    """Messages that place their images themselves, after the question."""
    messages = [
        [
            {"role": "user", "content": [{"type": "text", "text": question}, *[{"type": "image"}] * len(images)]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        for question, images, answer, _ in ROWS
    ]
    args = trl.SFTConfig(**{**COMMON, **overrides})
    return trl.SFTTrainer, {"args": args, "train_dataset": table(messages=messages)}


def sft_completion(**overrides):
    rows = table(prompt=questions(), completion=answers(2))
    return trl.SFTTrainer, {"args": trl.SFTConfig(**{**COMMON, **overrides}), "train_dataset": rows}


def dpo(**overrides):
    rows = table(prompt=questions(), chosen=answers(2), rejected=answers(3))
    return trl.DPOTrainer, {"args": trl.DPOConfig(**{**COMMON, **overrides}), "train_dataset": rows}


def length_of(completions, **columns):
    """A reward that differs between the completions of a question."""
    return [float(len(completion[0]["content"])) for completion in completions]


def grpo(**overrides):
    """Two answers to each question per round, their rows shuffled and sliced by TRL; with a reference model."""
    sampling = {"num_generations": 2, "max_completion_length": 5, "beta": 0.1, **TWO_STEPS, **overrides}
    args = trl.GRPOConfig(**{**COMMON, **sampling})
    return trl.GRPOTrainer, {"args": args, "train_dataset": table(prompt=questions()), "reward_funcs": length_of}


def grpo_on_policy(**overrides):
    """One optimizer step per round, so that TRL scores the answers in the loss only."""
    return grpo(**{"gradient_accumulation_steps": 2, "beta": 0.0, **overrides})


def grpo_question_by_question(**overrides):
    """Two rows scored at a time, those of one question; some of these batches have no image."""
    return grpo(**{"per_device_train_batch_size": 2, "steps_per_generation": 8, **overrides})


def rloo(**overrides):
    sampling = {"num_generations": 2, "max_completion_length": 5, **TWO_STEPS, **overrides}
    args = trl.RLOOConfig(**{**COMMON, **sampling})
    return trl.RLOOTrainer, {"args": args, "train_dataset": table(prompt=questions()), "reward_funcs": length_of}


SUPERVISED = [sft_messages, sft_assistant_only, sft_placed_images, sft_completion, dpo]
ONLINE = [grpo, grpo_on_policy, grpo_question_by_question, rloo]


class Scores:
    """Forward hook that collects the log-probabilities that TRL uses, and those of each row by itself.

    `rows` holds for each scored row its question, its number of images, and the log-probabilities of TRL, of the row
    by itself, and of the row without its images.
    """

    def __init__(self, processor):
        self.processor, self.rows = processor, []

    def __call__(self, model, args, kwargs, output):
        if not kwargs.get("fused_lm_head"):
            return
        for row, (ids, mask) in enumerate(zip(kwargs["input_ids"], kwargs["attention_mask"].bool(), strict=True)):
            question, images = self.row_of(ids[mask])
            scored = kwargs["labels"][row][mask][1:] != -100
            with torch.no_grad():
                alone, blind = (self.alone(model, ids[mask], media)[scored] for media in (images, []))
            trainers = output.log_probs[row][mask[1:] & mask[:-1]][scored]
            self.rows.append((question, len(images), trainers, alone, blind))

    def row_of(self, ids):
        """Question and images of the row of `ROWS` with these tokens."""
        text = self.processor.decode(ids)
        found = [row for row in ROWS if text.replace("<image>", "").removeprefix("<s>").startswith(row[0] + "\n")]
        assert len(found) == 1, text
        return found[0][0], [drawing(colour) for colour in found[0][1]]

    def alone(self, model, ids, images):
        """Log-probabilities (T - 1,) of a row of tokens with its images, each named by the index."""
        media = {}
        if images:
            media = {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}
            media["image_index"] = torch.arange(len(images))[None]
        # `forward` and not a call, which would run this hook again
        logits = model.forward(input_ids=ids[None], **media).logits[0, :-1]
        return logits.log_softmax(dim=-1).gather(1, ids[1:, None])[:, 0]


@pytest.fixture
def checkpoint(processor, tmp_path):
    """The folder of a tiny model, from which TRL loads model, processor and reference model."""
    save_with_processor(mm_model(image_token_id=processor.image_token_id), processor, tmp_path / "model")
    return str(tmp_path / "model")


def trained(recipe, checkpoint, folder, **more):
    """The scores of all rows in a short training, and the model."""
    trainer_class, arguments = recipe(output_dir=str(folder))
    trainer = trainer_class(model=checkpoint, **arguments, **more)
    scores = Scores(trainer.processing_class)
    trainer.model.register_forward_hook(scores, with_kwargs=True)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.state.global_step == trainer.args.max_steps
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    return scores.rows, trainer.model


def assert_scored_alike(rows):
    assert {count for _, count, *_ in rows} == {0, 1, 2}
    for question, count, trainers, alone, blind in rows:
        assert len(trainers) and torch.allclose(trainers, alone, atol=1e-4), question
        assert count == 0 or not torch.allclose(alone, blind, atol=1e-2), question


@pytest.mark.parametrize("recipe", [*SUPERVISED, *ONLINE], ids=lambda recipe: recipe.__name__)
def test_a_trainer_scores_each_row_as_the_row_alone(recipe, checkpoint, tmp_path):
    rows, _ = trained(recipe, checkpoint, tmp_path)
    assert_scored_alike(rows)


@pytest.mark.parametrize("recipe", [sft_completion, dpo, grpo], ids=lambda recipe: recipe.__name__)
def test_a_trainer_scores_each_row_as_the_row_alone_with_lora(recipe, checkpoint, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(modules_to_save=["fusion"])
    rows, model = trained(recipe, checkpoint, tmp_path, peft_config=lora)
    assert_scored_alike(rows)
    assert model.peft_config and not model.get_base_model().model.text_model.layers[0].mlp.up_proj.weight.requires_grad


def test_documented_trainings_run(checkpoint, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "trl.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "runs").mkdir()
    Path(checkpoint).rename(tmp_path / "runs" / "easy_vqa")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(compile(block.replace('"max_steps": 10', '"max_steps": 1'), "docs/trl.md", "exec"), names)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"easy_vqa", "sft", "dpo", "grpo"}
