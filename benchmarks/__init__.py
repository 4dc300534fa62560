"""Measurements behind the claims of this project, and the scripts that repeat them."""

import sys
from importlib.util import find_spec

# While ``python -m`` looks for the module: a command ends in one line, and an import elsewhere as usual.
if sys.argv[0] == "-m" and not all(map(find_spec, ("filelock", "pandas", "pydantic", "statsmodels", "timm", "tyro"))):
    sys.exit("error: not all packages of the benchmarks are installed: pip install -e '.[benchmarks]'")
