"""Until training has been shown to work here, an error leaves everything as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from batch_sampler_attn.device import saving
from batch_sampler_attn.device.parts import Parts
from batch_sampler_attn.errors import DeviceLoopError


class Guard:
    """Undoes a loop's first calls where they fail, and says what to do where memory does not suffice."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._is_proven = False
        self._before: dict[str, Any] | None = None

    def stand_down(self) -> None:
        """From now on nothing is undone: training works here."""
        self._is_proven, self._before = True, None

    @contextmanager
    def on(self) -> Iterator[None]:
        """For the time of a call that trains.

        Raises:
            ProtocolError: If the schedule is in an epoch of another loop.
            DeviceLoopError: If the device's memory does not suffice.
        """
        parts = self._parts
        if not parts.progress.is_in_epoch:
            parts.host.check_is_between_epochs()
        if not self._is_proven and not parts.progress.in_flight:
            self._before = saving.state_of(parts)
        try:
            yield
        except Exception as error:
            self._undo()
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            raise DeviceLoopError(
                f"the device's memory does not suffice: {str(error).splitlines()[0]}. Use a smaller batch, keep the "
                "data off the device with StagedData, or run fewer loops at once"
            ) from error

    def _undo(self) -> None:
        before, self._before = self._before, None
        if before is None:
            self._parts.place.join()
            return
        saving.restore(self._parts, before)
