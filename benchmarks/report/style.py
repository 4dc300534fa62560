"""One colour an arm, in every figure; they can be told apart by who sees red and green alike (Okabe and Ito, 2008)."""

from __future__ import annotations

from typing import Final

from benchmarks.schema import Arm, EpochLoss

COLORS: Final[dict[Arm, str]] = {
    "baseline": "#555555",
    "attention": "#D55E00",
    "random": "#0072B2",
    "longer": "#009E73",
}
LINES: Final[dict[Arm, str]] = {"baseline": "-", "attention": "-", "random": "--", "longer": ":"}
# Readings are all of attention's arm: tints of its colour.
READING_COLORS: Final[dict[EpochLoss, str]] = {"first": "#D55E00", "last": "#7A3300", "all": "#F2A65A"}
READING_LINES: Final[dict[EpochLoss, str]] = {"first": "-", "last": "--", "all": ":"}


def literal(text: str) -> str:
    """Text in a figure that stands for itself: between dollars Matplotlib would read a formula."""
    return text.replace("$", r"\$")
