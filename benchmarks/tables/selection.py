"""The findings of benchmarks.selection, from its newest records."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import markdown
from benchmarks.report.document import Box, Document
from benchmarks.selection import report
from benchmarks.selection.findings import say_what_is_found
from benchmarks.tables.newest import find_newest


def selection_found() -> str:
    """What pays where."""
    return markdown.render_block(Box(say_what_is_found(report.read([find_newest("selection")]))))


def selection_report(to: Path) -> Document:
    """The report, with its figure drawn into ``to``."""
    return report.compose(report.read([find_newest("selection")]), to)
