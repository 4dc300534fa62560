"""What a repeat sees: the same tensors in fresh containers, and never tensors that its last visit changed in place."""

import copy
from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule, Decision, EqualComputeControl
from batch_sampler_attn.errors import BatchAttentionWarning, BatchChangedError, ProtocolError
from tests.core.test_attend import schedule_with_threshold

Pair = namedtuple("Pair", "images labels")


@dataclass
class Sample:
    images: Any
    labels: Any


@dataclass(slots=True)
class Compact:
    images: Any


@dataclass(frozen=True)
class Frozen:
    parts: dict


@dataclass(slots=True)
class CompactWithLabels(Compact):
    labels: Any = None


@dataclass
class OpenOverCompact(Compact):
    labels: Any = None


class Slotted:
    __slots__ = ("images",)

    def __init__(self, images):
        self.images = images

    def __copy__(self):
        return Slotted(self.images)


class Holder:
    """As custom batches with pin_memory() are written: attributes, and nothing else."""

    def __init__(self, images):
        self.images = images
        self.notes = {"seen": 0}


class Encoding(UserDict):
    """As transformers' BatchEncoding: a mapping around a dictionary."""


class Cyclic:
    def __init__(self, images):
        self.images = images
        self.myself = self


def visits_of(batch, change, visits=4):
    """What ``change`` found at each visit; it may do to the batch whatever it likes."""
    schedule = schedule_with_threshold(max_visits=None)
    found = []
    for yielded in schedule.attend([batch]):
        found.append(change(yielded))
        schedule.decide(2.0 if len(found) < visits else 1.0)
    assert schedule.last_summary.visits == visits
    return found


def change_in_place(schedule, batches, loss):
    for batch in schedule.attend(batches):
        batch.add_(1)
        schedule.decide(loss)


def scale(batch):
    """Ultralytics' preprocess_batch, and its like."""
    before = batch["images"].float().mean().item()
    batch["images"] = batch["images"].float() / 255
    batch["new"] = 1
    return before, len(batch)


@pytest.mark.parametrize(
    "make", [dict, OrderedDict, Encoding, lambda items: defaultdict(list, items)], ids=lambda make: make.__name__
)
def test_what_is_put_into_a_mapping_is_not_there_at_the_next_visit(make):
    images = torch.full((2, 3), 204, dtype=torch.uint8)
    batch = make({"images": images, "labels": torch.ones(2)})
    assert visits_of(batch, scale) == [(204.0, 3)] * 4
    assert batch["images"] is images
    assert len(batch) == 2


def test_a_mapping_stays_of_its_class_and_keeps_its_attributes():
    batch = Encoding({"images": torch.ones(1)})
    batch.encodings = ["as it was"]
    schedule = schedule_with_threshold()
    for yielded in schedule.attend([batch]):
        assert type(yielded) is Encoding
        assert yielded.encodings == ["as it was"]
        schedule.decide(1.0)


@pytest.mark.parametrize("make", [list, UserList, deque], ids=lambda make: make.__name__)
def test_what_is_put_into_a_sequence_is_not_there_at_the_next_visit(make):
    images = torch.ones(3)

    def change(batch):
        before = batch[0].sum().item(), len(batch)
        batch[0] = batch[0] / 2
        batch.append(0)
        return before

    assert visits_of(make([images, torch.zeros(1)]), change) == [(3.0, 2)] * 4


def change_inside(get):
    def change(batch):
        inside = get(batch)
        before = inside["images"].sum().item(), len(inside)
        inside["images"] = inside["images"] / 2
        inside["more"] = 1
        return before

    return change


@pytest.mark.parametrize(
    ("wrap", "get"),
    [
        (lambda inside: [inside, 1], lambda batch: batch[0]),
        (lambda inside: (1, inside), lambda batch: batch[1]),
        (lambda inside: Pair(inside, 1), lambda batch: batch.images),
        (lambda inside: {"a": {"b": [inside]}}, lambda batch: batch["a"]["b"][0]),
        (lambda inside: ([(inside,)],), lambda batch: batch[0][0][0]),
        (lambda inside: Sample(inside, 1), lambda batch: batch.images),
        (lambda inside: Frozen(inside), lambda batch: batch.parts),
        (lambda inside: Compact([inside]), lambda batch: batch.images[0]),
        (lambda inside: OpenOverCompact([inside]), lambda batch: batch.images[0]),
        (lambda inside: SimpleNamespace(inside=[inside]), lambda batch: batch.inside[0]),
        (lambda inside: Encoding({"inside": inside}), lambda batch: batch["inside"]),
    ],
    ids=[
        "list",
        "tuple",
        "namedtuple",
        "dicts",
        "tuples",
        "dataclass",
        "frozen",
        "slots",
        "inherited slots",
        "namespace",
        "encoding",
    ],
)
def test_containers_inside_containers_are_fresh_too(wrap, get):
    inside = {"images": torch.ones(4)}
    assert visits_of(wrap(inside), change_inside(get)) == [(4.0, 1)] * 4
    assert inside["images"].sum() == 4.0


