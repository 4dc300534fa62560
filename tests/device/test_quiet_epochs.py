"""Epochs without a repeat, of which the host hears and whose losses it never sees."""

import pytest

from batch_sampler_attn import BatchAttentionSchedule
from tests.device.helpers import make_data, make_loop

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_loop_that_repeats_nothing_says_so_once_and_continues():
    loop = make_loop(*make_data(160), schedule=BatchAttentionSchedule(50.0))
    with pytest.warns(UserWarning, match=r"k=50.0 has repeated nothing in 5 epochs.*Use a lower k, or wait") as caught:
        summaries = [loop.run_epoch() for _ in range(8)]
    assert len(caught) == 1
    assert [summary.repeats for summary in summaries] == [0] * 8


def test_a_resumed_loop_counts_quiet_epochs_again():
    loop = make_loop(*make_data(160), schedule=BatchAttentionSchedule(50.0))
    for _ in range(4):
        loop.run_epoch()
    resumed = make_loop(*make_data(160), schedule=BatchAttentionSchedule(50.0))
    resumed.load_state_dict(loop.state_dict())
    for _ in range(4):
        resumed.run_epoch()
    with pytest.warns(UserWarning, match="has repeated nothing in 5 epochs"):
        resumed.run_epoch()
