"""Summaries as tables, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


def html_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table with one row for each dictionary, and one column for each of their keys.

    Args:
        rows: All with the same keys, in the same order.
    """
    if not rows:
        return "<p>nothing yet</p>"
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row.values())}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
