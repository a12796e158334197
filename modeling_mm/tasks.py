# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The tasks, one row each: which head learns it, from which column, how it is scored, what its model card says.

Code asks `TASKS[name]` for a fact in place of comparing names. Nothing here imports torch; `head_class` does.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ANSWER = """inputs = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])"""

CLASSIFY = """inputs = processor(images=image, text="<image>what is it?", return_tensors="pt")
"""
LIKELIEST = f"{CLASSIFY}print(model.config.id2label[model(**inputs).logits.argmax().item()])"
LIKELY = f"{CLASSIFY}print([model.config.id2label[i] for i, x in enumerate(model(**inputs).logits[0]) if x > 0])"
NUMBERS = f"{CLASSIFY}print(model(**inputs).logits[0].tolist())"

RETRIEVE = """pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
texts = processor(text=["a red square", "a dog"], padding=True, return_tensors="pt")
images = model.get_image_features(pixels).pooler_output
print(model.get_text_features(**texts).pooler_output @ images.T)"""


@dataclass(frozen=True)
class Task:
    """Facts of a task; the defaults are those of the classification head.

    Args:
        name: as `--task` takes it.
        main_metric: the score that stands for the task where there is room for one.
        scores: the model card's sentence about the metrics.
        use: the model card's words for what the model is meant for, before "images".
        example: Python that asks `model` about `picture`, for the model card.
        head: name of the model class, which this package exports.
        auto_class: the Auto class of transformers that opens the head.
        pipeline_tag: what the Hub sorts its models by.
        libraries: others that open the folder too, as tags of the Hub.
        label_column: the default; None where rows need no label.
        problem_type: as in the config of the classification head; None of the other heads.
        labels: names of the head's outputs that are fixed; None where the rows or the column's name give them.
        generates: whether the model answers in words of its own.
        embeds: whether images and texts are embedded apart and rank each other.
        pairs: whether rows are scored with their own text and with that of another row.
    """

    name: str
    main_metric: str
    scores: str
    use: str
    example: str = LIKELIEST
    head: str = "MMForSequenceClassification"
    auto_class: str = "AutoModelForSequenceClassification"
    pipeline_tag: str = "text-classification"
    libraries: tuple[str, ...] = ()
    label_column: str | None = "label"
    problem_type: str | None = "single_label_classification"
    labels: tuple[str, ...] | None = None
    generates: bool = False
    embeds: bool = False
    pairs: bool = False

    @property
    def has_labels(self) -> bool:
        """Whether the head has outputs with names."""
        return self.problem_type is not None

    @property
    def several_labels(self) -> bool:
        """Whether a row may have any number of the labels, each with a probability of its own."""
        return self.problem_type == "multi_label_classification"

    @property
    def numbers(self) -> bool:
        """Whether a row's target is one number or several."""
        return self.problem_type == "regression"

    @property
    def has_classes(self) -> bool:
        """Whether the values of the label column are the classes."""
        return self.has_labels and not self.numbers and self.labels is None

    @property
    def gives_probabilities(self) -> bool:
        """Whether probabilities come with the predictions (of a retrieval, those of its matching head)."""
        return not self.generates and not self.numbers

    @property
    def needs_image_and_text(self) -> bool:
        """Whether a row without either is of no use."""
        return self.pairs or self.embeds

    def head_class(self) -> type[Any]:
        """The class of `head`."""
        return getattr(importlib.import_module(__package__), self.head)


class Tasks(dict[str, Task]):
    """The rows by their names; a name that is none of them is refused by a sentence."""

    def __missing__(self, name: str) -> Task:
        raise ValueError(f"there is no task '{name}'; expected one of {', '.join(self)}")


TASKS = Tasks(
    (task.name, task)
    for task in (
        Task(
            "generation",
            main_metric="accuracy",
            scores="`accuracy` is the share of rows whose answer equals the truth",
            use="answering questions about",
            example=ANSWER,
            head="MMForConditionalGeneration",
            auto_class="AutoModelForImageTextToText",
            pipeline_tag="image-text-to-text",
            label_column="answer",
            problem_type=None,
            generates=True,
        ),
        Task(
            "retrieval",
            main_metric="text_to_image_r1",
            scores="`r1` is the share of queries with a true candidate in first place, `map` the mean average "
            "precision",
            use="finding by text, or finding texts for,",
            example=RETRIEVE,
            head="MMForImageTextRetrieval",
            auto_class="AutoModelForZeroShotImageClassification",
            pipeline_tag="zero-shot-image-classification",
            libraries=("sentence-transformers",),
            label_column=None,
            problem_type=None,
            embeds=True,
        ),
        Task(
            "classification",
            main_metric="accuracy",
            scores="`accuracy` is the share of rows whose label equals the truth",
            use="choosing one of its labels for",
        ),
        Task(
            "multilabel",
            main_metric="micro_f1",
            scores="`micro_f1` and `macro_f1` count a label from a probability of one half, `map` is the mean over "
            "labels of average precision",
            use="telling which of its labels hold for",
            example=LIKELY,
            problem_type="multi_label_classification",
        ),
        Task(
            "regression",
            main_metric="r2",
            scores="`mae` and `rmse` are in the label's unit",
            use="estimating its numbers for",
            example=NUMBERS,
            problem_type="regression",
        ),
        Task(
            "matching",
            main_metric="accuracy",
            scores="`accuracy` is the share of pairs told right, half of which have the text of another row",
            use="telling whether a text belongs to",
            label_column=None,
            labels=("mismatch", "match"),
            pairs=True,
        ),
    )
)


def head_of(architectures: Sequence[str]) -> type[Any] | None:
    """The head among the class names of a config; None where there is none of ours."""
    return next((task.head_class() for task in TASKS.values() if task.head in architectures), None)


def task_of(model: Any) -> str:
    """The name of the task that a model's head has learnt.

    Raises:
        ValueError: the model has none of the heads.
    """
    tasks = [task for task in TASKS.values() if isinstance(model, task.head_class())]
    if not tasks:
        raise ValueError(f"{type(model).__name__} has no head for a task; expected {', '.join(heads())}")
    config = model.config  # a head without a problem type is the first of its tasks, a classification
    return max(tasks, key=lambda t: (t.pairs == config.matching, t.problem_type == config.problem_type)).name


def heads() -> list[str]:
    """Class names of the heads, each once."""
    return list(dict.fromkeys(task.head for task in TASKS.values()))
