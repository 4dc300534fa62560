"""The batch-sampler adapter with real loaders: every batch as often as planned, every loss to its own batch."""

import itertools
import random

import pytest
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import OptionError, ProtocolError
from tests.loading.helpers import (
    BATCH_SIZE,
    BATCHES,
    FORKING_IS_FINE,
    SAMPLES,
    LooksAhead,
    Numbered,
    Plan,
    deferred_order,
    immediate_order,
    make,
    no_deadlock,  # noqa: F401  (a fixture of every test here)
    seeded,
    torch_order,
)

pytestmark = FORKING_IS_FINE

WORKERS = [
    {"num_workers": 0},
    *(
        {"num_workers": workers, "persistent_workers": persistent}
        for workers in (1, 2, 4)
        for persistent in (False, True)
    ),
    {"num_workers": 2, "prefetch_factor": 1},
    {"num_workers": 2, "prefetch_factor": 8},
]
REPEAT_PATTERNS = {
    "none": lambda position: 1,
    "last": lambda position: 3 if position == BATCHES - 1 else 1,
    "tail": lambda position: 1 + max(0, position - (BATCHES - 4)),
    "all": lambda position: 2,
    "random": lambda position: random.Random(position).randint(1, 4),
    "random again": lambda position: random.Random(100 + position).randint(1, 3),
}


def names(option):
    return "-".join(f"{name}={value}" for name, value in option.items())


def depth_of(loader):
    return loader.num_workers * (loader.prefetch_factor or 0)


def check_distances(arrived, depth):
    """A deferred repeat arrives after just the batches that the workers had been given, or fewer at the end."""
    last_first_visit = max(arrived.index(batch) for batch in set(arrived))
    seen_at = {}
    for at, batch in enumerate(arrived):
        if batch in seen_at:
            between = at - seen_at[batch] - 1
            assert between <= depth
            if at < last_first_visit:
                assert between == depth
        seen_at[batch] = at


@pytest.mark.parametrize("options", WORKERS, ids=names)
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_every_batch_is_visited_as_often_as_planned_and_every_loss_goes_to_its_batch(repeats, options):
    schedule, _, loader, recorder = make(repeats, **options)
    orders = torch_order(epochs=1 + len(REPEAT_PATTERNS))
    plan = Plan(schedule)
    attended = schedule.attend(loader)
    for epoch, order in enumerate(orders):
        # The warm-up repeats nothing.
        visits_at = [REPEAT_PATTERNS["none"], *REPEAT_PATTERNS.values()][epoch]
        batches = [tuple(batch) for batch in order]
        planned = {batch: visits_at(position) for position, batch in enumerate(batches)}

        visits = plan.run_epoch(attended, planned)

        arrived = [batch for batch, *_ in visits]
        if repeats == "immediate":
            assert arrived == immediate_order(batches, planned)
        else:
            assert arrived == deferred_order(batches, planned, depth_of(loader))
            check_distances(arrived, depth_of(loader))
        recorded = [record for record in recorder.visits if record.epoch == epoch]
        assert [(record.indices, record.visit, record.loss) for record in recorded] == [
            (batch, visit, loss) for batch, visit, loss, _ in visits
        ]
        assert [record.batch for record in recorded] == [batches.index(batch) for batch in arrived]
        assert schedule.last_summary.batches == BATCHES
        assert schedule.last_summary.visits == sum(planned.values())
        assert schedule.last_summary.most_visits == max(planned.values())
        draws = [tuple(drawn.tolist()) for *_, drawn in visits]
        assert len(set(draws)) == len(draws), "a repeat must draw its augmentation afresh"


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_repeats_are_fetched_through_getitems_collate_fn_and_the_same_indices(repeats):
    asked = []

    class Whole(Dataset):
        def __len__(self):
            return SAMPLES

        def __getitems__(self, indices):
            asked.append(list(indices))
            return list(indices)

    schedule, _, loader, recorder = make(repeats, dataset=Whole(), collate_fn=lambda items: ("collated", items))
    for losses in ([1.0] * BATCHES, [2.0, 1.0] * BATCHES):
        remaining = iter(losses)
        for word, indices in schedule.attend(loader):
            assert word == "collated"
            assert asked[-1] == indices
            schedule.decide(next(remaining))
    assert asked == [list(record.indices) for record in recorder.visits]
    assert len(asked) == 3 * BATCHES


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_loader_without_attend_goes_through_every_batch_once_in_torch_s_order(repeats):
    _, _, loader, _ = make(repeats, num_workers=2)
    for order in torch_order(epochs=2):
        assert [indices.tolist() for indices, _ in loader] == order


