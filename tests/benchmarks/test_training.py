"""The training loop: what it records, and what is left when it ends early."""

import os
import random
import signal
import statistics
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from benchmarks import storage
from benchmarks.cifar import ImageTraining
from benchmarks.errors import RunIsBeingMade, Stopped
from benchmarks.reading import read_configuration, read_records
from benchmarks.schema import ARMS, RunFile, RunName
from benchmarks.selection.training import step
from benchmarks.storage import Storage, stop_runs
from benchmarks.training import Job, make_run
from tests.benchmarks.cifar_helpers import FORK_SERVER, records_without_times, run_benchmark, run_quietly

NAME = RunName("attention", "first", 3, 0)


@pytest.fixture
def job(digits, out, tmp_path):
    """An attention run in a folder that has none."""
    configuration = read_configuration(out)
    with Storage(tmp_path, configuration).opened():
        return Job(folder=tmp_path, run=NAME, data=str(digits), data_dir=tmp_path)


def kept(job):
    return Storage(job.folder).read_run(NAME) or RunFile.model_construct(epochs=[])


def test_a_run_is_locked_while_it_is_made_and_left_alone_once_it_is_finished(job, monkeypatch):
    evaluate, before = ImageTraining.evaluate, (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())

    def try_again(self):
        with pytest.raises(RunIsBeingMade, match="another process makes attention-first"):
            make_run(job)
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
        return evaluate(self)

    monkeypatch.setattr(ImageTraining, "evaluate", try_again)
    make_run(job)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    record = job.folder / "work" / str(job.run) / "record.json"
    before = record.stat().st_mtime_ns
    make_run(job)
    assert record.stat().st_mtime_ns == before


def test_a_run_that_is_told_to_stop_stops_within_its_epoch(job, monkeypatch):
    train_epoch = ImageTraining.train_epoch

    def be_told(self, check):
        if self._epochs == 1:
            stop_runs(job.folder, "the test says so")
        return train_epoch(self, check)

    monkeypatch.setattr(ImageTraining, "train_epoch", be_told)
    with pytest.raises(Stopped, match="attention-first-noise3-seed0 was told to stop"):
        make_run(job)
    record = kept(job)
    assert (len(record.epochs), record.run.is_finished) == (1, False)


def test_a_run_that_was_stopped_after_every_epoch_is_as_if_it_had_not_been(job, out, monkeypatch):
    for epochs, machine in ((1, "one"), (2, "one"), (3, "two")):
        environment = {"date": time.time(), "cpu": machine}
        monkeypatch.setattr("benchmarks.training.describe_environment", lambda _, here=environment: here)
        # The record has the epochs that were made up to now.
        monkeypatch.setattr("benchmarks.training.is_stopped", lambda _, most=epochs: len(kept(job).epochs) == most)
        with pytest.raises(Stopped, match="was told to stop") if epochs < 3 else nullcontext():
            make_run(job)
    Storage(job.folder).write_records()
    record = kept(job)
    assert records_without_times(job.folder)[NAME] == records_without_times(out)[NAME]
    assert record.visits == Storage(out).read_visits(NAME)
    # From the third epoch on it ran elsewhere.
    places = [(place.from_epoch, place.environment["cpu"]) for place in record.run.surroundings]
    assert places == [(1, "one"), (3, "two")]
    assert not (job.folder / "work" / str(NAME) / "state.pt").exists()


@pytest.mark.parametrize(("seconds", "states"), [(0.0, 2), (1000.0, 0)])
def test_states_are_kept_no_more_often_than_was_asked_for_and_records_after_every_epoch(
    job, monkeypatch, seconds, states
):
    written, write_whole = Counter(), storage.write_whole
    count = lambda path, write: (written.update([path.name]), write_whole(path, write))  # noqa: E731
    monkeypatch.setattr(storage, "write_whole", count)
    make_run(replace(job, checkpoint_seconds=seconds))
    assert written == {"record.json": 3} | ({"state.pt": states} if states else {})


@pytest.mark.parametrize(("load", "is_shared"), [(1.2, False), (2.6, True)])
def test_a_cpu_with_other_work_counts_as_shared(job, monkeypatch, load, is_shared):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    make_run(job)
    assert {epoch.shared_device for epoch in kept(job).epochs} == {is_shared}


@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_step_is_that_of_a_loop_over_samples(is_weighted):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (6,), generator=generator)
    weights = torch.rand(6, generator=generator, dtype=torch.float64) if is_weighted else None
    ours, theirs = (torch.nn.Linear(5, 3, dtype=torch.float64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    each = [torch.nn.functional.cross_entropy(theirs(i), t) for i, t in zip(inputs, targets, strict=True)]
    for _ in range(2):  # gradients are not added up
        losses = step(ours, torch.optim.SGD(ours.parameters(), lr=0.0), inputs, targets, weights)
    step(ours, torch.optim.SGD(ours.parameters(), lr=1.0), inputs, targets, weights)
    sum(loss * (1 if weights is None else weights[n]) / 6 for n, loss in enumerate(each)).backward()
    assert not losses.requires_grad
    assert losses.tolist() == pytest.approx([loss.item() for loss in each])
    torch.testing.assert_close(ours.weight, theirs.weight - theirs.weight.grad)


@pytest.mark.slow
@pytest.mark.parametrize("arms", [("attention",), ARMS])
def test_killed_twice_the_records_are_those_of_an_undisturbed_run(digits, tmp_path, arms):
    options = ["--arms", *arms, "--seeds", "0", "--epochs", "4", "--label-noise", "3"]
    whole, folder, rng = run_benchmark(digits, tmp_path / "whole", *options), tmp_path / "killed", random.Random(0)
    epochs = [epoch for epochs in read_records(whole).epochs.values() for epoch in epochs]
    an_epoch = statistics.median(epoch.seconds + epoch.evaluation_seconds for epoch in epochs)

    def newest():
        return max((path.stat().st_mtime_ns for path in folder.glob("work/*/*.*")), default=0)

    for _ in range(2):
        before, process = newest(), FORK_SERVER.Process(target=run_quietly, args=(digits, folder, options))
        process.start()
        while process.is_alive() and newest() == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, an_epoch))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    run_benchmark(digits, folder, *options)
    assert records_without_times(folder) == records_without_times(whole)
    assert not list(folder.rglob("*state.pt*"))
