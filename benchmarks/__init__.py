"""Measurements behind the claims of this project, and the scripts that repeat them."""

import sys
from importlib.util import find_spec

_NEEDED = ("filelock", "jinja2", "markdown_it", "pandas", "pydantic", "statsmodels", "timm", "torchvision", "tyro")

# While ``python -m`` looks for the module: a command ends in one line, and an import elsewhere as usual.
if sys.argv[0] == "-m" and (_missing := [name for name in _NEEDED if find_spec(name) is None]):
    sys.exit(f"error: {', '.join(_missing)} not installed; install what this needs: pip install -e '.[benchmarks]'")
