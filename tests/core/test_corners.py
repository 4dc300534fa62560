"""What only unusual input, a failing rank or a broken environment reaches, so that no line of the core is untried."""

import types
from dataclasses import make_dataclass

import pytest

import batch_sampler_attn
from batch_sampler_attn import BatchAttentionSchedule, Decision, notices, rule
from batch_sampler_attn.afresh import afresh
from batch_sampler_attn.errors import (
    BatchAttentionWarning,
    LossError,
    ProtocolError,
    StateError,
)
from batch_sampler_attn.indices import are_plain, as_plain, plain_indices
from batch_sampler_attn.loader_order import check_order
from batch_sampler_attn.losses import as_floats
from batch_sampler_attn.overhead_watch import OverheadWatch
from batch_sampler_attn.state import State
from batch_sampler_attn.summary import EpochSummary
from batch_sampler_attn.windows import WindowLoss, samples_in
from tests.core.test_attend import schedule_with_threshold

# The package itself


@pytest.mark.parametrize(("missing", "said"), [("torch", "needs PyTorch"), ("numpy", "halted")])
def test_only_a_missing_torch_is_called_a_missing_torch(monkeypatch, missing, said):
    def refuse(module):
        raise ModuleNotFoundError(f"import of {missing} halted", name=missing)

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(ModuleNotFoundError, match=said) as error:
        batch_sampler_attn.__getattr__("BatchAttentionSampler")
    assert error.value.name == missing


# Batches afresh


def test_many_classes_of_batches_are_not_remembered_for_ever():
    for number in range(300):
        batch = type(f"Batch{number}", (dict,), {})(x=1)
        assert afresh(batch) == batch
        assert afresh(batch) is not batch


def test_an_object_that_counts_its_changes_is_a_tensor_and_is_not_copied():
    class Counting:
        def __init__(self):
            self._version = 0

        def __copy__(self):
            raise AssertionError

    versions, batch = [], [Counting()]
    assert afresh(batch, versions)[0] is batch[0]
    assert versions == [(batch[0], 0)]
    assert afresh(batch)[0] is batch[0]


def test_an_object_without_arrays_and_one_that_cannot_be_copied_are_yielded_as_they_are():
    class Plain:
        def __init__(self):
            self.path = "image.png"

    class Uncopied(dict):
        def __copy__(self):
            raise RuntimeError("open file")

    for batch in (Plain(), Uncopied(x=1)):
        assert afresh(batch) is batch


def test_what_is_put_into_a_set_or_a_slot_is_not_there_at_the_next_visit():
    class Slotted:
        __slots__ = ("labels", "never_set")

        def __copy__(self):
            twin = type(self)()
            twin.labels = self.labels
            return twin

    names, slotted = {"a"}, Slotted()
    slotted.labels = [1]
    fresh_names, fresh_slotted = afresh([names, slotted])
    fresh_names.add("b")
    fresh_slotted.labels.append(2)
    assert (names, slotted.labels) == ({"a"}, [1])


# Loaders and drivers


def test_special_names_are_the_attended_loaders_own():
    class Loader(list):
        pass

    loader = Loader("ab")
    attended = BatchAttentionSchedule().attend(loader)
    attended.__mark__ = attended.mark = 1
    assert not hasattr(loader, "__mark__")
    del attended.__mark__, attended.mark
    assert not hasattr(loader, "mark")
    with pytest.raises(AttributeError, match="mark"):
        attended.__mark__  # noqa: B018


def test_a_loader_whose_sampler_belongs_to_another_schedule_is_refused():
    loader = types.SimpleNamespace(batch_sampler=types.SimpleNamespace(schedule=None), __iter__=iter)
    with pytest.raises(ProtocolError, match=r"schedule\.attend\(loader\)"):
        BatchAttentionSchedule().attend(type("Loader", (list,), vars(loader))())


@pytest.mark.parametrize(
    ("option", "said"), [({"in_order": False}, "in_order=False"), ({"snapshot_every_n_steps": 5}, "Leave it at 1")]
)
def test_a_loader_that_yields_in_another_order_or_from_a_snapshot_is_refused(option, said):
    check_order(types.SimpleNamespace())
    with pytest.raises(ProtocolError, match=said):
        check_order(types.SimpleNamespace(**option))


class HandingOut:
    """A driver of two batches."""

    is_in_order = True

    def __init__(self, schedule):
        self.schedule, self.told = schedule, []

    def deliver(self, loader):
        with self.schedule.open_pass() as current:
            for batch in loader:
                current.offer()
                yield batch
                current.collect()

    def settle(self, decision, visits):
        self.told.append((decision, visits))

    def skip(self):
        self.told.append("skip")


