"""A loop's parts as something to save, checked whole before anything is loaded."""

from __future__ import annotations

from dataclasses import fields as fields_of
from typing import Any

import torch

from batch_sampler_attn import checkpoint
from batch_sampler_attn.device import fitting, snapshot
from batch_sampler_attn.device.arithmetic import COUNTS
from batch_sampler_attn.device.data import ResidentData
from batch_sampler_attn.device.identity import check_same_data
from batch_sampler_attn.device.parts import Parts, Progress
from batch_sampler_attn.device.staged import StagedData
from batch_sampler_attn.errors import ProtocolError, StateError, shown

_PROGRESS_KEYS = {field.name for field in fields_of(Progress)} - {"in_flight"}
_STATE_KEYS = _PROGRESS_KEYS | {
    "version",
    "model",
    "optimizer",
    "scaler",
    "schedule",
    "randomness",
    "visit_counts",
}
# Earlier releases did not save these.
_ADDED_KEYS = {"slots", "data", "read_ahead"}

# Twice of it is still a number that a device can count to.
_MOST = 2**62


def state_of(parts: Parts) -> dict[str, Any]:
    """``DeviceLoop.state_dict``."""
    if parts.progress.in_flight:
        raise ProtocolError("updates are in flight; call settle(now=True) before state_dict()")
    data = parts.data
    with parts.place.on_stream():
        tensors = snapshot.take(parts.trained)
        visit_counts = parts.counters.read_tally()
        identity = data.identity() if parts.progress.is_in_epoch else None
    return {
        "version": checkpoint.VERSION,
        **tensors,
        "schedule": parts.host.schedule.state_dict(),
        "randomness": parts.randomness.state_dict(),
        "visit_counts": visit_counts,
        "slots": data.slots if isinstance(data, StagedData) else None,
        "data": identity,
        "read_ahead": data.read_ahead,
        **{name: getattr(parts.progress, name) for name in _PROGRESS_KEYS},
    }


def load(parts: Parts, state_dict: object) -> None:
    """``DeviceLoop.load_state_dict``."""
    fields, progress = _check_state(parts, state_dict)
    with parts.place.on_stream():
        before = snapshot.take(parts.trained)
    randomness = parts.randomness.state_dict()
    try:
        is_in_place = _prepare(parts, fields, progress)
    except BaseException:
        # Checks cannot know what a module of the user's own, or a data set, comes up with.
        with parts.place.on_stream():
            snapshot.put_back(before, parts.trained)
        _go_to(parts, parts.progress)
        parts.randomness.load_state_dict(randomness)
        raise
    _commit(parts, fields, progress, is_in_place=is_in_place)


def restore(parts: Parts, state_dict: dict[str, Any]) -> None:
    """``load`` for a state that these very parts had, whatever was done to them since."""
    # It is of this data, even where a data set makes up its targets afresh.
    fields, progress = {**state_dict, "data": None}, _progress_in(state_dict)
    _commit(parts, fields, progress, is_in_place=_prepare(parts, fields, progress))


def _prepare(parts: Parts, fields: dict[str, Any], progress: Progress) -> bool:
    """Everything of loading that may still raise; return whether every tensor is where it was."""
    _go_to(parts, progress)
    with parts.place.on_stream():
        if progress.is_in_epoch:
            check_same_data(fields["data"], parts.data.identity())
        try:
            return snapshot.put_back(fields, parts.trained)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # from what a module or an optimizer of the user's own does with a state
            raise StateError(f"the state is of another model, optimizer or scaler: {error}") from error


def _commit(parts: Parts, fields: dict[str, Any], progress: Progress, *, is_in_place: bool) -> None:
    if not is_in_place:
        parts.graphs.reset()
    host, counters = parts.host, parts.counters
    try:
        host.schedule.load_state_dict(fields["schedule"])
    finally:
        # Recorders of the user's own are told, and may raise: the state is loaded all the same.
        if progress.is_in_epoch:
            host.open_pass()
        parts.progress = progress
        with parts.place.in_use():
            if progress.is_in_epoch:
                counters.begin_epoch(host.state, host.deal())
            counters.write(host.state, cursor=progress.cursor)
            counters.write_tally(fields["visit_counts"])
        # A loader that reads ahead by other numbers has drawn by other numbers, and is there where it was gone through.
        is_ahead = progress.is_in_epoch and fields["read_ahead"] not in (None, parts.data.read_ahead)
        parts.randomness.load_state_dict(fields["randomness"], with_data=not is_ahead)


