"""Augmentation that follows from the visit alone: the same after a resume, with any workers; other at other visits."""

import random
import subprocess
import sys

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
from torchdata.stateful_dataloader import StatefulDataLoader

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.errors import BatchAttentionWarning
from batch_sampler_attn.loading.seeded import SeededDataset
from tests.loading.helpers import (
    FORKING_IS_FINE,
    TORCHDATA_IS_FINE,
    LooksAhead,
    no_deadlock,  # noqa: F401  (a fixture of every test here)
)
from tests.loading.test_resume import check_every_resume

pytestmark = [*FORKING_IS_FINE, TORCHDATA_IS_FINE, pytest.mark.usefixtures("one_thread")]

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


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_draws_are_those_of_the_visit_whoever_makes_it(repeats):
    torch.manual_seed(1)
    expected = run(Draws())
    assert len(expected) == 3 * SAMPLES + 2 * 2 * 2 * 3
    check_all_differ(expected)
    for options in (
        {"num_workers": 0},
        {"num_workers": 1},
        {"num_workers": 3, "persistent_workers": True},
        {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
    ):
        assert run(Draws(), repeats=repeats, **options) == expected
    assert run(DrawsInBatches(), repeats=repeats) == expected
    other = run(Draws(), repeats=repeats, seed=1)
    assert not {*other.values()} & {*expected.values()}


def test_a_wrapper_around_the_loader_changes_no_draw():
    assert run(Draws(), repeats="deferred", wrap=LooksAhead, num_workers=1) == run(Draws())


def test_two_passes_within_one_window_draw_otherwise():
    draws = run(Draws(), window=100)
    assert len(draws) == 3 * SAMPLES
    check_all_differ(draws)


def test_the_global_generators_of_the_training_process_do_not_notice():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    dataset = SeededDataset(Draws(), 3)
    schedule = BatchAttentionSchedule()
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3, schedule=schedule)
    loader = DataLoader(dataset, batch_sampler=sampler, generator=torch.Generator())
    before = states()
    for _ in schedule.attend(loader):
        assert states() == before
        schedule.decide(1.0)

    class Breaks(Draws):
        def __getitem__(self, index):
            super().__getitem__(index)
            raise LookupError

    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3)
    loader = DataLoader(SeededDataset(Breaks()), batch_sampler=sampler, generator=torch.Generator())
    with pytest.raises(LookupError):
        next(iter(sampler.schedule.attend(loader)))
    assert states() == before


def test_batches_of_no_visit_are_drawn_as_ever():
    torch.manual_seed(2)
    expected = [Draws()[index][1] for index in range(SAMPLES)]
    for loader in (
        DataLoader(SeededDataset(Draws()), batch_size=3, generator=torch.Generator()),
        DataLoader(
            SeededDataset(Draws()),
            batch_sampler=BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3),
            generator=torch.Generator(),
        ),
    ):
        torch.manual_seed(2)
        assert [drawn for batch in loader for drawn in batch[:, 1]] == expected


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
    """One that holds others in a dictionary."""

    def __init__(self, inside):
        super().__init__(None)
        self.base = {"images": inside}

    def __getitem__(self, index):
        return self.base["images"][index]


class Hidden(Wrapped):
    """One whose inside cannot be seen."""

    def __init__(self, inside):
        super().__init__(None)
        self.get = inside.__getitem__

    def __getitem__(self, index):
        return self.get(index)


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
    schedule = BatchAttentionSchedule()
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3, schedule=schedule)
    for batch in schedule.attend(DataLoader(dataset, batch_sampler=sampler, **options)):
        schedule.decide(1.0)
        yield batch


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_seeded_data_set_inside_another_one_is_told_to_go_around_it(wrap, workers):
    words = r"SeededDataset inside a \w+ has no effect.*SeededDataset\(Subset\("
    with pytest.warns(BatchAttentionWarning, match=words):
        list(attended(wrap(SeededDataset(Draws())), num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_around_other_data_sets_draws_are_those_of_the_visit(wrap, workers):
    def draws(workers):
        return [str(batch) for batch in attended(SeededDataset(wrap(Draws())), num_workers=workers)]

    assert draws(0) == draws(workers)


WARN = """
from torch.utils.data import DataLoader
from batch_sampler_attn import BatchAttentionSchedule, SeededDataset
from tests.loading.test_seeded_augmentation import Draws, Hidden, attended
if {is_hidden}:
    list(attended(Hidden(SeededDataset(Draws())), num_workers=1))
else:
    schedule = BatchAttentionSchedule()
    for batch in schedule.attend(DataLoader(SeededDataset(Draws()), batch_size=3, num_workers=1)):
        schedule.decide(1.0)
"""


@pytest.mark.parametrize("is_hidden", [True, False])
def test_a_worker_says_that_a_seeded_data_set_has_no_effect(is_hidden):
    # In a process of its own, since pytest keeps the warnings of a forked worker in that worker.
    command = [sys.executable, "-c", WARN.format(is_hidden=is_hidden)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("a SeededDataset has no effect on the batches of a worker") == 1


def test_data_sets_without_a_seeded_one_are_as_ever():
    list(attended(Wrapped(Draws())))
    list(attended(ConcatDataset([TensorDataset(torch.zeros(SAMPLES, 1)), Subset(Draws(), [0])])))


@pytest.mark.parametrize("loader_class", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_run_with_augmentation_in_workers_goes_on_bit_for_bit_from_every_moment(repeats, loader_class):
    options = {"samples": 12, "num_workers": 2, "prefetch_factor": 1, "generators": "shared"}
    options = {**options, "is_augmented": True, "is_seeded": True, "loader_class": loader_class}
    check_every_resume({"repeats": repeats, **options}, every=2)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_stream_in_windows_goes_on_with_the_same_draws(repeats, workers):
    def make():
        schedule = BatchAttentionSchedule(1.0, epoch_length=3, epoch_loss="last")
        sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3, schedule=schedule, repeats=repeats)
        return schedule, sampler, DataLoader(SeededDataset(Draws()), batch_sampler=sampler, num_workers=workers)

    def go_on(schedule, loader, passes, note):
        for _ in range(passes):
            for batch in schedule.attend(loader):
                schedule.decide(1.5 if schedule.batch_index == 2 and schedule.visits < 1 else 1.0)
                note(batch.tolist())

    schedule, sampler, loader = make()
    drawn, states = [], []

    def note(batch):
        drawn.append(batch)
        states.append(sampler.state_dict())

    go_on(schedule, loader, 5, note)
    for done, state in enumerate(states[: len(states) // 2], start=1):
        schedule, sampler, loader = make()
        sampler.load_state_dict(state)
        again = []
        go_on(schedule, loader, 2, again.append)
        assert len(again) >= SAMPLES // 3
        assert again == drawn[done : done + len(again)]