@pytest.mark.parametrize(
    "make", [lambda images: Sample(images, 0), Compact, Holder, Slotted, lambda i: SimpleNamespace(images=i)]
)
def test_what_is_set_on_a_batch_object_is_not_there_at_the_next_visit(make):
    batch = make(torch.ones(4))

    def change(yielded):
        before = yielded.images.sum().item()
        yielded.images = yielded.images / 2
        return before

    assert visits_of(batch, change) == [4.0] * 4
    assert type(batch) is type(copy.copy(batch))


def test_named_tuples_stay_what_they_are_and_tuples_of_tensors_the_very_same():
    pair = Pair([torch.ones(1)], 0)
    plain = (torch.ones(1), torch.ones(1))
    schedule = BatchAttentionSchedule()
    seen = []
    for batch in schedule.attend([pair, plain]):
        seen.append(batch)
        schedule.decide(1.0)
    assert type(seen[0]) is Pair
    assert seen[0].images[0] is pair.images[0]
    assert seen[1] is plain


def test_tensors_arrays_and_other_objects_are_the_very_same_at_every_visit():
    model, array, tensor = torch.nn.Linear(1, 1), numpy.ones(2), torch.ones(2)
    parts = {"model": model, "array": array, "tensor": tensor, "open": sum, "words": ["a", "b"]}
    schedule = schedule_with_threshold()
    losses = iter([2.0, 1.0])
    for batch in schedule.attend([parts]):
        assert all(batch[name] is parts[name] for name in ("model", "array", "tensor", "open"))
        assert batch["words"] == ["a", "b"]
        schedule.decide(next(losses))


class Graph:
    """As torch_geometric's Data: callable, copied by a method of its own, tensors in a store of its own."""

    def __init__(self, x):
        self.__dict__["_store"] = {"x": x}

    def __getattr__(self, name):
        try:
            return self.__dict__["_store"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        self._store[name] = value

    def __call__(self, *names):
        return [self._store[name] for name in names]

    def __copy__(self):
        twin = type(self).__new__(type(self))
        twin.__dict__["_store"] = dict(self._store)
        return twin


def decide_on_all(attended):
    for _ in attended:
        attended.schedule.decide(1.0)


class CallableBatch:
    """Tensors as attributes, whatever else it is."""

    def __init__(self, x):
        self.x = x

    def __call__(self):
        return self.x


class Instances:
    """As detectron2's: fields in a dictionary, read and set as attributes."""

    def __init__(self, x):
        self.__dict__["_fields"] = {"x": x}

    def __getattr__(self, name):
        if name == "_fields" or name not in self._fields:
            raise AttributeError(name)
        return self._fields[name]

    def __setattr__(self, name, value):
        self._fields[name] = value


class InSlots:
    __slots__ = ("extra", "x")

    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize("make", [Graph, CallableBatch, Instances, InSlots])
def test_a_graph_is_repeated_as_it_came_whatever_the_loop_sets_on_it(make):
    def double(data):
        before = data.x.sum().item()
        data.x = data.x * 2
        data.extra = torch.ones(1)
        return before

    batch = make(torch.ones(4))
    assert visits_of(batch, double, visits=3) == [4.0] * 3
    assert not hasattr(batch, "extra")


def test_tensors_of_a_graph_that_were_changed_in_place_are_found():
    def loop():
        for data in schedule_with_threshold_attending(Graph(torch.ones(3))):
            data.x.mul_(2)

    def schedule_with_threshold_attending(batch):
        schedule = schedule_with_threshold()
        for yielded in schedule.attend([batch]):
            yield yielded
            schedule.decide(2.0)

    with pytest.raises(BatchChangedError, match=r"\(3,\)"):
        loop()


def test_what_cannot_be_copied_is_repeated_as_it_is_with_one_warning():
    class Uncopied(dict):
        def __copy__(self):
            raise RuntimeError("open file")

    attended = BatchAttentionSchedule().attend([Uncopied(x=1), Uncopied(x=2)])
    with pytest.warns(BatchAttentionWarning, match="a Uncopied, which cannot be copied") as warned:
        decide_on_all(attended)
    assert len(warned) == 1


def test_a_batch_that_contains_itself_is_yielded_as_it_is():
    batch = [torch.ones(1)]
    batch.append(batch)
    schedule = BatchAttentionSchedule()
    for yielded in schedule.attend([batch, Cyclic(torch.ones(1))]):
        assert yielded is not None
        schedule.decide(1.0)


def test_batches_of_a_dataloader_mixed_by_putting_in_are_mixed_afresh():
    images, labels = torch.arange(8.0).reshape(8, 1), torch.arange(8)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4, num_workers=0)
    schedule = schedule_with_threshold()
    seen = []
    losses = iter([2.0, 2.0, 1.0, 1.0])
    for batch in schedule.attend(loader):
        batch[0] = 0.5 * batch[0] + 0.5 * batch[0].flip(0)
        seen.append(batch[0].flatten().tolist())
        schedule.decide(next(losses))
    assert seen == [[1.5] * 4] * 3 + [[5.5] * 4]


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch[0].mul_(0.5),
        lambda batch: batch[0].sub_(1).div_(2),
        lambda batch: batch[0][1:].mul_(0.5),
        lambda batch: torch.nn.functional.relu_(batch[0]),
        lambda batch: batch[1].clamp_(0, 0),
        lambda batch: batch[0].__setitem__(0, 5.0),
    ],
    ids=["mul_", "sub_.div_", "a view", "relu_", "labels", "setitem"],
)
def test_a_batch_that_was_changed_in_place_is_not_repeated(change):
    schedule = schedule_with_threshold()
    seen = 0

    def loop():
        nonlocal seen
        for batch in schedule.attend([[torch.ones(4, 2), torch.ones(4)]]):
            seen += 1
            change(batch)
            schedule.decide(2.0)

    with pytest.raises(BatchChangedError, match=r"in place.*clone\(\).*BatchAttentionSampler") as error:
        loop()
    assert isinstance(error.value, ProtocolError)
    assert seen == 1


