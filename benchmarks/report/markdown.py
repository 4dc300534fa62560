"""A report as Markdown, with its figures beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from benchmarks.report.document import Block, Box, Document, Folded, Paragraph, Picture, Verdicts
from benchmarks.report.statistics import Verdict

_ESCAPED = {**{mark: f"\\{mark}" for mark in "\\|*`[]~"}, "<": "&lt;", "&": "&amp;"}
# Within a word an underscore stands for itself.
_EMPHASIZING = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def render(document: Document) -> str:
    """The whole report."""
    contents = [
        f"{'  ' * (section.level - 2)}- [{escape(section.title)}](#{anchor})"
        for section, anchor in zip(document.sections, document.anchors, strict=True)
    ]
    parts = [f"# {document.title}", *(render_block(block) for block in [document.box, *document.opening])]
    parts.append("\n".join(contents))
    for section in document.sections:
        parts += [f"{'#' * section.level} {escape(section.title)}", *map(render_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def render_block(block: Block) -> str:
    """One block."""
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Box):
        return "\n".join(f"> - {escape(sentence)}" for sentence in block.sentences)
    if isinstance(block, Picture):
        return f"![{escape(block.title)}]({quote(block.file)})"
    if isinstance(block, Folded):
        inside = "\n\n".join(map(render_block, block.blocks))
        return f"<details><summary>{escape(block.title)}</summary>\n\n{inside}\n\n</details>"
    if isinstance(block, Verdicts):
        rows = [[_mark(cell) if isinstance(cell, Verdict) else escape(cell) for cell in row] for row in block.rows]
        return _table(block.head, rows, [False] * len(block.head))
    table = _table(block.head, [[escape(cell) for cell in row] for row in block.rows], block.numeric)
    return f"{table}\n\n{block.caption}" if block.caption else table


def escape(text: str) -> str:
    """Text that stands for itself, on one line, in a table too."""
    text = " ".join(text.splitlines())
    return _EMPHASIZING.sub(r"\\_", "".join(_ESCAPED.get(character, character) for character in text))


def _mark(verdict: Verdict) -> str:
    return f"{verdict.symbol} **{verdict.value}**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [[escape(name) for name in head], *rows]]
    lines.insert(1, f"| {' | '.join('---:' if is_number else '---' for is_number in numeric)} |")
    return "\n".join(lines)
