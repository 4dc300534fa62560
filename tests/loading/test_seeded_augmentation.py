"""Augmentation that follows from the visit alone: the same after a resume, with any workers; other at other visits."""

import itertools
import json
import random
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    SequentialSampler,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, SampleAttention, SeededDataset
from batch_sampler_attn.errors import BatchAttentionWarning
from tests.loading.helpers import FORKING_IS_FINE, LooksAhead, no_deadlock

pytestmark = [*FORKING_IS_FINE, pytest.mark.usefixtures("one_thread")]
__all__ = ["no_deadlock"]

SAMPLES = 12


class Draws(Dataset):
    """Draws from all generators that augmentation is drawn from."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        draws = [torch.rand((), dtype=torch.float64).item(), random.random(), np.random.random()]  # noqa: NPY002
        return torch.tensor([index, *draws], dtype=torch.float64)


class DrawsInBatches(Draws):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def run(dataset, epochs=3, *, repeats="immediate", seed=0, wrap=lambda loader: loader, window=None, **options):
    """What each visit draws, by (epoch, position, visit, index)."""
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last", epoch_length=window)
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3, schedule=schedule, repeats=repeats)
    loader = DataLoader(SeededDataset(dataset, seed), batch_sampler=sampler, **options)
    draws = {}
    for epoch in range(epochs):
        for batch in schedule.attend(wrap(loader)):
            for index, *drawn in batch.tolist():
                draws[epoch, schedule.batch_index, schedule.visits, int(index)] = tuple(drawn)
            schedule.decide(2.0 if epoch and schedule.batch_index % 2 and schedule.visits < 2 else 1.0)
    return draws


def check_all_differ(draws):
    for drawn in zip(*draws.values(), strict=True):
        assert len(set(drawn)) == len(draws)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 0, "repeats": "deferred"},
        {"num_workers": 1},
        {"num_workers": 3, "persistent_workers": True, "repeats": "deferred"},
        {"num_workers": 1, "repeats": "deferred", "wrap": LooksAhead},
        pytest.param(
            {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_draws_are_those_of_the_visit_in_any_process(options):
    expected = run(Draws())
    assert len(expected) == 3 * SAMPLES + 2 * 2 * 2 * 3
    check_all_differ(expected)
    assert run(DrawsInBatches() if "num_workers" in options else Draws(), **options) == expected


def test_draws_follow_from_the_seed():
    assert run(DrawsInBatches()) == run(Draws(), seed=0)
    assert not {*run(Draws(), seed=1).values()} & {*run(Draws()).values()}


def test_two_passes_within_one_window_draw_otherwise():
    draws = run(Draws(), window=100)
    assert len(draws) == 3 * SAMPLES
    check_all_differ(draws)


def states():
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002


class Breaks(Draws):
    def __getitem__(self, index):
        return super().__getitem__(index) if index < 6 else [][index]


def test_the_global_generators_of_the_training_process_do_not_change():
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3)
    loader = DataLoader(SeededDataset(Breaks()), batch_sampler=sampler, generator=torch.Generator())
    batches, before = iter(sampler.schedule.attend(loader)), states()
    for _ in range(2):
        next(batches)
        assert states() == before
        sampler.schedule.decide(1.0)
    with pytest.raises(IndexError):
        next(batches)
    assert states() == before


def test_batches_of_no_visit_draw_from_the_global_generators():
    torch.manual_seed(2)
    expected = [Draws()[index][1] for index in range(SAMPLES)]
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3)
    for options in ({"batch_size": 3}, {"batch_sampler": sampler}):
        torch.manual_seed(2)
        loader = DataLoader(SeededDataset(Draws()), generator=torch.Generator(), **options)
        assert [drawn for batch in loader for drawn in batch[:, 1]] == expected


# Inside another data set ----------------------------------------------------------------------------------------


class Wrapped(Dataset):
    """A data set of the user's around another one."""

    def __init__(self, inside):
        self.base = inside
        self.itself = self
        self.transform = None

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return self.base[index]


