"""Keras on each backend, in a process of its own, since Keras chooses one as it is imported; and JAX by itself."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Importing it would choose a backend, in this process; and beside JAX's threads no test can fork workers any more.
pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="needs Keras")

ROOT = Path(__file__).parents[2]
MODULES = {"torch": ("keras_fit", "keras_samples"), "jax": ("keras_fit", "keras_samples", "jax_checks")}


@pytest.mark.parametrize(
    ("backend", "is_slow"),
    [("torch", False), *(pytest.param(backend, True, marks=pytest.mark.slow) for backend in MODULES)],
)
def test_fit_is_the_loop_by_hand_or_refuses(backend, is_slow, tmp_path):
    if backend == "jax":
        pytest.importorskip("jax")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "KERAS_BACKEND": backend,
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    files = [f"tests/trainers/{module}.py" for module in MODULES[backend]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    if is_slow:
        command += ["-m", "slow or not slow"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
