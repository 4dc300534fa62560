"""The quick start, with its raw results kept, and the figure made of them.

python -m benchmarks.quickstart --record FILE
python -m benchmarks.quickstart --record FILE --redraw    # only the figure, from a record that is there
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from benchmarks.environment import describe_environment
from examples.quickstart import ARMS, Run, plot, print_findings, print_table, run_seeds


def main() -> None:
    """Run, print, and record one JSON line for each arm and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--redraw", action="store_true", help="draw the figure of a record that is there, and no more")
    arguments = parser.parse_args()
    if not arguments.redraw:
        measure(arguments)
    plot(read(arguments.record), arguments.record.with_name("figure.png"))


def measure(arguments: argparse.Namespace) -> None:
    """Run every arm with every seed, and record them."""
    environment = describe_environment()
    console = Console()
    runs = run_seeds(arguments.seeds, arguments.epochs, 1.2, "first", console)
    print_table(runs, console)
    print_findings(runs, console)
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    with arguments.record.open("w", encoding="utf-8") as file:
        for arm in ARMS:
            for seed, run in enumerate(runs[arm]):
                file.write(json.dumps({"seed": seed, **run._asdict(), "environment": environment}) + "\n")


def read(record: Path) -> dict[str, list[Run]]:
    """The runs of a record, by arm."""
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for text in record.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        runs[line["arm"]].append(Run(**{name: line[name] for name in Run._fields}))
    return runs


if __name__ == "__main__":
    main()
