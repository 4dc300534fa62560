"""Bad options, losses and states: a typed error that says what it received, and nothing is lost."""

import copy
import fractions
import itertools
import json
import math
from functools import partial

import numpy
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from batch_sampler_attn import (
    BatchAttentionSampler,
    BatchAttentionSchedule,
    Decision,
    EqualComputeControl,
    SampleAttention,
)
from batch_sampler_attn.accumulation import accumulate
from batch_sampler_attn.checkpoint import plain_indices
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import LossError, NonfiniteLossError, OptionError, StateError, short_repr
from batch_sampler_attn.losses import as_floats
from batch_sampler_attn.options import label_smoothing_floor
from batch_sampler_attn.recorders import JsonLinesRecorder, MemoryRecorder, Recorder

# Options --------------------------------------------------------------------------------------------------


ALLOWED = {
    SampleAttention: {"samples": 22, "batch_size": 4},
    BatchAttentionSampler: {"sampler": range(4), "batch_size": 2},
}
DOSES = {"samples": 22, "updates": 6, "pruned": [1], "pooled": [-1]}
REFUSED = {
    BatchAttentionSchedule: {
        "k": (0, -1.2, math.nan, math.inf, "1.2", None, True, 1j, [1.2], 10**400, numpy.float32(0), torch.ones(2)),
        "warmup_epochs": (0, 1.5, None, True, "1"),
        "max_visits": (0, -3, 2.0, True, "many", numpy.int64(0), numpy.float64(2), numpy.bool_(True)),
        "epoch_length": (0, -1, 0.5, False),
        "budget": (0, -0.1, 1.001, math.nan, math.inf, True, "0.2"),
        "floor": (math.nan, math.inf, "0", None, True),
        "epoch_loss": ("mean", "First", None, 1, numpy.ones(2)),
        "nonfinite": ("skip", None, 0),
        "recorders": ("visits.jsonl", ["visits.jsonl"], MemoryRecorder(), 3, [JsonLinesRecorder], [Recorder]),
        "ranks": ("mean", 3, BatchAttentionSchedule),
    },
    partial(BatchAttentionSampler, **ALLOWED[BatchAttentionSampler]): {
        "batch_size": (0, -1, 2.0, "2", True),
        "repeats": ("later",),
        "batches_per_epoch": (0, 2.0, True),
    },
    partial(SampleAttention, **ALLOWED[SampleAttention]): {
        "samples": (0,),
        "k": (0, "1.2"),
        "max_visits": (0, 256, 1.5),
        "final_full_share": (1.1,),
        "prune_probability": (1.0, -0.1, math.nan, "0.5", True),
        "updates": (0,),
        "epochs": (0,),
        "floor": (math.nan,),
        "remember_loss": ("first",),
        "ranks": ("all",),
        "select": ("best", None, [], {}, "doses", DOSES, {**DOSES, "pooled": [1.5]}, {"pruned": [1], "pooled": [1]}),
        "seed": (None, 1.5, "1", True, torch.tensor(1)),
        "sampler": (3, iter([1]), list, DistributedSampler(range(40), 2, 0)),
    },
    MeanOverRanks: {"timeout_seconds": (0, math.inf, "1", 0.0001, 1e99), "group": ("gloo",)},
    partial(accumulate, "abc"): {"size": (0, 2.0, True, "2")},
    partial(label_smoothing_floor, label_smoothing=0.1, classes=10): {
        "label_smoothing": (-0.1, 1.1, "0.1"),
        "classes": (0,),
    },
    partial(BatchAttentionSchedule().decide, 1.0): {"samples": (-1, math.nan, math.inf, "3", True, [3])},
}


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [(make, name, value) for make, named in REFUSED.items() for name, values in named.items() for value in values],
)
def test_an_option_that_is_not_allowed_is_refused_at_construction(make, name, value):
    with pytest.raises(OptionError) as error:
        make(**{name: value})
    assert str(error.value).startswith(f"{name} is {short_repr(value)}")
    assert "must be" in str(error.value)


