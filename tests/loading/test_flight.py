"""Both adapters behind loaders of all kinds: every loss goes to its own batch, or the loader is refused in words."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from batch_sampler_attn.errors import ProtocolError, StateError
from tests.loading.drivers import DRIVERS, SAMPLES, load, resumed, saved, train
from tests.loading.helpers import FORKING_IS_FINE, WORKERS
from tests.samples.runs import LooksAhead

pytestmark = FORKING_IS_FINE

KINDS = pytest.mark.parametrize("kind", DRIVERS)
# Immediate repeats take a DataLoader itself.
WRAPPABLE = pytest.mark.parametrize("kind", [kind for kind in DRIVERS if kind != "immediate"])


class Wrapper:
    """A loader's batches, as ``change`` makes them of its iterator."""

    def __init__(self, loader, change):
        self.loader, self.change = loader, change

    def __iter__(self):
        return self.change(iter(self.loader))


# Loaders that are refused -----------------------------------------------------------------------------------


REFUSED_LOADERS = {
    "out of order": (lambda it: load(it, in_order=False), "in_order=False.*leave it at True"),
    "snapshots now and then": (
        lambda it: load(it, StatefulDataLoader, snapshot_every_n_steps=2),
        "snapshot_every_n_steps=2.*leave it at 1",
    ),
    "as a sampler": (lambda it: DataLoader(range(9), sampler=it.sampler), "built with sampler=.*batch_"),
    "without batches": (lambda it: DataLoader(range(9), batch_size=None), "does not batch.*Build it with DataLoader"),
    "of torch": (lambda it: DataLoader(range(9), batch_size=4), "has another batch sampler, a BatchSampler"),
    "of another": (lambda it: load(DRIVERS["samples"]()), "another batch sampler, a SampleAttention.*use_distributed"),
    "sharded": (  # by accelerate
        lambda it: DataLoader(range(9), batch_sampler=SimpleNamespace(batch_sampler=it.sampler)),
        "has a SimpleNamespace around this .*On ranks",
    ),
    "begun again": (  # by timm's MultiEpochsDataLoader, and Ultralytics' InfiniteDataLoader
        lambda it: DataLoader(range(9), batch_sampler=SimpleNamespace(sampler=it.sampler)),
        "has a SimpleNamespace around this .*MultiEpochs.*persistent_workers=True",
    ),
    "attended": (lambda it: it.attend(load(it)), "what attend.. returned; iterate over"),
}


@pytest.mark.parametrize(("build", "words"), REFUSED_LOADERS.values(), ids=REFUSED_LOADERS)
@KINDS
def test_a_loader_through_which_losses_would_be_mixed_up_is_refused(kind, build, words):
    driver = DRIVERS[kind]()
    before = saved(driver)
    with pytest.raises(ProtocolError, match=words):
        next(iter(driver.attend(build(driver))))
    assert saved(driver) == before


WRONG_WRAPPERS = {
    "islice": (lambda it: itertools.islice(it, 3), "did not take from this .*islice, enumerate, generators"),
    "other batches": (lambda it: [torch.arange(3)], "a list|list yielded a batch that it did not take"),
    "begun before": (lambda it: Wrapper([*it], iter), "did not take.*MultiEpochs.*persistent_workers=True"),
    "twice each": (lambda it: Wrapper(it, lambda batches: (b for b in batches for _ in "ab")), "did not take"),
    "the first three": (lambda it: Wrapper(it, lambda batches: itertools.islice(batches, 3)), "not come|ended with"),
    "without end": (
        lambda it: itertools.chain.from_iterable(itertools.repeat(it)),
        "never ends, like a generator that cycles.*persistent_workers=True",
    ),
}


@pytest.mark.parametrize(("wrap", "words"), WRONG_WRAPPERS.values(), ids=WRONG_WRAPPERS)
@WORKERS
@WRAPPABLE
def test_a_wrapper_that_changes_which_batches_come_is_refused(kind, workers, wrap, words):
    driver = DRIVERS[kind]()
    with pytest.raises(ProtocolError, match=words):
        train(driver, wrap(load(driver, num_workers=workers)))
    assert kind == "samples" or (driver.epoch, driver.schedule.threshold) == (0, None)


@WORKERS
@WRAPPABLE
def test_a_batch_that_is_left_out_is_noticed_before_the_next_one_is_trained_on(kind, workers):
    driver, seen = DRIVERS[kind](), []
    loader = load(driver, num_workers=workers, prefetch_factor=workers or None)
    wrapper = Wrapper(loader, lambda batches: (batch for at, batch in enumerate(batches) if at != 1))
    words = r"1 batch of the \w+ did not come out of Wrapper.*drops batches.*Let every batch through"
    with pytest.raises(ProtocolError, match=words):
        train(driver, wrapper, seen=seen)
    assert len(seen) == 1


@WRAPPABLE
def test_a_generator_that_is_used_up_is_refused_in_the_second_epoch(kind):
    driver, seen = DRIVERS[kind](), []
    generator = (lambda loader: (yield from loader))(load(driver))
    with pytest.raises(ProtocolError, match=r"ended with .* still to come.*a generator can be iterated over only once"):
        train(driver, generator, seen=seen)
    assert {epoch for (epoch, *_), _ in seen} == {0}


