"""Windows of batches for one update each, and their loss."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision, SampleAttention
from batch_sampler_attn.accumulation import AccumulatedLoss, accumulate, samples_in
from batch_sampler_attn.errors import LossError, OptionError, ProtocolError
from tests.core.helpers import COPIES


@pytest.mark.parametrize("batches", [0, 1, 5, 6])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_windows_have_each_batch_once_in_order(batches, size):
    made = accumulate(range(batches), size)
    for _ in range(2):
        assert [batch for window in made for batch in window] == list(range(batches))
    assert [len(window) for window in made] == [min(size, batches - begin) for begin in range(0, batches, size)]
    assert len(made) == len(list(made))


def test_a_stream_has_windows_that_are_made_when_they_are_due_and_no_length():
    asked = []
    made = accumulate((asked.append(batch) or batch for batch in range(3)), np.int64(2))
    with pytest.raises(TypeError, match="len"):
        len(made)
    windows = iter(made)
    assert next(windows) == asked == [0, 1]
    assert [*windows] == [[2]]


def test_windows_have_the_loaders_attributes_and_are_copied_and_pickled():
    loader = DataLoader(range(3), batch_size=1)
    for made in (accumulate(loader, 2), *(copied(accumulate(loader, 2)) for copied in COPIES)):
        assert [len(window) for window in made] == [2, 1]
        assert made.batch_size == 1
        with pytest.raises(AttributeError, match="nothing"):
            _ = made.nothing


def test_a_window_is_repeated_as_a_whole():
    schedule = BatchAttentionSchedule(k=1.0, max_visits=2)
    seen = []
    for losses in ([1.0, 1.0], [1.5, 1.2, 0.5]):
        remaining = iter(losses)
        for window in schedule.attend(accumulate("abc", 2)):
            seen.append("".join(window))
            schedule.decide(next(remaining))
    assert seen == ["ab", "c", "ab", "ab", "c"]


def of_ours():
    """Loaders that repeat batches or samples by themselves."""
    sampler = BatchAttentionSampler(RandomSampler(range(8)), 2, schedule=BatchAttentionSchedule())
    attention = SampleAttention(8, 2, epochs=4)
    return {
        "attended": (BatchAttentionSchedule().attend("abc"), "AttendedLoader"),
        "accumulated": (accumulate("abc", 2), "AccumulatedLoader"),
        "batches": (DataLoader(range(8), batch_sampler=sampler), "BatchAttentionSampler"),
        "samples": (DataLoader(range(8), batch_sampler=attention), "SampleAttention"),
        "samples in lists": (DataLoader(range(8), sampler=attention, batch_size=None), "SampleAttention"),
        "sharded": (SimpleNamespace(batch_sampler=SimpleNamespace(batch_sampler=attention)), "SampleAttention"),
    }


@pytest.mark.parametrize(("loader", "name"), of_ours().values(), ids=of_ours())
def test_a_loader_that_repeats_by_itself_is_refused(loader, name):
    with pytest.raises(ProtocolError, match=rf"holds {name} of batch_sampler_attn, .* repeated as wholes"):
        accumulate(loader, 2)


def test_any_other_sampler_is_taken():
    accumulate(DataLoader(range(4), batch_sampler=BatchSampler(RandomSampler(range(4)), 2, drop_last=False)), 2)
    accumulate(DataLoader(range(4), batch_size=2, sampler=RandomSampler(range(4))), 2)
    accumulate(MagicMock(), 2)


class Engine:
    """Counts batches into updates as DeepSpeed's does, whatever loop it is in."""

    def __init__(self):
        self.pending, self.updates = [], []

    def gradient_accumulation_steps(self):
        return 4

    def __call__(self, inputs):
        self.inputs = inputs
        return inputs

    def backward(self, loss):
        self.pending.append(self.inputs[0, 0].item())

    def step(self):
        if len(self.pending) == 4:
            self.updates.append(tuple(self.pending))
            self.pending = []


