"""The loss of the visit under way: reported, on its way between ranks, and awaited by the decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.losses import as_float, held
from batch_sampler_attn.option_values import weight
from batch_sampler_attn.ranks import Ranks
from batch_sampler_attn.state import State

# What ``decide`` is given where the loss was reported before.
REPORTED = object()


class Reports:
    """Takes a visit's loss when it is known, and gives it back when it is to be decided on.

    Args:
        agreement: With the other ranks.

    Attributes:
        is_plain: Whether a loss can be decided on as it is: nothing is out, and no rank trains along.
        is_out: Whether a loss was reported, and not decided on.
    """

    def __init__(self, agreement: Ranks) -> None:
        self.is_plain = False
        self.is_out = False
        self._agreement = agreement
        self._loss: Any = None
        self._wait: Callable[[], float] | None = None
        self._batch: object = None

    def __getstate__(self) -> dict[str, Any]:
        # What is on its way between ranks is not the copy's; the visit is reported anew there.
        state = {**vars(self), "_wait": None}
        return state if self._wait is None else {**state, "is_out": False}

    def put(self, state: State, position: int, loss: object, samples: object, batch: object) -> None:
        """A visit's loss is known.

        Args:
            state: Before the visit.
            position: Of its batch.
            loss: As for ``as_float``.
            samples: Its weight among ranks; None where all weigh the same.
            batch: The user's key of it, if there is one.

        Raises:
            LossError: If the loss is not one real number.
            OptionError: If ``samples`` is no weight.
        """
        if self._agreement.transport is not None:
            self._wait = self._agreement.send_loss(state.epoch, position, state.visits + 1, loss, samples)
        else:
            if samples is not None:
                weight("samples", samples)
            self._loss = held(loss)
        self._batch = batch
        self.is_out, self.is_plain = True, False

    def take(self) -> tuple[float, object]:
        """The loss that was reported, or its mean over ranks; and the batch's key.

        Raises:
            ProtocolError: If none was.
            RanksDivergedError, RankTimeoutError, RankLostError: As the exchange with the other ranks goes.
        """
        if not self.is_out:
            raise ProtocolError(
                "decide() was called without a loss, and none was reported. Call schedule.decide(loss), or "
                "schedule.report(loss) before it"
            )
        loss, wait, batch = self._loss, self._wait, self._batch
        self.drop()
        self.is_plain = self._agreement.transport is None
        return as_float(loss) if wait is None else wait(), batch

    def end_epoch(self) -> None:
        """A hand-written loop ends its epoch; in the next one, more ranks may train along.

        Raises:
            ProtocolError: If a loss is out.
        """
        if self.is_out:
            raise ProtocolError("end_epoch() was called after report() had told a visit's loss; call decide() first")
        self.is_plain = False

    def drop(self) -> None:
        """The visit under way is given up."""
        self._loss = self._wait = self._batch = None
        self.is_out = False
