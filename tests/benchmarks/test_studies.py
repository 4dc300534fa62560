"""The small studies run as they are documented, and the recorded quick start is drawn."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.studies import decision_cost, device_loop, sample_cost, suspects
from benchmarks.tables.newest import find_newest

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
    assert "94.64 ± 1.06" in done.stdout  # what stands in the README


def test_the_cost_of_a_decision_is_appended_to_the_record(record, monkeypatch):
    monkeypatch.setattr(decision_cost, "DECISIONS", 200)
    for _ in range(2):
        decision_cost.measure(record, rounds=2, sizes=(100,))
    lines = read_lines(record)
    assert [line["samples"] for line in lines] == [None, None, 100] * 2
    sides = [("inline", "decide"), ("inline", "attend"), ("torch", "ours")] * 2
    assert [line["times"].keys() for line in lines] == [dict.fromkeys(pair).keys() for pair in sides]
    assert {len(times) for line in lines for times in line["times"].values()} == {2}


def test_the_cost_of_attention_to_samples_is_measured_by_step_and_by_size(record, monkeypatch):
    monkeypatch.setattr(sample_cost, "STEPS", 2)
    sample_cost.measure(record, rounds=1)
    line = sample_cost.measure_size(2000, {"k": 1.2})
    assert read_lines(record)[0]["times"].keys() == {"plain", "attention"}
    assert (len(line["first_ms"]), len(line["later_ms"])) == (7, 413)
    assert 0 < line["state_bytes"] < 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="of what a CPU leaves out")
def test_the_device_loop_is_measured_on_a_cpu_as_far_as_it_can_be(record):
    device_loop.measure(record, models=("mobilenetv3_small_050",), batches=2, rounds=1)
    assert [line["milliseconds"].keys() for line in read_lines(record)] == [{"eager"}] * 2


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.parametrize(("noise", "wrong"), [("uniform 3 %", 3), ("uniform 20 %", 20), ("asymmetric 10 %", 10)])
def test_so_many_labels_are_wrong(noise, wrong):
    labels = np.arange(100) % 10
    drawn = [suspects.corrupt(labels, CIFAR10, noise, seed) for seed in (0, 0, 1)]
    assert [int((given != labels).sum()) for given in drawn] == [wrong] * 3
    assert [(drawn[0] == given).all() for given in drawn] == [True, True, False]
    if noise.startswith("asymmetric"):
        mistakes = {(CIFAR10[old], CIFAR10[new]) for old, new in zip(labels, drawn[0], strict=True) if old != new}
        assert mistakes <= set(suspects.MISTAKEN_FOR.items())


def test_a_ranking_is_judged_as_by_hand():
    is_wrong = np.array([True, False, True, False, False, False])
    found = suspects.judge(np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), is_wrong)
    assert found == {"average_precision": (1 / 1 + 2 / 3) / 2, "precision_at_n": 0.5, "recall_at_2n": 1.0}


def test_suspects_are_measured_in_all_ways_and_resumed(record, monkeypatch, digits):
    monkeypatch.setattr(suspects, "MISTAKEN_FOR", {f"digit {label}": f"digit {9 - label}" for label in range(10)})
    monkeypatch.setattr(suspects, "BATCH_SIZE", 16)
    options = {"data": str(digits), "seeds": 1, "epochs": 3, "noises": ("uniform 3 %", "asymmetric 10 %")}
    suspects.measure(record, **options)
    whole = record.read_text()
    record.write_text(whole.splitlines(keepends=True)[0])
    suspects.measure(record, **options)
    lines = read_lines(record)
    assert [(line["noise"], line["wrong"]) for line in lines] == [("uniform 3 %", 4), ("asymmetric 10 %", 14)]
    assert {len(line["found"]) for line in lines} == {9}
    assert lines[-1]["found"] == json.loads(whole.splitlines()[-1])["found"]
    # Of 140 images; each of four folds leaves out a quarter.
    assert [lines[0]["cost"][way]["updates"] for way in ("plain", "pruned", "folds")] == [27, 27, 4 * 21]


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
