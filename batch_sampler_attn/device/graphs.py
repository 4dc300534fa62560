"""Running an update again and again, as captured CUDA graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.device.capturing import capture
from batch_sampler_attn.device.held import attributes_of, numbers_in_state, settings_of, stepped_tensors_of, tensors_of
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
    as under a learning-rate schedule, the graphs are captured anew. Where a tensor of the model or of the optimizer is
    another one, lies elsewhere or otherwise, or is trained where it was not, all begins anew, with eager updates.
    Whatever else Python decides on is fixed at the capture: dropout rates, attributes of the model and of the loss
    function, hooks. Tensors among these attributes are kept for the graphs, whatever is put in their place.

    Args:
        optimizer: Whose step is part of every update.
        stream: The stream to run and capture on; a graph's libraries keep workspaces for each stream. None captures
            nothing, and every update is made as it is.
        randomness: What updates draw from.
        model: What is trained; None looks at the optimizer's parameters alone.
        draws_afresh: Whether updates draw from ``randomness.fresh``.
        functions: What else updates call: the loss function, an augmentation.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        stream: torch.cuda.Stream | None,
        randomness: Randomness,
        model: nn.Module | None = None,
        *,
        draws_afresh: bool = False,
        functions: Iterable[object] = (),
    ) -> None:
        self._optimizer = optimizer
        self._model = nn.Module() if model is None else model
        self._stream = stream
        self._randomness = randomness
        self._draws_afresh = draws_afresh
        self._called = [self._model, *functions]
        # By name: an update has the loop's parts, these graphs among them, and none of them would be let go of.
        self._warm_ups: Counter[str] = Counter()
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        # One memory pool for all, since they never run at the same time.
        self._pool: Any = None
        self._numbers: list[Any] = []
        self._settings: list[Any] = []
        self._tensors: list[Any] = []
        self._kept: list[Tensor] = []

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
                self._numbers = numbers_in_state(self._optimizer)
                update()
                return
            self._graphs[name] = self._capture(update, self._stream)
            self._tensors = tensors_of(self._model, self._optimizer)
        self._graphs[name].replay()

    def _capture(self, update: Callable[[], None], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        check_optimizer_state(self._optimizer, stream.device, self._numbers)
        stepped, randomness = stepped_tensors_of(self._optimizer), self._randomness.state_dict()
        # Those of before, since what is made in the capture is the pool's.
        self._kept += attributes_of(self._called)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            graph = capture(update, stream, self._pool, [self._randomness.fresh] if self._draws_afresh else [])
            if stepped_tensors_of(self._optimizer) != stepped:
                raise DeviceLoopError(
                    f"{type(self._optimizer).__name__} puts new tensors in the place of its own in every step, and a "
                    "captured step would go on with those of the capture; change them in place, or pass graph=False"
                )
        except BaseException:
            # The generators that it drew from stay "capturing", and the other graphs draw from the same.
            self.reset()
            self._randomness.renew(randomness)
            raise
        return graph

    def follow_changes(self) -> None:
        """Let go of the graphs if what they were captured with is not what there is by now."""
        settings = settings_of(self._optimizer)
        if self._graphs and tensors_of(self._model, self._optimizer) != self._tensors:
            self.reset()
        elif settings != self._settings:
            self._let_go()
        self._settings = settings

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
        self._kept.clear()
        self._optimizer.zero_grad(set_to_none=True)
        self._pool = None


def has_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer has its state for every parameter that it steps, or keeps none.

    A state that is made inside a capture is made again, as zeros, by every replay.
    """
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not optimizer.state or all(parameter in optimizer.state for parameter in stepped)


def check_optimizer_state(optimizer: torch.optim.Optimizer, device: torch.device, numbers_before: list[Any]) -> None:
    """Refuse a state that the host keeps: a captured step would use it as it was at the capture, for ever.

    Raises:
        DeviceLoopError: If a tensor is not on the device, or the numbers are others than one step ago.
    """
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    is_elsewhere = any(tensor.device.type != device.type for tensor in tensors)
    if is_elsewhere or numbers_in_state(optimizer) != numbers_before:
        raise DeviceLoopError(
            f"{type(optimizer).__name__} keeps a part of its state on the host, which a captured step does not change; "
            "use an optimizer that takes capturable=True, such as Adam, or SGD, or pass graph=False"
        )
