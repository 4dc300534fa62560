"""What a DataLoader has to yield for the ring of ``StagedData``, and what is said if it yields something else."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import Augmentation, DeviceLoop, StagedData
from batch_sampler_attn.errors import DeviceLoopError, OptionError
from tests.device.helpers import loop_with, make_data

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = 12


class Samples(Dataset):
    """What ``make`` returns for each index."""

    def __init__(self, make, samples=SAMPLES):
        self.make, self.samples = make, samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        return self.make(index)


def train(loader, batch_size=4, **options):
    """Train an epoch; return the targets that the loss saw."""
    seen = []

    def loss_fn(outputs, targets):
        seen.append(targets.clone())
        return 1 + outputs.square().mean()

    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
    model(torch.zeros_like(next(iter(loader))[0]).float())
    data = StagedData(loader, batch_size, "cpu", slots=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loop = DeviceLoop(model, optimizer, loss_fn, data, **options)
    for _ in range(2):
        seen.clear()
        loop.run_epoch()
    return seen


def image(channels=3):
    return torch.rand(channels, 2, 2)


UNLIKE = {
    "float targets after whole ones": (
        lambda index: (image(), torch.tensor(0.9) if index >= 8 else torch.tensor(1)),
        r"targets of batch 2 .* type torch\.float32; .* type torch\.int64",
    ),
    "numbers after whole ones": (
        lambda index: (image(), 0.9 if index >= 4 else 1),
        r"targets of batch 1 .* type torch\.float64; .* type torch\.int64",
    ),
    "a whole target that is alone": (
        lambda index: (image(), 0 if index == 0 else 0.9),
        # Without workers, the first sample says what the ring is for; with them, the first batch.
        r"targets of batch 0 .* type torch\.float32; .* type torch\.int64"
        r"|targets of batch 1 .* type torch\.float64; .* type torch\.float32",
    ),
    "grey images among colored ones": (
        lambda index: (image(1 if 4 <= index < 8 else 3), 1),
        r"inputs of batch 1 are of shape \(1, 2, 2\) .* shape \(3, 2, 2\)",
    ),
    "probabilities after truth": (
        lambda index: (image(), torch.tensor([0.25]) if index >= 8 else torch.tensor([True])),
        r"targets of batch 2 .* type torch\.float32; .* type torch\.bool",
    ),
    "targets of one number among several": (
        lambda index: (image(), torch.ones(1 if index >= 4 else 5)),
        r"targets of batch 1 are of shape \(1,\) .* shape \(5,\)",
    ),
    "images in bytes and as numbers": (
        lambda index: (image() if index >= 4 else (image() * 255).byte(), 1),
        r"inputs of batch 1 .* type torch\.float32; .* type torch\.uint8",
    ),
}


# Each without workers, and with one what is told otherwise there; the rest of the matrix is slow.
READ = [
    *((unlike, 0) for unlike in UNLIKE),
    ("a whole target that is alone", 1),
    *(pytest.param(unlike, 1, marks=pytest.mark.slow) for unlike in UNLIKE if unlike != "a whole target that is alone"),
]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forked workers, Python 3.12
@pytest.mark.parametrize(("unlike", "workers"), READ)
def test_a_batch_that_is_not_like_the_others_is_refused_by_number_shape_and_type(unlike, workers):
    make, message = UNLIKE[unlike]
    loader = DataLoader(Samples(make), 4, num_workers=workers)
    with pytest.raises(DeviceLoopError, match=message):
        train(loader)


def test_a_batch_of_one_is_not_spread_out():
    class Cutting:
        def __call__(self, samples):
            inputs, targets = torch.utils.data.default_collate(samples)
            return (inputs[:1], targets[:1]) if targets[0] == 4 else (inputs, targets)

    loader = DataLoader(Samples(lambda index: (image(), index)), 4, collate_fn=Cutting())
    with pytest.raises(DeviceLoopError, match="batch 1 of the loader has 1 inputs and 1 targets; it must have 4"):
        train(loader)


NO_PAIRS = {
    "dictionaries": (lambda index: {"image": image(), "label": 1}, "a dictionary with 'image', 'label'"),
    "three parts": (lambda index: (image(), 1, index), "3 parts"),
    "one part": (lambda index: image(), r"a tensor of shape \(1, 3, 2, 2\)"),
    "strings": (lambda index: (image(), "cat"), "a tuple of str|a list of str"),
    "boxes": (lambda index: (image(), {"boxes": torch.zeros(1, 4)}), "dict"),
    "several targets": (lambda index: (image(), (1, 2)), "a list of Tensor|a tuple of Tensor"),
}


@pytest.mark.parametrize("kind", NO_PAIRS)
def test_samples_that_are_not_two_tensors_are_refused_at_construction(kind):
    make, message = NO_PAIRS[kind]
    with pytest.raises(OptionError, match=f"({message}).*must be \\(inputs, targets\\), two tensors"):
        StagedData(DataLoader(Samples(make), 4), 4, "cpu")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forked workers, Python 3.12
@pytest.mark.parametrize("kind", ["three parts", *(pytest.param(kind, marks=pytest.mark.slow) for kind in NO_PAIRS)])
def test_samples_that_workers_read_are_refused_when_they_come(kind):
    make, message = NO_PAIRS[kind]
    model = nn.Linear(3, 1)
    data = StagedData(DataLoader(Samples(make), 4, num_workers=1), 4, "cpu")
    loop = DeviceLoop(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.functional.mse_loss, data)
    message = message.replace("(1,", "(4,")
    with pytest.raises(DeviceLoopError, match=f"batch 0 of the loader is .*({message}).*must be"):
        loop.run_epoch()


class OpenedByWorkers(Samples):
    """As data sets are that open their file in the worker that reads it."""

    is_open = False

    def __getitem__(self, index):
        assert self.is_open, "the file is not open here"
        return self.make(index)


def open_in_worker(worker):
    torch.utils.data.get_worker_info().dataset.is_open = True


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forked workers, Python 3.12
def test_a_data_set_that_workers_set_up_is_not_read_in_the_training_process():
    dataset = OpenedByWorkers(lambda index: (torch.full((3,), float(index)), index))
    loader = DataLoader(dataset, 4, num_workers=1, worker_init_fn=open_in_worker)
    assert torch.equal(torch.cat(train(loader)), torch.arange(SAMPLES))


class OwnBatches:
    """A batch sampler that says nothing but how many batches there are."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