def test_a_stream_s_windows_end_epochs_while_the_loader_goes_on():
    schedule = BatchAttentionSchedule(1.5, epoch_length=5)
    dataset = Numbered()
    sampler = BatchAttentionSampler(RandomSampler(dataset, generator=seeded()), BATCH_SIZE, schedule=schedule)
    loader = DataLoader(dataset, batch_sampler=sampler)
    decisions = []
    for _ in range(2):
        losses = iter([1.0] * 7 + [2.0, 1.0] + [1.0] * 10)
        for _ in schedule.attend(loader):
            decisions.append(schedule.decide(next(losses)))
    assert decisions.count(Decision.REPEAT) == 2
    assert (schedule.epoch, schedule.batches) == divmod(2 * BATCHES, 5)


def test_the_length_counts_base_batches_and_the_sampler_shows_what_it_was_given():
    schedule, sampler, loader, _ = make("immediate")
    assert len(sampler) == len(loader) == schedule.attend(loader).base_batches == BATCHES
    assert (sampler.batch_size, sampler.drop_last, sampler.repeats) == (BATCH_SIZE, False, "immediate")
    assert sampler.schedule is schedule


# Leaving early ---------------------------------------------------------------------------------------


class Always(dict):
    """The same number of visits for every batch."""

    def __init__(self, visits):
        super().__init__()
        self.visits = visits

    def __missing__(self, batch):
        return self.visits


@pytest.mark.parametrize("is_decided", [True, False], ids=["after a decision", "before a decision"])
@pytest.mark.parametrize("options", [WORKERS[0], *WORKERS[3:5]], ids=names)
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_after_a_break_the_next_epoch_is_whole(repeats, options, is_decided):
    schedule, _, loader, recorder = make(repeats, **options)
    plan = Plan(schedule)
    plan.run_epoch(schedule.attend(loader), Always(1))
    for at, _ in enumerate(schedule.attend(loader)):
        if at == 3 and not is_decided:
            break
        schedule.decide(2.0 if at == 1 else 1.0)
        if at == 3:
            break
    threshold = schedule.threshold
    visits = plan.run_epoch(schedule.attend(loader), Always(2))
    assert schedule.last_summary.threshold == threshold
    assert sorted(index for batch, *_ in visits for index in batch) == sorted([*range(SAMPLES)] * 2)
    # The broken-off epoch does not count.
    assert [record.epoch for record in recorder.visits] == [0] * BATCHES + [1] * 2 * BATCHES


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_an_error_in_the_data_set_reaches_the_loop_and_the_next_epoch_is_whole(repeats, workers):
    class Broken(Numbered):
        is_broken = True

        def __getitem__(self, index):
            if index == 7 and self.is_broken:
                raise LookupError("no such file")
            return super().__getitem__(index)

    schedule, _, loader, _ = make(repeats, dataset=Broken(), num_workers=workers)
    plan = Plan(schedule)
    with pytest.raises(LookupError, match="no such file"):
        plan.run_epoch(schedule.attend(loader), Always(1))
    loader.dataset.is_broken = False
    assert len(plan.run_epoch(schedule.attend(loader), Always(1))) == BATCHES
    assert schedule.epoch == 1


def test_an_error_while_a_repeat_is_fetched_reaches_the_loop_and_the_next_epoch_is_whole():
    class BreaksOnce(Numbered):
        fetched = 0

        def __getitem__(self, index):
            if index == 7:
                self.fetched += 1
                # The first epoch's visit, the second's, and its repeat.
                if self.fetched == 3:
                    raise LookupError("gone")
            return super().__getitem__(index)

    schedule, _, loader, _ = make("immediate", dataset=BreaksOnce())
    plan = Plan(schedule)
    plan.run_epoch(schedule.attend(loader), Always(1))
    with pytest.raises(LookupError, match="gone"):
        plan.run_epoch(schedule.attend(loader), Always(2))
    assert len(plan.run_epoch(schedule.attend(loader), Always(2))) == 2 * BATCHES


def test_an_abandoned_epoch_begins_anew_even_if_it_had_been_loaded():
    schedule, sampler, loader, _ = make("immediate")
    plan = Plan(schedule)
    for at, _ in enumerate(schedule.attend(loader)):
        schedule.decide(plan.loss(0))
        if at == 3:
            break
    state = sampler.state_dict()
    schedule, sampler, loader, _ = make("immediate")
    sampler.load_state_dict(state)
    schedule.abandon_epoch()
    assert sampler.state_dict()["position"] == 0
    assert len(Plan(schedule).run_epoch(schedule.attend(loader), Always(1))) == BATCHES


# Misuse ----------------------------------------------------------------------------------------------


