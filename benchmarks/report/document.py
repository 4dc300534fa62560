"""A report as Markdown with its figures beside it, and as one page with everything in it."""

from __future__ import annotations

import base64
import html
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.figure import Figure

from benchmarks.environment import one_line
from benchmarks.errors import StorageError
from benchmarks.report.statistics import Verdict, holm
from benchmarks.report.wording import Gain, Mark, quartiles

Row: TypeAlias = dict[str, Any]  # a cell for each column: text, a Mark or a Gain; "" and "-" stand for none
_PLAIN = r"[-+]?[\d.,]+"
# With its unit, deviation, interval and n; "3 of 32" is a share in words, and a name may begin with a number.
_NUMBER = re.compile(
    rf"{_PLAIN}( ?%| ns| µs)?( ± {_PLAIN})?( \({_PLAIN} to {_PLAIN}\))?(, n = \d+)?(, p [=<] {_PLAIN})?( times .+)?"
)
_ESCAPED = {**{mark: f"\\{mark}" for mark in "\\|*`[]~"}, "<": "&lt;", "&": "&amp;"}
# Within a word an underscore stands for itself.
_EMPHASIZING = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_DOTS_PER_INCH = 110


class Report(NamedTuple):
    """Markdown with links to its figures, and these by the name of the file."""

    markdown: str
    figures: dict[str, Figure]

    @property
    def summary(self) -> list[str]:
        """The sentences that it begins with, as plain text."""
        lines = [line.removeprefix("> - ") for line in self.markdown.splitlines() if line.startswith("> ")]
        return [html.unescape(re.sub(r"\\(.)", r"\1", line)) for line in lines]

    def write(self, folder: Path, name: str = "report") -> Path:
        """Write NAME.md, the figures and NAME.html, which is returned."""
        page = folder / f"{name}.html"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, figure in self.figures.items():
                figure.savefig(folder / file, dpi=_DOTS_PER_INCH)
            page.with_suffix(".md").write_text(self.markdown, encoding="utf-8")
            page.write_text(_render_page(self.markdown, folder), encoding="utf-8")
        except OSError as error:
            reason = f"the report cannot be written to {folder} ({error.strerror})"
            raise StorageError(f"{reason}; choose another --out") from error
        return page


def table(rows: Iterable[Row]) -> str:
    """A table as Markdown; columns without a cell are not shown, and it is empty without rows."""
    rows = [*rows]
    heads = dict.fromkeys(head for row in rows for head in row)
    columns = {head: [row.get(head, "-") for row in rows] for head in heads}
    columns = {head: cells for head, cells in columns.items() if any(str(cell) not in ("", "-") for cell in cells)}
    lines = [
        [escape(head) for head in columns],
        ["---:" if _are_numbers(cells) else "---" for cells in columns.values()],
        *(
            [str(cell) if isinstance(cell, Mark) else escape(str(cell)) for cell in row]
            for row in zip(*columns.values(), strict=False)
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _are_numbers(cells: Iterable[object]) -> bool:
    return all(_NUMBER.fullmatch(str(cell)) for cell in cells if str(cell) not in ("", "-"))


def correct(gains: Sequence[Gain]) -> None:
    """Give each its p-value, adjusted over all of these by Holm's method."""
    for each, p in zip(gains, holm([each.values.p() for each in gains]), strict=True):
        each.p = p


def escape(text: str) -> str:
    """Text that stands for itself, on one line, in a table too."""
    text = " ".join(text.splitlines())
    return _EMPHASIZING.sub(r"\\_", "".join(_ESCAPED.get(character, character) for character in text))


TEMPLATES = Environment(
    loader=FileSystemLoader([Path(__file__).parent, Path(__file__).parents[1] / "tables"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals |= {"table": table, "zip": zip}
TEMPLATES.filters |= {
    "md": escape,
    "count": lambda n, noun: f"{n:,} {noun}{'' if n == 1 else 's'}",
    "machine": one_line,
    "median": statistics.median,
    "quartiles": quartiles,
}


def render_template(name: str, **values: Any) -> str:
    """A template beside this module, filled in."""
    return re.sub(r"\n{3,}", "\n\n", TEMPLATES.get_template(name).render(**values)).strip() + "\n"


def _render_page(text: str, folder: Path) -> str:
    """The page that Markdown makes, with the figures of a folder in it."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")

    def rule(name: str, render: Callable[[Token], str]) -> None:
        def call(tokens: Sequence[Token], place: int, *_: Any) -> str:
            return render(tokens[place])

        markdown.renderer.rules[name] = call  # type: ignore[attr-defined]

    def figure(image: Token) -> str:
        data = base64.b64encode((folder / str(image.attrs["src"])).read_bytes()).decode()
        words = html.escape("".join(child.content for child in image.children or []))
        return f'<span class="figure"><img src="data:image/png;base64,{data}" alt="{words}"><span>{words}</span></span>'

    rule("image", figure)
    rule("table_open", lambda _: '<div class="scroll"><table>\n')
    rule("table_close", lambda _: "</table></div>\n")
    body = markdown.render(text)
    for verdict in Verdict:
        chip = f'<span class="{verdict.name.lower()}">{verdict.symbol} {verdict.text}</span>'
        body = body.replace(f"{verdict.symbol} <strong>{verdict.text}</strong>".strip(), chip)
    return render_template("page.html.jinja", title=text.partition("\n")[0].removeprefix("# "), body=body)
