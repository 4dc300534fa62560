"""Keras with repeats, on each backend in a process of its own, since Keras chooses one as it is imported."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Importing it would choose a backend, in this process.
pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="needs Keras")

ROOT = Path(__file__).parents[2]
BACKENDS = ("torch", "jax")


# In one process: what is compiled for one test serves the others.
MODULES = ("keras_equality", "keras_traps", "keras_refusals")


def run_tests(backend, folder, *options, modules=MODULES):
    if backend == "jax":
        pytest.importorskip("jax")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "KERAS_BACKEND": backend,
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    files = [f"tests/trainers/{module}.py" for module in modules]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_fit_is_the_loop_by_hand_or_refuses_with_words(backend, tmp_path):
    run_tests(backend, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_run_is_that_of_the_loop_by_hand(backend, tmp_path):
    run_tests(backend, tmp_path, "-m", "slow")


WITHOUT = """
import sys
import batch_sampler_attn
assert "keras" not in sys.modules
sys.modules["keras"] = None
try:
    import batch_sampler_attn.trainers.keras
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_keras_the_message_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "batch_sampler_attn.trainers.keras needs keras, which is not installed: "
        "pip install 'batch-sampler-attn[keras]'\n"
    )
