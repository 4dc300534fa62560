"""A report as one web page with its figures in it, which asks for nothing from elsewhere."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from benchmarks.report.document import Block, Document
from benchmarks.report.statistics import Verdict


def render(document: Document, folder: Path) -> str:
    """The page.

    Args:
        document: The report.
        folder: Where its figures are.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inline = MarkdownIt("commonmark", {"html": False})

    def picture_data(file: str) -> str:
        return "data:image/png;base64," + base64.b64encode((folder / file).read_bytes()).decode()

    def kind(block: Block) -> str:
        return type(block).__name__

    environment.filters.update(
        prose=lambda text: Markup(inline.renderInline(text)),
        picture_data=picture_data,
        kind=kind,
        is_verdict=lambda cell: isinstance(cell, Verdict),
        slug=lambda verdict: verdict.value.replace(" ", "-"),
    )
    return environment.get_template("page.html.jinja").render(document=document) + "\n"
