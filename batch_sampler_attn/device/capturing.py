"""Capturing one update as a CUDA graph, and saying why it failed where it does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from batch_sampler_attn.errors import DeviceLoopError

# From these releases of PyTorch on, generators are known to a graph once they are drawn from, and registering them is
# warned of; and the pool of a capture that failed is ended with it.
_GENERATORS_ARE_FOUND = (2, 14)
_POOLS_ARE_ENDED = (2, 13)

# What libraries call it when they get no memory.
_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


def capture(
    update: Callable[[], None], stream: torch.cuda.Stream, pool: Any, generators: Sequence[torch.Generator]
) -> torch.cuda.CUDAGraph:
    """The update as a graph, with its memory in ``pool``; nothing is trained.

    ``generators`` are those that the update draws from, besides the device's default one. After a capture that failed
    another may be made, with another pool and other generators: with PyTorch 2.13 and later by itself, with earlier
    releases because the failed one's pool is ended here.

    Raises:
        DeviceLoopError: If the update cannot be captured.
        OutOfMemoryError: If the device's memory does not suffice for it.
    """
    graph, release = torch.cuda.CUDAGraph(), _torch_release()
    if release < _GENERATORS_ARE_FOUND:
        for generator in generators:
            graph.register_generator_state(generator)
    # Ending a broken capture raises an error of its own, after the one that tells what happened.
    happened: BaseException | None = None
    try:
        # Only this thread's calls are watched: a DataLoader's thread pins memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            try:
                update()
            except BaseException as error:
                happened = error
                raise
    except BaseException as error:
        if release < _POOLS_ARE_ENDED:
            _end_pool(stream, pool)
        cause = happened or error
        if isinstance(cause, torch.OutOfMemoryError) or not isinstance(cause, RuntimeError):
            raise cause from None
        said = str(cause).splitlines()[0]
        if _tells_of_memory(cause):
            raise torch.OutOfMemoryError(said) from cause
        raise DeviceLoopError(
            f"the update cannot be captured as a CUDA graph: {said}. Nothing in the model, the loss, the augmentation "
            "or the optimizer may read a value on the host (.item(), .cpu(), print, if on a tensor) or take a shape "
            f"from data (nonzero, boolean indexing). Change that, or pass graph=False{_free_memory(stream)}"
        ) from cause
    return graph


def _torch_release() -> tuple[int, ...]:
    return tuple(int(number) for number in torch.__version__.split(".")[:2])


def _end_pool(stream: torch.cuda.Stream, pool: Any) -> None:
    """Have the allocator not believe that it is capturing still, which it asserts against in the next capture."""
    extension = getattr(torch, "_C", None)
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        # Earlier releases call it by the second name. A pool that has been ended after all is refused.
        with contextlib.suppress(AttributeError, RuntimeError):
            getattr(extension, name)(stream.device.index, pool)
            return


def _tells_of_memory(error: BaseException) -> bool:
    """Whether it is memory that did not suffice, under whatever name, and with whatever came of it afterwards."""
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in seen:
        if isinstance(inner, torch.OutOfMemoryError) or any(words in str(inner) for words in _NO_MEMORY):
            return True
        seen.append(inner)
        inner = inner.__cause__ or inner.__context__
    return False


def _free_memory(stream: torch.cuda.Stream) -> str:
    # An allocation that fails in a capture may do no more than invalidate it.
    try:
        free, total = torch.cuda.mem_get_info(stream.device)
    except Exception:  # in a message, about an error of another kind
        return ""
    return f". If there is no such thing, memory may not suffice: {free >> 20} of {total >> 20} MiB were free"
