"""The batch-sampler adapter with real loaders: every batch as often as planned, every loss to its own batch."""

import multiprocessing
import random
import traceback
from collections import Counter, deque

import pytest
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import ProtocolError, StateError
from tests.loading.helpers import (
    BATCH_SIZE,
    BATCHES,
    FORKING_IS_FINE,
    REPEATS,
    SAMPLES,
    WORKERS,
    Numbered,
    make,
    run_epoch,
    seeded,
)
from tests.samples.runs import LooksAhead

pytestmark = FORKING_IS_FINE

# Visits to a batch, by its position in the epoch.
PATTERNS = [
    lambda position: 1,
    lambda position: 3 if position == BATCHES - 1 else 1,
    lambda position: 1 + max(0, position - (BATCHES - 4)),
    lambda position: random.Random(position).randint(1, 4),
]


def torch_order(seed=0):
    """The batches of each epoch as torch's own samplers draw them."""
    batch_sampler = BatchSampler(RandomSampler(range(SAMPLES), generator=seeded(seed)), BATCH_SIZE, False)
    while True:
        yield [tuple(batch) for batch in batch_sampler]


def run_plan(schedule, attended, planned):
    """Visit each batch as often as planned, with a loss used once; (indices, visit, loss, draws) of each visit."""
    visits, seen = [], Counter()
    for indices, draws, *_ in attended:
        batch = tuple(indices.tolist())
        seen[batch] += 1
        is_repeated = seen[batch] < planned[batch]
        loss = (2.0 if is_repeated else 1.0) + len(visits) * 1e-6
        assert schedule.decide(loss) is (Decision.REPEAT if is_repeated else Decision.ADVANCE)
        visits.append((batch, seen[batch], loss, tuple(draws.tolist())))
    return visits


def deferred_order(batches, planned, depth):
    """The order where a loader requests ``depth`` batches as a pass begins, and one more as each arrives."""
    remaining, pending, flight = deque(batches), deque(), deque()
    visits_left, order = dict(planned), []

    def request():
        source = pending or remaining
        if source:
            flight.append(source.popleft())

    def decide(batch):
        visits_left[batch] -= 1
        if visits_left[batch]:
            pending.append(batch)

    while remaining or pending:
        for _ in range(max(depth, 1)):
            request()
        while flight:
            order.append(flight.popleft())
            # Without workers, a batch is requested once the last one is decided on.
            for step in (request, lambda: decide(order[-1])) if depth else (lambda: decide(order[-1]), request):
                step()
    return order


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2, "prefetch_factor": 1, "persistent_workers": True},
        pytest.param({"num_workers": 1}, marks=pytest.mark.slow),
        pytest.param({"num_workers": 4, "persistent_workers": True}, marks=pytest.mark.slow),
        pytest.param({"num_workers": 2, "prefetch_factor": 8}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("repeats", "wrap"), [("immediate", None), ("deferred", None), ("deferred", LooksAhead)], ids=str
)
def test_every_batch_is_visited_as_often_as_planned_and_every_loss_goes_to_its_batch(repeats, wrap, options):
    schedule, _, loader, recorder = make(repeats, **options)
    attended = schedule.attend(wrap(loader) if wrap else loader)
    # The warm-up repeats nothing.
    for epoch, (batches, visits_at) in enumerate(zip(torch_order(), [PATTERNS[0], *PATTERNS], strict=False)):
        planned = {batch: visits_at(position) for position, batch in enumerate(batches)}
        visits = run_plan(schedule, attended, planned)
        arrived = [batch for batch, *_ in visits]
        if repeats == "immediate":
            assert arrived == [batch for batch in batches for _ in range(planned[batch])]
        elif wrap is None:
            assert arrived == deferred_order(batches, planned, loader.num_workers * (loader.prefetch_factor or 0))
        assert Counter(arrived) == planned
        recorded = [record for record in recorder.visits if record.epoch == epoch]
        assert [(record.indices, record.visit, record.loss) for record in recorded] == [visit[:3] for visit in visits]
        assert [record.batch for record in recorded] == [batches.index(batch) for batch in arrived]
        summary = schedule.last_summary
        assert (summary.batches, summary.visits) == (BATCHES, sum(planned.values()))
        assert summary.most_visits == max(planned.values())
        # A repeat draws its augmentation again.
        assert len({draws for *_, draws in visits}) == len(visits)


