"""A report as Markdown with its figures beside it, and as one page with everything in it."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.figure import Figure

from benchmarks.errors import StorageError
from benchmarks.report.statistics import Verdict, holm
from benchmarks.report.wording import Gain

Cell: TypeAlias = "str | Mark | Gain"
_PLAIN = r"[-+]?[\d.,]+"
# With its unit, deviation, interval and n; "3 of 32" is a share in words, and a name may begin with a number.
_NUMBER = re.compile(
    rf"{_PLAIN}( ?%| ns| µs)?( ± {_PLAIN})?( \({_PLAIN} to {_PLAIN}\))?(, n = \d+)?(, p [=<] {_PLAIN})?( times .+)?"
)
_ESCAPED = {**{mark: f"\\{mark}" for mark in "\\|*`[]~"}, "<": "&lt;", "&": "&amp;"}
# Within a word an underscore stands for itself.
_EMPHASIZING = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# Of figures, in dots per inch.
_RESOLUTION = 110


class Mark(NamedTuple):
    """A verdict as a cell of a table, and whether it does not survive the correction."""

    verdict: Verdict
    is_overturned: bool = False

    def __str__(self) -> str:
        return f"{self.verdict.symbol} **{self.verdict.text}**{', not after correction' * self.is_overturned}".strip()


class Table(NamedTuple):
    """A table; columns without a cell are not shown.

    Attributes:
        head: The names of the columns.
        rows: A cell for each column; "" and "-" stand for none.
        caption: Markdown below it; may be empty.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


class Report(NamedTuple):
    """A report.

    Attributes:
        markdown: With links to its figures.
        figures: By the name of the file.
    """

    markdown: str
    figures: dict[str, Figure]

    @property
    def summary(self) -> list[str]:
        """The sentences that it begins with, as plain text."""
        lines = [line.removeprefix("> - ") for line in self.markdown.splitlines() if line.startswith("> ")]
        return [html.unescape(re.sub(r"\\(.)", r"\1", line)) for line in lines]

    def write(self, folder: Path, name: str = "report") -> Path:
        """Write NAME.md, NAME.html and the figures.

        Returns:
            The page.

        Raises:
            StorageError: If a file cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, figure in self.figures.items():
                figure.savefig(folder / file, dpi=_RESOLUTION)
            (folder / f"{name}.md").write_text(self.markdown, encoding="utf-8")
            page = folder / f"{name}.html"
            page.write_text(_render_page(self.markdown, folder), encoding="utf-8")
        except OSError as error:
            reason = f"the report cannot be written to {folder} ({error.strerror})"
            raise StorageError(f"{reason}; choose another --out") from error
        return page


def render_template(name: str, **values: Any) -> str:
    """A template beside this module, filled in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"md": escape, "count": lambda n, noun: f"{n:,} {noun}{'' if n == 1 else 's'}"}
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(name).render(**values)).strip() + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table as Markdown; empty without rows."""
    return render(Table(head, rows)) if rows else ""


def render(table: Table) -> str:
    """A table as Markdown."""
    columns = [(name, [row[place] for row in table.rows]) for place, name in enumerate(table.head)]
    shown = [column for column in columns if any(str(cell) not in ("", "-") for cell in column[1])]
    rules = ["---:" if _are_numbers(cells) else "---" for _, cells in shown]
    rows = [
        [str(cell) if isinstance(cell, Mark) else escape(str(cell)) for cell in row]
        for row in zip(*(cells for _, cells in shown), strict=True)
    ]
    text = "\n".join(f"| {' | '.join(line)} |" for line in [[escape(name) for name, _ in shown], rules, *rows])
    return f"{text}\n\n{table.caption}" if table.caption else text


def _are_numbers(cells: Sequence[Cell]) -> bool:
    filled = [str(cell) for cell in cells if str(cell) not in ("", "-")]
    return bool(filled) and all(map(_NUMBER.fullmatch, filled))


def correct(rows: Iterable[Sequence[Cell]]) -> None:
    """Put a p-value beside every interval, adjusted over all of these by Holm's method."""
    cells = [cell for row in rows for cell in row if isinstance(cell, Gain)]
    for place, p in holm({place: cell.values.p() for place, cell in enumerate(cells)}).items():
        cells[place].p = p


def pictures(titles: dict[str, str]) -> str:
    """Figures side by side: titles by the name of the file."""
    return "\n".join(f"![{escape(title)}]({file})" for file, title in titles.items())


def escape(text: str) -> str:
    """Text that stands for itself, on one line, in a table too."""
    text = " ".join(text.splitlines())
    return _EMPHASIZING.sub(r"\\_", "".join(_ESCAPED.get(character, character) for character in text))


def anchor(title: str) -> str:
    """What a link to a title is made of, as on GitHub."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _render_page(text: str, folder: Path) -> str:
    """The page that Markdown makes, with the figures of a folder in it."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")

    def rule(name: str, render: Callable[[Sequence[Token], int], str]) -> None:
        def call(tokens: Sequence[Token], place: int, *_: Any) -> str:
            return render(tokens, place)

        markdown.renderer.rules[name] = call  # type: ignore[attr-defined]

    def figure(tokens: Sequence[Token], place: int) -> str:
        data = base64.b64encode((folder / str(tokens[place].attrs["src"])).read_bytes()).decode()
        words = html.escape("".join(child.content for child in tokens[place].children or []))
        return f'<span class="figure"><img src="data:image/png;base64,{data}" alt="{words}"><span>{words}</span></span>'

    def heading(tokens: Sequence[Token], place: int) -> str:
        return f'<{tokens[place].tag} id="{anchor(tokens[place + 1].content)}">'

    rule("image", figure)
    rule("heading_open", heading)
    rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    rule("table_close", lambda *_: "</table></div>\n")
    body = markdown.render(text)
    for verdict in Verdict:
        chip = f'<span class="{verdict.name.lower()}">{verdict.symbol} {verdict.text}</span>'
        body = body.replace(f"{verdict.symbol} <strong>{verdict.text}</strong>".strip(), chip)
    return render_template("page.html.jinja", title=text.partition("\n")[0].removeprefix("# "), body=body)
