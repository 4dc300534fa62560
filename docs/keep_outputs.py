"""Runs examples and keeps what they print, for their pages on the site.

python docs/keep_outputs.py [NAME ...]     # such as numpy_loop; all, if none is named
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUTS = ROOT / "docs" / "outputs"
# What an example leaves where it is run has no part in its page.
_FOLDER = re.compile(r"\S*/(?=\w+\.(?:png|pt|jsonl)\b)")
# How long it took depends on what else the machine did.
_ELAPSED = re.compile(r"(?<=━ 100%) +\d+:\d\d:\d\d *$", re.MULTILINE)


def keep(example: Path) -> None:
    """Run one, and keep what it printed, with the machine that it was run on.

    Raises:
        CalledProcessError: If it fails.
    """
    from benchmarks.environment import describe_environment, one_line

    is_for_ranks = "torchrun" in example.read_text(encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if is_for_ranks else []
    # Models this small gain nothing from threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, str(example)]
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True
        )
    printed = "\n".join(line.rstrip() for line in _ELAPSED.sub("", _FOLDER.sub("", done.stdout)).splitlines())
    machine = one_line(describe_environment("cpu"))
    (OUTPUTS / f"{example.stem}.txt").write_text(f"{printed}\n\n{machine}\n", encoding="utf-8")


def main() -> None:
    """The command."""
    sys.path.insert(0, str(ROOT))
    scripts = sorted((ROOT / "examples").glob("*.py"))
    runnable = [path.stem for path in scripts if "__main__" in path.read_text(encoding="utf-8")]
    for name in sys.argv[1:] or runnable:
        print(name)  # noqa: T201
        keep(ROOT / "examples" / f"{name}.py")


if __name__ == "__main__":
    main()
