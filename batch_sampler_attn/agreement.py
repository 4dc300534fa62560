"""What ranks that train together have to agree on: where they are, under which options, and the loss of each visit.

Nothing here knows of torch: how messages travel is a ``Reduce``'s affair, such as ``distributed.MeanOverRanks``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

from batch_sampler_attn.errors import (
    OptionError,
    ProtocolError,
    RankLostError,
    RanksDivergedError,
    RankTimeoutError,
    shown,
)
from batch_sampler_attn.losses import held
from batch_sampler_attn.option_values import weight
from batch_sampler_attn.rank_messages import NOT_SAID, Kind, Message, checked, differing, mean_over
from batch_sampler_attn.state import State


@runtime_checkable
class Reduce(Protocol):
    """Takes messages from rank to rank."""

    @property
    def ranks(self) -> int:
        """How many there are; 1 where nobody trains along."""

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0."""

    def attach(self) -> None:
        """A schedule takes this one for itself.

        Raises:
            OptionError: If another one has.
        """

    def start(self, message: Message) -> Callable[[], list[Message]]:
        """Send a message; the result waits for those of all ranks, and returns them by rank, with losses as floats.

        Raises:
            RankTimeoutError: While waiting: if a rank did not come in time.
            RankLostError: While waiting: if a rank is gone.
        """

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, by rank."""


ReduceOption = Reduce | Literal["refuse"] | None


class Agreement:
    """A schedule's side of what its ranks agree on; in one process, where there is nothing to agree on, it is silent.

    Args:
        reduce: As ``BatchAttentionSchedule`` takes it.

    Raises:
        OptionError: If it is of another kind, or belongs to another schedule.
    """

    def __init__(self, reduce: ReduceOption) -> None:
        # A class has all of the protocol's names as well.
        self.reduce = reduce if isinstance(reduce, Reduce) and not isinstance(reduce, type) else None
        self._refuses_ranks = isinstance(reduce, str) and reduce == "refuse"
        self._is_begun = False
        if self.reduce is not None:
            self.reduce.attach()
        elif reduce is not None and not self._refuses_ranks:
            raise OptionError(
                f"reduce is {shown(reduce)}; it must be MeanOverRanks() from batch_sampler_attn.distributed, None for "
                'ranks that decide each for itself, or "refuse"'
            )

    @property
    def ranks(self) -> int:
        """How many decide together."""
        return 1 if self.reduce is None else self.reduce.ranks

    def check_is_sought(self) -> None:
        """Refuse to let ranks decide apart from each other where nobody said that this is meant.

        Raises:
            ProtocolError: If so.
        """
        if self._refuses_ranks and (ranks := ranks_of_process_group()) > 1:
            raise ProtocolError(
                f"this process is one of {ranks} in an initialized process group, and would decide by this rank's "
                "losses alone: as soon as ranks decide differently they wait for each other for ever. Give "
                "reduce=MeanOverRanks() from batch_sampler_attn.distributed where the schedule (or SampleAttention) is "
                "made; or, if ranks share no gradients, reduce=None"
            )

    def begin(self, epoch: int, batches: int, visits: int, common: dict[str, Any]) -> None:
        """Hold what ranks are to have in common against each other, unless it was done for this epoch.

        Args:
            epoch: That begins, or is gone on with.
            batches: Of it that are behind.
            visits: To the batch in progress.
            common: The values, as JSON types.

        Raises:
            RanksDivergedError: If something differs.
        """
        if self.reduce is None or self._is_begun:
            return
        digest = zlib.crc32(json.dumps(common, sort_keys=True).encode())
        message = Message(Kind.BEGIN, epoch, batches, visits, digest, NOT_SAID, 0.0)
        messages = self._exchange(self.reduce, message)
        if len({message.digest for message in messages}) > 1:
            raise RanksDivergedError(differing(self.reduce.gather(common)))
        self._is_begun = True

    def start_visit(self, state: State, position: int, loss: object, samples: object) -> Callable[[], float]:
        """Tell the others of a visit; the result waits for theirs, and returns the mean of the losses.

        Args:
            state: Before the visit.
            position: Of the batch.
            loss: This rank's.
            samples: Its weight; None for that of any other rank.

        Raises:
            LossError: If the loss is not one real number.
            OptionError: If ``samples`` is no weight.
        """
        assert self.reduce is not None
        message = _visit(state, position)
        try:
            if samples is not None:
                message = message._replace(samples=weight("samples", samples))
            wait = self.reduce.start(message._replace(loss=held(loss)))
        except Exception:
            self.refuse(state, position)
            raise
        return lambda: mean_over(checked(wait()))

    def refuse(self, state: State, position: int) -> None:
        """This rank is about to raise an error; the others are to hear of it at once, rather than to wait.

        Args:
            state: Before the visit.
            position: Of the batch.
        """
        if self.reduce is not None:
            with contextlib.suppress(RankTimeoutError, RankLostError):
                self.reduce.start(_visit(state, position)._replace(kind=Kind.REFUSED))

    def end(self, epoch: int, batches: int, loss: float = 0.0, samples: float = NOT_SAID) -> list[Message]:
        """Make sure that all ranks are at the epoch's end.

        Args:
            epoch: That ends.
            batches: Of it that are behind.
            loss: Its mean on this rank, where that is to be told.
            samples: The weight of that.

        Returns:
            What all ranks said; nothing if this one is alone.

        Raises:
            RanksDivergedError: If one is not there.
        """
        messages = []
        if self.reduce is not None and self._is_begun:
            messages = self._exchange(self.reduce, Message(Kind.END, epoch, batches, 0, 0, samples, loss))
        self.forget()
        return messages

    def forget(self) -> None:
        """Another epoch begins, or the same one anew."""
        self._is_begun = False

    @staticmethod
    def _exchange(reduce: Reduce, message: Message) -> list[Message]:
        return checked(reduce.start(message)())


def _visit(state: State, position: int) -> Message:
    return Message(Kind.VISIT, state.epoch, position, state.visits + 1, 0, NOT_SAID, 0.0)


def ranks_of_process_group() -> int:
    """How many ranks ``torch.distributed`` has been initialized with; 1 without."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())
