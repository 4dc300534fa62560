"""The benchmark of time: two arms by turns, and what is made of their seconds."""

import json

import pytest

from benchmarks.studies import time_overhead
from tests.benchmarks.cifar_helpers import write_digits

pytestmark = pytest.mark.usefixtures("one_thread")


def test_both_arms_are_timed_by_turns_and_every_update_is_counted(tmp_path, monkeypatch):
    digits = write_digits(tmp_path / "digits", size=32)
    record = tmp_path / "records" / "epochs.jsonl"
    options = ["--record", record, "--data", digits, "--data-dir", tmp_path / "cache", "--model", "small_resnet"]
    options += ["--images", 130, "--epochs", 12]
    monkeypatch.setattr(time_overhead, "LEARNING_RATE", 0.01)
    time_overhead.main([*map(str, options)])
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    order = [(line["epoch"], line["arm"]) for line in lines]
    assert order[:4] == [(1, "attention"), (1, "baseline"), (2, "baseline"), (2, "attention")]
    assert len(order) == 24
    baseline = [line["updates"] for line in lines if line["arm"] == "baseline"]
    attention = [line["updates"] for line in lines if line["arm"] == "attention"]
    assert baseline == [5] * 12
    assert sum(attention) > 60
    assert attention[0] == 5
    for line in lines:
        assert 0 <= line["schedule_seconds"] < line["seconds"]
        assert (line["schedule_seconds"] > 0) == (line["arm"] == "attention")


def test_the_summary_is_of_all_epochs_and_an_update_of_medians():
    made = [("baseline", 10, 1.0, 0.0), ("baseline", 10, 3.0, 0.0), ("baseline", 10, 1.0, 0.0)]
    made += [("attention", 10, 1.0, 0.1), ("attention", 20, 2.4, 0.2), ("attention", 15, 3.1, 0.1)]
    names = ("arm", "updates", "seconds", "schedule_seconds")
    found = time_overhead.summarize([dict(zip(names, line, strict=True)) for line in made])
    assert found["more_updates"] == pytest.approx(45 / 30 - 1)
    assert found["more_seconds"] == pytest.approx(6.5 / 5 - 1)
    assert found["schedule_share"] == pytest.approx(0.4 / 6.5)
    assert found["update_ratio"] == pytest.approx(0.12 / 0.1)


def test_data_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: data is '/nowhere'"):
        time_overhead.main(["--record", str(tmp_path / "r.jsonl"), "--data", "/nowhere"])
