# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMTrainer: the `Trainer` of transformers with additions for multimodal training.

- Batches can group rows about the same image, so that it is encoded once (`group_by_image`), or rows of about the same
  length, so that there is little padding (`train_sampling_strategy="group_by_length"`).
- Generating models generate in evaluation: prompts are padded on the left, media encoded once for loss and answer.
- A stream is read in parts, one per process, and a checkpoint holds the position of each.
- Trainable parameters that get no gradient in the first steps are named in a warning, and so are batch norms that make
  gradient accumulation inexact.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..data.collator import MMCollator
from ..data.dataset import MMDataset
from ..data.samplers import ImageGroupSampler, LengthSampler
from ..data.stream import MMStream
from ..data.stream_loader import StreamLoader
from ..model.adapters_mm import without_adapters
from ..model.media_mm import MEDIA
from ..model.modeling_mm import MMPreTrainedModel
from ..model.processing_mm import MMProcessor
from .callbacks import (
    AugmentationEpochCallback,
    BatchNormSyncCallback,
    BatchNormWarningCallback,
    FSDPCallback,
    GradientAuditCallback,
    StreamEpochCallback,
)
from .freeze_schedule import FreezeScheduleCallback
from .fsdp import with_placeholder_media
from .muon import MuonAdamW, muon_groups
from .part_arguments import Phase
from .part_optimizer import rate_groups, rounding_adamw
from .smoothing import smoothed_loss
from .time_limit import TimeLimitCallback, follow_progress
from .warm_start import WarmStartCallback

logger = logging.getLogger(__name__)


