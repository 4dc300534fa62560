"""Tables, figures and verdicts from the records of ``python -m benchmarks.cifar``, and from nothing else.

    python -m benchmarks.report runs/resnet34-cifar10
    python -m benchmarks.report FOLDER FOLDER FOLDER --out report

Writes report.md with its figures as PNG, and report.html, one page with everything in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.errors import BenchmarkError
from benchmarks.report.claims import Finding, judge_claims
from benchmarks.report.page import write_report
from benchmarks.report.results import read_experiments
from benchmarks.text import visible


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error that is meant for the user is one line, and the exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of records")
    parser.add_argument("--out", type=Path, default=None, help="default: report/ in the first folder")
    parser.add_argument(
        "--epoch-loss", choices=["first", "last", "all"], default="first", help="to judge claims by (default: first)"
    )
    options = parser.parse_args(arguments)
    console = Console()
    try:
        experiments = read_experiments(options.folders)
        page = write_report(experiments, options.out or options.folders[0] / "report", options.epoch_loss)
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    reduced = {experiment.name for experiment in experiments if experiment.reductions}
    _print_claims(judge_claims(experiments, options.epoch_loss), reduced, console)
    console.print(visible(f"report: {page}"), highlight=False, markup=False, soft_wrap=True)


def _print_claims(findings: Sequence[Finding], reduced: Collection[str], console: Console) -> None:
    table = Table(title="Claims")
    for column in ("claim", "experiment", "verdict", "numbers"):
        table.add_column(column)
    for finding in findings:
        note = " (reduced)" if finding.experiment in reduced else ""
        table.add_row(finding.claim, escape(finding.experiment + note), finding.verdict.value, finding.numbers)
    console.print(table)


if __name__ == "__main__":
    main()
