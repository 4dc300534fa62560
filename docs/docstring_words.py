"""Docstrings as the site shows them: an extension of Griffe.

Docstrings are written to be read in an editor, where a double colon before an indented block is a habit. In Markdown
the block is code without it, and the second colon would be seen.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_BEFORE_A_BLOCK = re.compile(r"::(?=\n)")


class SingleColons(griffe.Extension):
    """Shows one colon where a docstring has two at a line's end."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of each object as it is read."""
        if obj.docstring is not None:
            obj.docstring.value = _BEFORE_A_BLOCK.sub(":", obj.docstring.value)
