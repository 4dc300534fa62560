"""Where a loop is in its training, as something to save, checked whole before anything is loaded."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from batch_sampler_attn import checkpoint
from batch_sampler_attn.control import EqualComputeControl
from batch_sampler_attn.device import fitting, snapshot
from batch_sampler_attn.device.data import ResidentData
from batch_sampler_attn.device.randomness import Randomness, check_generator_state
from batch_sampler_attn.device.staged import StagedData
from batch_sampler_attn.errors import ProtocolError, StateError
from batch_sampler_attn.rule import State

if TYPE_CHECKING:
    from batch_sampler_attn.device.loop import DeviceLoop


@dataclass
class Progress:
    """Where a loop is, as far as the host knows.

    Attributes:
        cursor: Base batches of the data's epoch that are done with.
        staged: Base batches of the epoch that are at hand, those done with included.
        updates: Updates made so far, over all epochs.
        host_reads: How often the host waited for the cursor in this epoch.
        is_in_epoch: Whether an epoch has begun and not ended.
        epoch_randomness: The generators' states at the epoch's begin.
    """

    cursor: int = 0
    staged: int = 0
    updates: int = 0
    host_reads: int = 0
    is_in_epoch: bool = False
    epoch_randomness: dict[str, Any] | None = None


_PROGRESS_KEYS = set(Progress.__dataclass_fields__)
_STATE_KEYS = {
    "version",
    "model",
    "optimizer",
    "scaler",
    "schedule",
    "randomness",
    "visit_counts",
    "slots",
} | _PROGRESS_KEYS

# Twice of it is still a number that a device can count to.
_MOST = 2**62


class Generators:
    """All that a loop draws from.

    Args:
        randomness: The loop's.
        data: The data's generator, if there is one.
    """

    def __init__(self, randomness: Randomness, data: torch.Generator | None) -> None:
        self._randomness = randomness
        self._data = data

    def state_dict(self) -> dict[str, Any]:
        """The states of all generators."""
        return {
            "loop": self._randomness.state_dict(),
            "data": None if self._data is None else self._data.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them, in place."""
        self._randomness.load_state_dict(state["loop"])
        if self._data is not None:
            self._data.set_state(state["data"])

    def check(self, state: object) -> None:
        """Refuse what ``load_state_dict`` could not load.

        Raises:
            StateError: If so.
        """
        fields = checkpoint.check_keys("the state's randomness", state, {"loop", "data"})
        self._randomness.check(fields["loop"])
        if (fields["data"] is None) != (self._data is None):
            raise StateError(
                "the state was saved with a generator in the data and there is none here, or the other way round; "
                "construct the data as it was"
            )
        if self._data is not None:
            check_generator_state("the data's generator", self._data, fields["data"])


def check_state(loop: DeviceLoop, state_dict: object) -> tuple[dict[str, Any], Progress]:
    """The fields of a loop's state, as they are to be loaded, and its progress.

    Raises:
        StateError: If it cannot be loaded here.
    """
    if isinstance(state_dict, dict) and "slots" not in state_dict:
        # Earlier releases did not save it.
        state_dict = {**state_dict, "slots": None}
    fields = checkpoint.check_keys("the loop's state", state_dict, _STATE_KEYS)
    checkpoint.check_version(fields["version"])
    state, _ = loop._bookkeeping._unpack(fields["schedule"])
    for name, value in state.as_dict().items():
        _check_fits_device(name, value)
    progress = _check_progress(fields, loop.batches)
    _check_agreement(progress, state, loop)
    if progress.is_in_epoch:
        _check_slots(fields["slots"], progress, loop._data)
    counts = fields["visit_counts"]
    if counts is not None and (not isinstance(counts, list) or len(counts) != loop.batches):
        raise StateError(
            f"visit_counts is {counts!r:.80} in the state; it must be a list of {loop.batches} whole numbers"
        )
    for count in counts or ():
        _check_fits_device("a count of visits", checkpoint.check_count("a count of visits", count))
    loop._generators.check(fields["randomness"])
    if progress.is_in_epoch or progress.epoch_randomness is not None:
        loop._generators.check(progress.epoch_randomness)
    fitting.check_model(fields["model"], loop.model)
    fitting.check_scaler(fields["scaler"], loop._update.recipe.scaler)
    return {**fields, "optimizer": fitting.fit_optimizer(fields["optimizer"], loop._optimizer)}, progress


def _check_progress(fields: dict[str, Any], batches: int) -> Progress:
    progress = Progress(**{name: fields[name] for name in _PROGRESS_KEYS})
    if not isinstance(progress.is_in_epoch, bool):
        raise StateError(f"is_in_epoch is {progress.is_in_epoch!r} in the state; it must be True or False")
    for name in ("cursor", "updates", "host_reads"):
        _check_fits_device(name, checkpoint.check_count(name, fields[name]))
    checkpoint.check_count("staged", progress.staged, least=progress.cursor if progress.is_in_epoch else 0)
    if max(progress.cursor, progress.staged) > batches:
        raise StateError(
            f"the state is at batch {progress.cursor}, with {progress.staged} at hand, and there are {batches} in an "
            "epoch here; construct the data as it was"
        )
    is_over = progress.cursor == batches
    if is_over if progress.is_in_epoch else not is_over and progress.cursor > 0:
        raise StateError(
            f"the state is at batch {progress.cursor} of {batches}, which does not go with is_in_epoch="
            f"{progress.is_in_epoch}; it was changed after it was saved, or is of other data"
        )
    return progress


