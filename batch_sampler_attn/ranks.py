"""Ranks that train together: they exchange losses, check that they are at the same visit, and share the data."""

from __future__ import annotations

import enum
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from batch_sampler_attn.checkpoint import check_ranks
from batch_sampler_attn.errors import OptionError, ProtocolError, RanksDivergedError, short_repr
from batch_sampler_attn.losses import detached
from batch_sampler_attn.options import positive_int, sample_weight

Item = TypeVar("Item")

# ``RankMessage.samples`` of a loss that was reported without a weight.
UNWEIGHTED = -1.0


class MessageKind(enum.IntEnum):
    """The event that a message reports."""

    BEGIN = 1
    BATCH = 2
    VISIT = 3
    SKIP = 4
    END = 5
    REFUSED = 6


class RankMessage(NamedTuple):
    """One rank's message to the others.

    The ``loss`` is a number, or a tensor of one element on any device. All other fields are numbers that a double
    holds exactly. ``digest`` is a checksum of the values that must be equal on all ranks when an epoch begins.
    """

    kind: float
    epoch: float
    batch: float
    visit: float
    digest: float = 0
    samples: float = UNWEIGHTED
    loss: Any = 0.0

    def __str__(self) -> str:
        epoch, batch, visit = int(self.epoch), int(self.batch), int(self.visit)
        if self.kind == MessageKind.BEGIN:
            return f"begins epoch {epoch} at batch {batch} after {visit} visits"
        if self.kind == MessageKind.END:
            return f"ended epoch {epoch} after {batch} batches"
        if self.kind == MessageKind.BATCH:
            return f"epoch {epoch}, has a batch {batch}"
        action = {MessageKind.SKIP: ", skipped", MessageKind.REFUSED: ", stopped by an error of its own"}
        return f"epoch {epoch}, batch {batch}, visit {visit}{action.get(MessageKind(int(self.kind)), '')}"


@runtime_checkable
class RankTransport(Protocol):
    """Carries messages between ranks."""

    @property
    def ranks(self) -> int:
        """Number of ranks that train together; 1 for a single process."""

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""

    def claim(self) -> None:
        """Reserve this transport for one schedule; raise OptionError if another one has claimed it."""

    def start(self, message: RankMessage) -> Callable[[], list[RankMessage]]:
        """Send a message; return a function that waits for all ranks' messages and returns them by rank.

        It returns losses as floats. It raises RankTimeoutError if a rank is late, and RankLostError if a rank is lost.
        """

    def gather(self, value: Any) -> list[Any]:
        """Return the JSON values of all ranks, by rank."""


RanksOption = RankTransport | Literal["refuse"] | None


