# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Work of each process in test_fsdp.py, and of its parent for comparison: models, a global batch, training steps."""

from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from helpers.audio import AUDIO_ID, ears
from helpers.builders import IMAGE_ID, open_gates, text_config, token_row, vision_config
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPImageProcessorPil, TrainingArguments, Wav2Vec2FeatureExtractor

from modeling_mm import (
    MMConfig,
    MMForConditionalGeneration,
    MMForImageTextRetrieval,
    MMForSequenceClassification,
    MMProcessor,
)
from modeling_mm.training.fsdp import (
    is_sharded,
    placeholder_media,
    register_forward_methods,
    shard,
    with_placeholder_media,
)
from modeling_mm.training.scratch import train_tokenizer
from modeling_mm.training.trainer import MMTrainer

ROWS, TOKENS = 4, 7
HEADS = {
    "generation": MMForConditionalGeneration,
    "classification": MMForSequenceClassification,
    "retrieval": MMForImageTextRetrieval,
}
# name: head, text, vision, fields
CASES = {
    "generation": ("generation", "llama", "clip_vision_model", {"tie_word_embeddings": False}),
    "tied": ("generation", "llama", "siglip_vision_model", {"tie_word_embeddings": True}),
    "frozen towers": ("generation", "qwen3", "vit", {"frozen": ("vision_tower", "text_model")}),
    "checkpointed": ("generation", "llama", "vit", {"checkpointed": True}),
    "resampler": ("generation", "gpt2", "dinov2", {"num_latents": 2, "resampler_layers": 1}),
    "late fusion": ("classification", "bert", "clip_vision_model", {"late_fusion": "gated", "cross_attention": True}),
    "no cross-attention": ("classification", "distilbert", "vit", {"late_fusion": "sum", "cross_attention": False}),
    "sound": ("classification", "modernbert", "vit", {"audio": "wav2vec2"}),
    "retrieval": ("retrieval", "bert", "vit", {"contrastive_loss": "sigmoid", "matching_weight": 0.0}),
}


def model_of(case, **changed):
    """The model of a case, the same in each process, in training but without dropout."""
    head, text, vision, fields = CASES[case]
    fields = {**fields, **changed}
    frozen, audio = fields.pop("frozen", ()), fields.pop("audio", None)
    checkpointed = fields.pop("checkpointed", False)
    tied = {"tie_word_embeddings": fields.pop("tie_word_embeddings")} if "tie_word_embeddings" in fields else {}
    if audio is not None:
        fields |= {"audio_config": ears(audio), "audio_token_id": AUDIO_ID}
    torch.manual_seed(0)
    config = MMConfig(
        text_config=text_config(text, **tied), vision_config=vision_config(vision), fusion_layers=[0, 2],
        image_token_id=IMAGE_ID, initializer_range=0.2, **fields,
    )  # fmt: skip
    model = open_gates(HEADS[head](config), 1.0)
    if checkpointed:
        model.gradient_checkpointing_enable()
    for part in frozen:
        getattr(model.model, part).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout", "hidden_dropout", "feat_proj_dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    return model.train()


