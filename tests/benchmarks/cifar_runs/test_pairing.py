"""What all arms of a seed have in common, and what controls take from attention."""

import os
import weakref

import pytest
import torch

from batch_sampler_attn.device import DeviceLoop
from benchmarks.cifar import running, training
from benchmarks.reading import read_lines, read_records
from benchmarks.schema import OfVisits, RunName
from tests.benchmarks.cifar_helpers import SMALL, records_without_times, run_benchmark


def of(records, arm, condition_of):
    """The epochs of the run of another arm that is paired with this one."""
    reading = None if arm == "baseline" else condition_of.epoch_loss
    return records.epochs[condition_of._replace(arm=arm, epoch_loss=reading)]


def test_every_run_that_was_asked_for_is_there_and_finished(records):
    assert len(records.runs) == 2 * 2 * (1 + 2 * 3)
    assert all(run.is_finished for run in records.runs.values())


def test_the_first_epochs_of_all_arms_agree_bit_for_bit(records):
    for name in records.runs:
        first, baseline = records.epochs[name][0], of(records, "baseline", name)[0]
        for field in ("train_loss", "test_loss", "accuracy", "macro_f1", "updates"):
            assert getattr(first, field) == getattr(baseline, field)


def test_attention_repeats_and_random_has_exactly_its_visits(records):
    repeats = 0
    for name in records.runs:
        if name.arm != "random":
            continue
        for random_epoch, attention in zip(records.epochs[name], of(records, "attention", name), strict=True):
            assert random_epoch.updates == attention.updates
            visits = [
                {count: batches.batches for count, batches in epoch.batches_by_visits.items()}
                for epoch in (random_epoch, attention)
            ]
            assert visits[0] == visits[1]
            repeats += attention.repeats
    assert repeats > 0


def test_longer_has_exactly_attentions_updates_and_begins_as_the_baseline(records):
    for name in records.runs:
        if name.arm != "longer":
            continue
        epochs, baseline = records.epochs[name], of(records, "baseline", name)
        assert sum(e.updates for e in epochs) == sum(e.updates for e in of(records, "attention", name))
        for ours, theirs in zip(epochs, baseline, strict=False):
            assert (ours.train_loss, ours.test_loss, ours.accuracy) == (
                theirs.train_loss,
                theirs.test_loss,
                theirs.accuracy,
            )


def test_a_longer_run_without_the_baselines_state_is_the_same(digits, out, records, tmp_path):
    """The state is what saves the time; without it the same updates are made again."""
    alone = run_benchmark(digits, tmp_path / "out", *SMALL, "--arms", "baseline", "attention")
    run_benchmark(digits, alone, *SMALL, "--arms", "longer")
    name = RunName("longer", "first", 0, 0)
    epochs = read_records(alone).epochs[name]
    assert [epoch.test_loss for epoch in epochs] == [epoch.test_loss for epoch in records.epochs[name]]


def test_labels_are_redrawn_alike_in_all_arms_and_counted(records):
    for name, run in records.runs.items():
        paired = records.runs[name._replace(arm="baseline", epoch_loss=None)]
        assert run.flipped_labels == paired.flipped_labels
        # 140 images: 4 groups of 32 with 3 each, and 1 of the last 12; a tenth of those drawn is not another label.
        assert (run.flipped_labels == 0) if name.label_noise == 0 else (0 < run.flipped_labels <= 13)
        for epoch in records.epochs[name]:
            if epoch.batches_by_visits is not None:
                by_visits = epoch.batches_by_visits
                assert sum(group.flipped for group in by_visits.values()) == run.flipped_labels
                assert sum(group.batches for group in by_visits.values()) == epoch.batches
                assert sum(count * group.batches for count, group in by_visits.items()) == epoch.updates


def test_the_matrices_are_of_the_best_and_the_last_epoch(records):
    for name, run in records.runs.items():
        epochs = records.epochs[name]
        best = max(epochs, key=lambda epoch: epoch.accuracy)
        assert (run.best.epoch, run.last.epoch) == (best.epoch, len(epochs))
        for evaluated in (run.best, run.last):
            right = sum(evaluated.confusion[label][label] for label in range(10))
            assert right / 60 == epochs[evaluated.epoch - 1].accuracy


def test_visits_are_of_every_attention_run_and_agree_with_its_epochs(out, records):
    lines = {line.run: line.visits for line in read_lines(out / "visits.jsonl", OfVisits)}
    assert set(lines) == {name for name in records.runs if name.arm == "attention"}
    for name, visits in lines.items():
        assert [len(of_epoch) for of_epoch in visits] == [epoch.batches for epoch in records.epochs[name]]
        assert [sum(of_epoch) for of_epoch in visits] == [epoch.updates for epoch in records.epochs[name]]


def test_a_cpu_with_other_work_counts_as_shared(digits, tmp_path, monkeypatch):
    for load, is_shared in ((1.2, False), (2.6, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        alone = run_benchmark(digits, tmp_path / f"at {load}", "--epochs", "1", "--seeds", "0", "--arms", "baseline")
        ((epoch,),) = read_records(alone).epochs.values()
        assert epoch.shared_device is is_shared


def test_runs_in_processes_and_runs_by_turns_are_the_same(digits, out, tmp_path):
    beside = run_benchmark(digits, tmp_path / "out", *SMALL, "--arms", "baseline", "random", "--at-once", "2")
    names = [RunName("baseline", None, 0, 0), RunName("attention", "first", 0, 0), RunName("random", "first", 0, 0)]
    ours, theirs = read_records(beside), read_records(out)
    assert set(ours.runs) == set(names)
    for name in names:
        assert ours.runs[name].best == theirs.runs[name].best
        for epoch, expected in zip(ours.epochs[name], theirs.epochs[name], strict=True):
            assert epoch.shared_device
            assert not expected.shared_device
            assert (epoch.test_loss, epoch.threshold) == (expected.test_loss, expected.threshold)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_that_take_turns_on_a_gpu_are_the_same_as_alone(digits, tmp_path):
    options = [*SMALL, "--device", "cuda", "--epoch-loss", "first", "all"]
    alone = run_benchmark(digits, tmp_path / "alone", *options)
    together = run_benchmark(digits, tmp_path / "together", *options, "--at-once", "3")
    ours, theirs = records_without_times(together), records_without_times(alone)
    for line in [*ours["epochs"], *theirs["epochs"]]:
        del line["host_reads"]
    assert ours == theirs


def test_loops_that_are_done_are_let_go_of_before_others_are_made(digits, tmp_path, monkeypatch):
    alive = weakref.WeakSet()
    most = []

    class Watched(DeviceLoop):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            alive.add(self)
            most.append(len(alive))

    def make_here(setup, waiting, report):
        running.make_by_turns(setup, waiting, report, waiting.finish)

    monkeypatch.setattr(training, "DeviceLoop", Watched)
    monkeypatch.setattr(running, "_make_in_processes", make_here)
    seeds = ["--seeds", *map(str, range(7))]
    run_benchmark(digits, tmp_path / "out", *seeds, "--epochs", "2", "--arms", "baseline", "--at-once", "3")
    assert len(most) == 7
    assert max(most) == 3
