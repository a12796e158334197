# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""One function in several processes that talk to each other by gloo, fast: they are forked where all is imported."""

import io
import multiprocessing
import os
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch.distributed.fsdp", "accelerate.utils.fsdp_utils", "datasets", "peft", "pytest", "sklearn.metrics"]
    + [f"transformers.models.{name}.modeling_{name}" for name in ("bert", "clip", "llama", "siglip", "vit", "whisper")]
    + [
        "transformers.generation",
        "modeling_mm.evaluation.retrieval",
        "modeling_mm.training.retrieval_trainer",
        "modeling_mm.model.compose_mm",
    ]
)
PATIENCE = 120  # seconds until processes that wait for each other give up


def one(function, rank: int, count: int, store: str, connection: Connection, *args) -> None:
    """The life of one process."""
    torch.set_num_threads(1)
    # where `Trainer` looks; the group is made here, and the address is not used
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": 1}
    os.environ |= {name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
    try:
        patience = timedelta(seconds=PATIENCE)
        dist.init_process_group("gloo", f"file://{store}", patience, world_size=count, rank=rank)
        torch.manual_seed(0)
        found = function(*args)
        assert dist.get_world_size() == count and dist.get_backend() == "gloo"
        dist.barrier()  # nobody leaves while others still talk
        whole = io.BytesIO()
        torch.save(found, whole)  # by value: what `send` does to tensors would need this process for longer
        connection.send((whole.getvalue(), None))
        dist.destroy_process_group()
    except Exception:
        connection.send((None, traceback.format_exc()))


def together(count: int, function, *args, folder) -> list:
    """What a function of a module gives in each of `count` processes.

    Args:
        folder: an empty one, where they find each other.

    Raises:
        AssertionError: it failed in one of them, or they waited for each other.
    """
    folder.mkdir(exist_ok=True, parents=True)
    pipes = [FORKS.Pipe(duplex=False) for _ in range(count)]
    given = [(function, rank, count, str(folder / "store"), pipes[rank][1], *args) for rank in range(count)]
    processes = [FORKS.Process(target=one, args=own, daemon=True) for own in given]
    for process in processes:
        process.start()
    try:
        said = [receive.recv() if receive.poll(5 * PATIENCE) else (None, "no answer") for receive, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert not any(trouble for _, trouble in said), "\n".join(trouble for _, trouble in said if trouble)
    return [torch.load(io.BytesIO(found), weights_only=False) for found, _ in said]
