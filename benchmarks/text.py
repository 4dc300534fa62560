"""Text from records and file names, made fit to be shown."""

from __future__ import annotations

import unicodedata

# They turn the order of what follows, so that a reader sees another text than there is.
_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """The text with control characters as escapes, so that none of them acts on a terminal; line breaks and tabs stay.

    Lone surrogates, which cannot be written as UTF-8, are shown as escapes too.
    """
    return "".join(_escape(character) if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
