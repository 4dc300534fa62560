"""Ranks decide alike or raise errors at once, whatever carries their messages; here, threads without torch."""

import copy
import functools
import math
import operator
import pickle
import sys
import threading
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_sampler_attn import BatchAttentionSchedule, Decision, EqualComputeControl
from batch_sampler_attn.errors import LossError, OptionError, ProtocolError, RanksDivergedError, StateError
from batch_sampler_attn.ranks import (
    UNWEIGHTED,
    MessageKind,
    RankMessage,
    Shard,
    check_same_place,
    shard_of,
    unpack_shard,
    weighted_mean,
)
from tests.distributed.threads import SECONDS, on_threads

OPTIONS = st.fixed_dictionaries(
    {
        "k": st.sampled_from([0.8, 1.2]),
        "epoch_loss": st.sampled_from(["first", "last", "all"]),
        "max_visits": st.just(3),
    }
)


def loss_message(samples, loss):
    return RankMessage(MessageKind.VISIT, 0, 0, 1, samples=samples, loss=loss)


# The option ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", ["mean", 3, print, BatchAttentionSchedule])
def test_what_cannot_carry_messages_is_refused(ranks):
    with pytest.raises(OptionError, match=r"ranks is .*MeanOverRanks\(\)"):
        BatchAttentionSchedule(ranks=ranks)


@pytest.mark.parametrize("world", [1, 4])
def test_a_schedule_without_the_option_is_refused_among_several_ranks(monkeypatch, world):
    group = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: world)
    monkeypatch.setitem(sys.modules, "torch.distributed", group)
    attended = BatchAttentionSchedule().attend("a")
    if world == 1:
        assert [attended.schedule.decide(1.0) for _ in attended] == [Decision.ADVANCE]
    else:
        with pytest.raises(ProtocolError, match="one of 4 in a process group"):
            next(iter(attended))
    monkeypatch.delitem(sys.modules, "torch.distributed")
    assert next(iter(BatchAttentionSchedule().attend("a"))) == "a"


class Echo:
    """A transport of one rank, whose messages are on their way until they are waited for."""

    rank, ranks = 0, 1

    def claim(self):
        pass

    def start(self, message):
        return lambda: [message]

    def gather(self, value):
        return [value]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_reports_again_a_loss_that_was_on_its_way(copied):
    schedule = BatchAttentionSchedule(ranks=Echo())
    schedule.report(1.0)
    twin = copied(schedule)
    twin.report(1.0)
    assert twin.decide() is schedule.decide()
    assert twin.state_dict() == schedule.state_dict()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_after_a_skip_has_no_messages_on_their_way(copied):
    schedule = BatchAttentionSchedule(ranks=Echo())
    schedule.skip()
    twin = copied(schedule)
    assert twin.decide(1.0) is schedule.decide(1.0)
    assert twin.state_dict() == schedule.state_dict()


def test_ranks_are_compared_once_an_epoch_by_hand():
    kinds = []

    class Counting(Echo):
        def start(self, message):
            kinds.append(message.kind)
            return super().start(message)

    schedule = BatchAttentionSchedule(ranks=Counting())
    for _ in range(2):
        for loss in (1.0, 0.5):
            schedule.decide(loss)
        schedule.end_epoch()
    assert kinds == [MessageKind.BEGIN, *[MessageKind.VISIT] * 2, MessageKind.END] * 2


def test_a_rank_alone_may_go_on_after_a_loss_that_was_refused_and_after_a_skip():
    schedule = BatchAttentionSchedule(ranks=Echo())
    schedule.skip()
    with pytest.raises(LossError):
        schedule.decide("x")
    assert schedule.decide(1.0) is Decision.ADVANCE
    assert schedule.end_epoch().batches == 1


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


def test_a_rank_without_samples_weighs_nothing_whatever_its_loss_is():
    assert weighted_mean([loss_message(0, math.nan), loss_message(3, 1.0), loss_message(1, 5.0)]) == 2.0


@pytest.mark.parametrize("loss", [1e308, 0.1 + 0.2, math.inf])
def test_the_loss_of_the_only_rank_with_samples_is_left_as_it_is(loss):
    assert weighted_mean([loss_message(0, 1.0), loss_message(49, loss)]) == loss


def test_samples_on_some_ranks_alone_are_refused():
    with pytest.raises(RanksDivergedError, match="not given on rank 1; give it on all ranks or on none"):
        weighted_mean([loss_message(4.0, 1.0), loss_message(UNWEIGHTED, 1.0)])


