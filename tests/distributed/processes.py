"""Ranks as real processes, and the result of each."""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Far more than ranks need on a busy machine: reached only if they wait for each other forever.
SECONDS = 900

# Of an exchange: no rank waits so long, however slow the machine is.
PATIENCE_SECONDS = 600.0

# Ranks are forked from a process that has imported these, which takes longer than most of them run.
multiprocessing.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp"])


def run_ranks(function: Callable[..., Any], ranks: int, folder: Path, *arguments: Any, may_end: bool = False) -> list:
    """The result of ``function(rank, *arguments)`` on each of several gloo ranks; an error there is raised here.

    The function is at the top of a module, ``folder`` is empty. If a rank ``may_end``, its result is None.
    """
    context = mp.start_processes(
        _run, (function, ranks, str(folder), arguments), nprocs=ranks, join=False, start_method="forkserver"
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
    saved = [torch.load(file, weights_only=False) if file.exists() else (None, None) for file in files]
    for _, error in saved:
        if error is not None:
            raise error
    return [result for result, _ in saved]


def _run(rank, function, ranks, folder, arguments):
    torch.set_num_threads(1)
    # If a rank is killed, the others notice by their own limit before this one.
    rendezvous, limit = f"file://{folder}/rendezvous", timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks, timeout=limit)
    result = raised = None
    try:
        result = function(rank, *arguments)
    except Exception as error:
        traceback.print_exc()
        raised = error
    torch.save((result, raised), f"{folder}/{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
