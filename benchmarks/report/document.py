"""A report as Markdown with its figures beside it, and as one page with everything in it."""

from __future__ import annotations

import base64
import html
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from benchmarks.environment import one_line
from benchmarks.errors import StorageError
from benchmarks.report import statistics as words
from benchmarks.report.statistics import Verdict

_PLAIN = r"[-+]?[\d.,]+"
# With its unit, deviation, interval and n; "3 of 32" is a share in words, and a name may begin with a number.
_NUMBER = re.compile(
    rf"-?|(\*\*)?{_PLAIN}( ?%| ns| µs)?( ± {_PLAIN})?( \({_PLAIN} to {_PLAIN}\))?(, n = \d+)?(, p (=|&lt;) {_PLAIN})?"
    r"(\*\*)?( times( .+)?)?"
)
_TABLE = re.compile(r"(?:^\|.*\|\n)+", re.MULTILINE)
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


def finish(text: str) -> str:
    """The text of a template: its tables get the line below their heads, and lose columns without a cell."""
    return (
        _TABLE.sub(lambda match: _finish_table(match[0].splitlines()), re.sub(r"\n{3,}", "\n\n", text)).strip() + "\n"
    )


def _finish_table(lines: Sequence[str]) -> str:
    columns = zip(*(line[2:-2].split(" | ") for line in lines), strict=True)
    shown = [
        [head, "---:" if all(map(_NUMBER.fullmatch, cells)) else "---", *cells]
        for head, *cells in columns
        if {*cells} - {"", "-"}
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*shown, strict=True))


def escape(text: object) -> str:
    """Text that stands for itself, on one line, in a table too."""
    characters = " ".join(str(text).splitlines())
    return _EMPHASIZING.sub(r"\\_", "".join(_ESCAPED.get(each, each) for each in characters))


TEMPLATES = Environment(
    loader=FileSystemLoader([Path(__file__).parent, Path(__file__).parents[1] / "tables"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "md": escape,
    "count": lambda n, noun: f"{n:,} {noun}{'' if n == 1 else 's'}",
    "machine": one_line,
    "noise": words.noise_in_words,
    "sample": words.sample,
    "median": statistics.median,
    "mean": statistics.fmean,
    "mean_array": lambda arrays: np.mean([*arrays], axis=0),
    "show": words.show,
    "show_p": words.show_p,
    "spread": words.spread,
    "quartiles": words.quartiles,
}


def render_template(name: str, **values: Any) -> str:
    """A template beside this module, filled in."""
    return finish(TEMPLATES.get_template(name).render(**values))


def _render_page(text: str, folder: Path) -> str:
    """The page that Markdown makes, with the figures of a folder in it."""

    def figure(image: re.Match[str]) -> str:
        data, words = base64.b64encode((folder / image[1]).read_bytes()).decode(), image[2]
        return f'<span class="figure"><img src="data:image/png;base64,{data}" alt="{words}"><span>{words}</span></span>'

    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    body = body.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    for verdict in Verdict:
        chip = f'<span class="{verdict.name.lower()}">{verdict.symbol} {verdict.text}</span>'
        body = body.replace(f"{verdict.symbol} <strong>{verdict.text}</strong>".strip(), chip)
    body = re.sub(r'<img src="([^"]+)" alt="([^"]*)" />', figure, body)
    return render_template("page.html.jinja", title=text.partition("\n")[0].removeprefix("# "), body=body)
