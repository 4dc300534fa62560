"""The costs, as they are said in a paragraph and in a table."""

import statistics

import pytest

from benchmarks.studies.decision_cost import compare_decisions, compare_index_lists, compare_visits
from benchmarks.tables import costs, newest


@pytest.fixture(scope="module")
def measured():
    environment = {"cpu": "made up", "cores": 1, "gpu": None, "python": "3", "packages": {}, "date": "2026-01-01"}
    comparisons = [compare_decisions(3), compare_visits(3), compare_index_lists(1000, 3)]
    return [{**comparison, "environment": environment} for comparison in comparisons]


@pytest.fixture
def records(measured, monkeypatch):
    monkeypatch.setattr(
        costs, "read_newest", lambda name: measured if name == "decision-cost" else newest.read_newest(name)
    )
    return measured


def test_the_paragraph_has_both_ways_and_what_they_are_compared_with(records):
    said = costs.costs_found()
    for record, words in zip(
        records[:2], ("A decision takes", "; a visit by `attend` and `decide` together"), strict=True
    ):
        plain, ours = (statistics.median(times) / 1000 for times in record["times"].values())
        assert f"{words} {ours:.2f} µs, beside {plain:.2f} µs for the same accounting inline" in said


def test_records_from_before_visits_were_measured_say_nothing_of_them(records, monkeypatch):
    monkeypatch.setattr(costs, "_sample_ratio", lambda: 1.0)
    del records[1:]
    assert "visit" not in costs.costs_found()


def test_the_table_has_a_row_for_each_comparison(records):
    rows = [line for line in costs.decision_cost_table().splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(records)
    for record, row in zip(records, rows, strict=True):
        (_, plain), (_, ours) = record["times"].items()
        ratio = statistics.median(ours) / statistics.median(plain)
        said = (
            f"{1 / ratio:.1f} times as fast" if record["comparison"] == "index lists" else f"{ratio:.1f} times the cost"
        )
        assert row.endswith(f"| {said} |")
