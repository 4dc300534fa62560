"""What several test files need."""

import gc
import os
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from packaging.version import Version

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: processes beside each other would take each other's cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

here = Path(__file__).parent

# A helper's module has no doctest, and may import what takes seconds in each process that collects the tests.
collect_ignore = [
    str(file) for file in here.rglob("*.py") if not file.name.startswith(("test_", "conftest", "__init__"))
]

if find_spec("torch") is None:
    # What can run is the core's, by tests that need nothing else.
    needs_torch = re.compile(r"^(import|from) (torch|numpy)\b", re.MULTILINE)
    collect_ignore += [
        str(file) for file in here.rglob("test_*.py") if needs_torch.search(file.read_text(encoding="utf-8"))
    ]
elif Version(version("torch")) < Version("2.14"):
    # These pretend that there is a GPU, by PyTorch's internals as they are from then on.
    collect_ignore += ["device/replay/test_replay.py", "device/replay/test_captures.py"]

# No deadlines: a busy machine is no bug.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture
def one_thread():
    """Threads that wait for each other take longer than these small models' arithmetic."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_finish():
    """Leave modules out of garbage collection, which a capture or a Trainer starts each time, for half a second."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """What needs to fork is skipped where there is no fork, as on Windows."""
    try:
        return (yield)
    except ValueError as error:
        if "cannot find context" not in str(error):
            raise
        pytest.skip("there is no fork here")