def batch_of(case, rows=slice(None)):
    """Rows of the global batch: images only in the first half, audio only in the second.

    In retrieval, each row has an image, as every process must have images.
    """
    head, text, _, fields = CASES[case]
    torch.manual_seed(1)
    all_have_images = head == "retrieval"
    ids = torch.stack([token_row(TOKENS, [1] if i < ROWS // 2 and not all_have_images else []) for i in range(ROWS)])
    images, clips = torch.randn(ROWS, 3, 16, 16), torch.randn(ROWS, 4000)
    numbers = torch.arange(ROWS)[rows]
    batch = {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids[rows])}
    labels = {"generation": ids[rows], "classification": numbers % 2, "retrieval": None}[head]
    batch |= {"return_loss": True} if labels is None else {"labels": labels}
    with_image = numbers if all_have_images else numbers[numbers < ROWS // 2]
    if len(with_image):
        place = torch.arange(len(numbers))[:, None]
        index = torch.where(place < len(with_image), place, -1)
        batch |= {"pixel_values": images[with_image], "image_index": index}
    with_audio = numbers[numbers >= ROWS // 2]
    if "audio" in fields and len(with_audio):
        place = torch.arange(len(numbers))[:, None] - (len(numbers) - len(with_audio))
        batch |= {"input_features": clips[with_audio], "audio_index": place.clamp(min=-1)}
    return batch


def processor_of(case):
    """A processor for 16 x 16 images and, if the case has it, audio."""
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_convert_rgb=True)
    audio = {"audio": Wav2Vec2FeatureExtractor(), "max_seconds": 1.0} if "audio" in CASES[case][3] else {}
    tokenizer = train_tokenizer(["what is it"], "scratch-tiny", audio=bool(audio))
    return MMProcessor(image_processor=images, tokenizer=tokenizer, **audio)


def step(model, batch):
    """Take one step of plain gradient descent; return the loss before it."""
    loss = model(**batch).loss
    loss.backward()
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1).step()
    return loss.detach().item()


def whole(model):
    """The full state, on the first process."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def trained(case, folder):
    """A training step of the sharded model: its saved state and the mean loss."""
    rank, count = dist.get_rank(), dist.get_world_size()
    rows = slice(rank * ROWS // count, (rank + 1) * ROWS // count)
    model = shard(model_of(case))
    placeholders = placeholder_media(processor_of(case)) if CASES[case][0] != "retrieval" else {}
    loss = torch.tensor(step(model, with_placeholder_media(batch_of(case, rows), placeholders)))
    dist.all_reduce(loss)
    state = whole(model)
    model.save_pretrained(
        folder / case, state_dict=dict(state), is_main_process=rank == 0
    )  # which renames keys in place
    return {"loss": loss.item() / count, "state": state, "sharded": is_sharded(model)}


def all_trained(folder):
    return {case: trained(case, folder) for case in CASES}


def answered():
    """Results of methods other than `forward`, of the unsharded and the sharded model; answers differ in length."""
    rank, case = dist.get_rank(), "generation"
    model, images = model_of(case).eval(), batch_of(case, slice(ROWS // 2))
    prompts = batch_of(case, slice(rank * ROWS // 2, (rank + 1) * ROWS // 2))
    del prompts["labels"]
    images = {name: images[name] for name in ("pixel_values", "image_index")}
    greedy = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 5}
    first = model.generate(**prompts, **{**greedy, "max_new_tokens": 1})[:, -1]
    greedy["eos_token_id"] = first.tolist() if rank == 0 else None  # the first process ends after one token
    results = []
    for sharded in (False, True):
        model = shard(model) if sharded else model
        inputs = with_placeholder_media(prompts, placeholder_media(processor_of(case))) if sharded else prompts
        tokens, encoded = model.generate(**inputs, **greedy), model.encode_media(**images)
        results.append((tokens, encoded, torch.tensor([list(gate.values()) for gate in model.fusion_gates()])))
    return results


def matched():
    """Losses and gradients of a matching head on negatives that each process draws, with FSDP and with DDP."""
    rank, case, results = dist.get_rank(), "retrieval", []
    batch = batch_of(case, slice(rank * ROWS // 2, (rank + 1) * ROWS // 2))
    for sharded in (True, False):
        model = model_of(case, matching_weight=1.0)
        torch.manual_seed(rank)
        whole = DistributedDataParallel(model, find_unused_parameters=True) if not sharded else shard(model)
        loss = whole(**batch).loss
        loss.backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        gradients = {name: grad.full_tensor() if sharded else grad for name, grad in gradients.items()}
        results.append((loss.item(), {name: grad.clone() for name, grad in gradients.items()}))
    return results


def in_half_precision():
    """Losses of steps whose blocks compute in bfloat16, and the dtypes of the weights."""
    rank, case = dist.get_rank(), "generation"
    model = shard(model_of(case), mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    batch = batch_of(case, slice(rank * ROWS // 2, (rank + 1) * ROWS // 2))
    batch = with_placeholder_media(batch, placeholder_media(processor_of(case)))
    return [step(model, batch) for _ in range(4)], {p.dtype for p in model.parameters()}


def by_accelerate(case, **options):
    """State after a step of a model sharded by accelerate.

    Accelerate shards on GPUs only, so its function is called directly with the attributes of `Accelerator` that it
    reads.
    """
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap", **options)
    attributes = {
        "state": SimpleNamespace(fsdp_plugin=plugin),
        "torch_device_mesh": None,
        "device": torch.device("cpu"),
    }
    rank, model = dist.get_rank(), model_of(case)
    blocks = {name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules}
    model = fsdp2_prepare_model(
        SimpleNamespace(**attributes, mixed_precision="no", is_main_process=rank == 0, process_index=rank), model
    )
    register_forward_methods(model)
    sharded = {name for name, module in model.named_modules() if is_sharded(module)}
    batch = batch_of(case, slice(rank * ROWS // 2, (rank + 1) * ROWS // 2))
    step(model, with_placeholder_media(batch, placeholder_media(processor_of(case))))
    return {"state": whole(model), "missed": blocks - sharded}


class WithPrompts:
    """A collator of the generation case for a dataset of row numbers, which adds prompts."""

    def __call__(self, rows):
        batch = batch_of("generation", slice(rows[0], rows[-1] + 1))
        return {**batch, **{f"prompt_{name}": batch[name][:, :4] for name in ("input_ids", "attention_mask")}}


def by_trainer(model, size, folder):
    """Train and save with `MMTrainer`; return losses, state and evaluation with answers."""
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=size, per_device_eval_batch_size=size, max_steps=5,
        learning_rate=0.02, optim="sgd", max_grad_norm=0.0, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, train_sampling_strategy="sequential", ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = MMTrainer(
        model=model, args=arguments, train_dataset=range(ROWS), eval_dataset=range(ROWS), eval_collator=WithPrompts(),
        data_collator=lambda rows: batch_of("generation", slice(rows[0], rows[-1] + 1)), max_new_tokens=3,
        processing_class=processor_of("generation"),
    )  # fmt: skip
    trainer.train()
    evaluated = trainer.predict(range(ROWS))
    trainer.save_model()
    return {
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "answers": evaluated.predictions,
        "loss": evaluated.metrics["test_loss"],
        "wrapped": type(trainer.model_wrapped).__name__,
        "silent": trainer.audit.silent,
        "gates": trainer.model.fusion_gates(),
    }


def sharded_at_load(folder):
    """Results of `by_trainer` with transformers' FSDP2, which runs on CPUs too."""
    from transformers.distributed import DistributedConfig

    start = folder / "start"
    if dist.get_rank() == 0:
        model_of("generation").save_pretrained(start)
    dist.barrier()
    config = DistributedConfig(fsdp_size=dist.get_world_size())
    model = MMForConditionalGeneration.from_pretrained(start, distributed_config=config)
    sharded = {name for name, module in model.named_modules() if is_sharded(module)}
    return {**by_trainer(model, ROWS // 2, folder / "native"), "sharded": sharded}


def by_accelerate_s_trainer(folder):
    """Four steps with `MMTrainer` and accelerate's FSDP2, and the last two again from a sharded checkpoint.

    On CPUs accelerate always chooses DDP, so its state is changed to FSDP afterwards, and again after training, which
    resets the state; from then on it behaves as on GPUs.
    """

    def trained_to(out, checkpoint):
        arguments = TrainingArguments(
            output_dir=str(out), per_device_train_batch_size=1, max_steps=4, learning_rate=0.01, use_cpu=True,
            lr_scheduler_type="constant", report_to=[], save_strategy="steps", save_steps=2, logging_steps=1,
            disable_tqdm=True, ddp_find_unused_parameters=False,
        )  # fmt: skip
        trainer = MMTrainer(
            model=model_of("generation"), args=arguments, train_dataset=range(ROWS),
            data_collator=lambda rows: batch_of("generation", slice(rows[0], rows[-1] + 1)),
            processing_class=processor_of("generation"),
        )  # fmt: skip
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="SHARDED_STATE_DICT",
            cpu_ram_efficient_loading=False,
        )  # fmt: skip
        state, trainer.is_fsdp_enabled = trainer.accelerator.state, True
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        trainer.train(resume_from_checkpoint=checkpoint)
        state.distributed_type = DistributedType.FSDP
        trainer.save_model()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        return losses, is_sharded(trainer.model), plugin.state_dict_type.name

    whole_run = trained_to(folder / "whole run", None)
    dist.barrier()
    return whole_run, trained_to(folder / "resumed", str(folder / "whole run" / "checkpoint-2"))


def everything(folder, native):
    """All of the above in one set of processes."""
    prepared = {
        "tied": by_accelerate("tied", state_dict_type="FULL_STATE_DICT", cpu_ram_efficient_loading=False),
        "late fusion": by_accelerate("late fusion", cpu_ram_efficient_loading=False),
        "sound": by_accelerate("sound", cpu_ram_efficient_loading=True),
    }
    return {
        "trained": all_trained(folder),
        "answered": answered(),
        "half": in_half_precision(),
        "matched": matched(),
        "accelerate": prepared,
        "native": sharded_at_load(folder) if native else None,
    }