class Ranks:
    """One schedule's side of the exchanges between ranks; it has no ``transport`` if this process decides alone.

    A method that waits for other ranks raises RanksDivergedError if one of them is at another visit.
    """

    def __init__(self, option: RanksOption) -> None:
        self.transport: RankTransport | None = None
        # A class also has all names of the protocol.
        if isinstance(option, RankTransport) and not isinstance(option, type):
            option.claim()
            self.transport = option
        elif option not in (None, "refuse"):
            raise OptionError(f'ranks is {short_repr(option)}; it must be MeanOverRanks(), None, or "refuse"')
        self._refuses_ranks = option == "refuse"
        self._has_begun = False
        # Functions that wait for the answers to messages sent, which are checked with the next exchange.
        self._unanswered: list[Callable[[], list[RankMessage]]] = []

    def __getstate__(self) -> dict[str, Any]:
        # Messages in transit belong to the original, not to a copy.
        return {**vars(self), "_unanswered": []}

    @property
    def shard(self) -> Shard:
        """This rank, among those that decide together."""
        return Shard() if self.transport is None else Shard(self.transport.rank, self.transport.ranks)

    def require_choice(self) -> None:
        """Raise an error if several ranks would each decide alone, unless ``ranks=None`` allows it."""
        if self._refuses_ranks and (size := process_group_size()) > 1:
            raise ProtocolError(
                f"this process is one of {size} in a process group; give ranks=MeanOverRanks() from "
                "batch_sampler_attn.distributed, or ranks=None if the ranks share no gradients"
            )

    def begin(self, epoch: int, batches: int, visits: int, common: dict[str, Any]) -> None:
        """Check, once an epoch, that all ranks begin or resume it at the same visit, with equal ``common`` values."""
        if self.transport is None or self._has_begun:
            return
        digest = zlib.crc32(json.dumps(common, sort_keys=True).encode())
        messages = self._exchange(RankMessage(MessageKind.BEGIN, epoch, batches, visits, digest))
        if len({message.digest for message in messages}) > 1:
            differing: list[str] = []
            gathered = self.transport.gather(common)
            for name in sorted({*itertools.chain(*gathered)}):
                values = [short_repr(each.get(name)) for each in gathered]
                if len({*values}) > 1:
                    differing.append(f"{name} {_by_rank(values, '{value} ({ranks})', ', ')}")
            raise RanksDivergedError(
                f"as the epoch begins, the ranks differ in {'; '.join(differing)}. Give all ranks the same"
            )
        self._has_begun = True

    def notify(self, kind: MessageKind, epoch: int, batch: int, visit: int) -> None:
        """Send a message that arrives even if this rank then waits inside DDP; the next exchange compares it."""
        if self.transport is not None:
            self._unanswered.append(self.transport.start(RankMessage(kind, epoch, batch, visit)))

    def send_loss(self, epoch: int, batch: int, visit: int, loss: object, samples: object) -> Callable[[], float]:
        """Send the loss of a visit; return a function that waits for all ranks and returns the mean by samples."""
        assert self.transport is not None
        self._check_answers()
        message = RankMessage(MessageKind.VISIT, epoch, batch, visit)
        try:
            if samples is not None:
                message = message._replace(samples=sample_weight("samples", samples))
            wait = self.transport.start(message._replace(loss=detached(loss)))
        except Exception:
            self.notify(MessageKind.REFUSED, epoch, batch, visit)
            raise
        return lambda: weighted_mean(check_same_place(wait()))

    def end(self, epoch: int, batches: int, mean_loss: float | None = None, samples: float = 0.0) -> float | None:
        """Check that all ranks end the epoch after equally many batches; return the mean of theirs by samples."""
        if self.transport is None or not self._has_begun:
            return mean_loss
        weight = 0.0 if mean_loss is None else samples
        message = RankMessage(MessageKind.END, epoch, batches, 0, samples=weight, loss=mean_loss or 0.0)
        messages = self._exchange(message)
        self.forget()
        return weighted_mean(messages) if any(message.samples for message in messages) else None

    def forget(self) -> None:
        """Have the next ``begin`` compare the ranks again: another epoch begins, or a state was loaded."""
        self._has_begun = False
        self._unanswered.clear()

    def _exchange(self, message: RankMessage) -> list[RankMessage]:
        assert self.transport is not None
        self._check_answers()
        return check_same_place(self.transport.start(message)())

    def _check_answers(self) -> None:
        while self._unanswered:
            check_same_place(self._unanswered.pop(0)())


