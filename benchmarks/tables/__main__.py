"""Write what is generated in README.md, in the documentation and in the reports from the raw records.

    python -m benchmarks.tables           # rewrite what stands between markers, and the reports
    python -m benchmarks.tables --check   # exit with 1 if that would change anything

A marker pair ``<!-- generated: NAME -->`` ... ``<!-- end -->`` stands around each part: a macro of tables.jinja.
"""

from __future__ import annotations

import re
import sys

import tyro

from benchmarks.report import selection
from benchmarks.report.cifar import machines, report_cifar
from benchmarks.report.document import TEMPLATES, finish
from benchmarks.report.results import gain
from benchmarks.tables import data

DOCS = data.ROOT / "docs"
PAGES = (data.ROOT / "README.md", data.ROOT / "benchmarks" / "README.md", *sorted(DOCS.rglob("*.md")))
MARKED = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
# By name below the records.
REPORTS = {
    "report/report": lambda: report_cifar(data.cifar()),
    "selection-report/report": lambda: selection.report_selection(data.selection("selection")),
    "selection-report/kinds": lambda: selection.report_selection(data.selection("selection-kinds")),
}
TEMPLATES.globals |= {
    "newest": data.read_newest,
    "data": data,
    "selection": selection,
    "gain": gain,
    "machines": machines,
}


def fill_in(page: str) -> str:
    """The page with every marked part written again."""
    macros = TEMPLATES.get_template("tables.jinja").module
    return MARKED.sub(
        lambda match: match[1] + finish(getattr(macros, match["name"].replace("-", "_"))()) + match[3], page
    )


def main(*, check: bool = False) -> None:
    """Rewrite the pages and the reports, or check that they need no rewriting."""
    stale = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if (rendered := fill_in(page)) != page:
            stale.append(path)
            if not check:
                path.write_text(rendered, encoding="utf-8")
    if not check:
        data.draw_sample_size().savefig(DOCS / "evidence" / "sample-size.png", dpi=130)
    for name, make in REPORTS.items():
        report, path = make(), data.RECORDS / f"{name}.md"
        # Figures are the same where the text is.
        if not path.exists() or path.read_text(encoding="utf-8") != report.markdown:
            stale.append(path)
            if not check:
                report.write(path.parent, path.stem)
    if check and stale:
        paths = ", ".join(str(path.relative_to(data.ROOT)) for path in stale)
        sys.exit(f"{paths} differs from its records; run python -m benchmarks.tables")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
