"""A report as Markdown with its figures beside it, and as one page with everything in it."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jinja2 import Template
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.figure import Figure

from benchmarks.errors import StorageError
from benchmarks.report.statistics import Verdict, holm
from benchmarks.report.wording import Gain

Cell: TypeAlias = "str | Verdict | Gain"
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
        title: Markdown, as are the next two.
        summary: Sentences for a reader who reads no tables.
        blocks: What follows.
        figures: By the name of the file.
    """

    title: str
    summary: list[str]
    blocks: list[str]
    figures: dict[str, Figure]

    @property
    def markdown(self) -> str:
        """The report, with links to its figures."""
        return "\n\n".join([f"# {self.title}", quote(self.summary), *self.blocks]) + "\n"

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
            page.write_text(_render_page(self.title, self.markdown, folder), encoding="utf-8")
        except OSError as error:
            reason = f"the report cannot be written to {folder} ({error.strerror})"
            raise StorageError(f"{reason}; choose another --out") from error
        return page


def render(table: Table) -> str:
    """A table as Markdown."""
    columns = [(name, [row[place] for row in table.rows]) for place, name in enumerate(table.head)]
    shown = [column for column in columns if any(str(cell) not in ("", "-") for cell in column[1]) or not table.rows]
    rules = ["---:" if _are_numbers(cells) else "---" for _, cells in shown]
    rows = [[_render_cell(cell) for cell in row] for row in zip(*(cells for _, cells in shown), strict=True)]
    lines = [[escape(name) for name, _ in shown], rules, *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{table.caption}" if table.caption else text


def _are_numbers(cells: Sequence[Cell]) -> bool:
    filled = [str(cell) for cell in cells if str(cell) not in ("", "-")]
    return bool(filled) and all(map(_NUMBER.fullmatch, filled))


def _render_cell(cell: Cell) -> str:
    return f"{cell.symbol} **{cell.text}**".strip() if isinstance(cell, Verdict) else escape(str(cell))


def correct(tables: Iterable[Table]) -> None:
    """Put a p-value beside every interval that has none, adjusted over all of these by Holm's method."""
    cells = [cell for table in tables for row in table.rows for cell in row if isinstance(cell, Gain)]
    cells = [cell for cell in cells if cell.p is None]
    for place, p in holm({place: cell.values.p() for place, cell in enumerate(cells)}).items():
        cells[place].p = p


def quote(sentences: Iterable[str]) -> str:
    """Sentences that stand out."""
    return "\n".join(f"> - {escape(sentence)}" for sentence in sentences)


def fold(title: str, *blocks: str) -> str:
    """Blocks that are shown to those who ask for them."""
    inside = "\n\n".join(blocks)
    return f"<details><summary>{html.escape(' '.join(title.split()))}</summary>\n\n{inside}\n\n</details>"


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


def _render_page(title: str, text: str, folder: Path) -> str:
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
    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    return Template(template, autoescape=True).render(title=title, body=body) + "\n"
