"""How often the host waits for the device, and what it does meanwhile."""

import math
import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import DeviceLoop, ResidentData, StagedData
from batch_sampler_attn.errors import BatchAttentionWarning, DeviceLoopError
from tests.device.helpers import are_equal, at_most, loop_with, make_data, make_small_loop, without_reads

pytestmark = pytest.mark.usefixtures("one_thread")


class ScriptedLoss(nn.Module):
    """Losses from a script, one for each visit, that still have gradients."""

    def __init__(self, losses):
        super().__init__()
        self.losses = iter(losses)

    def forward(self, outputs, targets):
        if not outputs.requires_grad:
            return outputs.sum()
        return outputs.sum() * 0.0 + next(self.losses)


def scripted_loop(losses, batches, **options):
    model = nn.Linear(2, 1)
    data = ResidentData(torch.randn(2 * batches, 2), torch.zeros(2 * batches), 2, generator=torch.Generator())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return DeviceLoop(model, optimizer, ScriptedLoss(losses), data, schedule=BatchAttentionSchedule(1.0, **options))


def reads_by_the_rule(repeated):
    """How often the cursor is read, if visit i of the epoch is answered by REPEAT where ``repeated[i]``."""
    batches, cursor, visit_number, reads = repeated.count(False), 0, 0, 0
    while cursor < batches:
        enqueued = repeated[visit_number : visit_number + batches - cursor]
        visit_number += len(enqueued)
        cursor += enqueued.count(False)
        reads += 1
    return reads


@pytest.mark.parametrize("batches", [200, pytest.param(1563, marks=pytest.mark.slow)])
@pytest.mark.parametrize("share", [0.02, 0.15, 0.3, 0.5])
def test_host_reads_grow_with_the_logarithm_of_the_batches(share, batches):
    rng = random.Random(0)
    repeated = []
    while repeated.count(False) < batches:
        repeated.append(rng.random() < share)
    losses = [1.0] * batches + [2.0 if again else 0.5 for again in repeated]
    loop = scripted_loop(losses, batches, max_visits=None)
    loop.run_epoch()
    summary = loop.run_epoch()
    assert summary.repeats == repeated.count(True)
    assert summary.host_reads == reads_by_the_rule(repeated)
    assert summary.host_reads <= 3 * math.log(batches) / math.log(1 / share) + 5


def test_a_batch_that_takes_a_thousand_visits_is_warned_of_once_an_epoch():
    losses = [1.0] * 3 + ([0.5, 0.5] + [2.0] * 1200 + [0.5]) * 2
    loop = scripted_loop(losses, 3, max_visits=None)
    loop.run_epoch()
    for epoch in (1, 2):
        with pytest.warns(BatchAttentionWarning, match=f"of epoch {epoch} has taken 1000 visits") as warned:
            summary = loop.run_epoch()
        assert len(warned) == 1
        assert summary.most_visits == 1201


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_nonfinite_losses_advance_and_are_counted():
    loop = scripted_loop([1.0, 1.0, math.nan, math.inf], 2)
    loop.run_epoch()
    summary = loop.run_epoch()
    assert (summary.nonfinite_losses, summary.mean_loss, summary.repeats) == (2, None, 0)


def test_batches_are_loaded_after_updates_were_enqueued_so_that_the_device_trains_meanwhile():
    inputs, targets = make_data(64)
    events = []

    class Watched(Dataset):
        def __len__(self):
            return len(inputs)

        def __getitem__(self, index):
            if index % 8 == 0:
                events.append(("load", index // 8))
            return inputs[index], targets[index]

    def loss_fn(outputs, targets):
        events.append(("train", None))
        return nn.functional.cross_entropy(outputs, targets)

    loop = loop_with(data=StagedData(DataLoader(Watched(), 8), 8, "cpu", slots=4), loss_fn=loss_fn)
    events.clear()
    loop.run_epoch()
    order = "".join(what[0] for what, _ in events)
    assert order == "ll" + "tt" + "ll" + "tt" + "ll" + "tt" + "ll" + "tt"


@pytest.mark.parametrize("window", [2, 3, 4])
def test_updates_that_are_enqueued_bit_by_bit_do_not_run_past_the_end_of_a_window(window):
    loop, expected = make_small_loop(window=window), make_small_loop(window=window)
    for _ in range(4):
        summary = None
        with at_most(60):
            while summary is None:
                loop.enqueue(1)
                summary = loop.settle()
        assert without_reads(summary) == without_reads(expected.run_epoch())
    assert loop.schedule.state_dict()["state"] == expected.schedule.state_dict()["state"]
    assert are_equal(loop.model, expected.model)


def test_an_epoch_that_the_schedule_was_taken_away_from_does_not_spin():
    loop = make_small_loop(window=3)
    loop.run_updates(1)
    loop.parts.host.state.batches = 3
    with at_most(60), pytest.raises(DeviceLoopError, match="Leave it alone"):
        loop.run_epoch()
