"""Tables, figures and verdicts from folders of records of one kind, and from nothing else.

    python -m benchmarks.report runs/resnet34-cifar10
    python -m benchmarks.report FOLDER FOLDER FOLDER --out report

The records are of ``benchmarks.cifar`` or of ``benchmarks.selection``. Writes report.md with its figures, and
report.html, one page with everything in it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.errors import BenchmarkError, RecordsError
from benchmarks.report.cifar import report_cifar
from benchmarks.report.document import Report
from benchmarks.report.results import read_folders, tabulate
from benchmarks.report.selection import report_selection
from benchmarks.schema import EpochLoss


def make_report(folders: Sequence[Path], epoch_loss: str = "first") -> Report:
    """The report on folders of finished runs, all of one kind."""
    read = read_folders(folders)
    studies = sorted({getattr(records.configuration, "study", "cifar") for records in read})
    if len(studies) > 1:
        raise RecordsError(f"the folders are of {', '.join(studies)}; a report is on one of these, so give its own")
    return report_cifar(tabulate(read), epoch_loss) if studies == ["cifar"] else report_selection(read)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; the help is made of the comments."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # Of records.
    out: Path | None = None  # Folder of the report; report/ in the first folder by default.
    epoch_loss: EpochLoss = "first"  # To judge claims by.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error that is meant for the user is one line, and the exit status 1."""
    options = tyro.cli(Options, prog="python -m benchmarks.report", description=__doc__, args=arguments)
    try:
        report = make_report(options.folders, options.epoch_loss)
        page = report.write(options.out or options.folders[0] / "report")
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    for line in [*report.summary, f"report: {page}"]:
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
