"""The command in a process of its own, which may be killed."""

import multiprocessing
import os

import torch

from tests.benchmarks.cifar_helpers import run_benchmark

# Starts a process with everything imported in no time.
FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload([__name__])


def run(data, folder, options):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    run_benchmark(data, folder, *options)
