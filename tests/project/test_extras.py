"""What a command of the benchmarks says in an environment that lacks its packages."""

import subprocess
import sys

import pytest

BLOCKED = """
import importlib.util, runpy, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name in ("pydantic", "timm") else find_spec(name, *package)
runpy.run_module("{module}", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["benchmarks.report"])
def test_the_extra_is_named_where_its_packages_are_missing(module):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(module=module)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: pydantic, timm not installed; pip install -e '.[benchmarks]' brings what this needs\n"
    )
