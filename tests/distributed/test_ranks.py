"""Ranks decide alike or raise errors at once, whatever carries their messages; here, threads without torch."""

import functools
import math
import operator
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_sampler_attn import BatchAttentionSchedule, Decision, EqualComputeControl
from batch_sampler_attn.errors import LossError, OptionError, ProtocolError, RanksDivergedError, StateError
from batch_sampler_attn.ranks import MessageKind, Shard, shard_of, unpack_shard
from tests.core.helpers import COPIES, OPTIONS
from tests.distributed.faults import FAULTS, begin_again, make_schedule, train
from tests.distributed.threads import on_threads

# The option ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_a_schedule_without_the_option_is_refused_among_several_ranks(monkeypatch, world):
    group = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: world)
    monkeypatch.setitem(sys.modules, "torch.distributed", group)
    attended = BatchAttentionSchedule().attend("a")
    if world == 1:
        assert [attended.schedule.decide(1.0) for _ in attended] == [Decision.ADVANCE]
    else:
        with pytest.raises(ProtocolError, match="one of 2 in a process group"):
            next(iter(attended))
    monkeypatch.delitem(sys.modules, "torch.distributed")
    assert next(iter(BatchAttentionSchedule().attend("a"))) == "a"


class Echo:
    """A transport of one rank, whose messages are on their way until they are waited for."""

    rank, ranks = 0, 1

    def __init__(self):
        self.kinds = []

    def claim(self):
        pass

    def start(self, message):
        self.kinds.append(message.kind)
        return lambda: [message]

    def gather(self, value):
        return [value]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("call", ["report", "skip"])
def test_a_copy_has_no_messages_on_their_way_and_reports_a_loss_again(call, copied):
    schedule = BatchAttentionSchedule(ranks=Echo())
    if call == "report":
        schedule.report(1.0)
        twin = copied(schedule)
        twin.report(1.0)
        decisions = twin.decide(), schedule.decide()
    else:
        schedule.skip()
        twin = copied(schedule)
        decisions = twin.decide(1.0), schedule.decide(1.0)
    assert decisions == (Decision.ADVANCE, Decision.ADVANCE)
    assert twin.state_dict() == schedule.state_dict()


def test_ranks_are_compared_once_an_epoch_by_hand():
    ranks = Echo()
    schedule = BatchAttentionSchedule(ranks=ranks)
    for _ in range(2):
        for loss in (1.0, 0.5):
            schedule.decide(loss)
        schedule.end_epoch()
    assert ranks.kinds == [MessageKind.BEGIN, *[MessageKind.VISIT] * 2, MessageKind.END] * 2


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_that_skip_alike_and_refuse_the_same_loss_continue_together(ranks):
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        schedule.skip()
        with pytest.raises(LossError):
            schedule.decide("x")
        return schedule.decide(1.0), schedule.end_epoch().batches

    assert on_threads(ranks, on_rank) == [(Decision.ADVANCE, 1)] * ranks


# One decision --------------------------------------------------------------------------------------------


@given(st.data(), st.integers(2, 4), st.booleans(), OPTIONS)
def test_ranks_decide_as_one_schedule_on_the_mean(data, ranks, is_length_known, options):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    number, weight = st.floats(0, 10), st.integers(0, 5)
    table = [
        [[(data.draw(number), data.draw(weight)) for _ in range(ranks)] for _ in range(length)] for length in lengths
    ]
    for epoch in table:
        for batch in epoch:
            batch[0] = batch[0][0], batch[0][1] + 1
    # The skipped ones among the visits of each epoch; an epoch needs one batch.
    skips = [data.draw(st.sets(st.integers(1, 8))) for _ in lengths]

    def train(schedule, tell):
        made = []
        for epoch, skipped in zip(table, skips, strict=True):
            batches = range(len(epoch))
            for visit, batch in enumerate(schedule.attend(batches if is_length_known else iter(batches))):
                made.append((batch, schedule.skip() if visit in skipped else tell(schedule, epoch[batch])))
        return made, {name: value for name, value in schedule.state_dict().items() if name != "fingerprint"}

    def on_rank(rank, transport):
        def tell(schedule, batch):
            loss, samples = batch[rank]
            schedule.report(loss / 2**schedule.visits, samples=samples)
            return schedule.decide()

        return train(BatchAttentionSchedule(**options, ranks=transport), tell)

    def decide(schedule, batch):
        parts = [loss / 2**schedule.visits for loss, samples in batch if samples]
        # From Python 3.12 on, sum() compensates, and would not be the plain double sum.
        total = functools.reduce(
            operator.add, (loss / 2**schedule.visits * samples for loss, samples in batch if samples), 0.0
        )
        return schedule.decide(parts[0] if len(parts) == 1 else total / sum(samples for _, samples in batch))

    made, expected = train(BatchAttentionSchedule(**options), decide)
    for visits, state in on_threads(ranks, on_rank):
        assert visits == made
        assert state == {**expected, "ranks": ranks}


