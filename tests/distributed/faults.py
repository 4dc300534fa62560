"""What goes wrong on one rank of two, with the error on each: rows of the table in docs/ranks.md."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import LossError, ProtocolError, RanksDivergedError

BATCHES = 5
# Some batches repeat in the second epoch.
LOSSES = [1.0, 4.0, 1.0, 2.0, 1.0]


def make_schedule(transport, k=1.2):
    return BatchAttentionSchedule(k, max_visits=3, ranks=transport)


def train(rank, transport, acts=None, *, k=1.2, batches=BATCHES, is_known=True, by_hand=False, calls=2):
    """Two epochs; the batch of each visit, and the threshold afterwards.

    ``acts`` says what this rank does instead at (epoch, batch, visit): "skip", "leave out", "refuse", or a function
    that it calls first.
    """
    schedule, visited, acts = make_schedule(transport, k), [], acts or {}
    for epoch in range(2):
        if by_hand:
            for batch in range(batches):
                while visit(schedule, rank, acts, batch, visited, calls) is Decision.REPEAT:
                    pass
            schedule.end_epoch()
        else:
            for batch in schedule.attend(range(batches) if is_known else iter(range(batches))):
                visit(schedule, rank, acts, batch, visited, calls)
        assert schedule.epoch == epoch + 1
    return visited, schedule.threshold


def visit(schedule, rank, acts, batch, visited, calls):
    act = acts.get((schedule.epoch, batch, schedule.visits + 1))
    if act == "skip":
        return schedule.skip()
    if act == "leave out":
        return None
    if callable(act):
        act()
    visited.append(batch)
    loss = [1.0, 2.0] if act == "refuse" else LOSSES[batch % len(LOSSES)] + rank
    if calls == 1:
        return schedule.decide(loss, samples=4 - rank)
    schedule.report(loss, samples=4 - rank)
    return schedule.decide()


def other_threshold(rank, transport):
    alone, schedule = make_schedule(None), make_schedule(transport)
    for _ in alone.attend(range(BATCHES)):
        alone.decide(1.0 + rank)
    schedule.load_state_dict(alone.state_dict())
    next(iter(schedule.attend(range(BATCHES))))


def begin_again(transport, then, batches=BATCHES):
    """Train on two batches, do ``then`` to the schedule, and begin an epoch of so many batches."""
    schedule = make_schedule(transport)
    for batch in schedule.attend(range(BATCHES)):
        schedule.decide(1.0)
        if batch == 1:
            break
    then(schedule)
    next(iter(schedule.attend(range(batches))))


def other_state_loaded(rank, transport):
    saved = make_schedule(None).state_dict()
    begin_again(transport, lambda schedule: schedule.load_state_dict(schedule.state_dict() if rank else saved), 3)


def samples_on_one_rank(rank, transport):
    make_schedule(transport).decide(1.0, samples=None if rank else 3)


class Fault(NamedTuple):
    """What each rank does, the kinds of the errors of both, and a pattern of the first rank's message."""

    act: Callable[..., Any]
    errors: tuple[type[Exception], type[Exception]]
    words: str

    def check(self, raised):
        # A rank that waited in vain would have raised RankTimeoutError.
        assert tuple(map(type, raised)) == self.errors
        assert re.search(self.words, str(raised[0]))


DIVERGED = (RanksDivergedError, RanksDivergedError)


def diverged(words, place=None, act=None, *, more=0, k=0.0, **options):
    """A training in which rank 1 acts at a place, has more batches, or another ``k``."""

    def both(rank, transport):
        acts = {place: act} if rank else None
        train(rank, transport, acts, batches=BATCHES + more * rank, k=1.2 + k * rank, **options)

    return Fault(both, DIVERGED, words)


FAULTS = {
    "other options": diverged(r"differ in k 1\.2 \(rank 0\), 1\.3 \(rank 1\)", k=0.1),
    "other options by hand": diverged(r"differ in k 1\.2 \(rank 0\), 1\.3 \(rank 1\)", k=0.1, by_hand=True),
    "other threshold": Fault(other_threshold, DIVERGED, r"differ in threshold 1\.2 \(rank 0\), 2\.4 \(rank 1\)"),
    "one batch more": diverged(r"differ in batches to come 5 \(rank 0\), 6 \(rank 1\)", more=1),
    "one batch more unknown": diverged(
        "rank 0: ended epoch 0 after 5 batches; rank 1: epoch 0, has a batch 5", more=1, is_known=False
    ),
    "one batch more by hand": diverged(
        "rank 0: ended epoch 0 after 5 batches; rank 1: epoch 0, batch 5, visit 1", more=1, by_hand=True
    ),
    "a batch skipped": diverged(
        r"rank 1: epoch 1, batch 2, visit 1, skipped\). Call skip\(\) on all ranks", (1, 2, 1), "skip"
    ),
    "the last batch skipped": diverged(
        "rank 0: epoch 1, batch 4, visit 1; rank 1: epoch 1, batch 4, visit 1, skipped", (1, 4, 1), "skip", calls=1
    ),
    "the first batch skipped by hand": diverged(
        "rank 0: epoch 0, batch 0, visit 1; rank 1: epoch 0, batch 0, visit 1, skipped", (0, 0, 1), "skip", by_hand=True
    ),
    "a call left out by hand": diverged(
        "rank 0: epoch 0, batch 4, visit 1; rank 1: ended epoch 0 after 4 batches", (0, 2, 1), "leave out", by_hand=True
    ),
    # The loop of the rank at fault notices, and the other rank is notified.
    "a call left out": diverged("rank 1: epoch 0, batch 2, visit 1, stopped by", (0, 2, 1), "leave out")._replace(
        errors=(RanksDivergedError, ProtocolError)
    ),
    "a loss refused": diverged("rank 1: epoch 1, batch 2, visit 1, stopped by", (1, 2, 1), "refuse")._replace(
        errors=(RanksDivergedError, LossError)
    ),
    "other length after an epoch abandoned": Fault(
        lambda rank, transport: begin_again(transport, lambda schedule: schedule.abandon_epoch(), BATCHES + rank),
        DIVERGED,
        r"differ in batches to come 5 \(rank 0\), 6 \(rank 1\)",
    ),
    "other state loaded in an epoch": Fault(
        other_state_loaded, DIVERGED, "rank 0: begins epoch 0 at batch 0 after 0 visits; rank 1: .* at batch 2"
    ),
    "samples on one rank": Fault(samples_on_one_rank, DIVERGED, "samples= was not given on rank 1; give it on all"),
}