def process_group_size() -> int:
    """The number of ranks in ``torch.distributed``'s default group; 1 if there is none."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())


def weighted_mean(messages: Sequence[RankMessage]) -> float:
    """The mean loss, weighted by samples. Summed in the order of ranks, it is the same double on all of them."""
    unweighted = [rank for rank, message in enumerate(messages) if message.samples == UNWEIGHTED]
    if 0 < len(unweighted) < len(messages):
        raise RanksDivergedError(f"samples= was not given on {_name(unweighted)}; give it on all ranks or on none")
    # A loss over no samples may be NaN.
    weighted = [(message.loss, 1.0 if unweighted else message.samples) for message in messages if message.samples]
    if not weighted:
        raise OptionError("samples is 0 on every rank; call schedule.skip() on all of them for such a batch")
    if len(weighted) == 1:
        return float(weighted[0][0])
    # The rounding of sum() differs between versions of Python.
    total = samples = 0.0
    for loss, weight in weighted:
        total += loss * weight
        samples += weight
    return total / samples


def check_same_place(messages: list[RankMessage]) -> list[RankMessage]:
    """Return the messages of one exchange if all ranks are at the same visit; else raise RanksDivergedError."""
    if len({message[:4] for message in messages}) == 1:
        return messages
    places = _by_rank(messages, "{ranks}: {value}", "; ")
    advice = "All ranks must make the same calls over the same number of batches"
    if any(message.kind == MessageKind.SKIP for message in messages):
        advice = "Call skip() on all ranks or on none; a rank without samples for a batch gives samples=0"
    raise RanksDivergedError(
        f"the ranks are not at the same visit ({places}). {advice}. Restart from a checkpoint: updates may have mixed "
        "different batches"
    )


def _by_rank(values: Iterable[object], form: str, separator: str) -> str:
    """Each distinct value with the ranks that have it."""
    ranks_of: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks_of.setdefault(str(value), []).append(rank)
    return separator.join(form.format(value=value, ranks=_name(ranks)) for value, ranks in ranks_of.items())


def _name(ranks: list[int]) -> str:
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"


class Shard(NamedTuple):
    """One rank's part of an order that is the same on all ranks: every ``ranks``-th item, starting at ``rank``.

    Items are indices, or whole batches if ``batch_size`` is None. A rank that would lack its last batch takes an item
    from the beginning of the order. ``drop_last`` drops the items that do not suffice for all ranks.
    """

    rank: int = 0
    ranks: int = 1

    def length(self, items: int, batch_size: int | None, *, drop_last: bool) -> int:
        """This rank's number of items, out of ``items`` in the whole order."""
        whole, left = divmod(items, self.ranks)
        return whole + (left > 0 and self._has_one_more(whole, left, batch_size, drop_last=drop_last))

    def of(self, items: Iterable[Item], batch_size: int | None, *, drop_last: bool) -> Iterator[Item]:
        """This rank's items of the whole order."""
        iterator, first = iter(items), list[Item]()
        for whole, group in enumerate(iter(lambda: list(itertools.islice(iterator, self.ranks)), [])):
            first = first or group
            if len(group) == self.ranks:
                yield group[self.rank]
            elif self._has_one_more(whole, len(group), batch_size, drop_last=drop_last):
                yield [*group, *itertools.islice(itertools.cycle(first), self.ranks)][self.rank]

    def _has_one_more(self, whole: int, left: int, batch_size: int | None, *, drop_last: bool) -> bool:
        # Of ``left`` items that remain after ``whole`` for every rank.
        begins_a_batch = batch_size is None or whole % batch_size == 0
        return not drop_last and (self.rank < left or begins_a_batch)


def shard_of(sampler: Any, rank: Any, world_size: Any) -> Shard | None:
    """The shard that ``rank=`` and ``world_size=`` describe; None if neither is given."""
    if rank is None and world_size is None:
        return None
    ranks = positive_int("world_size", world_size, "the number of ranks that share the data")
    if ranks == 1 and rank is None:
        return Shard()
    if rank not in range(ranks):
        raise OptionError(f"rank is {short_repr(rank)}; it must be an int from 0 to {ranks - 1} (world_size - 1)")
    if ranks > 1 and (own := own_shard(sampler)) is not None:
        name = f"{type(sampler).__name__} is for rank {own.rank} of {own.ranks} already"
        raise OptionError(f"{name}; omit rank= and world_size=")
    return Shard(rank, ranks)


def own_shard(sampler: Any) -> Shard | None:
    """The shard of a ``DistributedSampler`` or similar, or of a batch sampler over one; None for any other."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        rank, ranks = getattr(part, "rank", None), getattr(part, "num_replicas", None)
        if isinstance(rank, int) and isinstance(ranks, int):
            return Shard(rank, ranks)
    return None


def unpack_shard(packed: list[int], here: Shard, *, is_in_epoch: bool) -> Shard:
    """The shard that a state was saved on; in mid-epoch, the number of ranks must be the same here."""
    shard = Shard(*packed)
    check_ranks(shard.ranks, here.ranks, is_in_epoch=is_in_epoch)
    return shard