def refused(error_class, *words):
    """The error says what came, what is allowed, and what to do."""
    return pytest.raises(error_class, match=".*".join(words))


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_loader_that_hands_batches_out_of_order_is_refused(repeats):
    schedule, _, loader, _ = make(repeats, num_workers=2, in_order=False)
    with refused(ProtocolError, "in_order=False", "leave it at True"):
        next(iter(schedule.attend(loader)))


def test_a_loader_without_batches_is_refused():
    schedule, sampler, _, _ = make("immediate")
    with refused(ProtocolError, "built with sampler=", "batch_sampler="):
        next(iter(schedule.attend(DataLoader(Numbered(), sampler=sampler, batch_size=None))))
    with refused(ProtocolError, "does not batch", "batch_sampler="):
        next(iter(schedule.attend(DataLoader(Numbered(), batch_size=None))))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_loader_built_on_another_sampler_is_refused(repeats, workers):
    schedule, _, _, _ = make(repeats)
    _, other, loader, _ = make(repeats, num_workers=workers)
    with refused(ProtocolError, "has another batch sampler, a BatchAttentionSampler", "on this BatchAttentionSampler"):
        next(iter(schedule.attend(loader)))
    with refused(ProtocolError, "has another batch sampler, a BatchSampler", "batch_sampler="):
        next(iter(schedule.attend(DataLoader(Numbered(), batch_size=2))))
    assert other.state_dict()["position"] == 0


def test_an_iterable_that_is_no_loader_is_refused_for_immediate_repeats():
    schedule, _, _, _ = make("immediate")
    with refused(ProtocolError, "past what list may do", "repeats='deferred'"):
        next(iter(schedule.attend([1, 2])))


def test_a_loss_reported_while_no_batch_is_out_is_refused():
    schedule, _, loader, _ = make("immediate")
    with refused(ProtocolError, "no batch of the BatchAttentionSampler was current", "schedule.attend"):
        schedule.decide(1.0)
    Plan(schedule).run_epoch(schedule.attend(loader), Always(1))
    with refused(ProtocolError, "no batch of the BatchAttentionSampler was current"):
        schedule.decide(1.0)
    next(iter(loader))
    with refused(ProtocolError, "no batch of the BatchAttentionSampler was current"):
        schedule.decide(1.0)
    assert schedule.batches == 0


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_one_loss_for_each_batch_no_more_and_no_less(repeats):
    schedule, _, loader, _ = make(repeats)
    with refused(ProtocolError, "before decide"):
        for _ in schedule.attend(loader):
            pass
    with refused(ProtocolError, "twice for one batch"):
        for _ in schedule.attend(loader):
            schedule.decide(1.0)
            schedule.decide(1.0)


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_pass_that_was_overtaken_by_another_is_stale(repeats):
    schedule, _, loader, _ = make(repeats, num_workers=1)
    old = iter(schedule.attend(loader))
    next(old)
    schedule.decide(1.0)
    new = iter(schedule.attend(loader))
    next(new)
    with refused(ProtocolError, "stale", "again"):
        next(old)
    schedule.decide(1.0)
    assert sum(1 for _ in new if schedule.decide(1.0)) == BATCHES - 1
    assert schedule.last_summary.batches == BATCHES


def test_a_loader_s_iterator_of_an_earlier_epoch_gets_no_batches():
    iterators = []

    class KeepsIterators:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            iterators.append(iter(self.loader))
            return iterators[-1]

    schedule, _, loader, _ = make("deferred")
    first = iter(schedule.attend(KeepsIterators(loader)))
    next(first)
    second = iter(schedule.attend(KeepsIterators(loader)))
    next(second)
    with refused(ProtocolError, "an earlier epoch", "in one loop of attend"):
        next(iterators[0])


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_look_at_the_loader_in_mid_epoch_does_no_harm_or_is_refused(repeats):
    for options in ({}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}):
        schedule, _, loader, recorder = make(repeats, **options)

        def look_in_mid_epoch(schedule=schedule, loader=loader, recorder=recorder):
            for at, (indices, _) in enumerate(schedule.attend(loader)):
                schedule.decide(1.0)
                assert recorder.visits[-1].indices == tuple(indices.tolist())
                if at == 3:
                    next(iter(loader))

        if options.get("persistent_workers"):
            with refused(ProtocolError, "iterated over elsewhere", "another DataLoader"):
                look_in_mid_epoch()
        else:
            look_in_mid_epoch()
            assert schedule.last_summary.batches == BATCHES


def test_a_schedule_serves_one_sampler():
    schedule, _, _, _ = make("immediate")
    with refused(ProtocolError, "belongs to another", "one for each sampler"):
        BatchAttentionSampler(RandomSampler(range(4)), 2, schedule=schedule)


@pytest.mark.parametrize("schedule", ["schedule", 1.5, BatchAttentionSchedule])
def test_a_schedule_of_the_wrong_type_is_refused(schedule):
    with refused(OptionError, "schedule is", "BatchAttentionSchedule"):
        BatchAttentionSampler(RandomSampler(range(4)), 2, schedule=schedule)


