"""Ranks as real processes, and the result of each."""

import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Far more than they need on a busy machine: reached only if ranks wait for each other for ever.
SECONDS = 900


def run_ranks(function: Callable[..., Any], ranks: int, folder: Path, *arguments: Any, may_end: bool = False) -> list:
    """What ``function(rank, *arguments)`` returned on each of so many gloo ranks, or the error that it raised.

    Args:
        function: At the top of a module.
        ranks: How many.
        folder: An empty one.
        arguments: More of them.
        may_end: Whether a rank may end without a result, which is None then.
    """
    context = mp.start_processes(
        _run, (function, ranks, str(folder), arguments), nprocs=ranks, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + SECONDS
    for process in context.processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hanging = [process for process in context.processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, f"{len(hanging)} of {ranks} ranks did not end within {SECONDS} s"
    files = [folder / f"{rank}.pt" for rank in range(ranks)]
    assert may_end or all(file.exists() for file in files)
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


def _run(rank, function, ranks, folder, arguments):
    torch.set_num_threads(1)
    # Where a rank is killed, the others find out by their own limit, and not by torch's of half an hour.
    rendezvous = f"file://{folder}/rendezvous"
    limit = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks, timeout=limit)
    try:
        result = function(rank, *arguments)
    except Exception as error:
        traceback.print_exc()
        result = error
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def outcome(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returned or raised, and how many seconds it took."""
    began = time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = error
    return result, time.monotonic() - began


def end_at_once() -> None:
    """As a process ends that is killed."""
    os._exit(3)