def test_deferred_repeats_come_in_the_order_of_their_decisions():
    schedule, _, loader, _ = make("deferred")
    # All of the last three are decided on after the loader has ended.
    ahead, seen = LooksAhead(loader, 3), []
    run_epoch(schedule, ahead)
    for _ in schedule.attend(ahead):
        seen.append(schedule.batch_index)
        schedule.decide(2.0 if seen[-1] >= BATCHES - 3 and schedule.visits < 2 else 1.0)
    assert seen == [*range(BATCHES), *range(BATCHES - 3, BATCHES), *range(BATCHES - 3, BATCHES)]


@REPEATS
def test_repeats_are_fetched_through_getitems_and_collate_fn(repeats):
    fetched = []

    class Whole(Numbered):
        def __getitems__(self, indices):
            fetched.append(list(indices))
            return list(indices)

    schedule, _, loader, recorder = make(repeats, dataset=Whole(), collate_fn=lambda items: ("collated", items))
    for losses in ([1.0] * BATCHES, [2.0, 1.0] * BATCHES):
        for item, loss in zip(schedule.attend(loader), losses, strict=True):
            assert item == ("collated", fetched[-1])
            schedule.decide(loss)
    assert fetched == [list(record.indices) for record in recorder.visits]
    assert len(fetched) == 3 * BATCHES


def test_the_length_counts_base_batches_and_what_is_printed_says_what_it_is():
    schedule, sampler, loader, _ = make("deferred")
    assert len(sampler) == len(loader) == schedule.attend(loader).base_batches == BATCHES
    assert (sampler.batch_size, sampler.drop_last, sampler.repeats) == (BATCH_SIZE, False, "deferred")
    assert sampler.schedule is schedule
    run_epoch(schedule, loader)
    assert repr(sampler).startswith("<BatchAttentionSampler(RandomSampler, batch_size=2, repeats='deferred'), <Batch")
    assert "epoch 1" in repr(sampler)


@WORKERS
@REPEATS
def test_a_batch_that_is_skipped_is_not_served_again(repeats, workers):
    schedule, _, loader, recorder = make(repeats, num_workers=workers)
    run_epoch(schedule, loader)
    seen = []
    for indices, *_ in schedule.attend(loader):
        seen += indices.tolist()
        if 5 in indices or (7 in indices and schedule.visits == 1):
            schedule.skip()
        else:
            schedule.decide(2.0 if (3 in indices or 7 in indices) and schedule.visits == 0 else 1.0)
    assert [seen.count(sample) for sample in (5, 3, 7)] == [1, 2, 2]
    assert (len(seen), schedule.last_summary.batches) == (SAMPLES + 2 * BATCH_SIZE, BATCHES - 1)
    assert all(5 not in visit.indices for visit in recorder.visits if visit.epoch == 1)


# Epochs that are left, and errors ---------------------------------------------------------------------------


class BreaksOnce(Numbered):
    """Breaks at one of the reads of sample 3, in whichever process it is read."""

    def __init__(self, read):
        super().__init__()
        self.read, self.reads = read, multiprocessing.Value("i", 0)

    def __getitem__(self, index):
        self.reads.value += index == 3
        if index == 3 and self.reads.value == self.read:
            raise LookupError("no such file")
        return super().__getitem__(index)


READS = {"an error at a first visit": 2, "an error at a repeat": 3}


