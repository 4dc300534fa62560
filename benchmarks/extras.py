"""A word, in place of a traceback, where the packages of an extra are not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def require_benchmarks_extra() -> None:
    """End the command with what to install, if something is missing."""
    packages = ("filelock", "jinja2", "markdown_it", "pydantic", "timm", "torchvision", "tyro")
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        sys.exit(f"error: {', '.join(missing)} not installed; pip install -e '.[benchmarks]' brings what this needs")
