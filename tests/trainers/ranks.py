"""Two ranks, as forks of the test's process, which has imported what they need."""

import os
import socket
from multiprocessing import get_context

import torch

RANKS = 2
LIMIT_SECONDS = 180


def on_ranks(function, *arguments, folder):
    """Call the function with each rank; what they return."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = get_context("fork").Process
    children = [process(target=on_a_rank, args=(rank, port, folder, function, arguments)) for rank in range(RANKS)]
    for child in children:
        child.start()
    for child in children:
        child.join(LIMIT_SECONDS)
        child.kill()
    assert [child.exitcode for child in children] == [0] * RANKS
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


def on_a_rank(rank, port, folder, function, arguments):
    environment = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS, "GROUP_RANK": 0}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "here"}
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.save(function(rank, *arguments), folder / f"rank{rank}.pt")