class Parts(Wrapped):
    """One that keeps others in collections."""

    def __init__(self, inside):
        super().__init__(None)
        self.parts = {"first": inside, "second": inside}

    def __getitem__(self, index):
        return self.parts["first"][index]


WRAPPERS = {
    "Subset": lambda dataset: Subset(dataset, range(SAMPLES)),
    "random_split": lambda dataset: random_split(dataset, [SAMPLES], torch.Generator())[0],
    "ConcatDataset": lambda dataset: ConcatDataset([dataset]),
    "StackDataset": lambda dataset: StackDataset(dataset),
    "StackDataset by name": lambda dataset: StackDataset(numbers=dataset),
    "of the user's": Wrapped,
    "two of the user's": lambda dataset: Parts(Wrapped(dataset)),
}


def attended(dataset, **options):
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3)
    for batch in sampler.schedule.attend(DataLoader(dataset, batch_sampler=sampler, **options)):
        sampler.schedule.decide(1.0)
        yield batch


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_seeded_data_set_inside_another_one_warns_and_around_it_has_its_effect(wrap):
    words = r"SeededDataset inside a \w+ has no effect.*SeededDataset\(Subset\("
    with pytest.warns(BatchAttentionWarning, match=words):
        list(attended(wrap(SeededDataset(Draws()))))

    def draws(workers):
        return [str(batch) for batch in attended(SeededDataset(wrap(Draws())), num_workers=workers)]

    assert draws(0) == draws(1)


class Hidden(Dataset):
    """One in which a data set cannot be found; its items are the warnings that come as they are read."""

    def __init__(self, inside):
        self.get = lambda index: inside[index]

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.get(index)
        return [str(warning.message) for warning in said]


def test_a_worker_warns_that_a_seeded_data_set_has_no_effect():
    batches = [*attended(Hidden(SeededDataset(Draws())), num_workers=1, collate_fn=list)]
    for warned in itertools.chain(*batches):
        assert len(warned) == 1
        assert warned[0].startswith(
            "a SeededDataset has no effect on the batches of a worker. It must be the data set of"
        )


def test_data_sets_without_a_seeded_one_are_read_without_a_warning():
    list(attended(Wrapped(Draws())))
    list(attended(ConcatDataset([TensorDataset(torch.zeros(SAMPLES, 1)), Subset(Draws(), [0])])))


# After a resume -------------------------------------------------------------------------------------------------


def in_windows(repeats):
    schedule = BatchAttentionSchedule(1.0, epoch_length=3, epoch_loss="last")
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3, schedule=schedule, repeats=repeats)

    def report(batch):
        schedule.decide(1.5 if schedule.batch_index == 2 and schedule.visits < 1 else 1.0)

    return sampler, schedule.attend, report


def to_samples():
    attention = SampleAttention(SAMPLES, 3, k=1.2, updates=5)
    return attention, attention.attend, lambda batch: attention.report([1.0 + index % 4 for index in attention.indices])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "build",
    [lambda: in_windows("immediate"), lambda: in_windows("deferred"), to_samples],
    ids=["immediate", "deferred", "samples"],
)
def test_a_resumed_run_has_the_same_draws_in_windows_and_with_attention_to_samples(build, workers):
    def passes(sampler, attend, report, number):
        loader = DataLoader(SeededDataset(Draws()), batch_sampler=sampler, num_workers=workers)
        for _ in range(number):
            for batch in attend(loader):
                report(batch)
                yield batch.tolist(), json.dumps(sampler.state_dict())

    drawn, states = zip(*passes(*build(), 5), strict=True)
    assert len({str(item) for batch in drawn for item in batch}) == 3 * len(drawn)
    for done in (4,) if workers else (1, 4, 8):
        sampler, attend, report = build()
        sampler.load_state_dict(json.loads(states[done - 1]))
        again = [batch for batch, _ in passes(sampler, attend, report, 2)]
        assert len(again) >= SAMPLES // 3
        assert again == [*drawn[done : done + len(again)]]
