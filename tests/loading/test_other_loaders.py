"""The sampler behind loaders, data sets and samplers of other people's: right, or refused with what to do."""

import collections
import itertools
import json
import os
import queue
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from batch_sampler_attn.recorders import MemoryRecorder
from tests.loading.helpers import BATCH_SIZE, BATCHES, FORKING_IS_FINE, SAMPLES, make, no_deadlock, seeded

pytestmark = [*FORKING_IS_FINE]
__all__ = ["no_deadlock"]


class Counts:
    """Yields so many batches, as wrappers do that know how many steps an epoch has."""

    def __init__(self, loader, batches):
        self.loader, self.batches = loader, batches

    def __iter__(self):
        iterator = iter(self.loader)
        for _ in range(self.batches):
            yield next(iterator)


class CountsWithLength(Counts):
    def __len__(self):
        return self.batches


def run_epoch(schedule, loader, visits_wanted):
    """Visits to each batch, by its indices; batches with index 0, 1, or 2 in them are wanted so often."""
    visits = collections.Counter()
    for indices, _ in schedule.attend(loader):
        batch = tuple(indices.tolist())
        visits[batch] += 1
        wants_more = schedule.threshold is not None and {0, 1, 2} & set(batch) and visits[batch] < visits_wanted
        schedule.decide(2.0 if wants_more else 1.0)
    return visits


def wanted(visits, visits_wanted):
    return all(count == (visits_wanted if {0, 1, 2} & set(batch) else 1) for batch, count in visits.items())


# Loaders that end by count ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [BATCHES, BATCHES - 3])
def test_a_loader_that_counts_trains_on_as_many_base_batches_as_it_means_to(batches):
    schedule, _, loader, _ = make("deferred")
    counts = CountsWithLength(loader, batches)
    assert sum(run_epoch(schedule, counts, 1).values()) == batches
    for _ in range(4):
        visits = run_epoch(schedule, counts, 3)
        assert len(visits) == batches == schedule.last_summary.batches
        assert wanted(visits, 3)
    assert schedule.last_summary.repeats > 0


def test_a_loader_that_counts_with_workers_is_right_or_refused():
    schedule, _, loader, _ = make("deferred", num_workers=2)
    counts = CountsWithLength(loader, BATCHES)
    run_epoch(schedule, counts, 1)
    with pytest.raises(ProtocolError, match=r"did not come out of Counts.*fixed number of batches.*batches_per_epoch"):
        run_epoch(schedule, counts, 3)


def test_a_loader_that_counts_and_has_no_length_is_refused():
    schedule, _, loader, _ = make("deferred")
    with pytest.raises(
        ProtocolError, match=r"Counts ended with base batches after the first 5 still to come.*batches_per_epoch"
    ):
        run_epoch(schedule, Counts(loader, 5), 1)


def test_an_islice_is_refused_with_the_way_through():
    schedule, _, loader, _ = make("deferred")
    with pytest.raises(ProtocolError, match=r"islice.*batches_per_epoch=n"):
        run_epoch(schedule, itertools.islice(loader, 5), 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_an_epoch_of_fewer_batches_than_there_are(repeats, workers):
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
    base = RandomSampler(range(SAMPLES), generator=seeded())
    sampler = BatchAttentionSampler(base, BATCH_SIZE, schedule=schedule, repeats=repeats, batches_per_epoch=7)
    _, _, loader, _ = make(repeats)
    loader = DataLoader(loader.dataset, batch_sampler=sampler, num_workers=workers)
    assert len(sampler) == len(loader) == 7
    seen = []
    for epoch in range(4):
        visits = run_epoch(schedule, loader, 1 if epoch == 0 else 2)
        assert len(visits) == 7
        assert epoch == 0 or wanted(visits, 2)
        seen.append(set(visits))
    assert seen[0] != seen[1]
    other = BatchAttentionSampler(base, BATCH_SIZE, repeats=repeats)
    with pytest.raises(StateError, match="batches_per_epoch"):
        other.load_state_dict(sampler.state_dict())


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True])
def test_a_number_of_batches_that_is_none_is_refused(wrong):
    with pytest.raises(OptionError, match=r"batches_per_epoch is .*at least 1"):
        BatchAttentionSampler(RandomSampler(range(9)), 2, batches_per_epoch=wrong)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("around", [lambda batches: batches, lambda batches: itertools.islice(batches, 3 * BATCHES)])
