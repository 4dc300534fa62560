"""A sampler in the middle of its epoch, copied and pickled."""

import copy
import json
import multiprocessing
import pickle

import pytest
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from tests.loading.helpers import (
    FORKING_IS_FINE,
    SAMPLES,
    Numbered,
    no_deadlock,  # noqa: F401  (a fixture of every test here)
    seeded,
)

pytestmark = FORKING_IS_FINE

BASES = {
    "shuffled": lambda: RandomSampler(range(SAMPLES), generator=seeded()),
    "shuffled by our generator": lambda: RandomSampler(range(SAMPLES)),
    "drawn one by one": lambda: RandomSampler(range(SAMPLES), replacement=True, num_samples=40, generator=seeded()),
    "in order": lambda: SequentialSampler(range(SAMPLES)),
}


def go_on(sampler, workers=0, *, stop_after=None):
    """The visits of an epoch, or of its rest."""
    schedule = sampler.schedule
    visits = []
    for indices, _ in schedule.attend(DataLoader(Numbered(), batch_sampler=sampler, num_workers=workers)):
        visits.append((schedule.batch_index, schedule.visits, indices.tolist()))
        is_repeated = schedule.epoch > 0 and schedule.batch_index % 2 and schedule.visits < 2
        schedule.decide(2.0 if is_repeated else 1.0)
        if len(visits) == stop_after:
            break
    return visits


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
@pytest.mark.parametrize("base", BASES)
def test_a_copy_made_in_mid_epoch_has_the_state_and_goes_on_from_it(base, repeats, workers, make_copy):
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
    sampler = BatchAttentionSampler(BASES[base](), 3, schedule=schedule, repeats=repeats)
    go_on(sampler, workers)
    begun = go_on(sampler, workers, stop_after=5)
    twin = make_copy(sampler)
    assert json.dumps(twin.state_dict()) == json.dumps(sampler.state_dict())
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    rest = go_on(sampler)
    assert {position for position, _, _ in begun + rest} == {*range(len(sampler))}
    # What became of the original is nothing to the copy.
    assert twin.state_dict() == state
    twin.load_state_dict(twin.state_dict())
    assert go_on(twin) == rest
    assert go_on(twin) == go_on(sampler)


def test_a_copy_that_is_iterated_over_begins_its_epoch_anew():
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3)
    go_on(sampler, stop_after=3)
    twin = copy.deepcopy(sampler)
    assert [position for position, _, _ in go_on(twin)] == [*range(SAMPLES // 3)]
    assert twin.schedule.last_summary.batches == SAMPLES // 3


def test_a_copy_has_none_of_the_worker_that_fetches_repeats():
    before = {process.pid for process in multiprocessing.active_children()}
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3, schedule=schedule)
    loader = DataLoader(Numbered(), batch_sampler=sampler, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        for _ in schedule.attend(loader):
            schedule.decide(2.0 if epoch and schedule.visits < 1 else 1.0)
    workers = {process.pid for process in multiprocessing.active_children()} - before
    assert len(workers) == 2
    twin = pickle.loads(pickle.dumps(sampler))
    assert {process.pid for process in multiprocessing.active_children()} - before == workers
    assert len(go_on(twin)) > SAMPLES // 3
