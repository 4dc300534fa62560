"""What a repeat sees: the same tensors in fresh containers, and never tensors that its last visit changed in place."""

from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import MutableMapping, MutableSequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.errors import BatchAttentionWarning, BatchChangedError, ProtocolError
from tests.core.helpers import schedule_with_threshold

Pair = namedtuple("Pair", "images labels")


@dataclass
class Sample:
    images: Any
    labels: Any = None


@dataclass(slots=True)
class Compact:
    images: Any


@dataclass(frozen=True)
class Frozen:
    parts: dict


@dataclass
class OpenOverCompact(Compact):
    labels: Any = None


class SlotsWithCopy:
    __slots__ = ("images",)

    def __init__(self, images):
        self.images = images

    def __copy__(self):
        return SlotsWithCopy(self.images)


class Slots:
    __slots__ = ("extra", "images")

    def __init__(self, images):
        self.images = images


class Holder:
    """As custom batches with pin_memory() are written: attributes, and nothing else."""

    def __init__(self, images):
        self.images = images
        self.notes = {"seen": 0}


class CallableHolder(Holder):
    def __call__(self):
        return self.images


class Encoding(UserDict):
    """As transformers' BatchEncoding: a mapping around a dictionary."""


class Instances:
    """As detectron2's: fields in a dictionary, read and set as attributes."""

    def __init__(self, images):
        self.__dict__["_fields"] = {"images": images}

    def __getattr__(self, name):
        if name == "_fields" or name not in self._fields:
            raise AttributeError(name)
        return self._fields[name]

    def __setattr__(self, name, value):
        self._fields[name] = value


class Cyclic:
    def __init__(self, images):
        self.images = images
        self.myself = self


OBJECTS = [
    *(Sample, Compact, OpenOverCompact, SlotsWithCopy, Slots, Holder, CallableHolder, Instances),
    lambda images: SimpleNamespace(images=images),
]


def visits_of(batch, change, visits=4):
    """What ``change`` found at each visit; it may do to the batch whatever it likes."""
    schedule = schedule_with_threshold(max_visits=None)
    found = []
    for yielded in schedule.attend([batch]):
        found.append(change(yielded))
        schedule.decide(2.0 if len(found) < visits else 1.0)
    assert schedule.last_summary.visits == visits
    return found


def change_in_place(schedule, batches, change=lambda batch: batch.add_(1), loss=2.0, at_visit=1):
    """Epochs in which ``change`` happens to each batch at one of its visits."""
    for batch in schedule.attend(batches):
        if schedule.visits + 1 == at_visit:
            change(batch)
        schedule.decide(loss)


# Fresh containers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", OBJECTS)
def test_what_is_set_on_a_batch_object_is_not_there_at_the_next_visit(make):
    def change(yielded):
        before = yielded.images.sum().item()
        yielded.images = yielded.images / 2
        if not hasattr(type(yielded), "__dataclass_fields__"):
            assert not hasattr(yielded, "extra")
            if not isinstance(yielded, SlotsWithCopy):
                yielded.extra = torch.ones(1)
        return before

    assert visits_of(make(torch.ones(4)), change) == [4.0] * 4


WRAPPED = {
    **{
        make.__name__: (lambda inside, make=make: make([inside, 1]), lambda batch: batch[0])
        for make in (list, UserList, deque)
    },
    **{
        make.__name__: (lambda inside, make=make: make({"inside": inside}), lambda batch: batch["inside"])
        for make in (dict, OrderedDict, Encoding)
    },
    "defaultdict": (lambda inside: defaultdict(list, inside=inside), lambda batch: batch["inside"]),
    "tuple": (lambda inside: (1, inside), lambda batch: batch[1]),
    "namedtuple": (lambda inside: Pair(inside, 1), lambda batch: batch.images),
    "dicts": (lambda inside: {"a": {"b": [inside]}}, lambda batch: batch["a"]["b"][0]),
    "tuples": (lambda inside: ([(inside,)],), lambda batch: batch[0][0][0]),
    "dataclass": (Sample, lambda batch: batch.images),
    "frozen": (Frozen, lambda batch: batch.parts),
    "slots": (lambda inside: Compact([inside]), lambda batch: batch.images[0]),
    "inherited slots": (lambda inside: OpenOverCompact([inside]), lambda batch: batch.images[0]),
    "namespace": (lambda inside: SimpleNamespace(inside=[inside]), lambda batch: batch.inside[0]),
}


