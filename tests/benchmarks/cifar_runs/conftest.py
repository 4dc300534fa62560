"""Digits, and the records of runs on them that several tests read."""

import gc
import os
from contextlib import contextmanager

import pytest
import torch

from benchmarks.reading import read_records
from tests.benchmarks.cifar_helpers import WHOLE, run_benchmark, write_digits


@contextmanager
def room_for_runs():
    """The command sets these of PyTorch's for its process, and collects garbage after every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Or every collection looks at all modules that were ever imported, which takes longer than a run.
    gc.freeze()
    yield
    gc.unfreeze()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def keep_the_process_as_it_was():
    with room_for_runs():
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images") / "digits", size=12)


@pytest.fixture(scope="session")
def out(digits, tmp_path_factory):
    """All arms, two seeds, two readings, with and without noise. To be read, not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    with room_for_runs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getloadavg", lambda: (1.0, 1.0, 1.0))
        return run_benchmark(digits, folder / "out", *WHOLE)


@pytest.fixture(scope="session")
def records(out):
    return read_records(out)