def test_windows_end_alike_and_a_control_repeats_alike():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(epoch_length=2, ranks=transport)
        for _ in schedule.attend(range(5)):
            schedule.decide(1.0 + rank)
        return schedule.threshold, schedule.epoch, schedule.state_dict()["state"]["batches"]

    assert on_threads(2, on_rank) == [(pytest.approx(1.8), 2, 1)] * 2

    def on_rank_of_control(rank, transport):
        schedule = EqualComputeControl([[1, 3, 1, 2]], ranks=transport)
        made = [(batch, schedule.decide(1.0 + rank)) for batch in schedule.attend(range(4))]
        return made, schedule.last_summary.mean_loss

    (made, mean), other = on_threads(2, on_rank_of_control)
    assert other == (made, mean)
    assert len(made) == 7
    assert mean == 1.5


# Ranks that differ ---------------------------------------------------------------------------------------


def differ(on_rank, ranks=2):
    """The message on each rank, all of them raised before any rank's patience ended."""
    errors = on_threads(ranks, on_rank)
    assert [type(error) for error in errors] == [RanksDivergedError] * ranks
    return [str(error) for error in errors]


def test_ranks_that_begin_an_epoch_with_different_options_name_them():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(1.2 if rank else 1.0, ranks=transport)
        for _ in schedule.attend(range(2)):
            schedule.decide(1.0)

    for message in differ(on_rank):
        assert "the ranks differ in k 1.0 (rank 0), 1.2 (rank 1)." in message


@pytest.mark.parametrize("leave", ["abandon_epoch", "load_state_dict", "break"])
def test_ranks_are_compared_again_when_an_epoch_starts_again(leave):
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        saved = schedule.state_dict()
        for batch in schedule.attend(range(4)):
            schedule.decide(1.0)
            if batch == 1:
                break
        if leave == "abandon_epoch":
            schedule.abandon_epoch()
        elif leave == "load_state_dict":
            schedule.load_state_dict(saved)
        # The same visits on both ranks, as far as they come: only the comparison of lengths can find it.
        for _ in schedule.attend(range(4 + rank)):
            schedule.decide(1.0)

    for message in differ(on_rank):
        assert "as the epoch begins, the ranks differ in batches to come 4 (rank 0), 5 (rank 1)" in message


def test_states_with_other_thresholds_are_found_as_the_next_epoch_begins():
    def on_rank(rank, transport):
        alone = BatchAttentionSchedule(ranks=None)
        for _ in alone.attend(range(2)):
            alone.decide(1.0 + rank)
        saved = alone.state_dict()
        schedule = BatchAttentionSchedule(ranks=transport)
        for _ in zip(schedule.attend(range(2)), range(1), strict=False):
            schedule.decide(1.0)
        schedule.load_state_dict(saved)
        for _ in schedule.attend(range(2)):
            schedule.decide(0.5)

    for message in differ(on_rank):
        assert "the ranks differ in threshold 1.2 (rank 0), 2.4 (rank 1)" in message


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_batch_skipped_on_one_rank_is_an_error_on_all_that_names_it(ranks, batch, calls, by_hand):
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        for position in range(3) if by_hand else schedule.attend(iter(range(3))):
            if rank == 1 and position == batch:
                schedule.skip()
            elif calls == 1:
                schedule.decide(1.0)
            else:
                schedule.report(1.0)
                schedule.decide()
        schedule.end_epoch()

    for message in differ(on_rank, ranks):
        assert f"rank 1: epoch 0, batch {batch}, visit 1, skipped" in message
        assert "Call skip() on all ranks or on none" in message


def test_a_repeat_skipped_on_one_rank_is_an_error_on_all():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        for losses in ([1.0, 1.0], [3.0, 1.0]):
            for batch in schedule.attend(range(2)):
                if rank and schedule.visits:
                    schedule.skip()
                else:
                    schedule.decide(losses[batch])

    for message in differ(on_rank):
        assert "rank 0: epoch 1, batch 0, visit 2; rank 1: epoch 1, batch 0, visit 2, skipped" in message


def test_a_rank_at_the_end_hears_of_a_batch_more_before_that_batch_is_trained_on():
    has_raised = threading.Event()

    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        try:
            for batch in schedule.attend(iter(range(3 + rank))):
                # As inside a collective of DDP, where a rank that is alone waits for ever.
                assert batch < 3 or has_raised.wait(SECONDS)
                schedule.decide(1.0)
        except RanksDivergedError:
            has_raised.set()
            raise

    for message in differ(on_rank):
        assert "rank 0: ended epoch 0 after 3 batches; rank 1: epoch 0, has a batch 3" in message


def test_a_rank_that_refuses_its_loss_stops_the_others():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        for _ in schedule.attend(range(2)):
            schedule.decide([1.0, 2.0] if rank == 1 else 1.0, samples=4)

    well, refusing = on_threads(2, on_rank)
    assert isinstance(refusing, LossError)
    assert "rank 1: epoch 0, batch 0, visit 1, stopped by an error of its own" in str(well)


