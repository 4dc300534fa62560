"""Schedules in mid-training, and an epoch of given losses."""

import copy
import pickle

import pytest
from hypothesis import strategies as st

from batch_sampler_attn import BatchAttentionSchedule

SKIP = "skip"

OPTIONS = st.fixed_dictionaries(
    {
        "k": st.sampled_from([0.8, 1.2]),
        "epoch_loss": st.sampled_from(["first", "last", "all"]),
        "max_visits": st.just(3),
    }
)

# Ways to copy a schedule, with or without what uses it.
COPIES = [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]


def schedule_with_threshold(threshold=1.0, **options):
    schedule = BatchAttentionSchedule(1.0, **options)
    schedule.decide(threshold)
    schedule.end_epoch()
    return schedule


def tell(schedule, loss):
    if loss is SKIP:
        schedule.skip()
    else:
        schedule.decide(loss)


def run_epoch(schedule, loader, losses):
    """The batches that one pass yields, where each visit takes the next of ``losses``, or is skipped at SKIP."""
    losses = iter(losses)
    seen = []
    for batch in schedule.attend(loader):
        seen.append(batch)
        index = schedule.batch_index
        tell(schedule, next(losses))
        assert schedule.batch_index == index
    assert next(losses, None) is None
    return seen


def stop_epoch(schedule, loader, losses):
    """The batches that a pass yields up to the visit of the last of ``losses``, where its loop is left."""
    seen = []
    for batch, loss in zip(schedule.attend(loader), losses, strict=False):
        seen.append(batch)
        tell(schedule, loss)
        if len(seen) == len(losses):
            break
    return seen


def resumed_from(schedule, **options):
    """Another schedule with the state of ``schedule``."""
    resumed = BatchAttentionSchedule(1.0, **options)
    resumed.load_state_dict(schedule.state_dict())
    return resumed


def loader_through_a_sampler(schedule, samples, repeats, **options):
    """Batches of two, in order; skips the test where there is no torch."""
    data = pytest.importorskip("torch.utils.data")
    from batch_sampler_attn import BatchAttentionSampler

    sampler = BatchAttentionSampler(data.SequentialSampler(samples), 2, schedule=schedule, repeats=repeats)
    return data.DataLoader(samples, batch_sampler=sampler, **options)
