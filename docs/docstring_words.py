"""Docstrings and signatures as the site shows them: extensions of Griffe.

Docstrings are written to be read in an editor, where a double colon before an indented block is a habit. In Markdown
the block is code without it, and the second colon would be seen. A reader who looks a default up wants its value, not
the name of a constant that the reference does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

_BEFORE_A_BLOCK = re.compile(r"::(?=\n)")


class SingleColons(griffe.Extension):
    """Shows one colon where a docstring has two at a line's end."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of each object as it is read."""
        if obj.docstring is not None:
            obj.docstring.value = _BEFORE_A_BLOCK.sub(":", obj.docstring.value)


class ValuesOfDefaults(griffe.Extension):
    """Shows the value of a default that is a constant of the package."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change the defaults of all functions and attributes, once every module is there to look constants up in."""
        for found in _members(pkg):
            if isinstance(found, griffe.Function):
                for parameter in found.parameters:
                    parameter.default = _value_of(parameter.default, pkg)
            elif isinstance(found, griffe.Attribute):
                found.value = _value_of(found.value, pkg)


def _members(parent: griffe.Object) -> Iterator[griffe.Object]:
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield member
            yield from _members(member)


def _value_of(default: str | griffe.Expr | None, package: griffe.Module) -> str | griffe.Expr | None:
    """What a constant of the package is, wherever it was imported from; all else as it stands."""
    if not isinstance(default, griffe.ExprName) or not default.name.isupper():
        return default
    try:
        constant = package[default.canonical_path.removeprefix(f"{package.path}.")]
    except KeyError:
        return default
    return constant.value if isinstance(constant, griffe.Attribute) else default
