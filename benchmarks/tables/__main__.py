"""Write what is generated in README.md and in the documentation from the raw records.

    python -m benchmarks.tables           # rewrite what stands between markers, and the reports
    python -m benchmarks.tables --check   # exit with 1 if that would change anything

A marker pair ``<!-- generated: NAME -->`` ... ``<!-- end -->`` stands around each part.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import markdown
from benchmarks.report.page import write_report
from benchmarks.selection.kinds.report import REPORT as KINDS_REPORT
from benchmarks.selection.report import FIGURE
from benchmarks.tables import cifar, costs, quickstart, selection, studies, suspects
from benchmarks.tables.newest import RECORDS, ROOT

DOCS = ROOT / "docs"
PAGES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    DOCS / "what-your-loss-measures.md",
    DOCS / "ranks.md",
    DOCS / "guides" / "what-to-switch-on.md",
    DOCS / "evidence" / "costs.md",
    DOCS / "guides" / "finding-bad-data.md",
)
REPORT = RECORDS / "report"
SELECTION_REPORT = RECORDS / "selection-report"
MARKED = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {
    "quickstart": quickstart.quickstart_table,
    "quickstart-found": quickstart.quickstart_found,
    "quickstart-time": studies.quickstart_time,
    "loss-selection": studies.loss_selection_table,
    "costs-found": costs.costs_found,
    "decision-cost": costs.decision_cost_table,
    "time-overhead": costs.time_overhead_table,
    "sample-cost": costs.sample_cost,
    "sample-size": costs.sample_size_table,
    "ranks-cost": costs.ranks_cost,
    "visits-to-fit": studies.visits_to_fit_table,
    "cifar-claims": cifar.cifar_claims_table,
    "cifar-cost": cifar.cifar_cost_table,
    "cifar-found": cifar.cifar_found,
    "short-last-batch": cifar.short_last_batch_table,
    "cifar-again": cifar.cifar_again_table,
    "selection-glance": selection.selection_at_a_glance,
    "selection-kinds": selection.selection_kinds,
    "suspects": suspects.suspects_table,
    "suspects-details": suspects.suspects_details,
    "suspects-longer": suspects.suspects_longer,
    "suspects-found": suspects.suspects_found,
}


def fill_in(page: str) -> str:
    """The page with every marked part made anew."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match['name']]()}\n{match[3]}", page)


def is_report_stale(*, rewrite: bool) -> bool:
    """Whether the report of CIFAR is not what would be made of the records, by its text; rewritten if asked."""
    experiments = cifar.cifar_experiments()
    with tempfile.TemporaryDirectory() as folder:
        write_report(experiments, Path(folder))
        new = (Path(folder) / "report.md").read_text(encoding="utf-8")
    old = REPORT / "report.md"
    is_stale = not old.exists() or old.read_text(encoding="utf-8") != new
    if is_stale and rewrite:
        shutil.rmtree(REPORT, ignore_errors=True)
        write_report(experiments, REPORT)
    return is_stale


def is_selection_report_stale(*, rewrite: bool) -> bool:
    """The same, for the report of benchmarks.selection."""
    with tempfile.TemporaryDirectory() as folder:
        new = markdown.render(selection.selection_report(Path(folder)))
        old = SELECTION_REPORT / "report.md"
        is_stale = not old.exists() or old.read_text(encoding="utf-8") != new
        if is_stale and rewrite:
            SELECTION_REPORT.mkdir(exist_ok=True)
            old.write_text(new, encoding="utf-8")
            shutil.copy(Path(folder) / FIGURE, SELECTION_REPORT)
    return is_stale


def is_kinds_report_stale(*, rewrite: bool) -> bool:
    """The same, for the report of benchmarks.selection.kinds."""
    new, old = markdown.render(selection.selection_kinds_report()), SELECTION_REPORT / KINDS_REPORT
    is_stale = not old.exists() or old.read_text(encoding="utf-8") != new
    if is_stale and rewrite:
        old.write_text(new, encoding="utf-8")
    return is_stale


def main() -> None:
    """Rewrite the pages, or check that they need no rewriting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        rendered = fill_in(page)
        if rendered != page:
            stale.append(path.name)
            if not arguments.check:
                path.write_text(rendered, encoding="utf-8")
    if not arguments.check:
        costs.draw_sample_size().savefig(DOCS / "evidence" / "sample-size.png", dpi=130)
    if is_report_stale(rewrite=not arguments.check):
        stale.append(str(REPORT.relative_to(ROOT)))
    if is_selection_report_stale(rewrite=not arguments.check):
        stale.append(str(SELECTION_REPORT.relative_to(ROOT)))
    if is_kinds_report_stale(rewrite=not arguments.check):
        stale.append(str((SELECTION_REPORT / KINDS_REPORT).relative_to(ROOT)))
    if arguments.check and stale:
        sys.exit(f"{', '.join(stale)} differs from its records; run python -m benchmarks.tables")


if __name__ == "__main__":
    main()
