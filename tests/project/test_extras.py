"""What a command of the benchmarks says in an environment that lacks its packages."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["cifar", "selection", "report"])
def test_the_extra_is_named_where_its_packages_are_missing(module):
    # -S leaves out what is installed.
    command = [sys.executable, "-S", "-m", f"benchmarks.{module}"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: not all packages of the benchmarks are installed: pip install -e '.[benchmarks]'\n"
