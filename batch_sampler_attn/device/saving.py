"""Where a loop is in its training, as something to save, checked whole before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from batch_sampler_attn import checkpoint
from batch_sampler_attn.device import snapshot
from batch_sampler_attn.device.randomness import Randomness, check_generator_state
from batch_sampler_attn.errors import ProtocolError, StateError
from batch_sampler_attn.schedule import BatchAttentionSchedule

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
_STATE_KEYS = {"version", "model", "optimizer", "scaler", "schedule", "randomness", "visit_counts"} | _PROGRESS_KEYS


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


def check_state(
    state_dict: object, schedule: BatchAttentionSchedule, batches: int, generators: Generators
) -> tuple[dict[str, Any], Progress]:
    """The fields of a loop's state, and its progress.

    Args:
        state_dict: As ``DeviceLoop.state_dict`` returned it.
        schedule: That the state has to be of.
        batches: Base batches in an epoch.
        generators: That the state has to fit.

    Raises:
        StateError: If it cannot be loaded here. Whether tensors fit is not looked at.
    """
    fields = checkpoint.check_keys("the loop's state", state_dict, _STATE_KEYS)
    checkpoint.check_version(fields["version"])
    schedule._unpack(fields["schedule"])
    progress = Progress(**{name: fields[name] for name in _PROGRESS_KEYS})
    if not isinstance(progress.is_in_epoch, bool):
        raise StateError(f"is_in_epoch is {progress.is_in_epoch!r} in the state; it must be True or False")
    for name in ("cursor", "updates", "host_reads"):
        checkpoint.check_count(name, fields[name])
    checkpoint.check_count("staged", progress.staged, least=progress.cursor if progress.is_in_epoch else 0)
    if max(progress.cursor, progress.staged) > batches:
        raise StateError(
            f"the state is at batch {progress.cursor}, with {progress.staged} at hand, and there are {batches} in an "
            "epoch here; construct the data as it was"
        )
    counts = fields["visit_counts"]
    if counts is not None and (not isinstance(counts, list) or len(counts) != batches):
        raise StateError(f"visit_counts is {counts!r:.80} in the state; it must be a list of {batches} whole numbers")
    for count in counts or ():
        checkpoint.check_count("a count of visits", count)
    generators.check(fields["randomness"])
    if progress.is_in_epoch:
        generators.check(progress.epoch_randomness)
    return fields, progress


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
        **vars(loop._progress),
    }


def load(loop: DeviceLoop, state_dict: object) -> None:
    """``DeviceLoop.load_state_dict``."""
    fields, progress = check_state(state_dict, loop._bookkeeping, loop.batches, loop._generators)
    parts = loop.model, loop._optimizer, loop._update.recipe.scaler
    with loop._place.on_stream():
        before = snapshot.take(*parts)
        try:
            is_in_place = snapshot.put_back(fields, *parts)
        except Exception:
            snapshot.put_back(before, *parts)
            loop._reset_graphs()
            raise
    if not is_in_place:
        loop._reset_graphs()
    loop._bookkeeping.load_state_dict(fields["schedule"])
    loop._progress = progress
    loop._in_flight_updates = 0
    # Before the place is in use: what torch's own generators draw from is exchanged there.
    if progress.epoch_randomness is not None and progress.is_in_epoch:
        loop._generators.load_state_dict(progress.epoch_randomness)
    with loop._place.in_use():
        if progress.is_in_epoch:
            loop._counters.begin_epoch(loop._bookkeeping._state)
        loop._counters.write(loop._bookkeeping._state, cursor=progress.cursor)
        if loop.counts_visits and fields["visit_counts"] is not None:
            loop._counters.write_tally(fields["visit_counts"])
        if progress.is_in_epoch:
            loop._data.resume_epoch(progress.cursor, progress.staged)
    loop._generators.load_state_dict(fields["randomness"])