@pytest.mark.parametrize(
    "wrap",
    [
        *(lambda t: t, lambda t: {"a": [t]}, lambda t: (t, 1), lambda t: Sample(t, 0), Compact, Holder, Slotted),
        *(CompactWithLabels, OpenOverCompact),
    ],
)
def test_changes_in_place_are_found_wherever_the_tensor_is(wrap):
    tensor = torch.ones(3)
    schedule = schedule_with_threshold()

    def loop():
        for _ in schedule.attend([wrap(tensor)]):
            tensor.add_(1)
            schedule.decide(2.0)

    with pytest.raises(BatchChangedError, match=r"\(3,\)"):
        loop()


def test_a_second_visit_that_changes_in_place_is_found_too():
    schedule = schedule_with_threshold()
    tensor, visits = torch.ones(1), 0

    def loop():
        nonlocal visits
        for batch in schedule.attend([tensor]):
            visits += 1
            if visits == 2:
                batch.add_(1)
            schedule.decide(2.0)

    with pytest.raises(BatchChangedError):
        loop()
    assert visits == 2


def test_the_epoch_of_a_batch_that_was_changed_is_abandoned_and_the_next_is_as_ever():
    schedule = schedule_with_threshold()
    with pytest.raises(BatchChangedError):
        change_in_place(schedule, [torch.ones(1)], 2.0)
    for _ in schedule.attend([torch.ones(1)]):
        schedule.decide(1.0)
    assert (schedule.epoch, schedule.last_summary.mean_loss) == (2, 1.0)


def test_a_loop_that_changes_in_place_is_warned_at_its_first_batch_and_goes_on_until_a_repeat():
    schedule = BatchAttentionSchedule(1.0)
    with pytest.warns(BatchAttentionWarning, match="changed tensors of its batch in place") as warned:
        change_in_place(schedule, [torch.ones(1), torch.ones(1)], 1.0)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert schedule.last_summary.batches == 2


def test_a_schedule_that_never_repeats_lets_batches_be_changed():
    schedule = BatchAttentionSchedule(max_visits=1)
    for _ in range(2):
        change_in_place(schedule, [torch.ones(1)], 5.0)


def test_the_control_refuses_repeats_of_changed_batches_too():
    control = EqualComputeControl([[2]])
    with pytest.raises(BatchChangedError):
        change_in_place(control, [torch.ones(1)], 1.0)


def test_tensors_of_inference_mode_are_yielded_as_ever():
    with torch.inference_mode():
        tensor = torch.ones(1)
    assert visits_of([tensor], lambda batch: batch[0] is tensor) == [True] * 4


def test_training_does_not_count_as_a_change():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = schedule_with_threshold()
    decisions = []
    for inputs, targets in schedule.attend(DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)), 2)):
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decisions.append(schedule.decide(2.0 if len(decisions) in (0, 1) else 0.5))
    assert decisions.count(Decision.REPEAT) == 2