@pytest.mark.parametrize("left_by", ["a break after a decision", "a break before a decision", *READS])
@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}], ids=str)
@REPEATS
def test_an_epoch_that_is_left_does_not_count_and_the_next_one_is_whole(repeats, options, left_by):
    schedule, _, loader, recorder = make(repeats, dataset=BreaksOnce(READS.get(left_by)), **options)
    run_epoch(schedule, loader)
    threshold, error = schedule.threshold, None
    try:
        for at, _ in enumerate(schedule.attend(loader)):
            if left_by == "a break before a decision" and at == 3:
                break
            schedule.decide(1.0 if schedule.visits else 2.0)
            if left_by == "a break after a decision" and at == 3:
                break
    except LookupError as raised:
        error = str(raised)
        # An error of a worker refers to itself, and keeps the loader, whose workers then take seconds to be collected.
        traceback.clear_frames(raised.__traceback__)
    assert ("no such file" in error) if left_by in READS else error is None
    assert len(run_epoch(schedule, loader, repeated=range(SAMPLES))) == 3 * BATCHES
    assert (schedule.epoch, schedule.last_summary.threshold) == (2, threshold)
    assert [record.epoch for record in recorder.visits] == [0] * BATCHES + [1] * 3 * BATCHES


# Fewer batches than there are ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("batches", [BATCHES, BATCHES - 3])
def test_a_loader_that_counts_trains_on_as_many_base_batches_as_it_says(batches):
    schedule, _, loader, _ = make("deferred")
    counts = CountsWithLength(loader, batches)
    run_epoch(schedule, counts)
    for _ in range(3):
        seen = Counter(run_epoch(schedule, counts, repeated=[0, 1, 2]))
        assert len(seen) == batches == schedule.last_summary.batches
        assert all(visits == (3 if {0, 1, 2} & {*batch} else 1) for batch, visits in seen.items())
    assert schedule.last_summary.repeats > 0


def test_a_loader_that_counts_without_a_length_or_with_workers_is_refused():
    schedule, _, loader, _ = make("deferred")
    with pytest.raises(
        ProtocolError, match=r"Counts ended with base batches after the first 5 still.*batches_per_epoch"
    ):
        run_epoch(schedule, Counts(loader, 5))
    schedule, _, loader, _ = make("deferred", num_workers=1)
    counts = CountsWithLength(loader, BATCHES)
    run_epoch(schedule, counts)
    with pytest.raises(ProtocolError, match=r"did not come out of Counts.*fixed number of batches.*batches_per_epoch"):
        run_epoch(schedule, counts, repeated=[0, 1, 2])


@WORKERS
@REPEATS
def test_an_epoch_of_fewer_batches_than_there_are(repeats, workers):
    schedule, sampler, loader, _ = make(repeats, batches_per_epoch=7, num_workers=workers)
    assert len(sampler) == len(loader) == 7
    seen = [Counter(run_epoch(schedule, loader, repeated=[0, 1, 2] if epoch else [])) for epoch in range(3)]
    assert [len(batches) for batches in seen] == [7, 7, 7]
    assert seen[0].keys() != seen[1].keys()
    assert all(visits == (3 if {0, 1, 2} & {*batch} else 1) for batch, visits in seen[2].items())
    with pytest.raises(StateError, match="batches_per_epoch"):
        make(repeats)[1].load_state_dict(sampler.state_dict())


# Misuse -------------------------------------------------------------------------------------------------------


class Shifts(DataLoader):
    """Changes the batches that its dataset makes."""

    def __iter__(self):
        return ((indices + 1, draws) for indices, draws in super().__iter__())


@pytest.mark.parametrize(
    "wrap", [LooksAhead, iter, lambda loader: Shifts([0], batch_sampler=loader.batch_sampler), lambda loader: [1, 2]]
)
def test_immediate_repeats_through_anything_but_the_loader_are_refused(wrap):
    schedule, _, loader, _ = make("immediate")
    with pytest.raises(ProtocolError, match=r"an immediate repeat would bypass what \w+ may do.*repeats='deferred'"):
        next(iter(schedule.attend(wrap(loader))))


def test_a_sampler_without_a_schedule_makes_its_own():
    sampler = BatchAttentionSampler(SequentialSampler(range(8)), 2)
    loader = DataLoader(Numbered(), batch_sampler=sampler)
    with pytest.raises(ProtocolError, match="this schedule does not know"):
        BatchAttentionSchedule().attend(loader)
    assert len(run_epoch(sampler.schedule, loader)) == 4
