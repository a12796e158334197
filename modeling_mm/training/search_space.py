# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The space of `--search`: the arguments that its trials change, and the values that each may take.

An argument that a flag or a file sets is not among them. The values of a trial are numbers, truth values and words;
`arguments_of` turns them into values of the arguments. Importing this file imports neither torch nor optuna.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..tasks import TASKS
from .arguments import DataArguments, ModelArguments
from .presets import DefaultsArguments

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, TrainingArguments

    from .splits import Splits

FACTOR = 5.0  # learning rates from a fifth of the default to five times as much
WEIGHT_DECAY = (1e-3, 0.3)
SMOOTHING = 0.2  # the highest of label smoothing
DROPPED = 0.3  # the highest probability of dropping words, modalities or units of LoRA
SPACING = {"all": 1, "every second": 2, "every fourth": 4, "last": 10**6}  # text layers per fusion layer
NONE = "none"


@dataclass(frozen=True)
class Hyperparameter:
    """An argument to search.

    Args:
        name: the argument's.
        default: its value in the first trial.
        values: all values, if the default is a word or a truth value; otherwise the lowest and the highest number.
        log: draw numbers evenly on a logarithmic scale.
    """

    name: str
    default: Any
    values: tuple[Any, ...]
    log: bool = False

    def suggest(self, trial: Any) -> Any:
        """The value of an Optuna trial, which is the same each time that it is asked for."""
        if isinstance(self.default, (str, bool)):
            return trial.suggest_categorical(self.name, self.values)
        suggest = trial.suggest_int if isinstance(self.default, int) else trial.suggest_float
        return suggest(self.name, *self.values, log=self.log)


def search_space(
    defaults: DefaultsArguments,
    model: ModelArguments,
    data: DataArguments,
    args: "TrainingArguments",
    splits: "Splits",
    config: "PreTrainedConfig",
    explicit: Collection[str],
) -> list[Hyperparameter]:
    """The arguments to search, around the values that they have.

    Args:
        config: that of the model with these values.
        explicit: names of the arguments that a flag or a file sets.

    Raises:
        ValueError: all of them are set.
    """
    space = [*training_space(defaults, model, data.task, args), *augmentation_space(model, data, splits)]
    space += layer_space(model, config) if model.model is None else []
    free = [each for each in space if each.name not in explicit]
    if not free:
        raise ValueError(f"--search has nothing to search: flags set {', '.join(each.name for each in space)}")
    return free


def training_space(
    defaults: DefaultsArguments, model: ModelArguments, task: str, args: "TrainingArguments"
) -> list[Hyperparameter]:
    """Learning rates and regularisation."""
    facts, rates = TASKS[task], {"learning_rate": args.learning_rate}
    if defaults.muon_learning_rate:
        rates["muon_learning_rate"] = defaults.muon_learning_rate
    space = [Hyperparameter(name, rate, (rate / FACTOR, rate * FACTOR), True) for name, rate in rates.items()]
    space.append(Hyperparameter("weight_decay", args.weight_decay, WEIGHT_DECAY, True))
    if not (facts.embeds or facts.numbers or facts.several_labels):
        space.append(Hyperparameter("label_smoothing_factor", args.label_smoothing_factor, (0.0, SMOOTHING)))
    if model.use_peft:
        space.append(Hyperparameter("lora_dropout", model.lora_dropout, (0.0, DROPPED)))
    return space


def augmentation_space(model: ModelArguments, data: DataArguments, splits: "Splits") -> list[Hyperparameter]:
    """Augmentation: of media only if it is there by default, as cached features cannot change."""
    space, train = list[Hyperparameter](), splits.train
    modalities = len(train.present_media()) + bool(data.text_column) + bool(train.columns.table)
    if data.text_column:
        space.append(Hyperparameter("word_dropout", data.word_dropout, (0.0, DROPPED)))
    if modalities > 1 and not TASKS[data.task].needs_image_and_text:
        space.append(Hyperparameter("modality_dropout", data.modality_dropout, (0.0, DROPPED)))
    if data.augment_images:
        default = " ".join(data.augment_images)
        space.append(Hyperparameter("augment_images", default, (default, f"{default} color", NONE)))
    if data.augment_audio:
        default = " ".join(data.augment_audio)
        space.append(Hyperparameter("augment_audio", default, (default, NONE)))
    return space


def layer_space(model: ModelArguments, config: "PreTrainedConfig") -> list[Hyperparameter]:
    """Layers of a scratch text backbone, and of the fusion."""
    from .scratch import SIZES

    space, layers = list[Hyperparameter](), config.text_config.num_hidden_layers
    if untrained := model.text_model in SIZES:
        fewest = max(layers // 2, 1, *(layer + 1 for layer in model.fusion_layers or ()))
        space.append(Hyperparameter("text_layers", layers, (fewest, 2 * layers)))
    if config.cross_attention:
        spacing = ("all", "last") if untrained else ("every fourth", "every second", "last")
        space.append(Hyperparameter("fusion_layers", spacing[0], spacing))
        space.append(Hyperparameter("fusion_mlp", model.fusion_mlp, (False, True)))
    return space


def arguments_of(values: dict[str, Any], layers: int) -> dict[str, Any]:
    """The values of the arguments that stand for those of a trial.

    Args:
        layers: number of layers of the text backbone, if the trial does not set it.
    """
    arguments = dict(values)
    for name in {"augment_images", "augment_audio"} & set(values):
        arguments[name] = [] if values[name] == NONE else values[name].split()
    if "fusion_layers" in values:
        last = values.get("text_layers", layers) - 1
        arguments["fusion_layers"] = list(range(last, -1, -SPACING[values["fusion_layers"]]))[::-1]
    return arguments
