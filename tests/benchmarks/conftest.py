"""Digits, and the records of runs on them that several tests read."""

import os

import pytest

from benchmarks.reading import read_records
from tests.benchmarks.cifar_helpers import WHOLE, run_benchmark, write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images") / "digits", size=12)


@pytest.fixture(scope="session")
def out(digits, tmp_path_factory):
    """All arms, two seeds, two readings, with label noise. To be read, not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getloadavg", lambda: (1.0, 1.0, 1.0))
        return run_benchmark(digits, folder / "out", *WHOLE)


@pytest.fixture(scope="session")
def records(out):
    return read_records(out)
