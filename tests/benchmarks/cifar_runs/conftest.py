"""Digits, and the records of runs on them that several tests read."""

import os

import pytest

from benchmarks.reading import read_records
from tests.benchmarks.cifar_helpers import WHOLE, room_for_runs, run_benchmark


@pytest.fixture(scope="module", autouse=True)
def keep_the_process_as_it_was():
    with room_for_runs():
        yield


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
