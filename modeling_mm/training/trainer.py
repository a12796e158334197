# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMTrainer: the plain `Trainer`, with what multimodal training needs on top.

- Rows about one image can stay together in a batch, so that it is encoded once (`group_by_image`), or rows of about
  the same length, so that little is padded (`train_sampling_strategy="group_by_length"`).
- Evaluation of a generating model generates: prompts padded on the left, media encoded once for loss and answer.
- A stream is read in parts, one for each process, and a checkpoint holds how far each has come.
- Parts are frozen and trained by name; what cannot reach the loss is found and frozen, what should train but got no
  gradient in the first steps is named.
"""

import logging
from dataclasses import replace

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..data.collator import MMCollator
from ..data.dataset import MMDataset
from ..data.samplers import ImageGroupSampler, LengthSampler
from ..data.stream import MMStream
from ..data.stream_loader import StreamLoader
from ..model.media_mm import MEDIA
from ..model.processing_mm import MMProcessor
from .callbacks import (
    AugmentationEpochCallback,
    BatchNormSyncCallback,
    BatchNormWarningCallback,
    FSDPCallback,
    GradientAuditCallback,
    StreamEpochCallback,
)
from .fsdp import with_placeholder_media
from .smoothing import smoothed_loss

logger = logging.getLogger(__name__)


class MMTrainer(Trainer):
    """`Trainer` for the models of this package; takes the same arguments.

    Args:
        group_by_image: keep the rows about one image together when shuffling.
        group_size: how many of them at most; default: all.
        eval_collator: collator for evaluation; one with prompts makes evaluation generate. Default: that of training,
            without its augmentation.
        max_new_tokens: longest answer in evaluation.

    Raises:
        ValueError: several GPUs in one process, which `DataParallel` would split wrongly.
    """

    def __init__(self, *args, group_by_image=False, group_size=None, eval_collator=None, max_new_tokens=32, **kwargs):
        self.group_by_image = group_by_image
        self.group_size = group_size
        self.eval_collator = eval_collator
        self.max_new_tokens = max_new_tokens
        options = kwargs.get("args") or next((own for own in args if isinstance(own, TrainingArguments)), None)
        if options is not None and options.ddp_broadcast_buffers is None:
            options.ddp_broadcast_buffers = False  # `BatchNormSyncCallback` does it better
        if options is not None and options.accelerator_config.dispatch_batches is None:
            # dealt out by accelerate, a batch would be cut along dim 0 of each tensor, images apart from their rows
            options.accelerator_config.dispatch_batches = False
        super().__init__(*args, **kwargs)
        self.args.remove_unused_columns = False
        if self.label_smoother is not None:
            whole = self.accelerator.unwrap_model(self.model)
            whole = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
            self.label_smoother = None
            self.compute_loss_func = smoothed_loss(whole, self.args.label_smoothing_factor)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process would split images from their rows; "
                f"start with: torchrun --nproc_per_node {self.args.n_gpu} ..."
            )
        self.audit = GradientAuditCallback()
        self.add_callback(self.audit)
        if isinstance(self.data_collator, MMCollator) and self.data_collator.augmentation is not None:
            self.add_callback(AugmentationEpochCallback(self.data_collator.augmentation))
            self.eval_collator = self.eval_collator or replace(self.data_collator, augmentation=None)
        self.add_callback(BatchNormSyncCallback())
        self.add_callback(BatchNormWarningCallback())
        self.loader: StreamLoader | None = None
        self.resumed: str | None = None
        if isinstance(self.train_dataset, MMStream):
            self.args.ignore_data_skip = True  # the stream goes on by itself
            self.add_callback(StreamEpochCallback(self.train_dataset.known_rows))
        own = self.data_collator.processor if isinstance(self.data_collator, MMCollator) else self.processing_class
        self.in_shards = FSDPCallback(own if isinstance(own, MMProcessor) else None)
        self.add_callback(self.in_shards)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        own, args = isinstance(dataset, MMDataset), self.args
        if own and self.group_by_image:
            return ImageGroupSampler(dataset.groups(), args.seed, self.group_size)
        if own and args.train_sampling_strategy == "group_by_length":
            step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            return LengthSampler(self.data_collator.lengths(dataset), step, args.seed)
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset):
        return None  # rows are evaluated in their order, whatever training does

    def _get_dataloader(self, *args, is_training=False, **kwargs):
        collator = self.data_collator
        if not is_training and self.eval_collator is not None:
            self.data_collator = self.eval_collator
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.data_collator = collator

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        wanted = resume_from_checkpoint
        self.resumed = get_last_checkpoint(self.args.output_dir) if wanted is True else wanted or None
        return super().train(wanted, *args, **kwargs)

    def get_train_dataloader(self):
        if not isinstance(self.train_dataset, MMStream):
            return super().get_train_dataloader()
        args, workers = self.args, self.args.dataloader_num_workers
        part = replace(self.train_dataset, process=args.process_index, processes=args.world_size)
        options = {"num_workers": workers, "pin_memory": args.dataloader_pin_memory}
        if workers:
            options |= {"prefetch_factor": args.dataloader_prefetch_factor}
        # not prepared by accelerate, which would deal its batches out once more
        self.loader = StreamLoader(part, self._train_batch_size, self.data_collator, **options)
        if self.resumed is not None:
            self.loader.resume(self.resumed)
        return self.loader

    def set_initial_training_values(self, args, dataloader, *others):
        values = super().set_initial_training_values(args, dataloader, *others)
        return (1, *values[1:]) if isinstance(dataloader, StreamLoader) else values  # a stream has no second epoch

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        if self.loader is not None:
            self.loader.save(output_dir)
            self.accelerator.wait_for_everyone()  # what comes next says that this checkpoint is complete

    def log(self, logs, *args, **kwargs):
        if self.loader is not None and ("loss" in logs or "train_loss" in logs):
            logs |= self.stream_figures()
        super().log(logs, *args, **kwargs)

    def stream_figures(self) -> dict[str, float]:
        """Rows per second and bad rows of all processes; every process must ask."""
        assert self.loader is not None
        own = torch.tensor(self.loader.skipped, device=self.args.device)
        skipped = int(self.accelerator.reduce(own, "sum"))
        return {"rows_per_second": self.loader.rows_per_second(), "skipped_rows": skipped}

    def _prepare_inputs(self, inputs):
        return self.in_step(super()._prepare_inputs(inputs))

    def in_step(self, inputs):
        """A batch by which every process runs every block, if the model is in shards; otherwise as it is."""
        return with_placeholder_media(inputs, self.in_shards.unseen)

    def save_model(self, output_dir=None, _internal_call=False):
        """As usual; a model in shards is saved whole, though its checkpoints may be in shards."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None or _internal_call:
            return super().save_model(output_dir, _internal_call)
        kind = plugin.state_dict_type
        plugin.set_state_dict_type("FULL_STATE_DICT")
        super().save_model(output_dir)
        plugin.set_state_dict_type(kind)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As usual; where the batch holds prompts, predictions are generated tokens (B, at most max_new_tokens)."""
        inputs = dict(inputs)
        prompts = {name: inputs.pop(f"prompt_{name}", None) for name in ("input_ids", "attention_mask")}
        if prompts["input_ids"] is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs, prompts = self._prepare_inputs(inputs), super()._prepare_inputs(prompts)
        own = self.accelerator.unwrap_model(model)
        with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
            memories = own.project_media(**{name: inputs.pop(name) for name in MEDIA if name in inputs})
            media = {}
            if memories:
                media["media_key_values"], start = own.attended(memories, inputs["input_ids"])
                inputs |= {**media, "media_start": start}
                media["media_start"] = own.media_starts(memories, prompts["input_ids"])
            output = model(**inputs, use_cache=False)
            if prediction_loss_only:
                return output.loss, None, None
            generated = own.generate(**prompts, **media, max_new_tokens=self.max_new_tokens, do_sample=False)
        return output.loss, generated[:, prompts["input_ids"].shape[1] :], inputs["labels"]