@pytest.mark.parametrize(
    "batches",
    [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]],
        [[3, 2, 1, 0]] * 5 + [[11]],
        [[5, 7]],
        [[8, 9, 10, 11]],
    ],
)
@pytest.mark.parametrize("repeats", [False, True])
def test_a_batch_sampler_of_ones_own_is_taken_with_the_length_that_it_has(batches, repeats):
    loader = DataLoader(Samples(lambda index: (torch.rand(3), index)), batch_sampler=OwnBatches(*batches))
    schedule = BatchAttentionSchedule(0.5, max_visits=2) if repeats else None
    seen = [targets.tolist() for targets in train(loader, schedule=schedule)]
    # Looked at is which batches there were, however often each was trained on.
    assert [targets for index, targets in enumerate(seen) if index == 0 or targets != seen[index - 1]] == [
        batch for index, batch in enumerate(batches) if index == 0 or batch != batches[index - 1]
    ]
    if not repeats:
        assert seen == batches


def test_a_last_batch_whose_size_changes_from_epoch_to_epoch_is_refused_by_words():
    class Changing(OwnBatches):
        epoch = -1

        def __iter__(self):
            self.epoch += 1
            return iter([[0, 1, 2, 3], list(range(4 - self.epoch))])

    loader = DataLoader(Samples(lambda index: (torch.rand(3), index)), batch_sampler=Changing([], []))
    with pytest.raises(DeviceLoopError, match="of the same size in every epoch"):
        train(loader)


def test_samples_that_are_batches_already_are_taken():
    dataset = Samples(lambda index: (torch.rand(4, 3), torch.arange(4) + 4 * index), 3)
    loader = DataLoader(dataset, batch_size=None, sampler=SequentialSampler(dataset))
    assert torch.equal(torch.cat(train(loader)), torch.arange(12))


def test_loaders_that_cannot_be_staged_are_refused_at_construction():
    dataset = TensorDataset(torch.rand(12, 3), torch.rand(12, 1))

    class Unmeasured(OwnBatches):
        __len__ = None

    with pytest.raises(OptionError, match="batch_size is 3, and the loader's is 4"):
        StagedData(DataLoader(dataset, 4), 3, "cpu")
    with pytest.raises(OptionError, match="no batch"):
        StagedData(DataLoader(dataset, batch_sampler=OwnBatches()), 3, "cpu")
    with pytest.raises(OptionError, match=r"no len\(\)"):
        StagedData(DataLoader(dataset, batch_sampler=Unmeasured([0])), 3, "cpu")
    with pytest.raises(OptionError, match=r"slots is 2\.5"):
        StagedData(DataLoader(dataset, 4), 4, "cpu", slots=2.5)
    with pytest.raises(OptionError, match="batch_size is 13, but there are 12 samples"):
        StagedData(DataLoader(dataset, 13), 13, "cpu")


def test_a_loader_without_a_generator_draws_its_order_on_the_loops_account():
    inputs, targets = make_data(48)

    def orders(seed):
        """Of two epochs; torch's own random numbers are the caller's."""
        seen = []
        torch.manual_seed(0)
        before = torch.get_rng_state()
        loader = DataLoader(TensorDataset(inputs, targets), 8, shuffle=True)
        loop = loop_with(
            data=StagedData(loader, 8, "cpu"),
            seed=seed,
            augmentation=Augmentation(lambda batch, uniforms: seen.append(batch.clone()) or batch, draws=1),
        )
        for _ in range(2):
            loop.run_epoch()
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat(seen)

    with torch.random.fork_rng(devices=[]):
        assert torch.equal(orders(1), orders(1))
        assert not torch.equal(orders(1), orders(2))
