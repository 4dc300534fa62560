"""The worker that fetches immediate repeats: what it reads, what it draws, and when it ends."""

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

from tests.loading.helpers import FORKING_IS_FINE, WORKERS, Numbered, make, seeded

pytestmark = FORKING_IS_FINE

SAMPLES = 12


def attended(dataset, **options):
    """A schedule, and a loader of batches of two in their order."""
    schedule, _, loader, _ = make("immediate", dataset=dataset, base=range(SAMPLES), **options)
    return schedule, schedule.attend(loader)


def visits_of(schedule, loader, repeated=(1, 3)):
    """One epoch in which some batches are visited twice; (position, visit, batch) of each visit."""
    for batch in loader:
        yield schedule.batch_index, schedule.visits, batch
        repeats = schedule.epoch > 0 and schedule.batch_index in repeated and schedule.visits == 0
        schedule.decide(2.0 if repeats else 1.0)


def children():
    return {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize("persistent", [False, True])
def test_a_repeat_draws_what_no_other_visit_draws_whatever_the_epoch(persistent):
    torch.manual_seed(0)
    schedule, loader = attended(Numbered(), num_workers=1, persistent_workers=persistent)
    visits = [visit for _ in range(4) for visit in visits_of(schedule, loader)]
    draws = [drawn for _, _, (_, batch, *_) in visits for drawn in batch.tolist()]
    assert len({*draws}) == len(draws) == 2 * (4 * 6 + 3 * 2)


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}], ids=str)
def test_repeats_draw_nothing_from_the_user_s_generators(options):
    def after(repeated):
        torch.manual_seed(3)
        generator = seeded(4)
        schedule, loader = attended(torch.arange(SAMPLES), generator=generator, **options)
        for _ in range(2):
            visits = len([*visits_of(schedule, loader, repeated)])
        return visits, torch.get_rng_state().tolist(), generator.get_state().tolist()

    visits, *states = after(repeated=(1, 3))
    assert after(repeated=()) == (visits - 2, *states)


class Changed(Numbered):
    """A data set whose augmentation is turned off for the last epochs."""

    strength = 0

    def __getitem__(self, index):
        return self.strength


@WORKERS
def test_a_data_set_that_is_changed_between_epochs_is_read_alike_at_every_visit(workers):
    dataset = Changed()
    schedule, loader = attended(dataset, num_workers=workers)
    for dataset.strength in range(3):
        seen = {(visit, *batch.tolist()) for _, visit, batch in visits_of(schedule, loader)}
        visits = (0, 1) if schedule.epoch > 1 else (0,)
        assert seen == {(visit, dataset.strength, dataset.strength) for visit in visits}


class OpensLazily(Numbered):
    """Opens a file at the first read, as is advised for HDF5, where ``worker_init_fn`` has set it up."""

    opened_in = set_up_in = None

    def __getitem__(self, index):
        self.opened_in = self.opened_in or os.getpid()
        assert self.set_up_in == self.opened_in == os.getpid()
        return index, os.getpid()


def set_up(_worker):
    torch.utils.data.get_worker_info().dataset.set_up_in = os.getpid()


@pytest.mark.parametrize(
    ("context", "persistent"), [("fork", False), ("fork", True), pytest.param("spawn", True, marks=pytest.mark.slow)]
)
def test_a_file_is_opened_by_workers_only_and_repeats_have_one_that_is_kept_as_long_as_the_loader_s(
    context, persistent
):
    options = {"num_workers": 1, "multiprocessing_context": context, "persistent_workers": persistent}
    dataset, of_repeats = OpensLazily(), set()
    schedule, loader = attended(dataset, worker_init_fn=set_up, **options)
    for _ in range(3):
        for position, visit, (indices, pids) in visits_of(schedule, loader):
            assert indices.tolist() == [2 * position, 2 * position + 1]
            of_repeats |= {*pids.tolist()} if visit else set()
    # Two epochs have repeats.
    assert len(of_repeats) == (1 if persistent else 2)
    assert dataset.opened_in is None


def test_no_worker_is_left_behind_where_the_loader_leaves_none():
    # Workers of earlier tests may not have ended yet.
    others = children()
    schedule, loader = attended(Numbered(), num_workers=1)
    for _ in range(2):
        list(visits_of(schedule, loader))
        assert not children() - others
    left = visits_of(schedule, loader)
    assert [visit for _, visit, _ in (next(left) for _ in range(3))] == [0, 0, 1]
    assert len(children() - others) == 2
    left.close()
    assert not children() - others


# Each run ends in a process of its own, by the interpreter's own ways; torch is imported once for all of them.
SCRIPT = """
import os, sys, torch
from torch.utils.data import DataLoader, SequentialSampler
from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule


def run(context, persistent, end):
    global kept
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
    sampler = BatchAttentionSampler(SequentialSampler(range(12)), 2, schedule=schedule)
    options = {"multiprocessing_context": context, "persistent_workers": persistent}
    loader = schedule.attend(DataLoader(torch.arange(12), batch_sampler=sampler, num_workers=1, **options))
    for epoch in range(2):
        iterator = iter(loader)
        for batch in iterator:
            if schedule.visits == 1:
                print("repeat", context, persistent, end, flush=True)
                if end == "by an error":
                    raise SystemExit(3)
                if end == "with the iterator kept":
                    kept = iterator
                if end != "at the end":
                    return
            schedule.decide(2.0 if epoch and schedule.batch_index == 2 and schedule.visits == 0 else 1.0)


if __name__ == "__main__":
    pids = {}
    for case in eval(sys.argv[1]):
        pid = os.fork()
        if not pid:
            run(*case)
            break
        pids[pid] = case
    else:
        for pid, case in pids.items():
            print(*case, "ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
ENDS = {"at the end": 0, "in mid-epoch": 0, "by an error": 3, "with the iterator kept": 0}


def words(case):
    return " ".join(map(str, case))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize(
    "cases",
    [
        [("fork", number % 2 > 0, end) for number, end in enumerate(ENDS)],
        pytest.param([("fork", number % 2 == 0, end) for number, end in enumerate(ENDS)], marks=pytest.mark.slow),
        pytest.param([("spawn", True, "in mid-epoch"), ("spawn", False, "at the end")], marks=pytest.mark.slow),
    ],
    ids=["fork", "fork, too", "spawn"],
)
def test_the_interpreter_ends_whenever_the_run_does(tmp_path, cases):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(script), str(cases)]
    done = subprocess.run(command, timeout=110, check=False, capture_output=True, text=True)
    expected = [f"repeat {words(case)}" for case in cases]
    expected += [f"{words(case)} ended with {ENDS[case[2]]}" for case in cases]
    assert sorted(done.stdout.splitlines()) == sorted(expected)
    assert (done.returncode, done.stderr) == (0, "")