def test_a_generator_that_cycles_through_the_loader_is_told_that_no_epoch_would_end(around, workers):
    def cycle(loader):
        while True:
            yield from loader

    schedule, _, loader, _ = make("deferred", num_workers=workers)

    def cycled():
        yield from around(cycle(loader))

    with pytest.raises(ProtocolError, match=r"never ends itself.*generator that cycles.*persistent_workers=True"):
        run_epoch(schedule, cycled(), 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_loader_that_begins_its_batch_sampler_again_and_again_is_refused_as_it_is(repeats, workers):
    """As timm's MultiEpochsDataLoader and Ultralytics' InfiniteDataLoader are made."""

    class Again:
        def __init__(self, sampler):
            self.sampler = sampler

        def __iter__(self):
            while True:
                yield from iter(self.sampler)

    class KeepsOneIterator(DataLoader):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            object.__setattr__(self, "batch_sampler", Again(self.batch_sampler))
            self.kept = super().__iter__()

        def __len__(self):
            return len(self.batch_sampler.sampler)

        def __iter__(self):
            for _ in range(len(self)):
                yield next(self.kept)

    schedule, _, loader, _ = make(repeats, loader_class=KeepsOneIterator, num_workers=workers)
    with pytest.raises(ProtocolError, match=r"has a Again around this Batch.*MultiEpochs.*persistent_workers=True"):
        next(iter(schedule.attend(loader)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_thread_that_reads_ahead_as_it_likes_is_not_taken_for_a_filter(workers):
    def read_ahead(loader):
        ready, end = queue.Queue(4), object()

        def read():
            for batch in loader:
                ready.put(batch)
            ready.put(end)

        threading.Thread(target=read, daemon=True).start()
        while (batch := ready.get()) is not end:
            time.sleep(0.005)
            yield batch

    class ReadsAhead:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            return read_ahead(self.loader)

    schedule, _, loader, _ = make("deferred", num_workers=workers)
    run_epoch(schedule, ReadsAhead(loader), 1)
    assert wanted(run_epoch(schedule, ReadsAhead(loader), 3), 3)


# Generators and filters in between ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_generator_around_the_loader_does_not_spin(workers):
    """It may be gone through once; what cannot be served by going through it again is said."""

    def moved(loader):
        for indices, draws in loader:
            yield indices.clone(), draws

    def repeat_the_last(schedule, loader):
        for _ in schedule.attend(moved(loader)):
            schedule.decide(2.0 if schedule.batch_index == BATCHES - 1 and schedule.visits < 2 else 1.0)

    schedule, _, loader, _ = make("deferred", num_workers=workers)
    run_epoch(schedule, moved(loader), 1)
    if workers:
        with pytest.raises(ProtocolError, match=r"ended with 1 repeat still.*generator can be iterated over only once"):
            repeat_the_last(schedule, loader)
    else:
        repeat_the_last(schedule, loader)
        assert schedule.last_summary.repeats == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_filter_in_between_is_found_out_at_the_first_batch_that_it_left_out(workers):
    schedule, _, loader, recorder = make("deferred", num_workers=workers)

    class Filters:
        def __iter__(self):
            return (batch for at, batch in enumerate(loader) if at != 4)

    seen = []

    def train():
        for indices, _ in schedule.attend(Filters()):
            seen.append(indices.tolist())
            schedule.decide(1.0)

    with pytest.raises(
        ProtocolError, match=r"1 batch of the BatchAttentionSampler did not come out of Filters.*skip\(\)"
    ):
        train()
    assert len(seen) == 4
    assert [list(visit.indices) for visit in recorder.visits] == seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_batch_that_is_skipped_is_not_served_again(repeats, workers):
    schedule, _, loader, recorder = make(repeats, num_workers=workers)
    for epoch in range(3):
        visits = collections.Counter()
        for indices, _ in schedule.attend(loader):
            batch = tuple(indices.tolist())
            visits[batch] += 1
            if 5 in batch or (7 in batch and visits[batch] == 2):
                schedule.skip()
            else:
                schedule.decide(2.0 if 7 in batch or (3 in batch and visits[batch] < 3) else 1.0)
        for batch, count in visits.items():
            at_most = 1 if 5 in batch or epoch == 0 else 2 if 7 in batch else 3 if 3 in batch else 1
            assert count == at_most, (batch, epoch)
        assert schedule.last_summary.batches == BATCHES - 1
    assert all(5 not in visit.indices for visit in recorder.visits)


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_state_with_skipped_batches_goes_on(repeats):
    def run(schedule, loader, stop=None):
        seen = []
        for indices, _ in schedule.attend(loader):
            seen.append(tuple(indices.tolist()))
            if {4, 9} & set(seen[-1]):
                schedule.skip()
            else:
                schedule.decide(2.0 if 3 in seen[-1] and seen.count(seen[-1]) < 2 else 1.0)
            if len(seen) == stop:
                break
        return seen

    schedule, _, loader, _ = make(repeats)
    whole = [run(schedule, loader), run(schedule, loader)]
    for stop in range(1, len(whole[1])):
        schedule, sampler, loader, _ = make(repeats)
        run(schedule, loader)
        run(schedule, loader, stop)
        state = sampler.state_dict()
        schedule, sampler, loader, _ = make(repeats)
        sampler.load_state_dict(state)
        seen = whole[1][:stop]
        for indices, _ in schedule.attend(loader):
            seen.append(tuple(indices.tolist()))
            if {4, 9} & set(seen[-1]):
                schedule.skip()
            else:
                schedule.decide(2.0 if 3 in seen[-1] and seen.count(seen[-1]) < 2 else 1.0)
        assert seen == whole[1]


# Who fetches an immediate repeat --------------------------------------------------------------------------------


class Opened(Dataset):
    """A data set that must be set up in the process that reads it."""

    opened_by = None

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        assert self.opened_by == os.getpid(), "not set up in this process"
        return index, os.getpid()


def set_up(_worker):
    torch.utils.data.get_worker_info().dataset.opened_by = os.getpid()


@pytest.mark.parametrize("persistent", [False, True])
def test_immediate_repeats_are_fetched_by_one_worker_that_is_kept_as_long_as_the_loader_s_own(persistent):
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
    sampler = BatchAttentionSampler(RandomSampler(range(SAMPLES), generator=seeded()), BATCH_SIZE, schedule=schedule)
    options = {"num_workers": 2, "worker_init_fn": set_up, "persistent_workers": persistent}
    loader = DataLoader(Opened(), batch_sampler=sampler, **options)
    before = torch.get_rng_state()
    of_repeats = set()
    for _ in range(4):
        for indices, pids in schedule.attend(loader):
            if schedule.visits:
                of_repeats.update(pids.tolist())
            schedule.decide(2.0 if 3 in indices and schedule.visits < 2 else 1.0)
    assert schedule.last_summary.repeats == 2
    # Three epochs with repeats.
    assert len(of_repeats) == (1 if persistent else 3)
    assert os.getpid() not in of_repeats
    after = torch.get_rng_state()
    plain = DataLoader(Opened(), batch_size=2, **options)
    torch.set_rng_state(before)
    for _ in range(4):
        list(plain)
    assert torch.get_rng_state().equal(after)


def test_immediate_repeats_draw_nothing_from_the_users_generators():
    def draws_after(losses):
        torch.manual_seed(3)
        generator = seeded(4)
        schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
        sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), BATCH_SIZE, schedule=schedule)
        loader = DataLoader(torch.arange(SAMPLES), batch_sampler=sampler, num_workers=1, generator=generator)
        for _ in range(3):
            for numbers in schedule.attend(loader):
                schedule.decide(losses(numbers, schedule.visits))
        return torch.rand(()).item(), torch.rand((), generator=generator).item(), schedule.last_summary.repeats

    *with_repeats, repeats = draws_after(lambda numbers, visits: 2.0 if 6 in numbers and visits < 1 else 1.0)
    *without, none = draws_after(lambda numbers, visits: 1.0)
    assert (repeats, none) == (1, 0)
    assert with_repeats == without


# Samplers of other people's ------------------------------------------------------------------------------------


class OfTensors:
    """``iter(torch.randperm(n))`` yields 0-d tensors, each of them another object."""

    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        return iter(self.kind(12))

    def __len__(self):
        return 12


@pytest.mark.parametrize("kind", [torch.arange, np.arange, lambda n: [np.int64(at) for at in range(n)], range])
@pytest.mark.parametrize("batches_itself", [False, True])
def test_indices_become_plain_numbers_on_entry(kind, batches_itself):
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(recorders=[recorder])
    base = BatchSampler(OfTensors(kind), 5, False) if batches_itself else OfTensors(kind)
    if batches_itself:
        base = list(base)
    sampler = BatchAttentionSampler(base, None if batches_itself else 5, schedule=schedule)
    received = []

    class Receives(Dataset):
        def __getitem__(self, index):
            received.append(index)
            return 0

        def __len__(self):
            return 12

    for _ in schedule.attend(DataLoader(Receives(), batch_sampler=sampler)):
        schedule.decide(1.0)
    assert received == list(range(12))
    assert {type(index) for index in received} == {int}
    assert {type(index) for visit in recorder.visits for index in visit.indices} == {int}


@pytest.mark.parametrize("promised", [3, 4, 6])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_batch_sampler_whose_length_is_an_estimate_is_trained_on_whole_and_resumed(repeats, workers, promised):
    """As those are that put samples of like length together."""

    class Estimates:
        def __iter__(self):
            return iter([[0, 1], [2, 3, 4], [5], [6, 7]])

        def __len__(self):
            return promised

    def make():
        schedule = BatchAttentionSchedule()
        sampler = BatchAttentionSampler(Estimates(), schedule=schedule, repeats=repeats)
        return schedule, sampler, DataLoader(range(8), batch_sampler=sampler, num_workers=workers)

    schedule, sampler, loader = make()
    seen, states = [], []
    for numbers in schedule.attend(loader):
        seen.append(numbers.tolist())
        schedule.decide(1.0)
        states.append(sampler.state_dict())
    assert seen == [*Estimates()]
    for done, state in enumerate(states[:-1], start=1):
        schedule, sampler, loader = make()
        sampler.load_state_dict(state)
        assert [schedule.decide(1.0) and numbers.tolist() for numbers in schedule.attend(loader)] == seen[done:]


def test_a_batch_size_may_be_a_number_of_numpy_s():
    sampler = BatchAttentionSampler(range(9), np.int64(4), batches_per_epoch=np.int32(2))
    assert list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    json.dumps(sampler.state_dict(), allow_nan=False)


def test_set_epoch_reaches_the_sampler_inside():
    inside = DistributedSampler(range(24), num_replicas=2, rank=0)
    sampler = BatchAttentionSampler(inside, 3)
    assert sampler.sampler is inside
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        inside_alone = DistributedSampler(range(24), num_replicas=2, rank=0)
        inside_alone.set_epoch(epoch)
        orders.append(list(sampler))
        assert orders[-1] == list(BatchSampler(inside_alone, 3, False))
    assert orders[0] != orders[1] != orders[2]


def test_set_epoch_reaches_through_a_batch_sampler_and_past_samplers_that_have_none():
    class OfTheUser:
        def __init__(self):
            self.sampler = DistributedSampler(range(24), num_replicas=2, rank=0)

        def __iter__(self):
            return iter(BatchSampler(self.sampler, 3, False))

        def __len__(self):
            return 4

    of_the_user = OfTheUser()
    BatchAttentionSampler(of_the_user).set_epoch(5)
    assert of_the_user.sampler.epoch == 5
    BatchAttentionSampler(SequentialSampler(range(4)), 2).set_epoch(5)


@pytest.mark.parametrize("planned_before", [{"planned": ()}, {}], ids=["none", "not even a list"])
def test_a_batch_sampler_that_plans_in_set_epoch_is_not_refused_as_empty(planned_before):
    class Plans:
        def __init__(self):
            vars(self).update(planned_before)

        def set_epoch(self, epoch):
            self.planned = [[0, 1], [2, 3], [epoch]]

        def __iter__(self):
            return iter(self.planned)

        def __len__(self):
            return len(self.planned)

    schedule = BatchAttentionSchedule()
    sampler = BatchAttentionSampler(Plans(), schedule=schedule)
    loader = DataLoader(torch.arange(10), batch_sampler=sampler)
    for epoch in (7, 8):
        sampler.set_epoch(epoch)
        seen = []
        for numbers in schedule.attend(loader):
            seen.append(numbers.tolist())
            schedule.decide(1.0)
        assert seen == [[0, 1], [2, 3], [epoch]]
        assert len(loader) == 3


def test_a_loader_that_takes_it_for_a_sampler_of_single_indices_is_told():
    schedule, sampler, loader, _ = make("deferred")
    wrong = DataLoader(loader.dataset, sampler=sampler, batch_size=2)
    with pytest.raises(ProtocolError, match=r"built with sampler=.*batch_sampler="):
        next(iter(schedule.attend(wrong)))


def test_a_loader_whose_iterator_is_older_than_the_epoch_is_told_so():
    """As timm's MultiEpochsDataLoader makes it."""

    class MultiEpochs(DataLoader):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.made_before = super().__iter__()

        def __iter__(self):
            for _ in range(len(self)):
                yield next(self.made_before)

    schedule, _, loader, _ = make("deferred", loader_class=MultiEpochs)
    with pytest.raises(ProtocolError, match=r"iterate too early.*MultiEpochs.*persistent_workers=True"):
        next(iter(schedule.attend(loader)))


def test_what_is_printed_says_what_it_is_and_where_it_stands():
    schedule, sampler, loader, _ = make("deferred")
    run_epoch(schedule, loader, 1)
    assert repr(sampler).startswith("<BatchAttentionSampler(RandomSampler, batch_size=2, repeats='deferred'), <Batch")
    assert "epoch 1" in repr(sampler)