class MMTrainer(Trainer):
    """`Trainer` for the models of this package; takes the same arguments and a few more.

    Args:
        group_by_image: keep the rows about one image together when shuffling.
        group_size: maximum number of such rows in a group; default: all.
        eval_collator: collator for evaluation; one with prompts makes evaluation generate. Default: that of training,
            without its augmentation.
        max_new_tokens: maximum number of tokens of an answer in evaluation.
        time_limit: callback that ends training in time; the learning rate schedule follows it.
        muon_learning_rate: learning rate of Muon, which then updates matrices and convolutions in place of the
            optimiser of the training arguments; see `muon.py`. 0: Muon is not used.
        part_learning_rates: learning rates of vision, audio, fusion, text or head, where they differ.
        phases: parts that train one after the other, see `freeze_schedule.py`.
        bf16_weights: the weights are in bfloat16, and AdamW rounds them at random, or small updates would be lost.

    Raises:
        ValueError: several GPUs in one process, among which `DataParallel` would split batches wrongly.
    """

    def __init__(
        self,
        *args,
        group_by_image=False,
        group_size=None,
        eval_collator=None,
        max_new_tokens=32,
        time_limit: TimeLimitCallback | None = None,
        muon_learning_rate: float = 0.0,
        part_learning_rates: dict[str, float] | None = None,
        bf16_weights: bool = False,
        phases: Sequence[Phase] = (),
        **kwargs,
    ):
        self.group_by_image = group_by_image
        self.group_size = group_size
        self.eval_collator = eval_collator
        self.max_new_tokens = max_new_tokens
        options = kwargs.get("args") or next((value for value in args if isinstance(value, TrainingArguments)), None)
        if options is not None and options.ddp_broadcast_buffers is None:
            options.ddp_broadcast_buffers = False  # `BatchNormSyncCallback` averages them instead
        if options is not None and options.accelerator_config.dispatch_batches is None:
            # accelerate would split a batch along dim 0 of each tensor, images apart from their rows
            options.accelerator_config.dispatch_batches = False
        super().__init__(*args, **kwargs)
        self.args.remove_unused_columns = False
        if self.label_smoother is not None:  # type: ignore[has-type]
            self.label_smoother = None
            self.smooth_labels(self.args.label_smoothing_factor)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process would split images from their rows; "
                f"start with: torchrun --nproc_per_node {self.args.n_gpu} ..."
            )
        self.audit = GradientAuditCallback()
        self.add_callback(self.audit)
        self.warm_start = WarmStartCallback(self)
        self.add_callback(self.warm_start)  # before the time limit, which times the steps
        self.time_limit, self.muon_learning_rate = time_limit, muon_learning_rate
        self.part_learning_rates, self.bf16_weights = part_learning_rates or {}, bf16_weights
        if time_limit is not None:
            self.add_callback(time_limit)
        self.freeze_schedule = FreezeScheduleCallback(list(phases), time_limit) if phases else None
        if self.freeze_schedule is not None:
            self.add_callback(self.freeze_schedule)  # after the time limit, whose progress it follows
        if isinstance(self.data_collator, MMCollator) and self.data_collator.augmentation is not None:
            self.add_callback(AugmentationEpochCallback(self.data_collator.augmentation))
            self.eval_collator = self.eval_collator or replace(self.data_collator, augmentation=None)
        self.add_callback(BatchNormSyncCallback())
        self.add_callback(BatchNormWarningCallback())
        self.loader: StreamLoader | None = None
        self.resume_folder: str | None = None
        if isinstance(self.train_dataset, MMStream):
            self.args.ignore_data_skip = True  # the stream resumes by itself
            self.add_callback(StreamEpochCallback(self.train_dataset.known_rows))
        collates = isinstance(self.data_collator, MMCollator)
        processor = self.data_collator.processor if collates else self.processing_class
        self.fsdp_callback = FSDPCallback(processor if isinstance(processor, MMProcessor) else None)
        self.add_callback(self.fsdp_callback)

    def smooth_labels(self, factor: float) -> None:
        """Train the present model on labels smoothed by `factor`, or as it is without one."""
        head = without_adapters(self.accelerator.unwrap_model(self.model))
        self.compute_loss_func = smoothed_loss(head, factor) if factor else None

    def create_optimizer(self, model=None):
        if (self.part_learning_rates or self.bf16_weights) and self.optimizer is None:
            self.optimizer = self.optimizer_by_part(model or self.model)
        elif self.muon_learning_rate and self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            if kind is not torch.optim.AdamW or self.is_fsdp_enabled:
                raise ValueError(
                    "--muon_learning_rate needs AdamW (--optim adamw_torch) and weights that are not sharded; "
                    "leave it out"
                )
            rates = (self.args.learning_rate, self.muon_learning_rate)
            self.optimizer = MuonAdamW(
                muon_groups(model or self.model, *rates, self.args.weight_decay), **{**options, "fused": False}
            )
        return super().create_optimizer(model)

    def optimizer_by_part(self, model) -> torch.optim.Optimizer:
        """The optimiser of the training arguments, with a learning rate for each part, or stochastic rounding.

        Raises:
            ValueError: Muon has rates of its own and rounds, or the optimiser that rounds at random is missing.
        """
        if self.muon_learning_rate:
            flags = "--learning_rate_vision and the like" if self.part_learning_rates else "--bf16_weights"
            raise ValueError(f"{flags} need AdamW for all weights; leave out --muon_learning_rate")
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        if self.bf16_weights:
            kind, options = rounding_adamw(kind, options)
        decayed, args = self.get_decay_parameter_names(model), self.args
        groups = rate_groups(model, self.part_learning_rates, args.weight_decay, decayed, args.learning_rate)
        return kind(groups, **options)

    def create_scheduler(self, num_training_steps, optimizer=None):
        is_new = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.time_limit is not None and is_new:
            follow_progress(scheduler, self.time_limit, num_training_steps)
        return scheduler

    def _report_to_hp_search(self, trial, step, metrics):
        """Extends the base method: trials with a time limit take different steps, so that its share counts."""
        super()._report_to_hp_search(trial, self.time_limit.twentieths() if self.time_limit else step, metrics)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        has_rows, args = isinstance(dataset, MMDataset), self.args
        if has_rows and self.group_by_image:
            return ImageGroupSampler(dataset.groups(), args.seed, self.group_size)
        if has_rows and args.train_sampling_strategy == "group_by_length":
            step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            return LengthSampler(self.data_collator.lengths(dataset), step, args.seed)
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset):
        return None  # rows are evaluated in their order, whatever the sampling strategy of training

    def _get_dataloader(self, *args, is_training=False, **kwargs):
        collator = self.data_collator
        if not is_training and self.eval_collator is not None:
            self.data_collator = self.eval_collator
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.data_collator = collator

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        source = resume_from_checkpoint
        self.resume_folder = get_last_checkpoint(self.args.output_dir) if source is True else source or None
        return super().train(source, *args, **kwargs)

    def get_train_dataloader(self):
        if not isinstance(self.train_dataset, MMStream):
            return super().get_train_dataloader()
        args, workers = self.args, self.args.dataloader_num_workers
        part = replace(self.train_dataset, process=args.process_index, processes=args.world_size)
        options = {"num_workers": workers, "pin_memory": args.dataloader_pin_memory}
        if workers:
            options |= {"prefetch_factor": args.dataloader_prefetch_factor}
        # not prepared by accelerate, which would split its batches over the processes once more
        self.loader = StreamLoader(part, self._train_batch_size, self.data_collator, **options)
        if self.resume_folder is not None:
            self.loader.resume(self.resume_folder)
        return self.loader

    def set_initial_training_values(self, args, dataloader, *others):
        values = super().set_initial_training_values(args, dataloader, *others)
        return (1, *values[1:]) if isinstance(dataloader, StreamLoader) else values  # a stream has no second epoch

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        if self.loader is not None:
            self.loader.save(output_dir)
            self.accelerator.wait_for_everyone()  # the next file written marks this checkpoint as complete

    def log(self, logs, *args, **kwargs):
        if self.loader is not None and ("loss" in logs or "train_loss" in logs):
            logs |= self.stream_figures()
        super().log(logs, *args, **kwargs)

    def stream_figures(self) -> dict[str, float]:
        """Rows per second and bad rows of all processes; every process must call this."""
        assert self.loader is not None
        skipped = torch.tensor(self.loader.skipped, device=self.args.device)
        total = int(self.accelerator.reduce(skipped, "sum"))
        return {"rows_per_second": self.loader.rows_per_second(), "skipped_rows": total}

    def _prepare_inputs(self, inputs):
        return self.add_placeholders(super()._prepare_inputs(inputs))

    def add_placeholders(self, inputs):
        """Add placeholder media if the model is sharded, so that every process runs every block."""
        return with_placeholder_media(inputs, self.fsdp_callback.placeholders)

    def save_model(self, output_dir=None, _internal_call=False):
        """Extends the base method: a sharded model is saved whole, though its checkpoints may be sharded."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None or _internal_call:
            return super().save_model(output_dir, _internal_call)
        kind = plugin.state_dict_type
        plugin.set_state_dict_type("FULL_STATE_DICT")
        super().save_model(output_dir)
        plugin.set_state_dict_type(kind)

    def compute_loss(self, model, inputs, return_outputs=False, *args, **kwargs):
        """Extends the base method: a generating model computes logits where they are learned, and nowhere else."""
        if not return_outputs and self.compute_loss_func is None and self.generates(model):
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)

    def generates(self, model) -> bool:
        """True if the model is, or adapts, one that generates text."""
        head = without_adapters(self.accelerator.unwrap_model(model))
        return isinstance(head, MMPreTrainedModel) and head.can_generate()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Extends the base method: for a batch with prompts, generates tokens (B, at most max_new_tokens)."""
        inputs = dict(inputs)
        prompts = {name: inputs.pop(f"prompt_{name}", None) for name in ("input_ids", "attention_mask")}
        if prompts["input_ids"] is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs, prompts = self._prepare_inputs(inputs), super()._prepare_inputs(prompts)
        unwrapped = self.accelerator.unwrap_model(model)
        with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
            memories = unwrapped.project_media(**{name: inputs.pop(name) for name in MEDIA if name in inputs})
            media = {}
            if memories:
                media["media_key_values"], start = unwrapped.attended(memories, inputs["input_ids"])
                inputs |= {**media, "media_start": start}
                media["media_start"] = unwrapped.media_starts(memories, prompts["input_ids"])
            output = model(**inputs, use_cache=False, skip_logits=True)
            if prediction_loss_only:
                return output.loss, None, None
            generated = unwrapped.generate(**prompts, **media, max_new_tokens=self.max_new_tokens, do_sample=False)
        return output.loss, generated[:, prompts["input_ids"].shape[1] :], inputs["labels"]
