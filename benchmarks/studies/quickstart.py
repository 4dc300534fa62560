"""The quick start as a user runs it, with its raw results kept and where it ran beside them.

python -m benchmarks.studies.quickstart --record FILE
python -m benchmarks.studies.quickstart --record FILE --redraw    # only the figure, from a record that is there
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tyro

from benchmarks.environment import describe_environment
from benchmarks.studies.raw_records import keep

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


def measure(record: Path, *, seeds: int = 10, epochs: int = 12, redraw: bool = False) -> None:
    """Run the example; what it found is in the record, and its figure beside that.

    Args:
        record: Gets one JSON line an arm and seed.
        seeds: How many.
        epochs: Of every run.
        redraw: Draw the figure of a record that is there, and no more.
    """
    figure = record.with_name("figure.png")
    if redraw:
        _run_example("--redraw", record, "--output", figure)
        return
    environment = describe_environment()
    record.parent.mkdir(parents=True, exist_ok=True)
    _run_example("--seeds", seeds, "--epochs", epochs, "--record", record, "--output", figure)
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    keep(record, lines, environment)


def _run_example(*arguments: object) -> None:
    done = subprocess.run([sys.executable, EXAMPLE, *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
