"""Trainings in forks of one process, which has imported what they need."""

import os
import socket
import sys

import torch

from batch_sampler_attn import Decision
from batch_sampler_attn.recorders import Recorder

KILLED = 3
RANKS = 2


class KillAtVisit(Recorder):
    """Ends its process at a visit whose batch is to be repeated."""

    def __init__(self, *where):
        self.where = where

    def on_visit(self, epoch, batch, visit, loss, decision, indices):
        if (epoch, batch, visit) == self.where and decision is Decision.REPEAT:
            os._exit(KILLED)


def fork(function, *arguments, result, **options):
    """Call the function in a child, which saves what it returns; the child's process number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.save(function(*arguments, **options), result)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_a_fork(function, *arguments, **options):
    return wait(fork(function, *arguments, **options))


def on_ranks(function, *arguments, results):
    """Call the function with each rank, and save what it returns under the results' name and the rank's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def on_a_rank(rank):
        environment = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS}
        os.environ.update(address, **{name: str(value) for name, value in environment.items()})
        return function(rank, *arguments)

    children = [fork(on_a_rank, rank, result=f"{results}-rank{rank}.pt") for rank in range(RANKS)]
    assert [wait(child) for child in children] == [0] * RANKS
