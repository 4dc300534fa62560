"""What tests in several folders here read."""

import pytest

from tests.benchmarks.cifar_helpers import write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images") / "digits", size=12)
