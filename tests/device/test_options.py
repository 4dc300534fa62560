"""What is refused before anything is trained, with what to do."""

import pytest

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError
from tests.device.helpers import make_data, make_loop

pytestmark = pytest.mark.usefixtures("one_thread")


def test_data_that_does_not_fit_is_refused_with_what_to_do():
    inputs, targets = make_data(48)
    with pytest.raises(OptionError, match=r"48 inputs and 47 targets; give as many targets as inputs"):
        make_loop(inputs, targets[:-1])
    with pytest.raises(OptionError, match=r"batch_size is 49, for 48 inputs"):
        make_loop(inputs, targets, 49)
    with pytest.raises(OptionError, match=r"batch_size is 0"):
        make_loop(inputs, targets, 0)
    for devices in (("meta", "meta"), ("cpu", "meta"), ("meta", "cpu")):
        with pytest.raises(OptionError, match="move all to one device"):
            make_loop(inputs.to(devices[0]), targets.to(devices[1]))


def test_a_schedule_that_a_device_cannot_follow_is_refused():
    belonging = BatchAttentionSchedule()
    BatchAttentionSampler([0, 1], schedule=belonging, batch_size=1)
    of_ranks = BatchAttentionSchedule(ranks=MeanOverRanks())
    for schedule in (BatchAttentionSchedule(nonfinite="raise"), belonging, of_ranks):
        with pytest.raises(OptionError, match="has ranks=, nonfinite='raise' or a BatchAttentionSampler; leave them"):
            make_loop(*make_data(48), schedule=schedule)


def test_a_loop_shows_what_is_documented():
    shown = {name for name in dir(make_loop(*make_data(48))) if not name.startswith("_")}
    methods = {"run_epoch", "run_updates", "enqueue", "synchronize", "state_dict", "load_state_dict"}
    assert shown == methods | {"model", "schedule", "batches", "order", "updates", "visit_counts"}