def _check_agreement(progress: Progress, state: State, loop: DeviceLoop) -> None:
    """Refuse a loop and a schedule that are at different places."""
    batches = progress.cursor if progress.is_in_epoch else 0
    is_apart = state.batches != batches or state.position != batches or (state.visits and not progress.is_in_epoch)
    if is_apart and loop._bookkeeping.options.window is None:
        raise StateError(
            f"the loop is at batch {batches} of its epoch in the state, and its schedule at batch {state.position}, "
            f"after {state.visits} visits; it was changed after it was saved"
        )
    if not isinstance(loop._bookkeeping, EqualComputeControl):
        return
    try:
        # A copy, since the control remembers what it dealt last.
        dealt = copy.copy(loop._bookkeeping)._deal(state.epoch) if progress.is_in_epoch else None
    except ProtocolError as error:
        raise StateError(f"the state is of another control: {error}") from error
    if dealt is not None and (len(dealt) != loop.batches or state.visits >= dealt[progress.cursor]):
        raise StateError(
            f"the state is at batch {progress.cursor} of epoch {state.epoch}, after {state.visits} visits, which "
            "visit_counts does not come to; construct the control and the data as they were"
        )


def _check_slots(saved: object, progress: Progress, data: ResidentData | StagedData) -> None:
    """Refuse a ring in which the batches at hand do not fit, or that would be filled at other times."""
    if not isinstance(data, StagedData):
        return
    at_hand = progress.staged - progress.cursor
    if at_hand > data.slots or (saved is not None and saved != data.slots):
        raise StateError(
            f"the state was saved in mid-epoch with {at_hand} batches at hand in a ring of slots={saved or 'unknown'}, "
            f"and here slots={data.slots}; construct StagedData with as many, or save between two epochs"
        )


def _check_fits_device(name: str, value: object) -> None:
    if isinstance(value, int) and value >= _MOST:
        raise StateError(f"{name} is {value} in the state; a device counts to {_MOST - 1} here")


def state_of(loop: DeviceLoop) -> dict[str, Any]:
    """``DeviceLoop.state_dict``."""
    if loop._in_flight_updates:
        raise ProtocolError("updates are in flight; call settle(now=True) before state_dict()")
    with loop._place.on_stream():
        tensors = snapshot.take(loop.model, loop._optimizer, loop._update.recipe.scaler)
        visit_counts = loop._counters.read_tally()
    return {
        "version": checkpoint.VERSION,
        **tensors,
        "schedule": loop._bookkeeping.state_dict(),
        "randomness": loop._generators.state_dict(),
        "visit_counts": visit_counts,
        "slots": loop._data.slots if isinstance(loop._data, StagedData) else None,
        **vars(loop._progress),
    }


def load(loop: DeviceLoop, state_dict: object) -> None:
    """``DeviceLoop.load_state_dict``."""
    fields, progress = check_state(loop, state_dict)
    parts = loop.model, loop._optimizer, loop._update.recipe.scaler
    with loop._place.on_stream():
        before = snapshot.take(*parts)
    randomness = loop._generators.state_dict()
    try:
        _assign(loop, fields, progress)
    except Exception:
        # Checks cannot know what a module of the user's own, or a data set, comes up with.
        with loop._place.on_stream():
            snapshot.put_back(before, *parts)
        loop._reset_graphs()
        _go_to(loop, loop._progress)
        loop._generators.load_state_dict(randomness)
        raise


def restore(loop: DeviceLoop, state_dict: dict[str, Any]) -> None:
    """``load`` for a state that this very loop had, whatever was done to it since."""
    _assign(loop, state_dict, Progress(**{name: state_dict[name] for name in _PROGRESS_KEYS}))


def _assign(loop: DeviceLoop, fields: dict[str, Any], progress: Progress) -> None:
    """Load what was checked; what may still raise comes first."""
    with loop._place.on_stream():
        try:
            is_in_place = snapshot.put_back(fields, loop.model, loop._optimizer, loop._update.recipe.scaler)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # from what a module or an optimizer of the user's own does with a state
            raise StateError(f"the state is of another model, optimizer or scaler: {error}") from error
    if not is_in_place:
        loop._reset_graphs()
    _go_to(loop, progress)
    loop._bookkeeping.load_state_dict(fields["schedule"])
    loop._progress = progress
    loop._in_flight_updates = 0
    with loop._place.in_use():
        if progress.is_in_epoch:
            loop._counters.begin_epoch(loop._bookkeeping._state)
        loop._counters.write(loop._bookkeeping._state, cursor=progress.cursor)
        if loop.counts_visits and fields["visit_counts"] is not None:
            loop._counters.write_tally(fields["visit_counts"])
    loop._generators.load_state_dict(fields["randomness"])


def _go_to(loop: DeviceLoop, progress: Progress) -> None:
    """Have the batches at hand that were."""
    if not progress.is_in_epoch:
        return
    # Before the place is in use: what torch's own generators draw from is exchanged there.
    if progress.epoch_randomness is not None:
        loop._generators.load_state_dict(progress.epoch_randomness)
    with loop._place.in_use():
        loop._data.resume_epoch(progress.cursor, progress.staged)
