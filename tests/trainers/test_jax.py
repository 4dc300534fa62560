"""What uses JAX, each in a process of its own: beside JAX's threads no test can fork workers any more."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "jax_optax.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}

pytestmark = pytest.mark.skipif(not (find_spec("jax") and find_spec("optax")), reason="needs JAX and optax")


def test_the_checks_that_import_jax_pass():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/trainers/jax_checks.py"]
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^5 passed", done.stdout, re.M), done.stdout


def test_the_example_repeats_after_the_first_epoch_and_learns(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    repeats = [int(count) for count in re.findall(r"^epoch \d+: 44 batches, (\d+) repeats", done.stdout, re.M)]
    assert len(repeats) == 10
    assert repeats[0] == 0 < sum(repeats)
    assert float(re.search(r"^test accuracy: (\d\.\d+)$", done.stdout, re.M)[1]) > 0.85
