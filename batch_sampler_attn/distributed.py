"""Ranks of ``torch.distributed`` that decide alike."""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from batch_sampler_attn.errors import OptionError, RankLostError, RankTimeoutError, shown
from batch_sampler_attn.losses import as_float
from batch_sampler_attn.option_values import positive_number
from batch_sampler_attn.rank_messages import Message

DEFAULT_TIMEOUT_SECONDS = 600.0

# PyTorch counts in whole milliseconds, of which 0 is no limit, and in nanoseconds of 63 bits.
_SHORTEST_TIMEOUT_SECONDS, _LONGEST_TIMEOUT_SECONDS = 0.001, 1e9

# Between two looks at a device that is not done; a visit takes a millisecond or more.
_POLL_SECONDS = 0.0002

# NCCL's watchdog ends a process whose exchange is over its group's limit; RankTimeoutError is to come before.
_WATCHDOG_SECONDS = 60.0

# How often this process has made a group of these ranks.
_groups_made: Counter[tuple[int, ...]] = Counter()


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
        if not _SHORTEST_TIMEOUT_SECONDS <= self.timeout_seconds <= _LONGEST_TIMEOUT_SECONDS:
            raise OptionError(
                f"timeout_seconds is {self.timeout_seconds:g}; it must be from {_SHORTEST_TIMEOUT_SECONDS:g} to "
                f"{_LONGEST_TIMEOUT_SECONDS:g}: {hint}"
            )
        if group is not None and (not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0):
            raise OptionError(
                f"group is {shown(group)}; it must be a process group that this rank is in, as from new_group(), "
                "DeviceMesh.get_group(), or None for all ranks"
            )
        self.group = group
        self.device = None if device is None else _device(device)
        self._is_attached = False
        self._own_group: dist.ProcessGroup | None = None
        self._world: weakref.ref[Any] | None = None
        self._own_device = torch.device("cpu")
        self._failure: tuple[type[Exception], str] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.ranks} ranks, timeout_seconds={self.timeout_seconds:g}>"

    def __getstate__(self) -> dict[str, Any]:
        # A copy is another schedule's, and makes a group of its own.
        return {**vars(self), "_own_group": None, "_world": None}

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
            LossError: If the loss is not one real number.
            RankTimeoutError: If a rank did not come in time, now or before.
            RankLostError: If a rank is gone.
        """
        loss = message.loss if isinstance(message.loss, torch.Tensor) else as_float(message.loss)
        if self._failure is not None:
            kind, text = self._failure
            raise kind(text)
        if self.ranks == 1:
            return lambda: [message._replace(loss=float(loss))]
        began = time.monotonic()
        try:
            group, device = self._group()
            sent = torch.tensor([*message[:-1], 0.0], dtype=torch.float64).to(device)
            sent[-1] = loss
            received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
            work = dist.all_gather(received, sent, group=group, async_op=True)
        except RuntimeError as error:
            raise self._failed(error, str(message), time.monotonic() - began) from error

        def wait() -> list[Message]:
            waits_since = time.monotonic()
            try:
                self._await(work, began + self.timeout_seconds)
                return [Message(*numbers) for numbers in torch.stack(received).tolist()]
            except RuntimeError as error:
                raise self._failed(error, str(message), time.monotonic() - waits_since) from error

        return wait

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank.

        Raises:
            RankTimeoutError, RankLostError: As ``start``.
        """
        values = [value] * self.ranks
        if self.ranks == 1:
            return values
        began = time.monotonic()
        try:
            dist.all_gather_object(values, value, group=self._group()[0])
        except RuntimeError as error:
            raise self._failed(error, "telling what each begins with", time.monotonic() - began) from error
        return values

    def _group(self) -> tuple[dist.ProcessGroup, torch.device]:
        """The group for these messages alone, and the device that it takes them from."""
        world = dist.group.WORLD
        # One that was made before init_process_group was called anew may have other ranks.
        if self._own_group is None or self._world is None or self._world() is not world:
            # PyTorch before 2.7 takes no None for all ranks here.
            ranks = dist.get_process_group_ranks(world if self.group is None else self.group)
            backends = dist.get_backend_config(self.group)
            device = self.device or _accelerator_of(backends) or torch.device("cpu")
            _meet(ranks, self.timeout_seconds)
            group = dist.new_group(
                ranks,
                timeout=timedelta(seconds=self.timeout_seconds + (device.type != "cpu") * _WATCHDOG_SECONDS),
                backend=backends,
                use_local_synchronization=True,
                group_desc="batch_attention",
            )
            assert isinstance(group, dist.ProcessGroup)
            self._own_group, self._own_device, self._world = group, device, weakref.ref(world)
        return self._own_group, self._own_device

    def _await(self, work: Any, deadline: float) -> None:
        if self._own_device.type == "cpu":
            work.wait(timedelta(seconds=self.timeout_seconds))
            return
        # On an accelerator, wait() has the stream wait and not the host, which then would for ever.
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise RuntimeError("timed out")
            time.sleep(_POLL_SECONDS)
        work.wait()

    def _failed(self, error: RuntimeError, what: str, waited_seconds: float) -> Exception:
        """What to raise; it is raised again by every later call, since the group is of no use any more."""
        place = f"rank {self.rank} of {self.ranks} waited {waited_seconds:.1f} s for the other ranks at: {what}"
        text = str(error).partition("\n")[0]
        if "timed out" in text.lower() or "timeout" in text.lower():
            kind: type[Exception] = RankTimeoutError
            reason = (
                f"{place}. A rank is behind, has ended, has given up waiting, or makes other calls; "
                f"timeout_seconds={self.timeout_seconds:g} has to be longer than whatever one rank does alone"
            )
        else:
            kind, reason = RankLostError, f"{place}, and one of them is gone; its own error tells why ({text})"
        self._failure = kind, reason
        return kind(reason)


def _meet(ranks: list[int], timeout_seconds: float) -> None:
    """Wait until all ranks are about to make a group: made without one of them, it takes gloo several of its limits.

    Raises:
        RuntimeError: If one does not come in time, or another has given up waiting; then none of them makes it.
    """
    # Not there in a PyTorch that was built without ranks.
    from torch.distributed.distributed_c10d import PrefixStore

    _groups_made[tuple(ranks)] += 1
    # MPI has none, nor has PyTorch before it could be asked for.
    store = getattr(dist.group.WORLD, "get_group_store", lambda: None)()
    if store is None:
        return
    place = f"batch_attention/{'_'.join(map(str, ranks))}/{_groups_made[tuple(ranks)]}"
    store = PrefixStore(place, store)
    if store.add("ranks", 1) == len(ranks):
        store.compare_set("outcome", "", "met")
    try:
        store.wait(["outcome"], timedelta(seconds=timeout_seconds))
    except RuntimeError:
        # Whoever says it first is right, also for those who come later.
        store.compare_set("outcome", "", "given up")
    if store.get("outcome") != b"met":
        raise RuntimeError("timed out")


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f'device is {shown(device)}; it must be a torch.device, such as "cuda", or None') from error


def _accelerator_of(backends: str) -> torch.device | None:
    """The device, other than the CPU, for which there is a backend of its own, such as in "cpu:gloo,cuda:nccl"."""
    for pair in backends.split(","):
        device, _, backend = pair.partition(":")
        if device != "cpu" and backend not in ("gloo", "mpi", "ucc") and torch.get_device_module(device).is_available():
            return torch.device(device, torch.get_device_module(device).current_device())
    return None
