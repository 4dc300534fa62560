"""Two ranks, as forks of the test's process, which has imported what they need."""

import os
import socket
import sys
import time
import traceback

import torch

RANKS = 2
LIMIT_SECONDS = 180


def on_ranks(function, *arguments, folder):
    """Call the function with each rank; what they return."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, port, folder, function, arguments) for rank in range(RANKS)]
    end = time.monotonic() + LIMIT_SECONDS
    codes = {}
    while len(codes) < RANKS and not any(codes.values()) and time.monotonic() < end:
        for child in children:
            if child not in codes and (done := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(done[1])
        time.sleep(0.01)
    for child in set(children) - set(codes):
        os.kill(child, 9)
        codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert [codes[child] for child in children] == [0] * RANKS
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


def _fork(rank, port, folder, function, arguments):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            environment = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0}
            os.environ.update({name: str(value) for name, value in environment.items()}, TORCHELASTIC_RUN_ID="here")
            torch.save(function(rank, *arguments), folder / f"rank{rank}.pt")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child
