"""A device that does everything late: what is enqueued is done when it is waited for, by the addresses of then."""

import contextlib
import functools

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from tests.device.replay.memory import RUBBISH, Block, DeviceTensor, no_modes
from tests.device.replay.streams import Generator, Stream


class Machine:
    """A device, with its streams.

    The streams with the numbers ``at_once`` do their work as soon as they can; the caller's is 0, others follow in the
    order in which they are made. The others do nothing before they are waited for. ``waits`` counts how often the host
    waited.
    """

    # The second of two: what is taken for the first shows.
    device = torch.device("cuda", 1)

    def __init__(self, at_once=()):
        self.at_once = frozenset(at_once)
        self.streams = []
        self.current = self.make_stream()
        self.capturing = None
        self.default_generators = Generator(self), Generator(self)
        self.default_generator = self.default_generators[self.device.index]
        self.waits = self.enqueued = 0
        self.is_on = True

    def make_stream(self, device=None):
        stream = Stream(self, len(self.streams))
        self.streams.append(stream)
        return stream

    @contextlib.contextmanager
    def on_stream(self, stream):
        before = self.current
        self.current = before if stream is None else stream
        try:
            yield
        finally:
            self.current = before

    def go_on(self):
        while True in [stream.go_on() for stream in self.streams if stream.number in self.at_once]:
            pass

    def synchronize(self, device=None):
        self.refuse_in_capture("waiting for the device")
        for stream in self.streams:
            stream.finish()

    def refuse_in_capture(self, what):
        if self.capturing is not None:
            self.capturing.is_broken = True
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    # Memory ---------------------------------------------------------------------------------------------------

    def make(self, like):
        """Memory for a tensor of this shape and layout, with rubbish in it."""
        with no_modes():
            inside = torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device="cpu")
            torch.tensor([], dtype=torch.uint8).set_(inside.untyped_storage()).fill_(RUBBISH)
        return DeviceTensor(inside, Block(self, inside.untyped_storage()))

    def upload(self, source):
        made = self.make(source)
        self.copy_in(made, source, is_awaited=True)
        return made

    def copy_in(self, target, source, *, is_awaited):
        inside = target.inside
        if getattr(source, "is_pinned_here", False) and not is_awaited:
            self.enqueue(lambda first: inside.copy_(source))
            return
        self.refuse_in_capture("a copy from memory that is not pinned")
        with no_modes():
            source = source.detach().clone()
        self.enqueue(lambda first: inside.copy_(source))
        self.wait()

    def copy_out(self, target, source, *, is_awaited):
        inside = source.inside
        self.enqueue(lambda first: target.copy_(inside))
        if is_awaited or not getattr(target, "is_pinned_here", False):
            self.wait()

    def download(self, source):
        with no_modes():
            target = torch.empty_like(source.inside)
        self.copy_out(target, source, is_awaited=True)
        return target

    def wait(self):
        self.refuse_in_capture("waiting for a stream")
        self.waits += 1
        self.current.finish()

    def enqueue(self, work):
        """``work`` is called with the number of a replay's first draw; with None if it is no replay."""
        if self.capturing is not None:
            self.capturing.work.append(quietly(work))
        else:
            self.current.enqueue(functools.partial(quietly(work), None))

    # Operators ------------------------------------------------------------------------------------------------

    def call(self, func, args, kwargs):
        """Enqueue an operator; what comes of it is there in shape, and in numbers once it is waited for."""
        leaves, spec = tree_flatten((args, kwargs))
        self._check_devices(func, leaves)
        with no_modes():
            # A number of the host is taken as it is now.
            inside = [
                leaf.inside if isinstance(leaf, DeviceTensor) else leaf.clone() if isinstance(leaf, Tensor) else leaf
                for leaf in leaves
            ]
            if is_view(func):
                args, kwargs = tree_unflatten(inside, spec)
                return tree_map(lambda each: DeviceTensor(each, leaves[0].block), func(*args, **kwargs))
        draw = self._draw(func)
        outputs = self._outputs(func, args, kwargs)
        mine = [None if not isinstance(out, DeviceTensor) else out.inside for out in tree_leaves(outputs)]
        changed = {id(leaf) for leaf in inside if isinstance(leaf, Tensor)}

        def run(first):
            drawing = None if draw is None else draw(first)
            called_args, called_kwargs = tree_unflatten(inside, spec)
            results = called_with(drawing, func, called_args, called_kwargs)
            for target, result in zip(mine, tree_leaves(results), strict=True):
                # Of what nobody reads, the host's kernels make nothing.
                if target is not None and id(target) not in changed and result.numel():
                    target.copy_(result)

        self.enqueue(run)
        return outputs

    def _check_devices(self, func, leaves):
        for leaf in leaves:
            if isinstance(leaf, Tensor) and not isinstance(leaf, DeviceTensor) and leaf.dim() > 0:
                raise RuntimeError(f"Expected all tensors to be on the same device: {func} has one on the host")

    def _draw(self, func):
        """What makes the generator that an operator draws from; None if it draws nothing."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return None
        state = self.default_generator.state
        if self.capturing is None:
            count = state.take()
            return lambda first: state.at(count)
        count = state.take_in_capture()
        return lambda first: state.at(first + count)

    def _outputs(self, func, args, kwargs):
        """What an operator returns: arguments that it changes, or memory that it will fill."""
        returns = func._schema.returns
        if not returns:
            return None
        if all(each.alias_info is not None and each.alias_info.is_write for each in returns):
            return changed_by(func, args, kwargs)
        return tree_map(
            lambda each: self.make(each) if isinstance(each, Tensor) else each, shapes_of(func, args, kwargs)
        )


def quietly(work):
    def run(first):
        with no_modes():
            work(first)

    return run


def is_view(func):
    return any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)


def changed_by(func, args, kwargs):
    """The arguments that an operator changes in place and returns."""
    changed = {}
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs[argument.name]
            changed[frozenset(argument.alias_info.before_set)] = value
    found = tuple(changed[frozenset(each.alias_info.before_set)] for each in func._schema.returns)
    return found[0] if len(found) == 1 else found


def shapes_of(func, args, kwargs):
    """What an operator returns, on the device that has shapes alone."""

    def as_meta(leaf):
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")

    with no_modes():
        has_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
        args, kwargs = tree_map(as_meta, (args, kwargs))
        return func(*args, **kwargs) if has_tensors else func(*args, **kwargs, device="meta")


def called_with(generator, func, args, kwargs):
    """What an operator returns that draws from this generator, whether it takes one or not, or draws nothing."""
    if generator is None:
        return func(*args, **kwargs)
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func(*args, **{**kwargs, "generator": generator})
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        torch.set_rng_state(before)
