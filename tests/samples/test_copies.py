"""``SampleAttention``, and a DataLoader on it, copied and pickled, between two epochs and in one."""

import copy
import itertools
import json
import pickle
import random

import pytest
from torch.utils.data import DataLoader

from tests.loading.helpers import FORKING_IS_FINE
from tests.samples.runs import KINDS, SAMPLES, train

pytestmark = [*FORKING_IS_FINE, pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")]

COPIES = pytest.mark.parametrize(
    "make_copy",
    [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))],
    ids=["deepcopy", "pickle"],
)


def begun(name, stop_after, ahead=0, workers=0):
    attention = KINDS[name]()
    for _ in range(2):
        train(attention, random.Random(1), ahead=ahead, workers=workers)
    if stop_after:
        train(attention, random.Random(2), ahead=ahead, workers=workers, stop_after=stop_after)
    return attention


def two_epochs(attention):
    return [train(attention, random.Random(seed)) for seed in range(2)]


@COPIES
@pytest.mark.parametrize(
    ("name", "stop_after", "ahead", "workers"),
    [*itertools.product(KINDS, [0, 2], [0, 3], [0]), ("both", 1, 0, 1)],
)
def test_a_copy_has_the_state_and_goes_on_from_it_by_itself(name, stop_after, ahead, workers, make_copy):
    attention = begun(name, stop_after, ahead, workers)
    twin = make_copy(attention)
    state = attention.state_dict()
    assert json.dumps(twin.state_dict()) == json.dumps(state)
    assert repr(twin) == repr(attention)
    assert twin.last_summary == attention.last_summary
    tail = two_epochs(attention)
    # What became of the original is nothing to the copy.
    assert twin.state_dict() == state
    assert two_epochs(twin) == tail
    assert twin.state_dict() == attention.state_dict()


@COPIES
@pytest.mark.parametrize("stop_after", [0, 2])
def test_a_copied_loader_is_on_the_copied_attention(stop_after, make_copy):
    attention = begun("both", stop_after)
    loader = DataLoader(range(SAMPLES), batch_sampler=attention)
    twin = make_copy(loader)
    assert twin.batch_sampler is not attention
    seen = []
    for ours, theirs in zip(attention.attend(loader), twin.batch_sampler.attend(twin), strict=True):
        assert ours.tolist() == theirs.tolist()
        losses = [float(index % 4) for index in ours]
        assert attention.report(losses) == twin.batch_sampler.report(losses)
        seen.append(ours)
    assert len(seen) == len(attention) - stop_after
    assert attention.last_summary == twin.batch_sampler.last_summary


@COPIES
def test_a_copy_that_is_made_while_a_batch_is_out_begins_with_that_batch(make_copy):
    attention = begun("both", 0)
    loader = DataLoader(range(SAMPLES), batch_sampler=attention)
    for number, batch in enumerate(attention.attend(loader)):
        if number == 2:
            twin, twin_of_loader = make_copy((attention, loader))
            assert twin_of_loader.batch_sampler is twin
            batches = iter(twin.attend(twin_of_loader))
            assert next(batches).tolist() == batch.tolist() == twin.indices
        attention.report([1.0] * len(batch))
    assert (attention.epoch, twin.epoch, twin.updates) == (3, 2, 2)