@pytest.mark.parametrize("repeats", ["later", None, True, "Immediate"])
def test_an_unknown_kind_of_repeats_is_refused_and_the_schedule_stays_free(repeats):
    schedule = BatchAttentionSchedule()
    with refused(OptionError, "repeats is", "'immediate', 'deferred'"):
        BatchAttentionSampler(RandomSampler(range(4)), 2, schedule=schedule, repeats=repeats)
    with pytest.raises(OptionError):
        BatchAttentionSampler(RandomSampler(range(4)), 0, schedule=schedule)
    BatchAttentionSampler(RandomSampler(range(4)), 2, schedule=schedule)


def test_options_after_drop_last_are_keyword_only():
    with pytest.raises(TypeError):
        BatchAttentionSampler(RandomSampler(range(4)), 2, False, BatchAttentionSchedule())


# Wrapped loaders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_deferred_repeats_work_through_a_wrapper_that_reads_ahead(workers):
    schedule, _, loader, recorder = make("deferred", num_workers=workers)
    plan = Plan(schedule)
    for epoch, order in enumerate(torch_order(epochs=1 + len(REPEAT_PATTERNS))):
        visits_at = [REPEAT_PATTERNS["none"], *REPEAT_PATTERNS.values()][epoch]
        planned = {tuple(batch): visits_at(position) for position, batch in enumerate(order)}
        visits = plan.run_epoch(schedule.attend(LooksAhead(loader)), planned)
        assert len(visits) == sum(planned.values())
        recorded = [(record.indices, record.visit, record.loss) for record in recorder.visits if record.epoch == epoch]
        assert recorded == [(batch, visit, loss) for batch, visit, loss, _ in visits]


@pytest.mark.parametrize("wrap", [LooksAhead, lambda loader: (batch for batch in loader)])
def test_immediate_repeats_through_a_wrapper_are_refused(wrap):
    schedule, _, loader, _ = make("immediate")
    with refused(ProtocolError, "an immediate repeat is fetched", "repeats='deferred'"):
        next(iter(schedule.attend(wrap(loader))))


def test_immediate_repeats_through_a_loader_with_an_iter_of_its_own_are_refused():
    class Shifts(DataLoader):
        def __iter__(self):
            return ((indices + 1, draws) for indices, draws in super().__iter__())

    schedule, _, loader, _ = make("immediate", loader_class=Shifts)
    with refused(ProtocolError, "past what Shifts may do", "repeats='deferred'"):
        next(iter(schedule.attend(loader)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrapper_that_drops_batches_is_found_out_and_sets_no_threshold(workers):
    class Drops:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            return (batch for at, batch in enumerate(self.loader) if at % 4)

    schedule, _, loader, _ = make("deferred", num_workers=workers)
    visits = 0
    with refused(ProtocolError, "1 batch of the BatchAttentionSampler did not come out of Drops", r"schedule.skip\(\)"):
        for _ in schedule.attend(Drops(loader)):
            visits += 1
            schedule.decide(1.0)
    assert schedule.threshold is None
    assert schedule.epoch == 0
    # The first batch of all is left out before anything can be known of reading ahead; the second is found at once.
    assert visits == 3


def test_a_wrapper_that_stops_early_is_found_out():
    class Stops:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            yield from itertools.islice(self.loader, 3)

    schedule, _, loader, _ = make("deferred", num_workers=2)
    with refused(ProtocolError, "taken from the BatchAttentionSampler and not yielded"):
        for _ in schedule.attend(Stops(loader)):
            schedule.decide(1.0)


def test_a_wrapper_that_makes_up_batches_is_found_out():
    class Doubles:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            for batch in self.loader:
                yield batch
                yield batch

    schedule, _, loader, _ = make("deferred")
    with refused(ProtocolError, "did not take from this BatchAttentionSampler"):
        for _ in schedule.attend(Doubles(loader)):
            schedule.decide(1.0)


def test_a_sampler_makes_its_own_schedule_if_it_is_given_none():
    sampler = BatchAttentionSampler(SequentialSampler(range(8)), 2)
    loader = DataLoader(range(8), batch_sampler=sampler)
    for _ in sampler.schedule.attend(loader):
        sampler.schedule.decide(1.0)
    assert sampler.schedule.last_summary.batches == 4


def test_a_loader_whose_sampler_belongs_to_another_schedule_is_refused():
    loader = DataLoader(range(8), batch_sampler=BatchAttentionSampler(SequentialSampler(range(8)), 2))
    with pytest.raises(ProtocolError, match="this schedule does not know"):
        BatchAttentionSchedule().attend(loader)
