"""What several test files need."""

import pytest
from hypothesis import settings

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
