"""What a DataLoader has to yield to be staged, with what to do where it yields something else."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from batch_sampler_attn.errors import DeviceLoopError, OptionError


def check_loader(loader: object) -> int:
    """The number of batches of a DataLoader that can be gone through again.

    Raises:
        OptionError: If it is none, or has no batch.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise OptionError(
            f"loader is {type(loader).__name__}; pass a torch.utils.data.DataLoader of a data set with indices, or put "
            "the tensors on the device and use ResidentData"
        )
    try:
        batches = len(loader)
    except TypeError as error:
        raise OptionError(f"the loader has no len(), the number of its batches: {error}") from error
    if batches < 1:
        raise OptionError("the loader has no batch; is the data set empty, or smaller than a batch with drop_last?")
    return batches


def check_pair(what: str, batch: object, refusal: type[DeviceLoopError] | type[OptionError]) -> tuple[Tensor, Tensor]:
    """The batch's two tensors.

    Raises:
        DeviceLoopError, OptionError: ``refusal``, if it is anything else.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, targets = batch
        are_tensors = isinstance(inputs, Tensor) and isinstance(targets, Tensor)
        if are_tensors and inputs.dim() > 0 and targets.dim() > 0:
            return inputs, targets
    if isinstance(batch, dict):
        got = f"a dictionary with {', '.join(map(repr, batch))}"
    elif isinstance(batch, (tuple, list)):
        got = f"{len(batch)} parts, {', '.join(map(_in_words, batch))}"
    else:
        got = _in_words(batch)
    raise refusal(
        f"{what} is {got}; it must be (inputs, targets), two tensors with the samples along their first dimension. Let "
        "the data set return two, with targets as numbers, or give the DataLoader a collate_fn that makes a pair"
    )


def _in_words(part: object) -> str:
    if isinstance(part, Tensor):
        return f"a tensor of shape {tuple(part.shape)}"
    if isinstance(part, (tuple, list)) and part:
        return f"a {type(part).__name__} of {type(part[0]).__name__}"
    return type(part).__name__


def check_fits(name: str, position: int, part: Tensor, buffers: Tensor) -> None:
    """Refuse a batch unlike those before: a copy into the ring would convert, and spread out, whatever can be.

    Raises:
        DeviceLoopError: If its samples' shape or type is another.
    """
    shape, expected = tuple(part.shape[1:]), tuple(buffers.shape[2:])
    if shape != expected or part.dtype is not buffers.dtype:
        raise DeviceLoopError(
            f"the {name} of batch {position} are of shape {shape} a sample and of type {part.dtype}; they must be of "
            f"shape {expected} and of type {buffers.dtype}, as those before. Let the data set return all samples alike"
        )
