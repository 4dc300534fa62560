"""The small studies run as they are documented, and stand on the same ground as the quick start."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule
from benchmarks.studies import decision_cost, device_loop, digits, loss_selection, suspects, visits_to_fit
from benchmarks.studies import quickstart as study
from benchmarks.tables.newest import find_newest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def example():
    """The names of the quick start, which no module may import."""
    return runpy.run_path(str(study.EXAMPLE))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_studies_train_the_quick_starts_model_on_its_images_as_it_does(example):
    images, _, labels, _ = example["load_images"]()
    of_studies = digits.load_training_images()
    assert torch.equal(of_studies[0], images)
    assert torch.equal(of_studies[1], labels)
    assert (example["LEARNING_RATE"], example["BATCH_SIZE"]) == (digits.LEARNING_RATE, digits.BATCH_SIZE)
    weights = []
    for make_model, train_epoch in (
        (digits.make_model, digits.train_epoch),
        (example["make_model"], example["train_epoch"]),
    ):
        model = make_model(3)
        optimizer = torch.optim.Adam(model.parameters(), lr=digits.LEARNING_RATE)
        schedule = BatchAttentionSchedule(k=1.0)
        order = torch.Generator().manual_seed(3)
        for _ in range(2):
            train_epoch(model, optimizer, schedule, images, labels, order)
        weights.append([schedule.last_summary.visits, *map(torch.sum, model.state_dict().values())])
    assert weights[0] == weights[1]


@pytest.mark.parametrize("redraw", [False, True])
def test_the_quick_start_is_run_as_a_user_runs_it(tmp_path, monkeypatch, redraw):
    """What is run is looked at, and not waited for."""
    ran = []

    def run(command, **options):
        arguments = [*map(str, command[2:])]
        ran.append((command[1], arguments))
        if "--record" in arguments:
            Path(arguments[arguments.index("--record") + 1]).write_text('{"arm": "baseline", "seed": 0}\n')
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    record = tmp_path / "new" / "runs.jsonl"
    study.measure(record, seeds=3, epochs=4, redraw=redraw)
    figure = str(record.with_name("figure.png"))
    options = ["--redraw", str(record)] if redraw else ["--seeds", "3", "--epochs", "4", "--record", str(record)]
    assert ran == [(study.EXAMPLE, [*options, "--output", figure])]
    if not redraw:
        ((line,),) = [read_lines(record)]
        assert line.items() >= {"arm": "baseline", "seed": 0}.items()
        assert line["environment"]["packages"]["torch"]


def test_the_recorded_quick_start_is_read_and_drawn(tmp_path):
    record = find_newest("quickstart") / "runs.jsonl"
    options = ["--redraw", record, "--output", tmp_path / "figure.png", "--record", tmp_path / "again.jsonl"]
    done = subprocess.run([sys.executable, study.EXAMPLE, *options], capture_output=True, text=True, check=True)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    # What stands in the README.
    assert "94.64 ± 1.06" in done.stdout
    assert "n = 10 paired seeds" in done.stdout
    recorded = [{name: line[name] for name in line if name != "environment"} for line in read_lines(record)]
    assert read_lines(tmp_path / "again.jsonl") == recorded


def test_a_quick_start_that_fails_ends_the_study_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 2))
    with pytest.raises(SystemExit) as stopped:
        study.measure(tmp_path / "runs.jsonl", seeds=1)
    assert stopped.value.code == 2


def test_visits_are_counted_without_a_limit_that_matters(tmp_path, monkeypatch):
    monkeypatch.setattr(visits_to_fit, "LEARNING_RATES", (1e-3,))
    visits_to_fit.measure(tmp_path / "runs.jsonl", seeds=1, epochs=3)
    for line, noise in zip(read_lines(tmp_path / "runs.jsonl"), (0.0, 0.1), strict=True):
        assert (line["noise_share"], line["seed"], line["epochs"]) == (noise, 0, 3)
        # 1,437 images in batches of 32.
        assert sum(line["batches_by_visits"].values()) == 3 * 45


# A sum over tokens repeats so much that there is a word about it.
@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_every_case_of_what_is_selected_is_recorded_with_both_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_selection, "SEQUENCES", 128)
    loss_selection.measure(tmp_path / "runs.jsonl", seeds=1, epochs=2)
    lines = read_lines(tmp_path / "runs.jsonl")
    cases = [(case, reported) for case in ("lengths", "mixup", "smoothing") for reported in ("at hand", "advised")]
    assert [(line["case"], line["reported"]) for line in lines] == cases
    assert all(0 <= line["repeated"] <= line["batches"] for line in lines)


def test_the_cost_of_a_decision_is_appended_to_the_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decision_cost, "DECISIONS", 200)
    monkeypatch.setattr(decision_cost, "compare_index_lists", lambda samples, rounds: {**decision, "samples": samples})
    decision = decision_cost.compare_decisions(rounds=2)
    for _ in range(2):
        decision_cost.measure(rounds=2, record=tmp_path / "times.jsonl")
    lines = read_lines(tmp_path / "times.jsonl")
    assert [line["samples"] for line in lines] == [None, None, 50_000, 1_281_167] * 2
    times = [{name: len(values) for name, values in line["times"].items()} for line in lines[:2]]
    assert times == [{"inline": 2, "decide": 2}, {"inline": 2, "attend": 2}]
    assert capsys.readouterr().out.count("decide / inline") == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="of what a CPU leaves out")
def test_the_device_loop_is_measured_on_a_cpu_as_far_as_it_can_be(tmp_path, capsys):
    record = tmp_path / "device.jsonl"
    device_loop.measure(record, models=("mobilenetv3_small_050",), batches=2, rounds=1, runs=(1, 2))
    lines = read_lines(record)
    measured = [(line["row"], len(line["milliseconds"])) for line in lines if line["kind"] == "update"]
    assert measured == [(row, int(row == device_loop.ROWS[0])) for row in device_loop.ROWS] * 2
    assert [line["runs"] for line in lines if line["kind"] == "together"] == [1, 2]
    assert [line["is_equal"] for line in lines if line["kind"] == "equality"] == [None]
    assert "not measured" in capsys.readouterr().out


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


def test_the_means_are_those_that_attention_has_of_its_suspects():
    images, labels = torch.randn(128, 3, 8, 8), torch.arange(128) % 10
    trained = suspects.train(images, labels, seed=0, epochs=4, prune_probability=0)
    for sample, mean_loss, _ in trained.attention.suspects(128):
        assert mean_loss == pytest.approx(trained.mean_losses[sample], rel=0.03)  # which it remembers in two bytes


def test_suspects_are_measured_in_all_ways_and_resumed(tmp_path, monkeypatch, request):
    monkeypatch.setattr(suspects, "MISTAKEN_FOR", {f"digit {label}": f"digit {9 - label}" for label in range(10)})
    monkeypatch.setattr(suspects, "BATCH_SIZE", 16)
    record = tmp_path / "runs.jsonl"
    images = {"data": str(request.getfixturevalue("digits")), "data_dir": tmp_path, "epochs": 3}
    suspects.measure(record, seeds=1, **images)
    whole = record.read_text()
    record.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    suspects.measure(record, seeds=1, **images)
    lines = read_lines(record)
    assert [line["noise"] for line in lines] == list(suspects.NOISES)
    assert [line["wrong"] for line in lines] == [4, 14, 28, 14]
    assert {len(line["found"]) for line in lines} == {9}
    assert lines[-1]["found"] == json.loads(whole.splitlines()[-1])["found"]
    # Of 140 images; each of four folds leaves out a quarter.
    assert [lines[0]["cost"][way]["updates"] for way in ("plain", "pruned", "folds")] == [27, 27, 4 * 21]
