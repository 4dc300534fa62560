"""What ranks tell each other, and what all of their messages come to."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from batch_sampler_attn.errors import OptionError, RanksDivergedError, shown

# What ``Message.samples`` is without a weight.
NOT_SAID = -1.0


class Kind(enum.IntEnum):
    """What a message is about."""

    BEGIN = 1
    VISIT = 2
    END = 3
    REFUSED = 4


class Message(NamedTuple):
    """What one rank tells the others. All but the loss are whole numbers, or samples, that a double holds.

    Attributes:
        kind: A ``Kind``, as a number.
        epoch: That it is in.
        batch: The position of the batch, or how many are behind.
        visit: 1 for a first one; as an epoch begins, the visits that its first batch had before.
        digest: Of what ranks have to have in common as an epoch begins; 0 otherwise.
        samples: The weight of the loss; ``NOT_SAID`` if that was not said.
        loss: A number, or a value of one element on any device.
    """

    kind: float
    epoch: float
    batch: float
    visit: float
    digest: float
    samples: float
    loss: Any

    def __str__(self) -> str:
        epoch, batch, visit = int(self.epoch), int(self.batch), int(self.visit)
        if self.kind == Kind.BEGIN:
            return f"begins epoch {epoch}" + (f" after {batch} batches, {visit} visits" if batch or visit else "")
        if self.kind == Kind.END:
            return f"ended epoch {epoch} after {batch} batches"
        refused = ", where it stopped for an error of its own" if self.kind == Kind.REFUSED else ""
        return f"epoch {epoch}, batch {batch}, visit {visit}{refused}"


def mean_over(messages: Sequence[Message]) -> float:
    """The mean loss by samples, added up in the order of ranks, so that it is the same number on each of them.

    Raises:
        OptionError: If no rank has a sample.
        RanksDivergedError: If samples are said on some ranks only.
    """
    unsaid = [rank for rank, message in enumerate(messages) if message.samples == NOT_SAID]
    if len(unsaid) == len(messages):
        messages = [message._replace(samples=1.0) for message in messages]
    elif unsaid:
        raise RanksDivergedError(
            f"samples= was given on other ranks, but not on {_name(unsaid)}; give it on all or none"
        )
    # The loss of no sample is NaN, or whatever it was made to be.
    weighed = [message for message in messages if message.samples]
    if not weighed:
        raise OptionError("samples is 0 on every rank; leave such a batch out on all of them, with schedule.skip()")
    if len(weighed) == 1:
        return float(weighed[0].loss)
    # Not sum(), whose rounding differs between versions of Python.
    total = samples = 0.0
    for message in weighed:
        total += message.loss * message.samples
        samples += message.samples
    return total / samples


def checked(messages: list[Message]) -> list[Message]:
    """The messages of one exchange, by rank, if all ranks are at the same place.

    Raises:
        RanksDivergedError: If they are not, or one refused its loss.
    """
    is_refused = any(message.kind == Kind.REFUSED for message in messages)
    if is_refused or len({message[:4] for message in messages}) > 1:
        by_place: dict[str, list[int]] = {}
        for rank, message in enumerate(messages):
            by_place.setdefault(str(message), []).append(rank)
        places = "; ".join(f"{_name(ranks)}: {place}" for place, ranks in by_place.items())
        raise RanksDivergedError(
            f"the ranks are not at the same visit ({places}). Each has to make the same calls in the same order, over "
            "as many batches; since they last agreed, updates may have mixed different batches: go on from a checkpoint"
        )
    return messages


def differing(values: list[dict[str, Any]]) -> str:
    """What ranks have not in common, in words.

    Args:
        values: By rank, JSON values by name.
    """
    parts = []
    for name in sorted({name for value in values for name in value}):
        by_value: dict[str, list[int]] = {}
        for rank, value in enumerate(values):
            by_value.setdefault(shown(value.get(name)), []).append(rank)
        if len(by_value) > 1:
            parts.append(f"{name} " + ", ".join(f"{text} ({_name(ranks)})" for text, ranks in by_value.items()))
    return (
        f"as the epoch begins, the ranks differ in {'; '.join(parts)}. All need the same options, a state that was "
        "saved at the same moment, and as many batches"
    )


def _name(ranks: list[int]) -> str:
    if len(ranks) > 4:
        return f"{len(ranks)} ranks from {ranks[0]} to {ranks[-1]}"
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"
