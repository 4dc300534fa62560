"""The quick start as a user runs it, with where it ran beside its raw results: runs.jsonl and figure.png in FOLDER.

python -m benchmarks.studies.quickstart FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro

from benchmarks.environment import describe_environment
from benchmarks.studies.recording import keep

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


def measure(folder: tyro.conf.Positional[Path], *, seeds: int = 10, epochs: int = 12) -> None:
    """Run the example with so many seeds and epochs, and keep what it found."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(temporary) / "runs.jsonl"
        options = ["--seeds", seeds, "--epochs", epochs, "--record", runs, "--output", folder / "figure.png"]
        subprocess.run([sys.executable, EXAMPLE, *map(str, options)], check=True)
        lines = [json.loads(line) for line in runs.read_text(encoding="utf-8").splitlines()]
    keep(folder / "runs.jsonl", lines, describe_environment())


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