def test_no_sample_on_any_rank_is_an_error_on_each():
    def on_rank(rank, transport):
        BatchAttentionSchedule(ranks=transport).decide(math.nan, samples=0)

    for error in on_threads(3, on_rank):
        assert isinstance(error, OptionError)
        assert "samples is 0 on every rank" in str(error)


@pytest.mark.parametrize(
    ("batch", "mean"),
    [
        ([(math.nan, 0), (1.0, 3), (5.0, 1)], 2.0),
        ([(1.0, None), (2.0, None)], 1.5),
        # The loss of the only rank that has samples stays as it is.
        ([(1.0, 0), (1e308, 49)], 1e308),
        ([(1.0, 0), (0.1 + 0.2, 3)], 0.1 + 0.2),
    ],
)
def test_the_mean_is_by_samples_and_a_rank_without_samples_weighs_nothing(batch, mean):
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        loss, samples = batch[rank]
        schedule.decide(loss, samples=samples)
        return schedule.end_epoch().mean_loss

    assert on_threads(len(batch), on_rank) == [mean] * len(batch)


@pytest.mark.parametrize(
    "make",
    [functools.partial(BatchAttentionSchedule, epoch_length=3), functools.partial(EqualComputeControl, [[1, 3, 1, 2]])],
    ids=["epochs of fixed length", "a control"],
)
def test_other_schedules_decide_on_ranks_as_one_on_the_mean(make):
    def train(schedule, loss):
        made = [(batch, schedule.decide(loss)) for batch in schedule.attend(range(4))]
        return made, schedule.last_summary, schedule.batches

    expected = train(make(), 1.5)
    assert on_threads(2, lambda rank, transport: train(make(ranks=transport), 1.0 + rank)) == [expected] * 2


# Ranks that differ ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_on_one_rank_is_an_error_on_both(name):
    FAULTS[name].check(on_threads(2, FAULTS[name].act))


def differ(on_rank, ranks=2):
    """The message on each rank."""
    errors = on_threads(ranks, on_rank)
    assert [type(error) for error in errors] == [RanksDivergedError] * ranks
    return [str(error) for error in errors]


LEAVING = {
    "abandoned": lambda schedule: schedule.abandon_epoch(),
    "loaded": lambda schedule: schedule.load_state_dict(make_schedule(None).state_dict()),
    "left": lambda schedule: None,
}


@pytest.mark.parametrize("leaving", LEAVING)
def test_ranks_are_compared_again_when_an_epoch_starts_again(leaving):
    def on_rank(rank, transport):
        begin_again(transport, LEAVING[leaving], batches=5 + rank)

    for message in differ(on_rank):
        assert "as the epoch begins, the ranks differ in batches to come 5 (rank 0), 6 (rank 1). Give all" in message


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("place", [(0, 0, 1), (0, 1, 1), (0, 2, 1), (1, 1, 2)])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_visit_skipped_on_one_rank_is_an_error_on_all_that_names_it(ranks, place, calls, by_hand):
    def on_rank(rank, transport):
        acts = {place: "skip"} if rank == 1 else None
        train(rank, transport, acts, batches=3, is_known=False, calls=calls, by_hand=by_hand)

    for message in differ(on_rank, ranks):
        assert "rank 1: epoch {}, batch {}, visit {}, skipped".format(*place) in message
        assert f"{'rank 0' if ranks == 2 else 'ranks 0, 2'}: epoch" in message
        assert "Call skip() on all ranks or on none" in message


def test_a_loss_that_is_refused_in_a_later_epoch_of_fixed_length_stops_the_others():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(epoch_length=2, ranks=transport)
        for batch in schedule.attend(range(8)):
            schedule.decide([1.0, 2.0] if rank == 1 and batch == 4 else 1.0)

    in_order, refusing, also_in_order = on_threads(3, on_rank)
    assert type(refusing) is LossError
    for error in (in_order, also_in_order):
        assert "rank 1: epoch 2, batch 0, visit 1, stopped by an error of its own" in str(error)


