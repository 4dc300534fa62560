"""The findings of ``benchmarks.selection``, from its newest records."""

from __future__ import annotations

from functools import cache

from benchmarks.reading import Records
from benchmarks.report.results import read_folders
from benchmarks.report.selection import LEAST_SEEDS_TO_PAY, Results, glance, read_results
from benchmarks.tables.newest import find_newest

__all__ = ["LEAST_SEEDS_TO_PAY", "glance"]


@cache
def read(name: str) -> list[Records]:
    """The newest records of "selection" or "selection-kinds"."""
    return read_folders([find_newest(name)])


@cache
def results(name: str) -> list[Results]:
    """Their results, of planned and of added seeds."""
    return read_results(read(name))
