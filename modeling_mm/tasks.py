# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The tasks, one entry each, with head, default label column, metrics and model card texts.

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
        main_metric: the metric reported where there is room for only one.
        scores: the model card's sentence about the metrics.
        use: the model card's words for the model's purpose, followed by "images".
        example: Python for the model card that runs `model` on `image`.
        head: name of the model class, exported by this package.
        auto_class: the Auto class of transformers that loads the head.
        pipeline_tag: the Hub's category of the model.
        libraries: Hub tags of other libraries that load the folder too.
        label_column: default of `--label_column`; None if rows need no label.
        problem_type: that of the classification head's config; None for other heads.
        labels: fixed names of the head's outputs; None if the rows or the column's name give them.
        generates: True if the model generates text.
        embeds: True if images and texts are embedded separately and ranked by similarity.
        pairs: True if rows are scored with their own text and with that of another row.
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
        """True if the head's outputs have names."""
        return self.problem_type is not None

    @property
    def several_labels(self) -> bool:
        """True if a row may have any number of labels, each with its own probability."""
        return self.problem_type == "multi_label_classification"

    @property
    def numbers(self) -> bool:
        """True if a row's target is one or more numbers."""
        return self.problem_type == "regression"

    @property
    def has_classes(self) -> bool:
        """True if the values of the label column are the classes."""
        return self.has_labels and not self.numbers and self.labels is None

    @property
    def gives_probabilities(self) -> bool:
        """True if predictions come with probabilities (for retrieval, those of the matching head)."""
        return not self.generates and not self.numbers

    @property
    def needs_image_and_text(self) -> bool:
        """True if a row without an image or without text is of no use."""
        return self.pairs or self.embeds

    def head_class(self) -> type[Any]:
        """The class of `head`."""
        return getattr(importlib.import_module(__package__), self.head)


class Tasks(dict[str, Task]):
    """Tasks by name; an unknown name raises a `ValueError` that lists the known ones."""

    def __missing__(self, name: str) -> Task:
        raise ValueError(f"unknown task '{name}'; expected one of {', '.join(self)}")


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
            scores="`micro_f1` and `macro_f1` count labels with a probability of at least one half, `map` is average "
            "precision, averaged over labels",
            use="predicting which of its labels apply to",
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
            scores="`accuracy` is the share of pairs classified correctly; half of them have the text of another row",
            use="predicting whether a text belongs to",
            label_column=None,
            labels=("mismatch", "match"),
            pairs=True,
        ),
    )
)


def head_of(architectures: Sequence[str]) -> type[Any] | None:
    """The class of the head that a config names in `architectures`; None if it is none of this package."""
    return next((task.head_class() for task in TASKS.values() if task.head in architectures), None)


def task_of(model: Any) -> str:
    """The name of the task that a model was trained for.

    Raises:
        ValueError: the model has none of the heads.
    """
    tasks = [task for task in TASKS.values() if isinstance(model, task.head_class())]
    if not tasks:
        raise ValueError(f"{type(model).__name__} is not the head of a task; expected {', '.join(heads())}")
    config = model.config  # without a problem type the first task of the head is taken: classification
    return max(tasks, key=lambda t: (t.pairs == config.matching, t.problem_type == config.problem_type)).name


def heads() -> list[str]:
    """Class names of the heads, each once."""
    return list(dict.fromkeys(task.head for task in TASKS.values()))
