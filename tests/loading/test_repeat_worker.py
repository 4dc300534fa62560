"""The worker that fetches immediate repeats: what it reads, what it draws, and when it goes."""

import multiprocessing
import os
import subprocess
import sys
import traceback

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from tests.loading.helpers import (
    FORKING_IS_FINE,
    no_deadlock,  # noqa: F401  (a fixture of every test here)
)

pytestmark = FORKING_IS_FINE

SAMPLES = 12


def attended(dataset, **options):
    """A schedule, and a loader of batches of two in their order."""
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 2, schedule=schedule)
    return schedule, schedule.attend(DataLoader(dataset, batch_sampler=sampler, **options))


def visits_of(schedule, loader, repeated=(1, 3)):
    """One epoch in which some batches are visited twice; (position, visit, batch) of each visit."""
    for batch in loader:
        yield schedule.batch_index, schedule.visits, batch
        repeats = schedule.epoch > 0 and schedule.batch_index in repeated and schedule.visits == 0
        schedule.decide(2.0 if repeats else 1.0)


class Draws(Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return torch.rand((), dtype=torch.float64)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_repeat_draws_what_no_other_visit_draws_whatever_the_epoch(persistent):
    torch.manual_seed(0)
    schedule, loader = attended(Draws(), num_workers=1, persistent_workers=persistent)
    draws = [number for _ in range(5) for _, _, batch in visits_of(schedule, loader) for number in batch.tolist()]
    assert schedule.last_summary.repeats == 2
    assert len(draws) == 2 * (5 * 6 + 4 * 2)
    assert len(set(draws)) == len(draws)


class Changed(Dataset):
    """As a data set whose augmentation is turned off for the last epochs."""

    strength = 0

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return self.strength


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_that_is_changed_between_epochs_is_read_alike_at_every_visit(workers):
    dataset = Changed()
    schedule, loader = attended(dataset, num_workers=workers)
    for dataset.strength in range(4):
        seen = {(visit, *batch.tolist()) for _, visit, batch in visits_of(schedule, loader)}
        visits = (0, 1) if schedule.epoch > 1 else (0,)
        assert seen == {(visit, dataset.strength, dataset.strength) for visit in visits}


class ReadsLazily(Dataset):
    """Opens its file at the first read, as is advised for HDF5 and record files."""

    file = None
    opened_in = None

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        if self.file is None:
            self.file, self.opened_in = self.path.open("rb", buffering=0), os.getpid()
        assert self.opened_in == os.getpid()
        self.file.seek(1000 * index)
        return int.from_bytes(self.file.read(1000)[:1], "little")


@pytest.mark.parametrize(("context", "persistent"), [("fork", False), ("fork", True), ("spawn", True)])
def test_a_file_that_is_opened_lazily_is_opened_by_workers_only(tmp_path, context, persistent):
    path = tmp_path / "records"
    path.write_bytes(b"".join(bytes([index]) * 1000 for index in range(SAMPLES)))
    dataset = ReadsLazily(path)
    options = {"num_workers": 1, "multiprocessing_context": context, "persistent_workers": persistent}
    schedule, loader = attended(dataset, **options)
    for _ in range(3):
        for position, _, batch in visits_of(schedule, loader):
            assert batch.tolist() == [2 * position, 2 * position + 1]
    assert schedule.last_summary.repeats == 2
    assert dataset.file is None


class BreaksOnce(Dataset):
    """Breaks at its third read of a sample in one process: in the worker that reads it for repeats alone."""

    def __init__(self):
        self.is_broken = multiprocessing.Value("b", 1)

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        if index == 3 and torch.utils.data.get_worker_info().num_workers == 1 and self.is_broken.value:
            self.is_broken.value = 0
            raise LookupError("no such file")
        return index


def error_of(schedule, loader):
    """What stopped the epoch."""
    try:
        list(visits_of(schedule, loader))
    except LookupError as error:
        # An error of a worker refers to itself, and keeps the loader, whose workers then take seconds to be collected.
        traceback.clear_frames(error.__traceback__)
        return str(error)
    return "nothing"


@pytest.mark.parametrize("persistent", [False, True])
def test_an_error_of_the_worker_reaches_the_loop_and_the_next_epoch_is_whole(persistent):
    schedule, loader = attended(BreaksOnce(), num_workers=2, persistent_workers=persistent)
    assert len([*visits_of(schedule, loader)]) == 6
    assert "no such file" in error_of(schedule, loader)
    for _ in range(2):
        visited = [(position, visit) for position, visit, _ in visits_of(schedule, loader)]
        assert visited == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (4, 0), (5, 0)]


def test_no_worker_is_left_behind_where_the_loader_leaves_none():
    # Workers of tests that were before may be on their way out.
    others = {process.pid for process in multiprocessing.active_children()}

    def workers():
        return {process.pid for process in multiprocessing.active_children()} - others

    schedule, loader = attended(Draws(), num_workers=1)
    for _ in range(2):
        list(visits_of(schedule, loader))
        assert not workers()
    left = visits_of(schedule, loader)
    assert [visit for _, visit, _ in (next(left) for _ in range(3))] == [0, 0, 1]
    assert len(workers()) == 2
    left.close()
    assert not workers()


@pytest.mark.parametrize("persistent", [False, True])
def test_the_worker_goes_when_the_loader_does(persistent):
    others = {process.pid for process in multiprocessing.active_children()}
    schedule, loader = attended(Draws(), num_workers=1, persistent_workers=persistent)
    for _ in range(2):
        list(visits_of(schedule, loader))
    del loader
    assert {process.pid for process in multiprocessing.active_children()} <= others


ENDS = {
    "at the end": "",
    "in mid-epoch": "break",
    "by an error": "raise SystemExit(3)",
    "with the iterator kept": "kept = iterator; break",
}

SCRIPT = """
import sys
import torch
from torch.utils.data import DataLoader, SequentialSampler
from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule

if __name__ == "__main__":
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
    sampler = BatchAttentionSampler(SequentialSampler(range(12)), 2, schedule=schedule)
    options = {{"multiprocessing_context": sys.argv[1], "persistent_workers": sys.argv[2] == "True"}}
    loader = schedule.attend(DataLoader(torch.arange(12), batch_sampler=sampler, num_workers=1, **options))
    for epoch in range(2):
        iterator = iter(loader)
        for batch in iterator:
            if epoch and schedule.visits == 1:
                print("repeat", flush=True)
                {end}
            schedule.decide(2.0 if epoch and schedule.visits == 0 else 1.0)
"""


@pytest.mark.parametrize(
    ("context", "persistent", "end"),
    [*(("fork", persistent, end) for persistent in (False, True) for end in ENDS), ("spawn", True, "in mid-epoch")],
)
def test_the_interpreter_ends_in_time_whenever_the_run_does(tmp_path, context, persistent, end):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(end=ENDS[end] or "pass"))
    command = [sys.executable, "-W", "ignore", str(script), context, str(persistent)]
    ended = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
    assert ended.stdout.count("repeat") == (6 if end == "at the end" else 1)
    assert ended.returncode == (3 if end == "by an error" else 0), ended.stderr
    assert "Traceback" not in ended.stderr
