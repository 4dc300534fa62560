"""A report as Markdown with PNGs beside it, and as one HTML page with everything in it."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt

from benchmarks.errors import StorageError
from benchmarks.report import mistakes, paper, tables
from benchmarks.report.claims import RULES, judge_claims
from benchmarks.report.figures import Picture, draw_all
from benchmarks.report.results import Experiment

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; margin: 1rem 0; }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
img { max-width: 100%; }
"""


def write_report(experiments: Sequence[Experiment], folder: Path, epoch_loss: str = "first") -> Path:
    """Write ``report.md``, its figures, and ``report.html``.

    Args:
        experiments: What to report on.
        folder: Where to; made if it is not there.
        epoch_loss: The reading that claims are judged by.

    Returns:
        The HTML page.

    Raises:
        StorageError: If a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = draw_all(experiments, folder, epoch_loss)
        text = compose(experiments, pictures, epoch_loss)
        (folder / "report.md").write_text(text, encoding="utf-8")
        page = folder / "report.html"
        page.write_text(_as_html(text, folder), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"the report cannot be written to {folder}: {error.strerror}; choose another --out"
        ) from error
    return page


def compose(experiments: Sequence[Experiment], pictures: Sequence[Picture], epoch_loss: str) -> str:
    """The report as Markdown."""
    findings = judge_claims(experiments, epoch_loss)
    optional = {
        "Table 2: wrong predictions by predicted class, at the best epoch": mistakes.table_2(experiments, "best"),
        "Table 2 at the last epoch": mistakes.table_2(experiments, "last"),
        "Do repeats point to wrong labels?": mistakes.flipped_table(experiments),
    }
    parts = [
        "# Batch-attention: do the paper's claims hold?",
        f"The paper: {paper.CITATION}.",
        "Made by `python -m benchmarks.report` from the raw records beside it. Arms are paired by seed: `baseline` is "
        "plain training, `attention` is Batch-attention, `random` makes as many visits to random batches, `longer` is "
        "plain training for as many updates.",
        "## Claims",
        tables.claims_table(findings).markdown(),
        RULES,
        "## What was trained",
        tables.runs_table(experiments).markdown(),
        "## Table 1: the best over the epochs, and the last epoch",
        tables.table_1(experiments).markdown(),
        "## Paired differences",
        tables.differences_table(experiments).markdown(),
        "## What it costs",
        tables.overhead_table(experiments).markdown(),
        tables.overhead_by_epoch_table(experiments).markdown(),
    ]
    for title, table in optional.items():
        if table is not None:
            parts += [f"## {title}", table.markdown()]
    parts.append("## Figures")
    parts += ["Lines are means over seeds, bands reach from the least to the greatest."]
    for picture in pictures:
        parts += [f"### {picture.title}", f"![{picture.title}]({picture.file})"]
    return "\n\n".join(parts) + "\n"


def _as_html(text: str, folder: Path) -> str:
    body = MarkdownIt("commonmark").enable("table").render(text)

    def inline(match: re.Match[str]) -> str:
        picture = base64.b64encode((folder / unquote(match[1])).read_bytes()).decode()
        return f'src="data:image/png;base64,{picture}"'

    body = re.sub(r'src="([^":]+\.png)"', inline, body)
    title = html.escape(text.splitlines()[0].lstrip("# "))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head>\n<body>\n{body}</body>\n</html>\n"
    )
