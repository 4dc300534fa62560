"""The small studies run as they are documented, and the recorded quick start is drawn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.studies import costs, device_loop
from benchmarks.tables.data import find_newest

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def record(tmp_path):
    return tmp_path / "new" / "record.jsonl"


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_the_recorded_quick_start_is_read_and_drawn(tmp_path):
    options = ["--redraw", find_newest("quickstart") / "runs.jsonl", "--output", tmp_path / "figure.png"]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py", *options], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "94.64 ± 1.06" in done.stdout  # as in the generated tables


def test_the_cost_of_a_decision_is_appended_to_the_record(record, monkeypatch):
    monkeypatch.setattr(costs, "DECISIONS", 200)
    for _ in range(2):
        costs.decisions(record, rounds=2, sizes=(100,))
    lines = read_lines(record)
    assert [line["samples"] for line in lines] == [None, None, 100] * 2
    sides = [("inline", "decide"), ("inline", "attend"), ("torch", "ours")] * 2
    assert [line["times"].keys() for line in lines] == [dict.fromkeys(pair).keys() for pair in sides]
    assert {len(times) for line in lines for times in line["times"].values()} == {2}


def test_the_cost_of_attention_to_samples_is_measured_by_step_and_by_size(record, monkeypatch):
    monkeypatch.setattr(costs, "STEPS", 2)
    costs.steps(record, rounds=1)
    line = costs.measure_size(2000, {"k": 1.2})
    assert read_lines(record)[0]["times"].keys() == {"plain", "attention"}
    assert (len(line["first_ms"]), len(line["later_ms"])) == (7, 413)
    assert 0 < line["state_bytes"] < 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="of what a CPU leaves out")
def test_the_device_loop_is_measured_on_a_cpu_as_far_as_it_can_be(record):
    device_loop.measure(record, models=("small_resnet",), batches=2, rounds=1)
    assert [line["milliseconds"].keys() for line in read_lines(record)] == [{"eager"}] * 2


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a dry run is for a CPU")
def test_the_gpu_day_runs_dry_and_resumes(tmp_path, digits):
    command = ["benchmarks/gpu_day.sh", str(tmp_path / "out"), "5", str(digits), "--dry-run"]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, check=True)
        assert done.returncode == 0
    assert "passed" in (tmp_path / "out" / "tests.txt").read_text()
    assert len(read_lines(tmp_path / "out" / "device_loop.jsonl")) == 2
    assert {line["is_finished"] for line in read_lines(tmp_path / "out" / "records" / "runs.jsonl")} == {True}
