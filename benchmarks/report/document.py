"""What a report is made of, before it is Markdown or a web page."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

from benchmarks.report.statistics import Verdict

_PLAIN = r"[-+]?[\d.,]+"
# With its unit, deviation, interval and n; "3 of 32" is a share in words, and a name may begin with a number.
_NUMBER = re.compile(rf"{_PLAIN}( ?%| ns| µs)?( ± {_PLAIN})?( \({_PLAIN} to {_PLAIN}\))?(, n = \d+)?( times .+)?")


class Table(NamedTuple):
    """A table.

    Attributes:
        head: The names of the columns.
        rows: Text for each column.
        caption: What stands below it, in which `code` may be marked as in Markdown; may be empty.
    """

    head: list[str]
    rows: list[list[str]]
    caption: str = ""

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether all that stands in it are numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.head)
        filled = [[cell for cell in column if cell not in ("", "-")] for column in columns]
        return [bool(cells) and all(_NUMBER.fullmatch(cell) for cell in cells) for cells in filled]


class Picture(NamedTuple):
    """A figure in a file.

    Attributes:
        file: Its name in the report's folder.
        title: What it shows.
    """

    file: str
    title: str


class Paragraph(NamedTuple):
    """Text, in which ``code`` may be marked as in Markdown."""

    text: str


class Box(NamedTuple):
    """Sentences that stand out: what somebody who reads no tables should know."""

    sentences: list[str]


class Verdicts(NamedTuple):
    """A table whose cells may be verdicts, which are shown by colour and symbol.

    Attributes:
        head: The names of the columns.
        rows: Text, or a verdict, for each column.
    """

    head: list[str]
    rows: list[list[str | Verdict]]


class Folded(NamedTuple):
    """What is shown to those who ask for it.

    Attributes:
        title: What they see of it before.
        blocks: What is folded away.
    """

    title: str
    blocks: list[Block]


Block: TypeAlias = "Paragraph | Table | Picture | Verdicts | Box | Folded"


class Section(NamedTuple):
    """A part of the report with a title.

    Attributes:
        title: Of the section.
        blocks: What stands below it.
        level: 2 for a section, 3 for a part of the one before.
    """

    title: str
    blocks: list[Block]
    level: int = 2


class Document(NamedTuple):
    """A whole report."""

    title: str
    box: Box
    opening: list[Block]
    sections: list[Section]

    @property
    def anchors(self) -> list[str]:
        """What links to each section are made of, as GitHub makes them: one that is taken is numbered, from 1."""
        taken: dict[str, int] = {}
        for title in [self.title, *(section.title for section in self.sections)]:
            plain = anchor = re.sub(r"[^\w -]", "", " ".join(title.lower().splitlines())).replace(" ", "-")
            while anchor in taken:
                taken[plain] += 1
                anchor = f"{plain}-{taken[plain]}"
            taken[anchor] = 0
        return list(taken)[1:]