# Passes that overlap ----------------------------------------------------------------------------------------


@KINDS
def test_a_pass_that_was_overtaken_by_another_is_stale(kind):
    driver = DRIVERS[kind]()
    loader = load(driver, num_workers=1)
    old = iter(driver.attend(loader))
    driver.report(next(old))
    new = iter(driver.attend(loader))
    indices = next(new)
    with pytest.raises(ProtocolError, match="stale"):
        next(old)
    driver.report(indices)
    for indices in new:
        driver.report(indices)
    assert driver.epoch == 1


@KINDS
def test_a_state_that_is_loaded_within_the_loop_ends_it(kind):
    driver, states = DRIVERS[kind](), []

    def save():
        states.append(saved(driver))
        if len(states) == 11:
            driver.sampler.load_state_dict(driver.sampler.state_dict())

    with pytest.raises(ProtocolError, match="a state was loaded since"):
        train(driver, load(driver), on_report=save)
    assert saved(driver) == states[-1]
    twin = resumed(kind, states[-1])
    assert train(driver, load(driver)) == train(twin, load(twin))


@WRAPPABLE
def test_a_loader_s_iterator_of_an_earlier_epoch_gets_no_batches(kind):
    driver, iterators = DRIVERS[kind](), []

    def keep(iterator):
        iterators.append(iterator)
        return iterator

    loader = Wrapper(load(driver), keep)
    first, second = iter(driver.attend(loader)), iter(driver.attend(loader))
    next(first)
    next(second)
    with pytest.raises(ProtocolError, match=r"an iterator of an earlier epoch.*in one loop of attend"):
        next(iterators[0])


# The loader, iterated over elsewhere -------------------------------------------------------------------------


@WORKERS
@KINDS
def test_the_loader_may_be_evaluated_on_in_mid_epoch(kind, workers):
    driver, whole, evaluated = DRIVERS[kind](), DRIVERS[kind](), []
    loader, expected = load(driver, num_workers=workers), train(whole, load(whole, num_workers=workers), stop=3)
    assert (
        train(driver, loader, stop=3, on_report=lambda: evaluated.append(sorted(itertools.chain(*loader)))) == expected
    )
    assert evaluated == [[*range(SAMPLES)]] * 3


@pytest.mark.parametrize("is_whole", [False, True])
@KINDS
def test_a_loader_of_persistent_workers_may_be_evaluated_on_between_two_epochs_alone(kind, is_whole):
    driver = DRIVERS[kind]()
    loader = load(driver, num_workers=1, persistent_workers=True)
    with pytest.raises(ProtocolError, match="iterated over elsewhere; use another DataLoader there"):
        train(driver, loader, on_report=lambda: [*itertools.islice(loader, None if is_whole else 1)])
    assert driver.epoch == 0
    while driver.epoch < 2:
        for indices in driver.attend(loader):
            driver.report(indices)
        assert len([*loader]) == -(-SAMPLES // driver.sampler.batch_size)


@WRAPPABLE
def test_a_wrapper_of_a_loader_of_persistent_workers_is_refused_by_the_end_of_the_epoch(kind):
    driver = DRIVERS[kind]()
    loader = load(driver, num_workers=1, persistent_workers=True)
    with pytest.raises(ProtocolError, match=r"did not take|drops batches"):
        train(driver, LooksAhead(loader), on_report=lambda: next(iter(loader)))


# Stateful loaders -------------------------------------------------------------------------------------------


@WORKERS
@KINDS
def test_a_stateful_loader_s_state_is_refused_alone_and_not_needed_beside_the_sampler_s(kind, workers):
    driver, states = DRIVERS[kind](), []
    loader = load(driver, StatefulDataLoader, num_workers=workers)
    whole = train(driver, loader, on_report=lambda: states.append((saved(driver), loader.state_dict())))
    for done in (7,) if workers else (2, 7, 11):
        state, of_loader = states[done - 1]
        alone = DRIVERS[kind]()
        loader = load(alone, StatefulDataLoader, num_workers=workers)
        loader.load_state_dict(of_loader)
        with pytest.raises(StateError, match=r"Save the sampler's state_dict\(\) along with loader.state_dict\(\)"):
            next(iter(alone.attend(loader)))
        for is_loaded_too in (True, False):
            twin = resumed(kind, state)
            loader = load(twin, StatefulDataLoader, num_workers=workers)
            if is_loaded_too:
                loader.load_state_dict(of_loader)
            assert train(twin, loader) == whole[done:]


@KINDS
def test_a_stateful_loader_that_was_asked_for_its_state_before_the_epoch_is_refused(kind):
    driver = DRIVERS[kind]()
    loader = load(driver, StatefulDataLoader)
    loader.state_dict()
    with pytest.raises(ProtocolError, match="a StatefulDataLoader that is asked for its state before the epoch"):
        next(iter(driver.attend(loader)))