@pytest.mark.parametrize("leaving", ["abandoned", "loaded"])
def test_ranks_train_again_after_a_skip_on_one_of_them(leaving):
    def on_rank(rank, transport):
        schedule = make_schedule(transport)
        for batch in schedule.attend(range(3)):
            if rank and batch == 1:
                # Nobody compares this message.
                schedule.skip()
                break
            try:
                schedule.decide(1.0)
            except RanksDivergedError:
                break
        LEAVING[leaving](schedule)
        return [schedule.decide(1.0) for _ in schedule.attend(range(3))]

    assert on_threads(2, on_rank) == [[Decision.ADVANCE] * 3] * 2


# Saved on one rank, loaded on all ------------------------------------------------------------------------


def test_a_state_from_the_end_of_an_epoch_resumes_on_any_number_of_ranks():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        for batch in schedule.attend(range(3)):
            schedule.decide(1.0 + batch + rank)
        return schedule.state_dict()

    state, same = on_threads(2, on_rank)
    assert state == same

    def resume(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        schedule.load_state_dict(state)
        return schedule.threshold

    assert on_threads(3, resume) == [3.0] * 3


@pytest.mark.parametrize("stop", [(0, 1), (1, 0)], ids=["in mid-epoch", "in the repeats of the first batch"])
def test_a_state_in_mid_epoch_resumes_on_as_many_ranks_alone(stop):
    losses = [1.0, 4.0, 1.0], [5.0, 4.0, 1.0]

    def train(rank, transport, state=None):
        schedule, states = BatchAttentionSchedule(ranks=transport), []
        if state is not None:
            schedule.load_state_dict(state)
        for epoch in range(schedule.epoch, 2):
            for batch in schedule.attend(range(schedule.batch_index, 3)):
                schedule.decide(rank + losses[epoch][batch] / 2**schedule.visits)
                states.append(((epoch, batch), schedule.state_dict()))
        return states

    whole, same = on_threads(2, train)
    assert whole == same
    at = [place for place, _ in whole].index(stop)
    state = whole[at][1]
    assert state["state"]["visits"] == stop[0]
    resume = functools.partial(train, state=state)
    assert on_threads(2, resume) == [whole[at + 1 :]] * 2
    for ranks in (1, 3):
        for error in on_threads(ranks, resume):
            assert isinstance(error, StateError)
            assert "saved in mid-epoch on 2 ranks" in str(error)


# Shards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("items", range(8))
def test_every_rank_has_as_many_batches_and_together_they_have_everything(items, ranks, batch_size, drop_last):
    parts = [[*Shard(rank, ranks).of(range(items), batch_size, drop_last=drop_last)] for rank in range(ranks)]
    shards = [Shard(rank, ranks) for rank in range(ranks)]
    assert [shard.length(items, batch_size, drop_last=drop_last) for shard in shards] == [*map(len, parts)]
    assert len({-(-len(part) // (batch_size or 1)) for part in parts}) == 1
    seen = {item for part in parts for item in part}
    assert seen == set(range(items - items % ranks if drop_last else items))
    # An item comes twice only where a rank would lack its last batch.
    is_batch_lacking = not drop_last and items // ranks % (batch_size or 1) == 0
    assert sum(map(len, parts)) - len(seen) == (-items % ranks if is_batch_lacking else 0)


class OfARank(list):
    """A sampler that is for a rank already."""

    rank, num_replicas = 1, 2


def test_a_shard_is_what_rank_and_world_size_say_and_not_what_the_sampler_is_already():
    assert shard_of([], None, None) is None
    assert shard_of([], None, 1) == Shard(0, 1)
    assert shard_of([], 1, 3) == Shard(1, 3)
    assert shard_of(OfARank(), 0, 1) == Shard(0, 1)
    for rank in (None, 3, -1, "1"):
        with pytest.raises(OptionError, match="it must be an int from 0 to 2"):
            shard_of([], rank, 3)
    for sampler in (OfARank(), types.SimpleNamespace(sampler=OfARank())):
        with pytest.raises(OptionError, match="is for rank 1 of 2 already"):
            shard_of(sampler, 0, 2)


def test_a_saved_shard_is_checked():
    assert unpack_shard([1, 3], Shard(0, 2), is_in_epoch=False) == Shard(1, 3)
    assert unpack_shard([1, 2], Shard(0, 2), is_in_epoch=True) == Shard(1, 2)
    with pytest.raises(StateError, match="saved in mid-epoch on 3 ranks"):
        unpack_shard([1, 3], Shard(0, 2), is_in_epoch=True)
