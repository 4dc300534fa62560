"""Summaries as tables, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


def html_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table with one row for each dictionary, and one column for each of their keys that has a value anywhere.

    Args:
        rows: All with the same keys, in the same order.
    """
    if not rows:
        return "<p>nothing yet</p>"
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row[name])}</td>' for name in names)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