def test_a_driver_hears_of_decisions_and_skips_and_is_the_only_one():
    schedule = BatchAttentionSchedule()
    driver = HandingOut(schedule)
    schedule.attach(driver)
    with pytest.raises(ProtocolError, match="make one for each sampler"):
        schedule.attach(driver)
    with pytest.raises(ProtocolError, match=r"decide\(\) was called while no batch"):
        schedule.decide(1.0)
    for batch in schedule.attend("ab"):
        if batch == "a":
            schedule.decide(1.0)
        else:
            schedule.skip()
    assert driver.told == [(Decision.ADVANCE, 1), "skip"]


def test_visits_that_were_made_elsewhere_are_taken_over():
    schedule = schedule_with_threshold()
    elsewhere = schedule_with_threshold()
    elsewhere.decide(1.0)
    with schedule.open_pass() as current:
        current.take_over(elsewhere.epochs.state)
    assert schedule.last_summary.batches == 1
    with pytest.raises(ProtocolError, match="stale"):
        current.take_over(elsewhere.epochs.state)


def test_an_epoch_that_is_long_for_a_first_one_is_warned_of():
    with pytest.warns(BatchAttentionWarning, match="has 1,000,000 batches"):
        notices.long_first_epoch(1_000_000)


def test_a_repeat_that_a_window_cut_off_is_left_out_without_being_counted_twice():
    state = State()
    state.visits = 1
    rule.skip(state)
    assert (state.visits, state.batches, state.repeats, state.most_visits) == (0, 0, 0, 1)


# Indices and losses


class Shaped:
    """A value with a shape, as arrays have."""

    def __init__(self, value, shape=()):
        self.value, self.shape = value, shape

    def __index__(self):
        if not isinstance(self.value, int):
            raise TypeError("not whole")
        return self.value

    def tolist(self):
        return self.value


def test_indices_are_numbers_or_strings():
    fraction = Shaped(1.5)
    assert (as_plain(Shaped(3)), as_plain("a"), as_plain(fraction), as_plain(None)) == (3, "a", fraction, None)
    assert are_plain([1, "a"])
    assert not are_plain([True])
    assert not are_plain([2**64])
    assert not are_plain([1.5])
    with pytest.raises(StateError, match="only whole numbers and strings"):
        plain_indices([1.5])


def test_losses_of_samples_are_one_number_each():
    assert as_floats([1, 2.5]) == as_floats(Shaped([1.0, 2.5], (2,))) == [1.0, 2.5]
    for losses, said in (
        (Shaped(1.0), 'reduction="none"'),
        (Shaped([[1.0]], (1, 1)), "flatten"),
        (1.0, "losses of type float"),
    ):
        with pytest.raises(LossError, match=said):
            as_floats(losses)


@pytest.mark.parametrize(("module", "error"), [("jax.core", LossError), ("elsewhere", RuntimeError)])
def test_a_value_that_jax_traces_has_no_loss_yet_and_other_errors_stay_what_they_are(module, error):
    def refuse(self):
        raise RuntimeError("abstract")

    tracer = type("Tracer", (Shaped,), {"__module__": module, "tolist": refuse})
    with pytest.raises(error, match=r"traces before it runs|abstract"):
        as_floats(tracer(1.0, (1,)))


def test_a_loss_without_doubles_and_data_classes_of_arrays_are_windows_too():
    class OnApple:
        shape = ()
        device = types.SimpleNamespace(type="mps")

        def detach(self):
            return self

        clone = detach

        def double(self):
            raise TypeError("MPS has no doubles")

        def __float__(self):
            return 3.0

    loss = WindowLoss()
    loss.add(1.0, 1)
    loss.add(OnApple(), 1)
    assert loss.mean == 2.0
    batch = make_dataclass("Batch", ["name", "images"])("a", Shaped(0, (4, 3)))
    assert samples_in(batch) == 4


# Recorders


def test_a_recorder_that_knows_nothing_of_loaded_states_is_left_alone():
    class Counting:
        visits = 0

        def on_visit(self, *visit):
            self.visits += 1

        def on_epoch_end(self, summary):
            pass

        def on_epoch_abandoned(self, epoch):
            pass

    recorder = Counting()
    schedule = BatchAttentionSchedule(1.0, recorders=[recorder])
    schedule.load_state_dict(schedule_with_threshold().state_dict())
    schedule.decide(1.0)
    assert recorder.visits == 1


def test_losses_that_nobody_was_told_of_are_no_ground_for_another_k():
    watch = OverheadWatch(BatchAttentionSchedule(2.0).epochs.options)
    quiet = EpochSummary(
        epoch=1,
        batches=20,
        visits=20,
        repeats=0,
        overhead=0.0,
        mean_loss=1.0,
        threshold=2.0,
        capped_batches=0,
        nonfinite_losses=0,
        most_visits=1,
    )
    for _ in range(4):
        watch.note_epoch(quiet)
    with pytest.warns(BatchAttentionWarning, match=r"k=2.0 has repeated nothing in 5 epochs.*Use a lower k, or wait"):
        watch.note_epoch(quiet)
