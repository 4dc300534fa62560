"""Running an update again and again: eagerly, or as one captured CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from batch_sampler_attn.errors import DeviceLoopError

# Libraries set themselves up lazily in the first calls, which must not happen inside a capture.
WARM_UP_UPDATES = 3


class Runner(Protocol):
    """Something that makes one update each time it is called."""

    def __call__(self) -> None:
        """Make one update."""


class Graphed:
    """Makes its first updates eagerly, captures the next one, and replays it from then on.

    The first updates are training like any other, so nothing has to be undone after the warm-up: optimizer state,
    BatchNorm statistics, gradient scaler and generators are where eager training would have them, and a capture
    only records. (A capture that first made throw-away updates would have to put all of these back in place.)

    Args:
        update: Makes one update with no word to the host.
        stream: The stream to run and capture on; a graph's libraries keep workspaces for each stream.
        pool: The memory pool shared by one loop's graphs, which never run at the same time.
        generators: Those that the update draws from, besides the device's default one.
    """

    def __init__(
        self,
        update: Callable[[], None],
        stream: torch.cuda.Stream,
        pool: Any,
        generators: Sequence[torch.Generator],
    ) -> None:
        self._update = update
        self._generators = generators
        self._stream = stream
        self._pool = pool
        self._warm_ups = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def is_captured(self) -> bool:
        """Whether updates are replays by now."""
        return self._graph is not None

    def __call__(self) -> None:
        """Make one update, on the stream that is current."""
        if self._graph is None and self._warm_ups < WARM_UP_UPDATES:
            self._warm_ups += 1
            self._update()
            return
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                self._update()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise DeviceLoopError(
                f"the update cannot be captured as a CUDA graph: {str(error).splitlines()[0]}. Nothing in the model, "
                "the loss or the augmentation may read a value on the host (.item(), .cpu(), print, if on a tensor) or "
                "take a shape from data (nonzero, boolean indexing). Change that, or pass graph=False"
            ) from error
        return graph
