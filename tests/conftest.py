"""What several test files need."""

import os

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: processes beside each other would take each other's cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# For type checkers to read, not to run.
collect_ignore = ["typing/users_script.py"]

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
