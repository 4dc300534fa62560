"""Ctrl-C at any moment, and a thread that reads ahead: the sampler and its schedule are before a visit or after it."""

import collections
import json
import os
import queue
import random
import sys
import threading
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

import batch_sampler_attn
from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from tests.loading.helpers import no_deadlock, seeded

__all__ = ["no_deadlock"]

PACKAGE = Path(batch_sampler_attn.__file__).parent
TRACED = tuple(str(PACKAGE / name) for name in ("loading", "flight.py", "passes.py", "rule.py", "schedule.py"))
SAMPLES, EPOCHS = 10, 3
INTERRUPTS = int(os.environ.get("INTERRUPTS", "30"))


class LooksAhead:
    def __init__(self, loader, batches):
        self.loader, self.batches = loader, batches

    def __iter__(self):
        waiting = collections.deque()
        for batch in self.loader:
            waiting.append(batch)
            if len(waiting) > self.batches:
                yield waiting.popleft()
        yield from waiting


class Training:
    """Three epochs, whose losses follow from where they are."""

    def __init__(self, repeats, ahead):
        self.schedule = BatchAttentionSchedule(0.7, max_visits=3)
        base = RandomSampler(range(SAMPLES), generator=seeded())
        self.sampler = BatchAttentionSampler(base, 2, schedule=self.schedule, repeats=repeats)
        loader = DataLoader(range(SAMPLES), batch_sampler=self.sampler, collate_fn=list)
        self.loader = LooksAhead(loader, ahead) if ahead else loader
        self.seen = []

    def run(self):
        schedule = self.schedule
        while schedule.epoch < EPOCHS:
            for indices in schedule.attend(self.loader):
                visit = schedule.epoch, schedule.batch_index, schedule.visits
                self.seen.append((*visit, indices))
                schedule.decide(random.Random(str(visit)).lognormvariate(0, 0.5))
        return self


class Interrupted(Training):
    """Trains until so many bytecodes of ours have run, and is interrupted at the next one."""

    def __init__(self, repeats, ahead, after=None):
        super().__init__(repeats, ahead)
        self.bytecodes, self.after = 0, after
        before = sys.gettrace()
        # Python 3.12 looks for a frame that wants them as tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self.trace)
        try:
            self.run()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)

    def trace(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(TRACED):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.bytecodes += 1
            if self.bytecodes == self.after:
                raise KeyboardInterrupt
        return self.trace


@pytest.mark.parametrize(("repeats", "ahead"), [("immediate", 0), ("deferred", 0), ("deferred", 2)])
def test_after_an_interrupt_at_any_bytecode_a_saved_state_goes_on_exactly(repeats, ahead):
    whole = Training(repeats, ahead).run().seen
    assert len(whole) > EPOCHS * SAMPLES / 2 + 3
    bytecodes = Interrupted(repeats, ahead).bytecodes
    rng = random.Random(0)
    for after in sorted({1, bytecodes, *rng.sample(range(1, bytecodes + 1), min(INTERRUPTS, bytecodes))}):
        run = Interrupted(repeats, ahead, after)
        assert run.seen == whole[: len(run.seen)]
        state = json.loads(json.dumps(run.sampler.state_dict(), allow_nan=False))
        resumed = Training(repeats, ahead)
        resumed.sampler.load_state_dict(state)
        seen = resumed.run().seen
        # The last visit was decided on whole, or is made again.
        assert seen in (whole[len(run.seen) :], whole[len(run.seen) - 1 :]), after


class Threaded:
    """A thread of its own reads the loader ahead, as prefetch_generator's DataLoaderX does, and device prefetchers."""

    def __init__(self, loader, ahead):
        self.loader, self.ahead = loader, ahead

    def __iter__(self):
        ready, end = queue.Queue(self.ahead), object()

        def read():
            for batch in self.loader:
                ready.put(batch)
            ready.put(end)

        threading.Thread(target=read, daemon=True).start()
        while (batch := ready.get()) is not end:
            yield batch


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_thread_that_reads_the_loader_ahead_loses_no_batch_and_no_decision(ahead):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        schedule = BatchAttentionSchedule(1.5, epoch_loss="last", max_visits=3)
        sampler = BatchAttentionSampler(SequentialSampler(range(400)), 2, schedule=schedule, repeats="deferred")
        loader = Threaded(DataLoader(range(400), batch_sampler=sampler, collate_fn=list), ahead)
        for epoch in range(4):
            visits = collections.Counter()
            for indices in schedule.attend(loader):
                assert schedule.batch_index == indices[0] // 2
                visits[schedule.batch_index] += 1
                is_hard = epoch > 0 and schedule.batch_index % 7 == 0
                schedule.decide(2.0 if is_hard and visits[schedule.batch_index] < 3 else 1.0)
            assert visits == {batch: 3 if epoch and batch % 7 == 0 else 1 for batch in range(200)}
            assert schedule.last_summary.batches == 200
    finally:
        sys.setswitchinterval(interval)
