"""Write what is generated in README.md, in the documentation and in the reports from the raw records.

    python -m benchmarks.tables           # rewrite what stands between markers, and the reports
    python -m benchmarks.tables --check   # exit with 1 if that would change anything

A marker pair ``<!-- generated: NAME -->`` ... ``<!-- end -->`` stands around each part.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable

from benchmarks.report.document import Report
from benchmarks.tables import cifar, costs, quickstart, selection, studies, suspects
from benchmarks.tables.newest import RECORDS, ROOT

DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(DOCS.rglob("*.md")))
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
# By name below the records.
REPORTS: dict[str, Callable[[], Report]] = {
    "report/report": cifar.cifar_report,
    "selection-report/report": lambda: selection.selection_report("selection"),
    "selection-report/kinds": lambda: selection.selection_report("selection-kinds"),
}


def fill_in(page: str) -> str:
    """The page with every marked part written again."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match['name']]()}\n{match[3]}", page)


def main() -> None:
    """Rewrite the pages and the reports, or check that they need no rewriting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    stale = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if (rendered := fill_in(page)) != page:
            stale.append(path)
            if not is_check:
                path.write_text(rendered, encoding="utf-8")
    if not is_check:
        costs.draw_sample_size().savefig(DOCS / "evidence" / "sample-size.png", dpi=130)
    for name, make in REPORTS.items():
        report, path = make(), RECORDS / f"{name}.md"
        # Figures are the same where the text is.
        if not path.exists() or path.read_text(encoding="utf-8") != report.markdown:
            stale.append(path)
            if not is_check:
                report.write(path.parent, path.stem)
    if is_check and stale:
        paths = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"{paths} differs from its records; run python -m benchmarks.tables")


if __name__ == "__main__":
    main()