@pytest.mark.parametrize(("wrap", "get"), WRAPPED.values(), ids=WRAPPED)
def test_what_is_put_into_a_container_is_not_there_at_the_next_visit(wrap, get):
    def change(batch):
        """As Ultralytics' preprocess_batch, and its like."""
        before, inside = repr(batch), get(batch)
        inside["images"] = inside["images"] / 2
        inside["more"] = 1
        if isinstance(batch, MutableMapping):
            batch["new"] = 1
        elif isinstance(batch, MutableSequence):
            batch.append(0)
        return before, type(batch)

    inside = {"images": torch.ones(4)}
    batch = wrap(inside)
    assert visits_of(batch, change) == [(repr(batch), type(batch))] * 4
    assert repr(inside) == repr({"images": torch.ones(4)})


def test_tensors_arrays_and_other_objects_are_the_very_same_at_every_visit():
    model, array, tensor = torch.nn.Linear(1, 1), numpy.ones(2), torch.ones(2)
    with torch.inference_mode():
        inference = torch.ones(1)
    parts = {"model": model, "array": array, "tensor": tensor, "open": sum, "pair": (tensor, 1), "inference": inference}

    def are_the_same(batch):
        return all(batch[name] is part for name, part in parts.items())

    assert visits_of({**parts, "words": ["a"]}, are_the_same) == [True] * 4


def test_attributes_of_a_mapping_are_kept():
    batch = Encoding({"images": torch.ones(1)})
    batch.encodings = ["as it was"]
    assert visits_of(batch, lambda yielded: yielded.encodings) == [["as it was"]] * 4


def test_a_batch_that_contains_itself_is_yielded_as_it_is():
    batch = [torch.ones(1)]
    batch.append(batch)
    for cyclic in (batch, Cyclic(torch.ones(1))):
        assert visits_of(cyclic, lambda yielded: yielded is not None) == [True] * 4


def test_what_cannot_be_copied_is_repeated_as_it_is_with_one_warning():
    class Uncopied(dict):
        def __copy__(self):
            raise RuntimeError("open file")

    schedule = BatchAttentionSchedule()
    with pytest.warns(BatchAttentionWarning, match="a Uncopied, which cannot be copied") as warned:
        change_in_place(schedule, [Uncopied(x=1), Uncopied(x=2)], len, loss=1.0)
    assert len(warned) == 1


# Changes in place -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda batch: batch[0][1:].mul_(0.5), lambda batch: batch[1].clamp_(0, 0)])
def test_a_batch_that_was_changed_in_place_is_not_repeated_and_its_epoch_is_abandoned(change):
    schedule = schedule_with_threshold()
    with pytest.raises(BatchChangedError, match=r"in place.*clone\(\).*BatchAttentionSampler") as error:
        change_in_place(schedule, [[torch.ones(4, 2), torch.ones(4)]], change)
    assert isinstance(error.value, ProtocolError)
    assert (schedule.epoch, schedule.visits) == (1, 1)
    change_in_place(schedule, [torch.ones(1)], at_visit=2, loss=1.0)
    assert (schedule.epoch, schedule.last_summary.mean_loss) == (2, 1.0)


@pytest.mark.parametrize(
    "wrap", [*OBJECTS, lambda tensor: tensor, lambda tensor: {"a": [tensor]}, lambda tensor: (torch.ones(1), tensor)]
)
def test_changes_in_place_are_found_wherever_the_tensor_is(wrap):
    for at_visit in (1, 2):
        schedule, tensor = schedule_with_threshold(), torch.ones(3)
        with pytest.raises(BatchChangedError, match=r"\(3,\)"):
            change_in_place(schedule, [wrap(tensor)], lambda _, tensor=tensor: tensor.add_(1), at_visit=at_visit)
        assert schedule.visits == at_visit


def test_a_loop_that_changes_in_place_is_warned_at_its_first_batch_and_continues_until_a_repeat():
    schedule = BatchAttentionSchedule(1.0)
    with pytest.warns(BatchAttentionWarning, match="changed tensors of its batch in place") as warned:
        change_in_place(schedule, [torch.ones(1), torch.ones(1)])
    assert [warning.filename for warning in warned] == [__file__]
    assert schedule.last_summary.batches == 2


def test_a_schedule_that_never_repeats_lets_batches_be_changed_and_a_control_does_not():
    schedule = BatchAttentionSchedule(max_visits=1)
    for _ in range(2):
        change_in_place(schedule, [torch.ones(1)])
    with pytest.raises(BatchChangedError):
        change_in_place(EqualComputeControl([[2]]), [torch.ones(1)])
