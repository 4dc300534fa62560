"""Trainings in forks of one process, which has imported what they need."""

import os
import socket
import sys

import torch

KILLED = 3


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


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
