"""Two calls mean the same as one, without ranks too; and ranks without torch, as threads, decide alike."""

import copy
import functools
import math
import operator
import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_sampler_attn import BatchAttentionSchedule, Decision, EqualComputeControl
from batch_sampler_attn.errors import LossError, OptionError, ProtocolError, RanksDivergedError
from batch_sampler_attn.rank_messages import Message, mean_over

LOSSES = st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=6), min_size=1, max_size=4)
OPTIONS = st.fixed_dictionaries(
    {
        "k": st.sampled_from([0.8, 1.2]),
        "epoch_loss": st.sampled_from(["first", "last", "all"]),
        "max_visits": st.just(3),
    }
)


def run(schedule, epochs, tell):
    """Every visit's decision, where a batch's loss falls by half with each."""
    made = []
    for losses in epochs:
        for batch in schedule.attend(range(len(losses))):
            made.append((batch, tell(schedule, losses[batch] / 2**schedule.visits)))
    return made, schedule.state_dict()


def one_call(schedule, loss):
    return schedule.decide(loss)


def two_calls(schedule, loss):
    schedule.report(loss)
    return schedule.decide()


@given(LOSSES, OPTIONS)
def test_two_calls_are_one(epochs, options):
    made = [run(BatchAttentionSchedule(**options), epochs, tell) for tell in (one_call, two_calls)]
    assert made[0] == made[1]


def test_two_calls_in_a_hand_written_loop_with_a_key():
    schedule = BatchAttentionSchedule()
    schedule.report(1.0, batch="a")
    assert schedule.decide() is Decision.ADVANCE
    schedule.end_epoch()
    schedule.report(9.0, samples=4, batch="a")
    assert schedule.decide() is Decision.REPEAT
    with pytest.raises(ProtocolError, match="the last decision was REPEAT"):
        schedule.report(1.0, batch="b")


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([lambda s: s.decide()], "without a loss, and none was reported"),
        ([lambda s: s.report(1.0), lambda s: s.report(1.0)], r"call decide\(\) without one"),
        ([lambda s: s.report(1.0), lambda s: s.decide(1.0)], r"call decide\(\) without one"),
        ([lambda s: s.report(1.0), lambda s: s.skip()], r"call decide\(\)"),
        ([lambda s: s.report(1.0), lambda s: s.decide(samples=3)], r"give them to report\(\)"),
        ([lambda s: s.report(1.0), lambda s: s.decide(batch=3)], r"give them to report\(\)"),
        ([lambda s: s.decide(1.0), lambda s: s.report(1.0)], r"report\(\) was called twice"),
    ],
)
def test_calls_out_of_turn_are_refused_and_change_nothing(calls, words):
    schedule = BatchAttentionSchedule()
    for _ in schedule.attend([1]):
        for call in calls[:-1]:
            call(schedule)
        with pytest.raises(ProtocolError, match=words):
            calls[-1](schedule)
        if schedule.reports.is_out or schedule.batches == 0:
            if not schedule.reports.is_out:
                schedule.report(1.0)
            schedule.decide()
    assert schedule.last_summary.mean_loss == 1.0


@pytest.mark.parametrize("samples", [-1, math.nan, math.inf, "3", True, [3]])
def test_samples_that_are_no_weight_are_refused(samples):
    schedule = BatchAttentionSchedule()
    with pytest.raises(OptionError, match=r"samples is .* finite number of at least 0"):
        schedule.decide(1.0, samples=samples)
    with pytest.raises(LossError):
        schedule.report("x")
    assert schedule.decide(1.0, samples=0) is Decision.ADVANCE


@pytest.mark.parametrize("reduce", ["mean", 3, print, BatchAttentionSchedule])
def test_what_cannot_reduce_is_refused(reduce):
    with pytest.raises(OptionError, match=r"reduce is .*MeanOverRanks\(\)"):
        BatchAttentionSchedule(ranks=reduce)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_schedule_with_a_report_out_can_be_copied(copied):
    schedule = BatchAttentionSchedule()
    schedule.report(1.0)
    twin = copied(schedule)
    assert twin.decide() is schedule.decide()
    assert twin.state_dict() == schedule.state_dict()


