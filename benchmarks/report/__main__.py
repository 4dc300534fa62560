"""Tables, figures and verdicts from folders of records of one kind, and from nothing else.

    python -m benchmarks.report runs/resnet34-cifar10
    python -m benchmarks.report FOLDER FOLDER FOLDER --out report

The records are of ``benchmarks.cifar`` or of ``benchmarks.selection``. Writes report.md with its figures, and
report.html, one page with everything in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.errors import BenchmarkError, RecordsError
from benchmarks.report.cifar import report_cifar
from benchmarks.report.document import Report
from benchmarks.report.results import read_folders, tabulate
from benchmarks.report.selection import report_selection


def make_report(folders: Sequence[Path], epoch_loss: str = "first") -> Report:
    """The report on folders of finished runs, all of one kind."""
    read = read_folders(folders)
    studies = sorted({getattr(records.configuration, "study", "cifar") for records in read})
    if len(studies) > 1:
        raise RecordsError(f"the folders are of {', '.join(studies)}; a report is on one of these, so give its own")
    return report_cifar(tabulate(read), epoch_loss) if studies == ["cifar"] else report_selection(read)


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
    try:
        report = make_report(options.folders, options.epoch_loss)
        page = report.write(options.out or options.folders[0] / "report")
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    for line in [*report.summary, f"report: {page}"]:
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