def test_a_rank_that_goes_on_after_a_refused_loss_is_stopped_too():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        if rank:
            with pytest.raises(LossError):
                schedule.decide("x")
        schedule.decide(1.0)

    for message in differ(on_rank):
        assert "rank 0: epoch 0, batch 0, visit 1; rank 1: epoch 0, batch 0, visit 1, stopped" in message


def test_ranks_that_refuse_the_same_loss_may_go_on_together():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        with pytest.raises(LossError):
            schedule.decide("x")
        return schedule.decide(1.0)

    assert on_threads(2, on_rank) == [Decision.ADVANCE] * 2


def test_ranks_train_again_after_a_skip_on_one_of_them_and_a_loaded_state():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        saved = schedule.state_dict()
        try:
            for batch in schedule.attend(range(3)):
                if rank and batch == 1:
                    schedule.skip()
                else:
                    schedule.decide(1.0)
            raise AssertionError
        except RanksDivergedError:
            schedule.load_state_dict(saved)
        return [schedule.decide(1.0) for _ in schedule.attend(range(3))]

    assert on_threads(2, on_rank) == [[Decision.ADVANCE] * 3] * 2


def test_a_skip_that_nobody_answers_is_forgotten_with_its_epoch():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        for batch in schedule.attend(range(3)):
            if rank and batch == 1:
                schedule.skip()
                break
            try:
                schedule.decide(1.0)
            except RanksDivergedError:
                break
        schedule.abandon_epoch()
        return [schedule.decide(1.0) for _ in schedule.attend(range(3))]

    assert on_threads(2, on_rank) == [[Decision.ADVANCE] * 3] * 2


def test_every_rank_at_a_place_is_named():
    def on_rank(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        for _ in schedule.attend(iter(range(2 + (rank == 3)))):
            schedule.decide(1.0)

    for message in differ(on_rank, 6):
        assert "ranks 0, 1, 2, 4, 5: ended epoch 0 after 2 batches; rank 3: epoch 0, has a batch 2" in message


def test_other_visits_to_one_batch_are_other_places():
    message = loss_message(1.0, 0.5)
    with pytest.raises(
        RanksDivergedError, match=r"rank 0: epoch 0, batch 0, visit 1; rank 1: epoch 0, batch 0, visit 2"
    ):
        check_same_place([message, message._replace(visit=2)])


def test_a_message_says_where_its_rank_is():
    assert str(RankMessage(MessageKind.BEGIN, 1, 3, 2)) == "begins epoch 1 at batch 3 after 2 visits"


# Saved on one rank, loaded on all ------------------------------------------------------------------------


def test_a_state_saved_by_one_rank_resumes_on_all_and_in_mid_epoch_on_as_many():
    def begun(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        for stop in (2, 1):
            for batch in schedule.attend(range(3)):
                schedule.decide(1.0 + batch + rank)
                if batch == stop and stop == 1:
                    return schedule.state_dict()
        raise AssertionError

    middle, same = on_threads(2, begun)
    assert middle == same

    def resume(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        schedule.load_state_dict(middle)
        for batch in schedule.attend(iter(range(schedule.batch_index, 3))):
            schedule.decide(1.0 + batch + rank)
        return schedule.state_dict()

    ended, also = on_threads(2, resume)
    assert ended == also
    assert ended["last_summary"]["mean_loss"] == 2.5

    for ranks in (1, 3):
        for error in on_threads(ranks, resume):
            assert "saved in mid-epoch on 2 ranks" in str(error)

    def from_epochs_end(rank, transport):
        schedule = BatchAttentionSchedule(ranks=transport)
        schedule.load_state_dict(ended)
        return schedule.threshold

    assert on_threads(3, from_epochs_end) == [3.0] * 3


def test_a_state_from_the_repeats_of_an_epoch_s_first_batch_resumes_on_as_many_ranks_alone():
    def begun(rank, transport):
        schedule = BatchAttentionSchedule(1.0, ranks=transport)
        for loss in (1.0, 2.0):
            for _ in schedule.attend([0]):
                if schedule.decide(loss) is Decision.REPEAT:
                    return schedule.state_dict()
        raise AssertionError

    state, _ = on_threads(2, begun)
    assert (state["state"]["batches"], state["state"]["visits"]) == (0, 1)

    def loaded(rank, transport):
        schedule = BatchAttentionSchedule(1.0, ranks=transport)
        schedule.load_state_dict(state)
        return schedule.visits

    assert on_threads(2, loaded) == [1, 1]
    for ranks in (1, 3):
        for error in on_threads(ranks, loaded):
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
