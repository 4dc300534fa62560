"""Samplers and their loaders, copied and pickled while a batch is current."""

import copy
import multiprocessing
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler
from batch_sampler_attn.errors import ProtocolError
from tests.loading.drivers import DRIVERS, MORE_DRIVERS, load, saved, train
from tests.loading.helpers import FORKING_IS_FINE, Numbered, make, run_epoch
from tests.samples.runs import LooksAhead

pytestmark = FORKING_IS_FINE


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("visits", [1, 3, 10])
@pytest.mark.parametrize("kind", MORE_DRIVERS)
def test_a_copy_has_the_state_and_nothing_of_what_happens_to_the_original(kind, visits, make_copy):
    torch.manual_seed(0)
    driver, seen, copies = MORE_DRIVERS[kind](), [], []
    loader = load(driver, num_workers=int(visits == 3 and kind in DRIVERS))

    def make_copies():
        if len(seen) == visits:
            copies.extend([*make_copy((driver, loader)), saved(driver)])
            assert repr(copies[0].sampler) == repr(driver.sampler)

    def wrapped(loader):
        return loader if "immediate" in kind else LooksAhead(loader, 2)

    train(driver, wrapped(loader), seen=seen, on_batch=make_copies)
    twin, twin_of_loader, state = copies
    assert saved(twin) == state
    assert twin_of_loader.batch_sampler is twin.sampler is not driver.sampler
    if "samples" in kind:
        with pytest.raises(ProtocolError, match="no current batch"):
            twin.report(seen[visits - 1][1])  # the loop is the original's
    twin.sampler.load_state_dict(twin.sampler.state_dict())
    # The current batch had no loss, so it comes again.
    assert train(twin, wrapped(twin_of_loader)) == seen[visits - 1 :]
    assert saved(twin) == saved(driver)


def test_a_copy_that_is_iterated_over_without_a_loaded_state_starts_its_epoch_again():
    sampler = BatchAttentionSampler(SequentialSampler(range(24)), 3)
    for _ in sampler.schedule.attend(DataLoader(Numbered(), batch_sampler=sampler)):
        twin = copy.deepcopy(sampler)
        break
    assert len(run_epoch(twin.schedule, DataLoader(Numbered(), batch_sampler=twin))) == 8


def test_a_copy_has_none_of_the_worker_that_fetches_repeats_which_ends_with_its_persistent_loader():
    others = {*multiprocessing.active_children()}
    schedule, sampler, loader, _ = make("immediate", num_workers=1, persistent_workers=True)
    for _ in range(2):
        run_epoch(schedule, loader, repeated=[3])
    workers = {*multiprocessing.active_children()} - others
    assert len(workers) == 2
    twin = pickle.loads(pickle.dumps(sampler))
    assert {*multiprocessing.active_children()} - others == workers
    assert len(run_epoch(twin.schedule, DataLoader(Numbered(), batch_sampler=twin), repeated=[3])) == 14
    del loader
    assert {*multiprocessing.active_children()} <= others
