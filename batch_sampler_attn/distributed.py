"""Messages between the ranks of ``torch.distributed``, so that all of them make the same decisions."""

from __future__ import annotations

import contextlib
import copy
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from batch_sampler_attn.errors import OptionError, RankLostError, RankTimeoutError, short_repr
from batch_sampler_attn.losses import as_float
from batch_sampler_attn.options import number
from batch_sampler_attn.ranks import RankMessage

# How often this process has made a group of these ranks.
_groups_made: Counter[tuple[int, ...]] = Counter()


class MeanOverRanks:
    """Averages losses over ranks, weighted by samples, so that all ranks make the same decisions.

    The mean is bitwise identical on all ranks. Ranks that are at different visits raise RanksDivergedError.
    Messages use their own process group, created on first use. Before ``init_process_group``, and with one rank,
    nothing is exchanged.

    Args:
        group: The process group of the ranks that train together; None for all ranks. Messages use its accelerator
            if it has a backend for one (NCCL), so that a loss stays there until the decision; otherwise the CPU.
        timeout_seconds: How long a rank waits for another. It must exceed anything that one rank does alone, such as
            an evaluation on rank 0 between two epochs.

    Raises:
        OptionError: If ``timeout_seconds`` is not allowed, or this rank is not in the group.

    Example:
        >>> from batch_sampler_attn import BatchAttentionSchedule
        >>> schedule = BatchAttentionSchedule(k=1.2, budget=0.2, ranks=MeanOverRanks())
        >>> schedule.report(0.7, samples=32)  # after the forward pass
        >>> schedule.decide()  # after the update
        <Decision.ADVANCE: 'advance'>
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, timeout_seconds: float = 600.0) -> None:
        self.timeout_seconds = number("timeout_seconds", timeout_seconds, "A rank waits this long for the others")
        # PyTorch takes whole milliseconds, of which 0 means no limit, and stores nanoseconds in 63 bits.
        if not 0.001 <= self.timeout_seconds <= 1e9:
            raise OptionError(f"timeout_seconds is {self.timeout_seconds:g}; it must be from 0.001 to 1e9")
        if group is not None and (not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0):
            raise OptionError(f"group is {short_repr(group)}; it must be None, or a process group that this rank is in")
        self.group = group
        self._is_claimed = False
        self._own: tuple[dist.ProcessGroup, torch.device] | None = None
        self._world: weakref.ref[Any] | None = None
        self._failure: RankTimeoutError | RankLostError | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to another schedule, and makes its own group.
        return {**vars(self), "_own": None, "_world": None, "_failure": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> MeanOverRanks:
        # A process group cannot be copied, and the ranks stay the same.
        return copy.copy(self)

    @property
    def ranks(self) -> int:
        """Number of ranks that train together."""
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""
        return dist.get_rank(self.group) if dist.is_available() and dist.is_initialized() else 0

    def claim(self) -> None:
        """Reserve this object for one schedule: two schedules' messages mix."""
        if self._is_claimed:
            raise OptionError("this MeanOverRanks belongs to another schedule; make one for each")
        self._is_claimed = True

    def start(self, message: RankMessage) -> Callable[[], list[RankMessage]]:
        """Send a message; return a function that waits for all ranks' messages and returns them by rank."""
        loss = message.loss if isinstance(message.loss, torch.Tensor) else as_float(message.loss)
        if self.ranks == 1:
            return lambda: [message._replace(loss=float(loss))]
        deadline = time.monotonic() + self.timeout_seconds
        with self._exchange(str(message)):
            group, device = self._group()
            sent = torch.tensor([*message[:-1], 0.0], dtype=torch.float64).to(device)
            sent[-1] = loss
            received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
            work = dist.all_gather(received, sent, group=group, async_op=True)

        def wait() -> list[RankMessage]:
            with self._exchange(str(message)):
                self._await(work, device, deadline)
                return [RankMessage(*numbers) for numbers in torch.stack(received).tolist()]

        return wait

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank."""
        values = [value] * self.ranks
        if self.ranks > 1:
            with self._exchange("the comparison of options"):
                dist.all_gather_object(values, value, group=self._group()[0])
        return values

    @contextlib.contextmanager
    def _exchange(self, what: str) -> Iterator[None]:
        """Convert torch's errors into ours, for this and later exchanges, since the group is unusable afterwards."""
        if self._failure is not None:
            raise self._failure
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            seconds = time.monotonic() - began
            waited = f"rank {self.rank} of {self.ranks} waited {seconds:.1f} s for the other ranks at: {what}"
            if "timed out" in reason.lower() or "timeout" in reason.lower():
                self._failure = RankTimeoutError(
                    f"{waited}. Another rank is late, has ended, or makes other calls. timeout_seconds="
                    f"{self.timeout_seconds:g} must be longer than anything that one rank does alone"
                )
            else:
                self._failure = RankLostError(f"{waited}. One of them is gone; look for its own error ({reason})")
            raise self._failure from error

    def _group(self) -> tuple[dist.ProcessGroup, torch.device]:
        """The process group for these messages alone, and the device of its tensors."""
        world = dist.group.WORLD
        # After another init_process_group, the old group may have other ranks.
        if self._own is None or self._world is None or self._world() is not world:
            # PyTorch before 2.7 does not take None for all ranks here.
            ranks = dist.get_process_group_ranks(world if self.group is None else self.group)
            backends = dist.get_backend_config(self.group)
            device = _accelerator_of(backends) or torch.device("cpu")
            _meet(ranks, self.timeout_seconds)
            # NCCL's watchdog ends a process at its group's limit; RankTimeoutError must come first.
            watchdog_seconds = 0 if device.type == "cpu" else 60
            group = dist.new_group(
                ranks,
                timeout=timedelta(seconds=self.timeout_seconds + watchdog_seconds),
                backend=backends,
                use_local_synchronization=True,
                group_desc="batch_attention",
            )
            assert isinstance(group, dist.ProcessGroup)
            self._own, self._world = (group, device), weakref.ref(world)
        return self._own

    def _await(self, work: Any, device: torch.device, deadline: float) -> None:
        if device.type == "cpu":
            work.wait(timedelta(seconds=self.timeout_seconds))
            return
        # On an accelerator, wait() blocks the stream and not the host, which would then wait forever.
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise RuntimeError("timed out")
            time.sleep(0.0002)
        work.wait()


