"""Running an update again and again, as captured CUDA graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from batch_sampler_attn.device.randomness import Randomness
from batch_sampler_attn.errors import DeviceLoopError

# Libraries set themselves up lazily in the first calls, which must not happen inside a capture.
WARM_UP_UPDATES = 3


class Graphs:
    """Makes the first updates of each kind eagerly, captures the next one, and replays it from then on.

    The first updates are training like any other, so nothing has to be undone after the warm-up: optimizer state,
    BatchNorm statistics, gradient scaler and generators are where eager training would have them, and a capture
    only records. (A capture that first made throw-away updates would have to put all of these back in place.)

    A graph holds on to the addresses of tensors and to the values of numbers. Where the optimizer's numbers change,
    as under a learning-rate schedule, the graphs are captured anew.

    Args:
        optimizer: Whose step is part of every update.
        stream: The stream to run and capture on; a graph's libraries keep workspaces for each stream. None captures
            nothing, and every update is made as it is.
        randomness: What updates draw from.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, stream: torch.cuda.Stream | None, randomness: Randomness
    ) -> None:
        self._optimizer = optimizer
        self._stream = stream
        self._randomness = randomness
        # By name: an update has the loop's parts, these graphs among them, and none of them would be let go of.
        self._warm_ups: Counter[str] = Counter()
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        # One memory pool for all, since they never run at the same time.
        self._pool: Any = None
        self._numbers: list[Any] = []
        self._settings: list[Any] = []
        self._parameters: list[int] = []

    def is_warm(self, update: Callable[[], None]) -> bool:
        """Whether these updates are replays by now, if they are to be."""
        return self._stream is None or update.__name__ in self._graphs

    def run(self, update: Callable[[], None]) -> None:
        """Make one update, on the stream that is current."""
        if self._stream is None:
            update()
            return
        name = update.__name__
        if name not in self._graphs:
            if self._warm_ups[name] < WARM_UP_UPDATES or not has_state(self._optimizer):
                self._warm_ups[name] += 1
                self._numbers = _numbers_in_state(self._optimizer)
                update()
                return
            check_optimizer_state(self._optimizer, self._stream.device, self._numbers)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            self._graphs[name] = capture(update, self._stream, self._pool, [self._randomness.fresh])
        self._graphs[name].replay()

    def follow_optimizer(self) -> None:
        """Let go of the graphs if a number or a parameter that they were captured with is another one by now."""
        settings, parameters = _settings_of(self._optimizer), _parameters_of(self._optimizer)
        if parameters != self._parameters:
            self.reset()
        elif settings != self._settings:
            self._let_go()
        self._settings, self._parameters = settings, parameters

    def reset(self) -> None:
        """Begin anew, with eager updates: tensors that the graphs know were replaced, or a capture failed."""
        self._let_go()
        self._warm_ups.clear()

    def _let_go(self) -> None:
        if self._stream is None or (self._pool is None and not self._graphs):
            return
        # Replays in flight use the pool's memory; gradients lie in it, and a pool without a graph is not used again.
        self._stream.synchronize()
        self._graphs.clear()
        self._optimizer.zero_grad(set_to_none=True)
        self._pool = None


def capture(
    update: Callable[[], None], stream: torch.cuda.Stream, pool: Any, generators: Sequence[torch.Generator]
) -> torch.cuda.CUDAGraph:
    """The update as a graph, with its memory in ``pool``; nothing is trained.

    ``generators`` are those that the update draws from, besides the device's default one.

    Raises:
        DeviceLoopError: If the update cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    try:
        # Only this thread's calls are watched: a DataLoader's thread pins memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            update()
    except Exception as error:
        # Ending a broken capture raises an error of its own, after the one that tells what happened.
        cause = error.__context__ if isinstance(error.__context__, Exception) else error
        if isinstance(cause, torch.OutOfMemoryError) or not isinstance(cause, RuntimeError):
            raise cause from None
        raise DeviceLoopError(
            f"the update cannot be captured as a CUDA graph: {str(cause).splitlines()[0]}. Nothing in the model, "
            "the loss or the augmentation may read a value on the host (.item(), .cpu(), print, if on a tensor) or "
            "take a shape from data (nonzero, boolean indexing). Change that, or pass graph=False"
        ) from cause
    return graph


def has_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer has its state for every parameter that it steps, or keeps none.

    A state that is made inside a capture is made again, as zeros, by every replay.
    """
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not optimizer.state or all(parameter in optimizer.state for parameter in stepped)


def _numbers_in_state(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The numbers, other than tensors, in the optimizer's state."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, (int, float))]


def check_optimizer_state(optimizer: torch.optim.Optimizer, device: torch.device, numbers_before: list[Any]) -> None:
    """Refuse a state that the host keeps: a captured step would use it as it was at the capture, for ever.

    Raises:
        DeviceLoopError: If a tensor is not on the device, or the numbers are others than one step ago.
    """
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    is_elsewhere = any(tensor.device.type != device.type for tensor in tensors)
    if is_elsewhere or _numbers_in_state(optimizer) != numbers_before:
        raise DeviceLoopError(
            f"{type(optimizer).__name__} keeps a part of its state on the host, which a captured step does not change; "
            "use an optimizer that takes capturable=True, such as Adam, or SGD, or pass graph=False"
        )


def _settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What a graph knows of each parameter group: numbers by value, tensors by address."""
    return [
        {name: _as_captured(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[int]:
    """Which parameters the optimizer has."""
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def _as_captured(value: Any) -> Any:
    if isinstance(value, Tensor):
        return "tensor", value.data_ptr()
    return tuple(map(_as_captured, value)) if isinstance(value, (tuple, list)) else value
