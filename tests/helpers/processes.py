# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Run a function in several gloo processes; they start fast, as they are forked after all imports."""

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
PATIENCE = 120  # seconds until processes that wait for each other time out


def run_process(function, rank: int, count: int, store: str, connection: Connection, *args) -> None:
    """Run the function in this process and send its result, or its traceback."""
    torch.set_num_threads(1)
    # read by `Trainer`; the group is initialised here, and the address is not used
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": 1}
    os.environ |= {name: str(value) for name, value in environment.items()} | {"MASTER_ADDR": "127.0.0.1"}
    try:
        patience = timedelta(seconds=PATIENCE)
        dist.init_process_group("gloo", f"file://{store}", patience, world_size=count, rank=rank)
        torch.manual_seed(0)
        result = function(*args)
        assert dist.get_world_size() == count and dist.get_backend() == "gloo"
        dist.barrier()  # no process ends while others still communicate
        serialized = io.BytesIO()
        torch.save(result, serialized)  # by value: tensors sent directly would need this process to stay alive
        connection.send((serialized.getvalue(), None))
        dist.destroy_process_group()
    except Exception:
        connection.send((None, traceback.format_exc()))


def together(count: int, function, *args, folder) -> list:
    """The results of a module's function in `count` processes.

    Args:
        folder: an empty folder, for the rendezvous of the processes.

    Raises:
        AssertionError: a process failed or timed out.
    """
    folder.mkdir(exist_ok=True, parents=True)
    pipes = [FORKS.Pipe(duplex=False) for _ in range(count)]
    arguments = [(function, rank, count, str(folder / "store"), pipes[rank][1], *args) for rank in range(count)]
    processes = [FORKS.Process(target=run_process, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    try:
        results = [receive.recv() if receive.poll(5 * PATIENCE) else (None, "no answer") for receive, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert not any(error for _, error in results), "\n".join(error for _, error in results if error)
    return [torch.load(io.BytesIO(serialized), weights_only=False) for serialized, _ in results]
