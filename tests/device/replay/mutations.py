"""Changes to the captured path that a GPU would punish, each with a training in which it has to be found out."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """A change of the text of the package's ``device/``.

    Attributes:
        old: Stands there once.
        new: Stands there instead.
        scenario: In which it is found out.
        release: Of torch, that this is about; None for the one that is here.
    """

    old: str
    new: str
    scenario: str
    release: str | None = None


MUTATIONS = {
    "a generator is not registered": Mutation(
        "graph.register_generator_state(generator)", "pass", "resident", "2.12.0"
    ),
    "graphs outlive a number that they know": Mutation("elif settings != self._settings:", "elif False:", "resident"),
    "the optimizer's state is made inside the capture": Mutation(
        "WARM_UP_UPDATES = 3", "WARM_UP_UPDATES = 0", "resident"
    ),
    "a graph is replayed twice for one update": Mutation(
        "self._graphs[name].replay()", "self._graphs[name].replay()\n        self._graphs[name].replay()", "resident"
    ),
    "full batches and the shorter one share a graph": Mutation(
        "name = update.__name__\n        if name", 'name = "update"\n        if name', "resident"
    ),
    "the order is put into other memory": Mutation(
        "copy_in(self.order, self._draw_order(self.generator))",
        "self.order = self._draw_order(self.generator).to(self.device)",
        "resident",
    ),
    "uniform numbers are put into other memory": Mutation(
        "copy_in(self._uniforms, torch.rand(self._uniforms.shape, generator=self.generator))",
        "self._uniforms = torch.rand(self._uniforms.shape, generator=self.generator).to(self.device)",
        "resident_by_position",
    ),
    "a slot is filled while an update in flight may want it": Mutation(
        "slots = self.slots if self._staged > cursor else",
        "slots = self.slots + 1 if self._staged > cursor else",
        "staged",
    ),
    "updates do not wait for the copies into the ring": Mutation(
        "torch.cuda.current_stream(self.device).wait_stream(self._copies)", "pass", "staged"
    ),
    "the slot is worked out on the host": Mutation(
        "slot = torch.remainder(cursor, self.slots).reshape(1)",
        "slot = torch.full((1,), (self._staged - 1) % self.slots, device=self.device)",
        "staged",
    ),
    "a generator's numbers are exchanged, and not its state": Mutation(
        "default.graphsafe_set_state(self._cuda)", "default.set_state(self._cuda.get_state())", "resident"
    ),
    "a loaded state gives the loop other generators": Mutation(
        'generator.set_state(state["loop"][name].cpu())',
        'generator.graphsafe_set_state(torch.Generator(self._device).set_state(state["loop"][name].cpu())) '
        'if name in ("fresh", "cuda") and self._cuda is not None '
        'else generator.set_state(state["loop"][name].cpu())',
        "resumed",
    ),
    "the user's generators are not put back": Mutation(
        "default.graphsafe_set_state(default_state)", "pass", "resident_by_position"
    ),
    "the host does not wait for what it reads": Mutation("arrived.synchronize()", "pass", "resident"),
    "the counters are put into other memory": Mutation(
        "torch.stack(numbers, out=self.integers)", "self.integers = torch.stack(numbers)", "resident"
    ),
    "the dealt visits are put into other memory": Mutation(
        "copy_in(self._dealt, torch.tensor(dealt, dtype=torch.int64))",
        "self._dealt = torch.tensor(dealt, dtype=torch.int64, device=self._dealt.device)",
        "dealt",
    ),
    "the loop does not wait for the caller": Mutation(
        "self.stream.wait_stream(callers)", "pass", "resident_by_position"
    ),
    "one update too many is enqueued": Mutation(
        "needed = min(progress.staged, data.full_batches) - progress.cursor",
        "needed = min(progress.staged, data.full_batches) - progress.cursor + 1",
        "resident",
    ),
    "graphs outlive a tensor that they know": Mutation(
        "if self._graphs and tensors_of(self._model, self._optimizer) != self._tensors:", "if False:", "replaced"
    ),
    "one pinned buffer is used for all copies": Mutation(
        "source = source.pin_memory()",
        "kept = globals().setdefault((source.shape, source.dtype), source.pin_memory())\n        "
        "kept.copy_(source)\n        source = kept",
        "staged",
    ),
    "the host waits for what was before the copy": Mutation(
        "    copy.copy_(source, non_blocking=True)\n    arrived = torch.cuda.Event()\n"
        "    arrived.record(torch.cuda.current_stream(source.device))\n",
        "    arrived = torch.cuda.Event()\n    arrived.record(torch.cuda.current_stream(source.device))\n"
        "    copy.copy_(source, non_blocking=True)\n",
        "resident",
    ),
    "the cursor is read on another stream": Mutation(
        "with parts.place.in_use():\n            state, progress.cursor",
        "if True:\n            state, progress.cursor",
        "resident",
    ),
    "the default generator is that of another device": Mutation(
        "torch.cuda.default_generators[self._device.index or 0]", "torch.cuda.default_generators[0]", "resident"
    ),
    "what augments afresh is drawn from another generator": Mutation(
        "torch.rand(shape, generator=self._parts.randomness.fresh, device", "torch.rand(shape, device", "resident"
    ),
    "the shorter batch is sought in another slot": Mutation(
        "slot, size = self.full_batches % self.slots", "slot, size = (self.full_batches + 1) % self.slots", "staged"
    ),
    "the ring is put into other memory in each epoch": Mutation(
        "self._staged = self._targets_crc = 0\n        if",
        "self._staged = self._targets_crc = 0\n        "
        "self._buffers = None if self._buffers is None else tuple(map(torch.zeros_like, self._buffers))\n        if",
        "staged",
    ),
    "the threshold is put into other memory": Mutation(
        "copy_in(self.floats, torch.tensor([state.loss_sum, threshold, state.strictness], dtype=torch.float64))",
        "self.floats = torch.tensor([state.loss_sum, threshold, state.strictness], dtype=torch.float64).to("
        "self.floats.device)",
        "dealt",
    ),
    "the visits to each batch are put into other memory": Mutation(
        "copy_in(self._tally, torch.tensor(visits, dtype=torch.int64))",
        "self._tally = torch.tensor(visits, dtype=torch.int64, device=self._tally.device)",
        "resumed",
    ),
    "the optimizer's state is loaded into other memory": Mutation(
        'here["state"][index][name].copy_(value)', 'here["state"][index][name] = value', "resumed"
    ),
}