IN_BATCHES, OF_RANK_1 = BatchSampler(range(8), 3, False), DistributedSampler(range(9), 2, 1)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (BatchAttentionSchedule, {"k": 10**400}, r"k is 100+\.\.\. "),
        (BatchAttentionSchedule, {"k": 10**5000}, "cannot be shown"),
        (BatchAttentionSchedule, {"budget": 20}, r"0\.2 is 20 %"),
        (BatchAttentionSchedule, {"budget": 1.5}, r"0\.015 is 1\.5 %"),
        (SampleAttention, {"prune_probability": 20}, r"0\.2 is 20 %"),
        (SampleAttention, {"final_full_share": 20}, r"0\.2 is 20 %"),
        (SampleAttention, {"samples": 3}, "batch_size is 4, and there are 3"),
        (SampleAttention, {"samples": 7, "rank": 0, "world_size": 2}, "each of 2 ranks has 3 samples"),
        (SampleAttention, {"world_size": 2}, "rank is None"),
        (BatchAttentionSampler, {"schedule": 1.5}, "schedule is .*BatchAttentionSchedule"),
        (BatchAttentionSampler, {"rank": 0}, "world_size is None"),
        (BatchAttentionSampler, {"world_size": 2}, "rank is None.*from 0 to 1"),
        (BatchAttentionSampler, {"rank": 2, "world_size": 2}, "rank is 2.*from 0 to 1"),
        (BatchAttentionSampler, {"sampler": OF_RANK_1, "rank": 0, "world_size": 2}, "is for rank 1 of 2 already"),
        (BatchAttentionSampler, {"sampler": None}, "sampler is None.*of indices with a batch_size, or of batches"),
        (BatchAttentionSampler, {"sampler": TensorDataset(torch.zeros(8))}, "sampler is .*iterable again"),
        (
            BatchAttentionSampler,
            {"sampler": DataLoader([1]), "batch_size": None},
            "sampler is .*of batches without both",
        ),
        (BatchAttentionSampler, {"sampler": iter([1, 2, 3])}, "list_iterator.*again in every epoch"),
        (BatchAttentionSampler, {"sampler": itertools.count()}, "count.*again in every epoch"),
        (BatchAttentionSampler, {"sampler": IN_BATCHES}, "BatchSampler.*batch_size 2.*without both"),
        (BatchAttentionSampler, {"sampler": IN_BATCHES, "batch_size": None, "drop_last": True}, "drop_last True.*both"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_that_is_not_allowed_is_refused_with_what_to_do_instead(make, options, said):
    with pytest.raises(OptionError, match=said):
        make(**ALLOWED.get(make, {}) | options)


def test_a_schedule_stays_free_where_its_sampler_is_refused_and_all_of_a_budget_is_allowed():
    schedule = BatchAttentionSchedule(budget=1)
    with pytest.raises(OptionError):
        BatchAttentionSampler(range(4), 2, schedule=schedule, rank=0)
    BatchAttentionSampler(range(4), 2, schedule=schedule)
    assert schedule.options.budget == 1.0


@pytest.mark.parametrize(
    ("name", "given", "plain"),
    [
        ("k", numpy.float32(1.5), 1.5),
        ("k", fractions.Fraction(3, 2), 1.5),
        ("warmup_epochs", numpy.uint8(2), 2),
        ("max_visits", numpy.int64(5), 5),
        ("budget", numpy.float32(0.5), 0.5),
        ("floor", numpy.int64(-1), -1.0),
        ("epoch_loss", numpy.str_("last"), "last"),
    ],
)
def test_numpys_numbers_and_strings_are_options_and_become_pythons(name, given, plain):
    value = getattr(BatchAttentionSchedule(**{name: given}).options, name)
    assert (value, type(value)) == (plain, type(plain))


# Losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        *(3, numpy.int64(3), torch.tensor(3), 3.0, numpy.float32(3), numpy.float64(3), numpy.float16(3)),
        *(numpy.array(3.0), numpy.array([3.0]), numpy.ma.array([3.0], mask=[False]), numpy.ma.array(3.0)),
        *(torch.tensor(3.0), torch.tensor([[3.0]]), torch.tensor(3.0, dtype=torch.bfloat16)),
        torch.tensor(3.0, requires_grad=True),
    ],
    ids=repr,
)
def test_one_real_number_of_any_kind_is_a_loss(loss):
    schedule = BatchAttentionSchedule(1.0)
    schedule.decide(loss)
    mean = schedule.end_epoch().mean_loss
    assert mean == 3.0
    assert type(mean) is float


MASKED = [
    *(numpy.ma.masked, numpy.ma.array(7.0, mask=True), numpy.ma.array([7.0], mask=[True])),
    numpy.ma.array([1.0, 7.0], mask=[True, True]).mean(),
]
NOT_LOSSES = [
    *("1.0", b"1.0", None, True, 1j, 10**400, [1.0], {}, object()),
    *(numpy.array([1.0, 2.0]), numpy.array([]), numpy.complex64(1), numpy.str_("1.0"), numpy.bool_(True)),
    *(torch.zeros(2), torch.zeros(0), torch.tensor(1j), torch.tensor(True)),
]


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        *((loss, "a loss is one real number") for loss in NOT_LOSSES),
        *((loss, "masked loss") for loss in MASKED),
        (torch.zeros(32), r"shape \(32,\).*loss\.mean\(\)"),
    ],
    ids=lambda loss: f"{type(loss).__name__}-{str(loss)[:12]}",
)
def test_anything_else_is_refused_and_the_schedule_stays_as_it_was(loss, said):
    schedule = BatchAttentionSchedule()
    schedule.decide(1.0)
    before = schedule.state_dict()
    with pytest.raises(LossError, match=said):
        schedule.decide(loss)
    assert schedule.state_dict() == before