def _go_to(parts: Parts, progress: Progress) -> None:
    """Have the batches at hand that were."""
    if not progress.is_in_epoch:
        return
    # Before the place is in use: what torch's own generators draw from is exchanged there.
    if progress.epoch_randomness is not None:
        parts.randomness.load_state_dict(progress.epoch_randomness)
    with parts.place.in_use():
        parts.data.resume_epoch(progress.cursor, progress.staged)


# Checking -------------------------------------------------------------------------------------------------


def _check_state(parts: Parts, state_dict: object) -> tuple[dict[str, Any], Progress]:
    """The fields of a loop's state, as they are to be loaded, and its progress.

    Raises:
        StateError: If it cannot be loaded here.
    """
    fields = checkpoint.check_keys("the loop's state", state_dict, _STATE_KEYS, _ADDED_KEYS)
    checkpoint.check_version(fields["version"])
    data = parts.data
    progress = _check_progress(fields, data.batches)
    state = parts.host.check_state(fields["schedule"], progress.cursor if progress.is_in_epoch else None)
    for name in ("epoch", "skipped_batches", *COUNTS):
        _check_fits_device(name, getattr(state, name))
    if progress.is_in_epoch:
        _check_slots(fields, progress, data)
    checkpoint.check_count("read_ahead", fields.get("read_ahead", 0))
    _check_visit_counts(fields["visit_counts"], data.batches)
    parts.randomness.check(fields["randomness"])
    if progress.is_in_epoch or progress.epoch_randomness is not None:
        parts.randomness.check(progress.epoch_randomness)
    if progress.is_in_epoch:
        check_same_data(fields.get("data"), data.identity_ahead(fields["epoch_randomness"]["data"]))
    fitting.check_model(fields["model"], parts.model)
    fitting.check_scaler(fields["scaler"], parts.recipe.scaler)
    return {
        **dict.fromkeys(_ADDED_KEYS),
        **fields,
        "optimizer": fitting.fit_optimizer(fields["optimizer"], parts.optimizer),
    }, progress


def _progress_in(fields: dict[str, Any]) -> Progress:
    return Progress(**{name: fields[name] for name in _PROGRESS_KEYS})


def _check_progress(fields: dict[str, Any], batches: int) -> Progress:
    progress = _progress_in(fields)
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


def _check_slots(fields: dict[str, Any], progress: Progress, data: ResidentData | StagedData) -> None:
    """Refuse a ring in which the batches at hand do not fit, or that would be filled at other times."""
    saved, here = fields.get("slots"), data.slots if isinstance(data, StagedData) else None
    if "slots" in fields and (type(saved) is not type(here) or saved != here):
        raise StateError(
            f"the state was saved in mid-epoch with slots={shown(saved)}, and here slots={here} (None stands for "
            "ResidentData); construct the data as it was, or save between two epochs"
        )
    at_hand = progress.staged - progress.cursor
    if here is not None and at_hand > here:
        raise StateError(
            f"the state was saved in mid-epoch with {at_hand} batches at hand in a ring of slots=unknown, and here "
            f"slots={here}; construct StagedData with as many, or save between two epochs"
        )


def _check_visit_counts(counts: object, batches: int) -> None:
    if counts is not None and (not isinstance(counts, list) or len(counts) != batches):
        raise StateError(f"visit_counts is {counts!r:.80} in the state; it must be a list of {batches} whole numbers")
    for count in counts or ():
        _check_fits_device("a count of visits", checkpoint.check_count("a count of visits", count))


def _check_fits_device(name: str, count: int) -> None:
    if count >= _MOST:
        raise StateError(f"{name} is {count} in the state; a device counts to {_MOST - 1} here")
