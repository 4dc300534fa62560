"""What every test of loading has."""

import signal

import pytest


@pytest.fixture(autouse=True)
def no_deadlock():
    """A loop that waits forever fails, and the suite continues."""

    def give_up(signum, frame):
        raise TimeoutError("the test did not end within two minutes")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