def _meet(ranks: list[int], timeout_seconds: float) -> None:
    """Wait until all ranks are about to make a group: if one is missing, gloo takes several times its limit."""
    # A PyTorch that was built without distributed support lacks this module.
    from torch.distributed.distributed_c10d import PrefixStore

    _groups_made[tuple(ranks)] += 1
    # MPI has no store, and older versions of PyTorch do not give access to it.
    store = getattr(dist.group.WORLD, "get_group_store", lambda: None)()
    if store is None:
        return
    prefix = f"batch_attention/{'_'.join(map(str, ranks))}/{_groups_made[tuple(ranks)]}"
    store = PrefixStore(prefix, store)
    if store.add("ranks", 1) == len(ranks):
        store.compare_set("outcome", "", "met")
    try:
        store.wait(["outcome"], timedelta(seconds=timeout_seconds))
    except RuntimeError:
        # The first rank to give up decides for all ranks, including those that arrive later.
        store.compare_set("outcome", "", "given up")
    if store.get("outcome") != b"met":
        raise RuntimeError("timed out")


def _accelerator_of(backends: str) -> torch.device | None:
    """The device, other than the CPU, that has a backend of its own, such as in "cpu:gloo,cuda:nccl"."""
    for pair in backends.split(","):
        device, _, backend = pair.partition(":")
        if device != "cpu" and backend not in ("gloo", "mpi", "ucc") and torch.get_device_module(device).is_available():
            return torch.device(device, torch.get_device_module(device).current_device())
    return None