def test_an_error_of_another_library_s_stays_as_it_is():
    class Broken:
        shape = ()

        def item(self):
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        BatchAttentionSchedule().decide(Broken())


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_nonfinite_raise_refuses_the_loss_and_keeps_the_state(loss):
    schedule = BatchAttentionSchedule(nonfinite="raise")
    schedule.decide(1.0)
    before = schedule.state_dict()
    with pytest.raises(NonfiniteLossError, match="epoch 0, batch 1, visit 1"):
        schedule.decide(loss)
    assert schedule.state_dict() == before
    assert schedule.decide(1.0) is Decision.ADVANCE


class Shaped:
    """A value with a shape, as arrays have."""

    def __init__(self, value, shape=()):
        self.value, self.shape = value, shape

    def tolist(self):
        return self.value


def test_losses_of_samples_are_one_number_each():
    assert as_floats([1, 2.5]) == as_floats(Shaped([1.0, 2.5], (2,))) == [1.0, 2.5]
    for losses, said in (
        (Shaped(1.0), 'reduction="none"'),
        (Shaped([[1.0]], (1, 1)), "flatten"),
        (1.0, "losses of type float"),
        ([1.0, None], "masked, or None; report NaN"),
    ):
        with pytest.raises(LossError, match=said):
            as_floats(losses)


@pytest.mark.parametrize(("module", "error"), [("jax.core", LossError), ("elsewhere", RuntimeError)])
def test_a_value_that_jax_traces_has_no_loss_yet_and_other_errors_stay_what_they_are(module, error):
    def refuse(self):
        raise RuntimeError("abstract")

    tracer = type("Tracer", (Shaped,), {"__module__": module, "tolist": refuse})
    with pytest.raises(error, match=r"jax.jit traces|abstract"):
        as_floats(tracer(1.0, (1,)))


# Recorders and states -------------------------------------------------------------------------------------


def test_a_recorder_that_raises_does_not_make_an_epoch_of_fixed_length_miss_its_end():
    class Broken(MemoryRecorder):
        def on_visit(self, *arguments):
            raise OSError("disk full")

    schedule = BatchAttentionSchedule(epoch_length=2, recorders=[Broken()])
    for _ in range(4):
        with pytest.raises(OSError, match="disk full"):
            schedule.decide(1.0)
    assert (schedule.epoch, schedule.batches) == (2, 0)


def saved_state():
    schedule = BatchAttentionSchedule(1.0)
    schedule.decide(1.0)
    schedule.end_epoch()
    schedule.decide(2.0)
    return json.loads(json.dumps(schedule.state_dict(), allow_nan=False))


def exchanged():
    """A state with two plausible numbers in each other's place."""
    state = saved_state()
    numbers = state["state"]
    numbers["loss_sum"], numbers["threshold"] = numbers["threshold"], numbers["loss_sum"]
    return state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, "NoneType, not a dictionary; pass what"),
        ({}, "of version None"),
        ({**saved_state(), "extra": 1}, r"changed or damaged.*'extra'.*load another checkpoint"),
        ({**saved_state(), "options": object()}, "changed or damaged"),
        (exchanged(), "changed or damaged"),
        (BatchAttentionSchedule(1.1).state_dict(), r"k \(saved 1.1, here 1.0\).*Construct with the saved options"),
        (BatchAttentionSchedule(1.0, epoch_loss="last").state_dict(), "epoch_loss"),
        (BatchAttentionSchedule(1.0, budget=0.1).state_dict(), "budget"),
        (EqualComputeControl([[1]]).state_dict(), "visit_counts_crc32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_state_that_does_not_fit_is_refused_whole_with_the_reason(state, said):
    schedule = BatchAttentionSchedule(1.0)
    schedule.decide(5.0)
    before = copy.deepcopy(schedule.state_dict())
    with pytest.raises(StateError, match=said):
        schedule.load_state_dict(state)
    assert schedule.state_dict() == before
    schedule.load_state_dict(saved_state())
    assert (schedule.epoch, schedule.threshold, schedule.visits) == (1, 1.0, 1)


def test_indices_that_cannot_be_saved_are_refused():
    with pytest.raises(StateError, match=r"indices are \[1\.5\]; only whole numbers and strings"):
        plain_indices([1.5])
    assert plain_indices([numpy.int64(1), "a"]) == [1, "a"]
