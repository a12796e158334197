# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The search of `--search N`: trials of other arguments by Optuna, through `Trainer.hyperparameter_search`.

- The first trial has the default values, so that no choice is worse than they are on the validation rows.
- A trial is shorter than the training that follows: with a time limit, all of them share half of what is left of it;
  without, each has a third of the epochs. The median pruner ends trials that fall behind.
- Trials are kept in `search/trials.db` of the output folder. A search that was killed goes on with those that are
  finished; the one that was running counts as failed, and is repeated.
- `Trainer` sets training arguments of a trial. All else that a trial changes is set by its two hooks: `model_init`
  (layers) and `hp_space` (Muon, label smoothing, augmentation, the clock), which is called once the model is there.
"""

import copy
import importlib.util
import json
import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.collator import MMCollator
from ..tasks import TASKS
from .arguments import DataArguments, ModelArguments, augmentation_of
from .build import build_trainer, use_cached_features
from .callbacks import AugmentationEpochCallback
from .presets import NEVER, Choice, DefaultsArguments, applied
from .retrieval_arguments import RetrievalArguments
from .search_results import finished_trials
from .search_space import Hyperparameter, arguments_of
from .splits import Splits
from .time_limit import EVERY, Clock, TimeLimitCallback, TrialClock
from .trainer import MMTrainer

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

STUDY = "modeling_mm"
TIME = 0.5  # share of the time left that all trials have together
LENGTH = 3  # a trial without a time limit has a third of the epochs
STARTUP = 4  # trials that are completed before any is pruned
WARMUP = 0.3  # share of a trial before which it is not pruned
# flags that no trial depends on, so that a search may go on with others
APART = {"search", "time_limit", "resume_from_checkpoint", "output_dir", "test_file", "test_split", "baselines"}
APART |= {"calibrate", "disable_tqdm", "report_to", "logging_steps", "logging_strategy", "rerank"}


def check_search(
    defaults: DefaultsArguments, model: ModelArguments, data: DataArguments, args: TrainingArguments
) -> None:
    """Refuse a search that cannot be, before any row is read.

    Raises:
        ValueError: names the flag, or the package that is missing.
    """
    if defaults.search < 0:
        raise ValueError(f"--search is {defaults.search}; expected a number of trials, 0 or more")
    if not defaults.search:
        return
    if data.streaming:
        raise ValueError("--search trains on the same rows many times; leave out --streaming, or --search")
    if model.freeze_schedule is not None:
        raise ValueError("--search finds values for one phase of training; leave out --freeze_schedule, or --search")
    if args.world_size > 1:
        raise ValueError(f"--search runs its trials in one process, and there are {args.world_size}; leave it out")
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("--search needs the package optuna: pip install 'modeling_mm[search_hp]'")


def database(output: Path) -> Path:
    """The file with the trials of an output folder."""
    return output / "search" / "trials.db"


def is_interrupted(output: Path) -> bool:
    """True if a search in this folder, or the training after it, ended before its report."""
    trials, report = database(output), output / "report.json"
    return trials.is_file() and not (report.is_file() and report.stat().st_mtime > trials.stat().st_mtime)


def trial_arguments(args: TrainingArguments, limited: bool) -> TrainingArguments:
    """Training arguments of a trial: evaluated on its way, and nothing saved.

    Args:
        limited: the time limit ends trials and decides when to evaluate; otherwise they have fewer epochs.
    """
    trial = copy.copy(args)
    trial.eval_strategy = IntervalStrategy.STEPS if limited else IntervalStrategy.EPOCH
    trial.eval_steps = NEVER
    trial.save_strategy, trial.load_best_model_at_end = SaveStrategy.NO, False
    trial.logging_strategy, trial.report_to, trial.disable_tqdm = IntervalStrategy.NO, [], True
    if not limited:
        trial.num_train_epochs = max(1, round(args.num_train_epochs / LENGTH))
        trial.max_steps = args.max_steps if args.max_steps <= 0 else max(1, args.max_steps // LENGTH)
        trial.warmup_steps = args.warmup_steps if args.warmup_steps < 1 else args.warmup_steps // LENGTH
    return trial


class TrialLimitCallback(TimeLimitCallback):
    """The limit of a trial, which is not announced, and whose model is not saved."""

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        control.should_save = False

    def announce(self, state) -> None:
        pass


@dataclass
class Search:
    """A search for better values of the arguments in `space`.

    Args:
        trials: number of trials, those of an interrupted search included.
        build: makes a model from its arguments.
        explicit: names of the arguments that a flag or a file sets.
        clock: of the command, if it has a time limit.
    """

    trials: int
    space: Sequence[Hyperparameter]
    defaults: DefaultsArguments
    model: ModelArguments
    data: DataArguments
    retrieval: RetrievalArguments
    args: TrainingArguments
    splits: Splits
    collator: MMCollator
    layers: int  # of the text backbone
    build: Callable[[ModelArguments], PreTrainedModel]
    explicit: Collection[str]
    clock: Clock | None = None
    trainer: MMTrainer = field(init=False)
    first: PreTrainedModel | None = field(init=False, default=None)  # with the default values
    trial_seconds: float = field(init=False, default=0.0)
    trial_clock: TrialClock | None = field(init=False, default=None)

    @property
    def metric(self) -> str:
        """The task's main metric."""
        return TASKS[self.data.task].main_metric

    def run(self) -> tuple["optuna.Study", bool]:
        """Run the trials that are missing; returns all, and False if none was missing.

        Raises:
            ValueError: the database holds trials that cannot be compared, or no time is left.
        """
        import optuna

        study = self.study()
        missing = self.trials - len(finished_trials(study))
        if missing <= 0:
            return study, False
        self.trainer = self.make_trainer()
        timeout = self.seconds_left(study)
        steps = 1 / EVERY if self.clock else self.steps()
        self.trainer.hyperparameter_search(
            hp_space=self.set_up,
            compute_objective=self.objective,
            n_trials=missing,
            direction="maximize",
            backend="optuna",
            study_name=STUDY,
            storage=self.storage(),
            load_if_exists=True,
            # a sampler forgets its state, and would draw the same values again
            sampler=optuna.samplers.TPESampler(seed=self.args.seed + len(study.trials)),
            pruner=optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=math.ceil(WARMUP * steps)),
            timeout=timeout,
            gc_after_trial=True,
        )
        del self.trainer
        if left := self.trials - len(finished_trials(study)):
            logger.warning(f"{left} of {self.trials} trials did not fit into their share of the time limit")
        if self.clock is not None:
            study.set_user_attr("used", self.clock.used())
        return study, True

    def storage(self) -> str:
        """The address of the database."""
        return f"sqlite:///{database(Path(str(self.args.output_dir))).resolve()}"

    def study(self) -> "optuna.Study":
        """The study in the output folder, with the trials of an interrupted search; one that failed is repeated.

        Raises:
            ValueError: its trials had other values to choose from, or other flags.
        """
        import optuna

        path = database(Path(str(self.args.output_dir)))
        path.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name=STUDY, storage=self.storage(), load_if_exists=True, direction="maximize"
        )
        settings, before = self.settings(), study.user_attrs.get("settings")
        if before is None:
            study.set_user_attr("settings", settings)
        elif other := [name for name in settings if before.get(name) != settings[name]]:
            raise ValueError(
                f"'{path}' holds trials of another search, whose {other[0]} differ: {before.get(other[0])}, not "
                f"{settings[other[0]]}; repeat that command, or give another --output_dir"
            )
        if not study.trials:
            study.enqueue_trial({each.name: each.default for each in self.space})
        state = optuna.trial.TrialState
        for trial in study.get_trials(states=(state.RUNNING,)):
            study.tell(trial.number, state=state.FAIL)
        repeated = {trial.user_attrs.get("repeats") for trial in study.trials}
        for trial in study.get_trials(states=(state.FAIL,)):
            if trial.number not in repeated:
                values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                study.enqueue_trial(values, user_attrs={"repeats": trial.number})
        return study

    def settings(self) -> dict[str, Any]:
        """The values to choose from and what all trials share, as JSON has it."""
        targets = (self.defaults, self.model, self.data, self.retrieval, self.args)
        flags = {
            name: str(next(getattr(target, name) for target in targets if hasattr(target, name)))
            for name in sorted(set(self.explicit) - APART)
        }
        values = {each.name: [each.default, *each.values] for each in self.space}
        rows = {"training": len(self.splits.train), "validation": len(self.splits.validation)}
        kinds = {"trials": "share of a time limit" if self.clock else "share of the epochs"}
        return json.loads(json.dumps({"flags": flags, "rows": rows, "lengths": kinds, "values": values}))

    def seconds_left(self, study: "optuna.Study") -> float | None:
        """Seconds for the missing trials; None without a limit. The first search fixes those of each trial.

        Raises:
            ValueError: the time limit is used up.
        """
        if self.clock is None:
            return None
        self.clock.check()
        if "end" not in study.user_attrs:
            seconds = TIME * self.clock.left()
            study.set_user_attr("trial_seconds", seconds / self.trials)
            study.set_user_attr("end", self.clock.used() + seconds)
        self.trial_seconds = study.user_attrs["trial_seconds"]
        least = 0.0 if finished_trials(study) else 1e-3  # the first trial is run in any case
        return max(least, study.user_attrs["end"] - self.clock.used())

    def make_trainer(self) -> MMTrainer:
        """The trainer of all trials, with the cached features of frozen towers."""
        data, args = copy.copy(self.data), trial_arguments(self.args, self.clock is not None)
        data.early_stopping_patience, data.calibrate = None, False
        self.first, muon = self.build(self.model), self.defaults.muon_learning_rate
        rest = (self.splits, self.collator, data, self.retrieval, None, muon)
        trainer = build_trainer(self.first, args, *rest, model_init=self.model_init)
        self.first = None  # the trainer drops it too, for that of a trial
        trainer.eval_collator = trainer.eval_collator or replace(trainer.data_collator, augmentation=None)
        for callback in (PrinterCallback, ProgressCallback, trainer.audit):
            trainer.remove_callback(callback)
        if data.cache_features is not None:
            use_cached_features(trainer, self.splits, Path(data.cache_features), data.cache_dtype)
        return trainer

    def steps(self) -> int:
        """Number of steps of a trial without a time limit."""
        args = self.trainer.args
        rows = args.train_batch_size * args.gradient_accumulation_steps
        epoch = math.ceil(len(self.splits.train) / rows)
        return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)

    def choices(self, trial: Any, reason: str = "") -> list[Choice]:
        """The values of a running or finished trial, by their arguments."""
        is_finished = trial.params.keys() == {each.name for each in self.space}
        values = trial.params if is_finished else {each.name: each.suggest(trial) for each in self.space}
        return [Choice(name, value, reason) for name, value in arguments_of(values, self.layers).items()]

    def model_init(self, trial: Any) -> PreTrainedModel:
        """The model of a trial, or with None that of the default values."""
        if trial is None:
            assert self.first is not None
            return self.first
        self.trial_clock = TrialClock(self.trial_seconds, self.clock) if self.clock else None
        model = copy.copy(self.model)
        set_fields(self.choices(trial), model)
        return self.build(model)

    def set_up(self, trial: Any) -> dict[str, Any]:
        """Set what the trainer takes from elsewhere than training arguments; returns those of the trial."""
        trainer, choices = self.trainer, self.choices(trial)
        defaults, data = copy.copy(self.defaults), copy.copy(self.data)
        set_fields(choices, defaults, data)
        values = {choice.name: choice.value for choice in choices if hasattr(trainer.args, choice.name)}
        trainer.muon_learning_rate = defaults.muon_learning_rate
        trainer.smooth_labels(values.get("label_smoothing_factor", trainer.args.label_smoothing_factor))
        augmentation = augmentation_of(data, self.args.seed)
        trainer.data_collator = replace(trainer.data_collator, augmentation=augmentation)
        trainer.remove_callback(AugmentationEpochCallback)
        trainer.remove_callback(TrialLimitCallback)
        if augmentation is not None:
            trainer.add_callback(AugmentationEpochCallback(augmentation))
        if self.trial_clock is not None:
            trainer.time_limit = TrialLimitCallback(self.trial_clock, rows_after=0.0)
            trainer.add_callback(trainer.time_limit)
        return values

    def objective(self, metrics: dict[str, float]) -> float:
        """The main metric; the lowest of all if it is no number."""
        value = metrics[f"eval_{self.metric}"]
        return value if math.isfinite(value) else -math.inf


def set_fields(choices: Collection[Choice], *targets: Any) -> None:
    """Set those choices whose fields the arguments have."""
    applied([c for c in choices if any(hasattr(target, c.name) for target in targets)], (), *targets)
