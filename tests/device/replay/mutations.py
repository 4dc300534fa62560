"""Changes to the captured path that a GPU would punish, each with a training in which it has to be found."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """A change of the text of the package's ``device/``.

    Attributes:
        old: Stands there once.
        new: Stands there instead.
        scenario: In which it is found.
    """

    old: str
    new: str
    scenario: str


MUTATIONS = {
    "graphs outlive a number that they know": Mutation(
        "if self._graphs and self._held() != self._captured_with:", "if False:", "visited"
    ),
    "graphs outlive a tensor that they know": Mutation(
        "_by_value([*self.model.parameters(), *self.model.buffers(), *groups,", "_by_value([*groups,", "replaced"
    ),
    "graphs outlive a change of requires_grad": Mutation(
        "value.stride(), value.requires_grad)", "value.stride())", "replaced"
    ),
    "the optimizer's state is made inside the capture": Mutation("_EAGER_UPDATES = 3", "_EAGER_UPDATES = 0", "visited"),
    "a graph is replayed twice for one update": Mutation(
        "return self._graphs[is_full].replay",
        "return lambda: [self._graphs[is_full].replay() for _ in range(2)]",
        "visited",
    ),
    "full batches and the shorter one share a graph": Mutation(
        "if is_full not in self._graphs:\n            self._graphs[is_full] = self._capture(is_full)\n"
        "        return self._graphs[is_full].replay",
        "if not self._graphs:\n            self._graphs[True] = self._capture(is_full)\n"
        "        return self._graphs[True].replay",
        "visited",
    ),
    "a replay makes no update": Mutation(
        "return self._graphs[is_full].replay", "return lambda: None", "rate_as_a_tensor"
    ),
    "the order is put into other memory": Mutation(
        "copy_in(self.order, order.cpu())", "self.order = order.to(self._device)", "visited"
    ),
    "the epoch's number is put into other memory": Mutation(
        "copy_in(self._numbers, torch.cat([floats.view(torch.int64), integers]))",
        "copy_in(self._numbers, torch.cat([floats.view(torch.int64), integers]))\n"
        "        self.epoch = self.epoch.clone()\n        self._numbers[_FLOATS] = 0",
        "rate_as_a_tensor",
    ),
    "the numbers are put into other memory": Mutation(
        "copy_in(self._numbers, torch.cat([floats.view(torch.int64), integers]))",
        "self._numbers = torch.cat([floats.view(torch.int64), integers]).to(self._numbers.device)",
        "visited",
    ),
    "the counters are put into other memory": Mutation(
        "torch.stack(numbers, out=self._integers)", "self._integers = torch.stack(numbers)", "visited"
    ),
    "the sum of losses is put into other memory": Mutation(
        "self._loss_sum.copy_(torch.where(enters, total, self._loss_sum))",
        "self._loss_sum = torch.where(enters, total, self._loss_sum)",
        "visited",
    ),
    "the strictness is put into other memory": Mutation(
        "self._strictness.copy_(torch.where(torch.isfinite(self._threshold), moved, self._strictness))",
        "self._strictness = torch.where(torch.isfinite(self._threshold), moved, self._strictness)",
        "budgeted",
    ),
    "the visits to each batch are put into other memory": Mutation(
        "self._visit_counts.add_(self._positions == self.cursor)",
        "self._visit_counts = self._visit_counts + (self._positions == self.cursor)",
        "visited",
    ),
    "the drawn visits are put into other memory": Mutation(
        "copy_in(self._drawn, torch.tensor(drawn))",
        "self._drawn = torch.tensor(drawn, device=self._drawn.device)",
        "random",
    ),
    "a generator's numbers are exchanged, and not its state": Mutation(
        "default.graphsafe_set_state(self._random)", "default.set_state(self._random.get_state())", "visited"
    ),
    "the user's generators are not put back": Mutation(
        "default.graphsafe_set_state(callers)", "pass", "rate_as_a_tensor"
    ),
    "the default generator is that of another device": Mutation(
        "default = torch.cuda.default_generators[self._device.index]",
        "default = torch.cuda.default_generators[0]",
        "rate_as_a_tensor",
    ),
    "the generator of a failed capture stays": Mutation(
        "self._random = torch.Generator(self._device).set_state(random)", "pass", "mended"
    ),
    "the generator after a failed capture begins elsewhere": Mutation(
        "self._random = torch.Generator(self._device).set_state(random)",
        "self._random = torch.Generator(self._device)",
        "mended",
    ),
    "the graphs of a failed capture stay": Mutation(
        "        except BaseException as error:\n            self._drop_graphs()",
        "        except BaseException as error:",
        "mended",
    ),
    "a loaded state leaves the loop's random numbers": Mutation(
        'self._random.set_state(state_dict["random"].cpu())', "pass", "resumed"
    ),
    "the host does not wait for what it reads": Mutation("arrived.synchronize()", "pass", "visited"),
    "the host waits for what was before the copy": Mutation(
        "    copy.copy_(source, non_blocking=True)\n    arrived = torch.cuda.Event()\n"
        "    arrived.record(torch.cuda.current_stream(source.device))\n",
        "    arrived = torch.cuda.Event()\n    arrived.record(torch.cuda.current_stream(source.device))\n"
        "    copy.copy_(source, non_blocking=True)\n",
        "visited",
    ),
    "the cursor is read on another stream": Mutation(
        "with self._on_device():\n            state, self._cursor",
        "if True:\n            state, self._cursor",
        "visited",
    ),
    "one pinned buffer is used for all copies": Mutation(
        "    destination.copy_(source.pin_memory() if destination.is_cuda else source, non_blocking=True)",
        "    kept = globals().setdefault((source.shape, source.dtype), source.pin_memory())\n"
        "    kept.copy_(source)\n    destination.copy_(kept, non_blocking=True)",
        "by_turns",
    ),
    "the loop does not wait for the caller": Mutation(
        "self._stream.wait_stream(torch.cuda.current_stream(self._device))", "pass", "rate_as_a_tensor"
    ),
    "one update too many is enqueued": Mutation(
        "needed = self._full_batches - self._cursor if is_full else 1",
        "needed = self._full_batches - self._cursor + 1 if is_full else 1",
        "visited",
    ),
    "updates run past the end of an epoch of fixed length": Mutation(
        "needed = min(needed, length - self._passes.state.batches)", "pass", "budgeted"
    ),
    "updates in flight are forgotten": Mutation("min(needed - self._in_flight,", "min(needed,", "by_turns"),
    "what the host writes at the end of an epoch of fixed length does not get there": Mutation(
        "self._counters.write(passes.state, self._cursor, self.visit_counts)", "pass", "budgeted"
    ),
}
