"""Samplers and their loaders, copied and pickled: between two epochs, in mid-epoch, and while a batch is current."""

import copy
import multiprocessing
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from tests.loading.drivers import DRIVERS, MORE_DRIVERS, load, saved, train
from tests.loading.helpers import FORKING_IS_FINE, LooksAhead, Numbered, no_deadlock, run_epoch

pytestmark = FORKING_IS_FINE
__all__ = ["no_deadlock"]

COPIES = pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))], ids=["deepcopy", "pickle"]
)


@COPIES
@pytest.mark.parametrize("visits", [2, 8, 9])
@pytest.mark.parametrize("kind", MORE_DRIVERS)
def test_a_copy_has_the_state_and_none_of_what_happens_to_the_original(kind, visits, make_copy):
    torch.manual_seed(0)
    driver = MORE_DRIVERS[kind]()
    if visits == 2 and kind in DRIVERS:
        loader = load(driver, num_workers=1)
    else:
        loader = load(driver) if "immediate" in kind else LooksAhead(load(driver), 2)
    train(driver, loader, stop=visits)
    twin, state = make_copy(driver), saved(driver)
    assert saved(twin) == state
    assert repr(twin.sampler) == repr(driver.sampler)
    driver.sampler.load_state_dict(driver.sampler.state_dict())
    tail = train(driver, load(driver))
    # What became of the original is nothing to the copy.
    assert saved(twin) == state
    twin.sampler.load_state_dict(twin.sampler.state_dict())
    assert train(twin, load(twin)) == tail
    assert saved(twin) == saved(driver)


@COPIES
@pytest.mark.parametrize("kind", DRIVERS)
def test_a_copied_loader_is_on_the_copied_sampler_and_resumes_at_the_current_batch(kind, make_copy):
    driver = DRIVERS[kind]()
    loader = load(driver)
    batches = iter(driver.attend(loader))
    for _ in range(2):
        driver.report(next(batches))
    current = next(batches)
    twin, twin_of_loader = make_copy((driver, loader))
    assert twin_of_loader.batch_sampler is twin.sampler is not driver.sampler
    twin.sampler.load_state_dict(twin.sampler.state_dict())
    assert next(iter(twin.attend(twin_of_loader))) == current
    # The original's loop has not noticed.
    driver.report(current)
    next(batches)


def test_a_copy_that_is_iterated_over_without_a_loaded_state_starts_its_epoch_again():
    sampler = BatchAttentionSampler(SequentialSampler(range(24)), 3)
    loader = DataLoader(Numbered(), batch_sampler=sampler)
    for _ in sampler.schedule.attend(loader):
        sampler.schedule.decide(1.0)
        break
    twin = copy.deepcopy(sampler)
    assert len(run_epoch(twin.schedule, DataLoader(Numbered(), batch_sampler=twin))) == 8


def test_a_copy_has_none_of_the_worker_that_fetches_repeats():
    others = {process.pid for process in multiprocessing.active_children()}
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
    sampler = BatchAttentionSampler(SequentialSampler(range(24)), 3, schedule=schedule)
    loader = DataLoader(Numbered(), batch_sampler=sampler, num_workers=1, persistent_workers=True)
    for _ in range(2):
        run_epoch(schedule, loader, repeated=[3])
    workers = {process.pid for process in multiprocessing.active_children()} - others
    assert len(workers) == 2
    twin = pickle.loads(pickle.dumps(sampler))
    assert {process.pid for process in multiprocessing.active_children()} - others == workers
    assert len(run_epoch(twin.schedule, DataLoader(Numbered(), batch_sampler=twin), repeated=[3])) == 10