def test_the_guide_s_loop_around_an_engine_that_accumulates_repeats_whole_updates():
    guide = Path(__file__).parents[2] / "docs/guides/gradient-accumulation.md"
    (loop,) = re.findall(r"```py\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    inputs = torch.arange(14.0).repeat_interleave(2)[:, None].expand(-1, 2)
    loader = DataLoader(TensorDataset(inputs, (inputs[:, 0] % 4 == 0).long()), batch_size=2)
    engine, schedule = Engine(), BatchAttentionSchedule(k=0.5, max_visits=3)
    parts = {"engine": engine, "schedule": schedule, "loader": loader, "nn": torch.nn}
    for _ in range(2):
        engine.updates.clear()
        exec(loop, {**parts, "accumulate": accumulate, "AccumulatedLoss": AccumulatedLoss})
        assert engine.pending == []
        assert [*dict.fromkeys(engine.updates)] == [(0.0, 1.0, 2.0, 3.0), (4.0, 5.0, 6.0, 7.0), (8.0, 9.0, 10.0, 11.0)]
    assert schedule.last_summary.repeats == len(engine.updates) - 3 > 0


# The loss of a window


def mean_of(*parts):
    loss = AccumulatedLoss()
    for part in parts:
        loss.add(*part)
    return loss.mean


def test_the_mean_is_by_samples_and_in_double_precision():
    losses = [torch.tensor(value, requires_grad=True) for value in (0.1, 0.7, 0.3)]
    expected = (losses[0].item() * 32 + losses[1].item() * 32 + losses[2].item() * 5) / 69
    mean = mean_of((losses[0], 32), (losses[1], torch.tensor(32)), (losses[2], 5))
    assert mean == expected
    assert type(mean) is float
    assert mean_of((1.0,), (2.0,)) == 1.5
    assert mean_of((1.0, 4), (math.nan, 0), (2.0, 4)) == 1.5


@pytest.mark.parametrize("loss", [0.1 + 0.2, 1e308, torch.tensor(0.3)])
def test_a_single_loss_is_left_as_it_is(loss):
    assert mean_of((loss, 3)) == loss


def test_a_window_without_samples_has_no_mean_and_is_not_repeated():
    mean = mean_of((1.0, 0), (2.0, 0))
    assert math.isnan(mean)
    with pytest.warns(UserWarning, match="not finite"):
        assert BatchAttentionSchedule().decide(mean) is Decision.ADVANCE


def test_a_loss_that_is_changed_later_is_the_one_that_was_added():
    loss = torch.tensor(1.0, dtype=torch.float64)
    added = AccumulatedLoss()
    added.add(loss)
    loss.mul_(0)
    assert added.mean == 1.0


def test_losses_on_a_device_stay_there():
    loss = AccumulatedLoss()
    for samples in (1, 3):
        loss.add(torch.empty((), device="meta"), samples)
    assert loss.mean.device.type == "meta"
    assert loss.mean.dtype == torch.float64
    assert loss.samples == 4
    assert len(loss) == 2


def test_jax_arrays_are_added_up_in_double_precision():
    class Array:
        """As JAX's: computed while Python goes on, in single precision."""

        def __init__(self, value):
            self.value, self.shape = np.float32(value), ()

        def block_until_ready(self):
            return self

        def item(self):
            return self.value.item()

    assert mean_of((Array(0.1), 1), (Array(0.2), 2)) == (np.float32(0.1).item() + np.float32(0.2).item() * 2) / 3


def test_a_loss_of_several_elements_and_a_mean_of_none_are_refused():
    with pytest.raises(LossError, match="shape"):
        mean_of((torch.ones(2), 1))
    with pytest.raises(OptionError, match="samples is"):
        mean_of((1.0, None), (1.0, 1))
    with pytest.raises(ProtocolError, match="no loss was added"):
        mean_of()


# Samples


@dataclass
class Images:
    name: str
    pixels: torch.Tensor


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(3, 2),
        [torch.ones(3, 2), torch.ones(3)],
        {"scale": torch.tensor(2.0), "ids": np.ones((3, 5))},
        ("name", None, {"inner": (np.ones(3),)}),
        Images("name", torch.ones(3, 2)),
    ],
)
def test_samples_are_the_first_array_s_length(batch):
    assert samples_in(batch) == 3


@pytest.mark.parametrize("batch", [None, "text", [1, 2], {"scale": torch.tensor(2.0)}, object()])
def test_a_batch_without_arrays_has_no_samples(batch):
    with pytest.raises(OptionError, match="samples=lambda batch"):
        samples_in(batch)
