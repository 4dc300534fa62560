"""States that the release of version 1 saved: they load, and go on to the very same end."""

import json
from pathlib import Path

import pytest
from torch import Generator
from torch.utils.data import DataLoader, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision, EqualComputeControl
from tests.loading.helpers import FORKING_IS_FINE

SAVED = json.loads((Path(__file__).parents[1] / "core" / "data" / "states_of_version_1.json").read_text())

pytestmark = FORKING_IS_FINE


def decide_by_hand(schedule, losses, batches):
    decisions = []
    for loss in losses:
        decision = schedule.decide(loss)
        decisions.append(decision.value)
        if decision is Decision.ADVANCE and schedule.options.window is None and schedule.batches == batches:
            schedule.end_epoch()
    return decisions


@pytest.mark.parametrize("saved", SAVED["schedules"], ids=lambda saved: str(saved["options"]))
def test_a_schedule_goes_on(saved):
    schedule = BatchAttentionSchedule(**saved["options"])
    schedule.load_state_dict(saved["state"])
    assert decide_by_hand(schedule, saved["losses"], saved["batches"]) == saved["decisions"]
    assert schedule.state_dict() == saved["end"]


def test_a_control_goes_on():
    saved = SAVED["control"]
    control = EqualComputeControl(saved["visit_counts"], seed=saved["seed"])
    control.load_state_dict(saved["state"])
    assert decide_by_hand(control, saved["losses"], saved["batches"]) == saved["decisions"]
    assert control.state_dict() == saved["end"]


def loss_of(indices, visit):
    return float(sum(index * 7 % 11 for index in indices) % 5 + 1) / (1 + visit)


@pytest.mark.parametrize("saved", SAVED["samplers"], ids=lambda saved: f"{saved['repeats']}-{saved['workers']}")
def test_a_sampler_goes_on(saved):
    schedule = BatchAttentionSchedule(k=1.05, window=saved["window"])
    order = RandomSampler(range(22), generator=Generator())
    sampler = BatchAttentionSampler(order, 3, schedule=schedule, repeats=saved["repeats"])
    context = "fork" if saved["workers"] else None
    loader = DataLoader(range(22), batch_sampler=sampler, num_workers=saved["workers"], multiprocessing_context=context)
    sampler.load_state_dict(saved["state"])
    visits = []
    while len(visits) < len(saved["visits"]):
        for batch in schedule.attend(loader):
            visit = schedule.visits
            visits.append([batch.tolist(), schedule.decide(loss_of(batch.tolist(), visit)).value])
    assert visits == saved["visits"]
    assert sampler.state_dict()["schedule"] == saved["end"]