class Echo:
    """A ``Reduce`` for one rank, whose messages are on their way until they are waited for."""

    rank, ranks = 0, 1

    def attach(self):
        pass

    def start(self, message):
        return lambda: [message]

    def gather(self, value):
        return [value]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_tells_its_ranks_anew_of_a_report_that_was_on_its_way(copied):
    schedule = BatchAttentionSchedule(ranks=Echo())
    schedule.report(1.0)
    twin = copied(schedule)
    twin.report(1.0)
    assert twin.decide() is schedule.decide()
    assert twin.state_dict() == schedule.state_dict()


def test_a_loss_on_a_device_is_not_read_before_the_decision():
    class OnDevice:
        shape = ()
        device = type("Device", (), {"type": "cuda"})
        was_read = False

        def detach(self):
            return self

        clone = detach

        def item(self):
            OnDevice.was_read = True
            return 2.0

    schedule = BatchAttentionSchedule()
    schedule.report(OnDevice())
    assert not OnDevice.was_read
    schedule.decide()
    assert OnDevice.was_read
    assert schedule.summary.mean_loss == 2.0


# Ranks as threads --------------------------------------------------------------------------------------


class Bus:
    """Takes messages between threads, in the order in which each sends them."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.sent = [[] for _ in range(ranks)]
        self.condition = threading.Condition()

    def exchange(self, rank, value):
        with self.condition:
            self.sent[rank].append(value)
            turn = len(self.sent[rank])
            self.condition.notify_all()

        def wait():
            with self.condition:
                assert self.condition.wait_for(lambda: all(len(sent) >= turn for sent in self.sent), timeout=20)
                return [sent[turn - 1] for sent in self.sent]

        return wait


class OverBus:
    """A ``Reduce`` that needs no torch."""

    def __init__(self, bus, rank):
        self.bus, self.rank, self.ranks = bus, rank, bus.ranks

    def attach(self):
        pass

    def start(self, message):
        return self.bus.exchange(self.rank, message._replace(loss=float(message.loss)))

    def gather(self, value):
        return self.bus.exchange(self.rank, value)()


def on_threads(ranks, work):
    """What ``work(rank, reduce)`` returned, or raised, for each rank."""
    bus, results = Bus(ranks), [None] * ranks

    def run(rank):
        try:
            results[rank] = work(rank, OverBus(bus, rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@given(st.data(), st.integers(2, 4), OPTIONS)
def test_ranks_decide_as_one_schedule_that_is_told_the_mean(data, ranks, options):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    number, weight = st.floats(0, 10), st.integers(0, 5)
    table = [
        [[(data.draw(number), data.draw(weight)) for _ in range(ranks)] for _ in range(length)] for length in lengths
    ]
    for epoch in table:
        for batch in epoch:
            batch[0] = batch[0][0], batch[0][1] + 1

    def on_rank(rank, reduce):
        schedule, made = BatchAttentionSchedule(**options, ranks=reduce), []
        for epoch in table:
            for batch in schedule.attend(range(len(epoch))):
                loss, samples = epoch[batch][rank]
                schedule.report(loss / 2**schedule.visits, samples=samples)
                made.append((batch, schedule.decide()))
        return made, schedule.state_dict()

    single, made = BatchAttentionSchedule(**options), []
    for epoch in table:
        for batch in single.attend(range(len(epoch))):
            # Not sum(): from Python 3.12 on it compensates, and would not be the plain double sum.
            total = functools.reduce(
                operator.add, (loss / 2**single.visits * samples for loss, samples in epoch[batch] if samples), 0.0
            )
            parts = [loss / 2**single.visits for loss, samples in epoch[batch] if samples]
            mean = parts[0] if len(parts) == 1 else total / sum(samples for _, samples in epoch[batch])
            made.append((batch, single.decide(mean)))
    expected = single.state_dict()
    for visits, state in on_threads(ranks, on_rank):
        assert visits == made
        assert state == {**expected, "ranks": ranks}


def test_no_sample_on_any_rank_is_an_error_on_each():
    def on_rank(rank, reduce):
        BatchAttentionSchedule(ranks=reduce).decide(math.nan, samples=0)

    for error in on_threads(3, on_rank):
        assert isinstance(error, OptionError)
        assert "samples is 0 on every rank" in str(error)


def test_a_rank_without_samples_weighs_nothing_whatever_its_loss_is():
    messages = [Message(2, 0, 0, 1, 0, samples, loss) for samples, loss in ((0, math.nan), (3, 1.0), (1, 5.0))]
    assert mean_over(messages) == 2.0


@pytest.mark.parametrize("loss", [1e308, 0.1 + 0.2, math.inf])
def test_the_loss_of_the_only_rank_with_samples_is_left_as_it_is(loss):
    messages = [Message(2, 0, 0, 1, 0, samples, of_rank) for samples, of_rank in ((0, 1.0), (49, loss))]
    assert mean_over(messages) == loss


def test_many_ranks_are_named_by_their_place():
    def on_rank(rank, reduce):
        schedule = BatchAttentionSchedule(ranks=reduce)
        for _ in schedule.attend(iter(range(2 + (rank == 3)))):
            schedule.decide(1.0)

    for error in on_threads(8, on_rank):
        assert isinstance(error, RanksDivergedError)
        assert "7 ranks from 0 to 7: ended epoch 0 after 2 batches; rank 3: epoch 0, batch 2, visit 1" in str(error)


def test_windows_end_alike_and_a_control_is_dealt_alike():
    def on_rank(rank, reduce):
        schedule = BatchAttentionSchedule(epoch_length=2, ranks=reduce)
        for _ in schedule.attend(range(5)):
            schedule.decide(1.0 + rank)
        return schedule.threshold, schedule.epoch, schedule.batches

    assert on_threads(2, on_rank) == [(pytest.approx(1.8), 2, 1)] * 2

    def on_rank_of_control(rank, reduce):
        schedule = EqualComputeControl([[1, 3, 1, 2]], ranks=reduce)
        made = [(batch, schedule.decide(1.0 + rank)) for batch in schedule.attend(range(4))]
        return made, schedule.last_summary.mean_loss

    (made, mean), other = on_threads(2, on_rank_of_control)
    assert other == (made, mean)
    assert len(made) == 7
    assert mean == 1.5


def test_a_state_saved_by_one_rank_goes_on_on_all_and_in_mid_epoch_on_as_many():
    def begun(rank, reduce):
        schedule = BatchAttentionSchedule(ranks=reduce)
        for stop in (3, 2):
            for batch in schedule.attend(range(3)):
                schedule.decide(1.0 + batch + rank)
                if schedule.batches == stop:
                    return schedule.state_dict()
        raise AssertionError

    middle, same = on_threads(2, begun)
    assert middle == same

    def go_on(rank, reduce):
        schedule = BatchAttentionSchedule(ranks=reduce)
        schedule.load_state_dict(middle)
        for batch in schedule.attend(iter(range(schedule.batch_index, 3))):
            schedule.decide(1.0 + batch + rank)
        return schedule.state_dict()

    ended, also = on_threads(2, go_on)
    assert ended == also
    assert ended["last_summary"]["mean_loss"] == 2.5

    for ranks in (1, 3):
        for error in on_threads(ranks, go_on):
            assert "in the middle of an epoch of 2 ranks" in str(error)

    def from_epochs_end(rank, reduce):
        schedule = BatchAttentionSchedule(ranks=reduce)
        schedule.load_state_dict(ended)
        return schedule.threshold

    assert on_threads(3, from_epochs_end) == [3.0] * 3


def test_a_state_from_the_repeats_of_an_epoch_s_first_batch_goes_on_on_as_many_ranks_alone():
    def begun(rank, reduce):
        schedule = BatchAttentionSchedule(1.0, ranks=reduce)
        for loss in (1.0, 2.0):
            for _ in schedule.attend([0]):
                if schedule.decide(loss) is Decision.REPEAT:
                    return schedule.state_dict()
        raise AssertionError

    state, _ = on_threads(2, begun)
    assert (state["state"]["batches"], state["state"]["visits"]) == (0, 1)

    def loaded(rank, reduce):
        schedule = BatchAttentionSchedule(1.0, ranks=reduce)
        schedule.load_state_dict(state)
        return schedule.visits

    assert on_threads(2, loaded) == [1, 1]
    for ranks in (1, 3):
        for error in on_threads(ranks, loaded):
            assert "in the middle of an epoch of 2 ranks" in str(error)


def test_an_epoch_does_not_end_between_a_report_and_its_decision():
    schedule = BatchAttentionSchedule()
    schedule.decide(1.0)
    schedule.report(2.0)
    with pytest.raises(ProtocolError, match=r"after report\(\) had told a visit's loss; call decide\(\) first"):
        schedule.end_epoch()
    assert schedule.decide() is Decision.ADVANCE
    assert schedule.end_epoch().mean_loss == 1.5
