"""Ranks of ``torch.distributed`` that decide alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from batch_sampler_attn.errors import OptionError, RankLostError, RankTimeoutError, shown
from batch_sampler_attn.option_values import positive_number
from batch_sampler_attn.rank_messages import Message

DEFAULT_TIMEOUT_SECONDS = 600.0

# Between two looks at a device that is not done; a visit takes a millisecond or more.
_POLL_SECONDS = 0.0002


class MeanOverRanks:
    """Gives every rank the mean of all ranks' losses, by samples, so that all of them decide alike.

    Each exchange says what it is about, and the schedule refuses to go on once ranks are not at the same visit. The
    mean is added up in double precision in the order of ranks: it is bit for bit the same on each.

    The exchanges have a process group of their own, made on first use: on another's, such as that of
    ``DistributedDataParallel``, a call left out would be paired with that one's. Before ``init_process_group``, and
    with one rank, there is nothing to exchange.

    Args:
        group: The ranks that train together, as a process group; None for all.
        timeout_seconds: How long a rank waits for another one. It has to be longer than whatever one rank does alone,
            such as an evaluation on rank 0 between two epochs.
        device: On which messages are exchanged; None for the group's accelerator if it has a backend for one (NCCL), so
            that a loss stays on its device until it is awaited, and else the CPU.

    Raises:
        OptionError: If an argument is not allowed, or this rank is not in the group.

    Example:
        >>> from batch_sampler_attn import BatchAttentionSchedule
        >>> schedule = BatchAttentionSchedule(k=1.2, reduce=MeanOverRanks())
        >>> schedule.report(0.7, samples=32)  # after the forward pass
        >>> schedule.decide()  # after the update
        <Decision.ADVANCE: 'advance'>
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        device: torch.device | str | None = None,
    ) -> None:
        hint = "a rank waits so long for another, and no longer"
        self.timeout_seconds = positive_number("timeout_seconds", timeout_seconds, hint)
        if group is not None and (not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0):
            raise OptionError(
                f"group is {shown(group)}; it must be a process group that this rank is in, as from new_group(), "
                "DeviceMesh.get_group(), or None for all ranks"
            )
        self.group = group
        self.device = None if device is None else torch.device(device)
        self._is_attached = False
        self._own_group: dist.ProcessGroup | None = None
        self._own_device = torch.device("cpu")
        self._failure: tuple[type[Exception], str] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.ranks} ranks, timeout_seconds={self.timeout_seconds:g}>"

    def __getstate__(self) -> dict[str, Any]:
        # A copy is another schedule's, and makes a group of its own.
        return {**vars(self), "_own_group": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> MeanOverRanks:
        twin = MeanOverRanks(self.group, timeout_seconds=self.timeout_seconds, device=self.device)
        twin.attach()
        return twin

    @property
    def ranks(self) -> int:
        """How many train together."""
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """Which of them this one is."""
        return dist.get_rank(self.group) if dist.is_available() and dist.is_initialized() else 0

    def attach(self) -> None:
        """A schedule takes this one for itself.

        Raises:
            OptionError: If another one has: their messages would mix.
        """
        if self._is_attached:
            raise OptionError("this MeanOverRanks belongs to another schedule; make one for each")
        self._is_attached = True

    def start(self, message: Message) -> Callable[[], list[Message]]:
        """Send a message; the result waits for those of all ranks, and returns them by rank.

        Raises:
            RankTimeoutError: If a rank did not come in time, now or before.
            RankLostError: If a rank is gone.
        """
        if self._failure is not None:
            kind, text = self._failure
            raise kind(text)
        if self.ranks == 1:
            return lambda: [message._replace(loss=float(message.loss))]
        began = time.monotonic()
        try:
            group, device = self._group()
            sent = torch.tensor([*message[:-1], 0.0], dtype=torch.float64).to(device)
            sent[-1] = message.loss
            received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
            work = dist.all_gather(received, sent, group=group, async_op=True)
        except RuntimeError as error:
            raise self._failed(error, message, time.monotonic() - began) from error

        def wait() -> list[Message]:
            began = time.monotonic()
            try:
                self._await(work)
                return [Message(*numbers) for numbers in torch.stack(received).tolist()]
            except RuntimeError as error:
                raise self._failed(error, message, time.monotonic() - began) from error

        return wait

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        values = [value] * self.ranks
        if self.ranks > 1:
            dist.all_gather_object(values, value, group=self._group()[0])
        return values

    def _group(self) -> tuple[dist.ProcessGroup, torch.device]:
        """The group for these messages alone, and the device that it takes them from."""
        if self._own_group is None:
            group = dist.new_group(
                # PyTorch before 2.7 takes no None for all ranks here.
                dist.get_process_group_ranks(dist.group.WORLD if self.group is None else self.group),
                timeout=timedelta(seconds=self.timeout_seconds),
                backend=dist.get_backend_config(self.group),
                use_local_synchronization=True,
                group_desc="batch_attention",
            )
            assert isinstance(group, dist.ProcessGroup)
            self._own_group = group
            self._own_device = self.device or _accelerator_of(group) or torch.device("cpu")
        return self._own_group, self._own_device

    def _await(self, work: Any) -> None:
        if self._own_device.type == "cpu":
            work.wait(timedelta(seconds=self.timeout_seconds))
            return
        # On an accelerator, wait() has the stream wait and not the host, which then would for ever.
        deadline = time.monotonic() + self.timeout_seconds
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise RuntimeError("timed out")
            time.sleep(_POLL_SECONDS)
        work.wait()

    def _failed(self, error: RuntimeError, message: Message, waited_seconds: float) -> Exception:
        """What to raise; it is raised again by every later call, since the group is of no use any more."""
        place = f"rank {self.rank} of {self.ranks} waited {waited_seconds:.1f} s for the other ranks at: {message}"
        text = str(error).partition("\n")[0]
        if "timed out" in text.lower() or "timeout" in text.lower():
            kind: type[Exception] = RankTimeoutError
            reason = (
                f"{place}. A rank is behind, has ended, or makes other calls; timeout_seconds={self.timeout_seconds:g} "
                "has to be longer than whatever one rank does alone"
            )
        else:
            kind, reason = RankLostError, f"{place}, and one of them is gone; its own error tells why ({text})"
        self._failure = kind, reason
        return kind(reason)


def _accelerator_of(group: dist.ProcessGroup) -> torch.device | None:
    """The device, other than the CPU, for which the group has a backend of its own, where there is one."""
    for pair in dist.get_backend_config(group).split(","):
        device, _, backend = pair.partition(":")
        if device != "cpu" and backend not in ("gloo", "mpi", "ucc") and torch.get_device_module(device).is_available():
            return torch.device(device, torch.get_device_module(device).current_device())
    return None
