"""Ctrl-C at any moment, and threads that read ahead: a state is that before a visit or that after it."""

import collections
import queue
import random
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import batch_sampler_attn
from batch_sampler_attn import SampleAttention
from tests.loading.drivers import MORE_DRIVERS, load, resumed, saved, train
from tests.samples.runs import LooksAhead

PACKAGE = Path(batch_sampler_attn.__file__).parent
OURS = ("loading", "samples", "flight.py", "passes.py", "rule.py", "schedule.py")
TRACED = (*(str(PACKAGE / name) for name in OURS), torch.utils.data.sampler.__file__)
IN_MEMORY, ONE_BY_ONE, AHEAD = "in memory", "one by one", "ahead"


def loader_of(driver, how):
    if how == IN_MEMORY:
        return None
    return LooksAhead(load(driver), 2) if how == AHEAD else load(driver)


class Interrupted:
    """Trains until so many bytecodes have run, and is interrupted at the next one; ``lines`` has the line of each.

    ``state`` is the one that a signal handler or a debugger would have saved there.
    """

    def __init__(self, kind, how, after=None):
        self.driver = MORE_DRIVERS[kind]()
        self.how, self.after, self.seen, self.lines = how, after, [], []
        before = sys.gettrace()
        # Python 3.12 looks for a frame that wants them as tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self.trace)
        try:
            train(self.driver, loader_of(self.driver, how), seen=self.seen)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)

    def trace(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(TRACED):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.lines.append((frame.f_code.co_name, frame.f_lineno))
            if len(self.lines) == self.after:
                self.state = saved(self.driver)
                raise KeyboardInterrupt
        return self.trace


def moments(lines, seed):
    """Some of all bytecodes, and one in each of some lines, since a line that is rare matters as much."""
    rng, found = random.Random(seed), collections.defaultdict(list)
    for number, line in enumerate(lines, start=1):
        found[line].append(number)
    rare = [rng.choice(numbers) for numbers in rng.sample([*found.values()], 25)]
    return sorted({len(lines), *rng.sample(range(1, len(lines) + 1), 10), *rare})


def moments_as_a_batch_is_handed_out(lines):
    firsts = {line: number for number, line in reversed([*enumerate(lines, start=1)]) if line[0] == "hand_out"}
    return [first + later for first in firsts.values() for later in range(2, 50, 12)]


RUNS = [
    ("immediate", ONE_BY_ONE),
    ("deferred", ONE_BY_ONE),
    ("deferred, drawn one by one", AHEAD),
    ("samples", IN_MEMORY),
    ("samples", AHEAD),
    ("samples at random", ONE_BY_ONE),
]


@pytest.mark.parametrize(
    ("kind", "how", "seed"),
    [
        *(pytest.param(*run, 0, marks=[pytest.mark.slow] * (run not in RUNS[1:4])) for run in RUNS),
        *((kind, ONE_BY_ONE, "handed_out") for kind in ("deferred", "samples")),
        *(pytest.param(*run, seed, marks=pytest.mark.slow) for run in RUNS for seed in range(1, 16)),
    ],
)
def test_after_an_interrupt_at_any_bytecode_a_run_resumes_exactly(kind, how, seed):
    for _ in range(2):  # the first run has more bytecodes, which fill caches
        torch.manual_seed(0)
        whole = Interrupted(kind, how)
    end = saved(whole.driver)
    assert len(whole.lines) > 10_000
    for after in moments_as_a_batch_is_handed_out(whole.lines) if seed == "handed_out" else moments(whole.lines, seed):
        torch.manual_seed(0)
        run = Interrupted(kind, how, after)
        done = len(run.seen)
        assert run.seen == whole.seen[:done]
        # The last visit counts whole, or is made again.
        tails = whole.seen[done:], whole.seen[max(0, done - 1) :]
        for state in {saved(run.driver), run.state}:
            if "saved_by_loader" not in state:
                driver = resumed(kind, state)
                assert train(driver, loader_of(driver, how)) in tails, whole.lines[after - 1]
                assert saved(driver) == end, whole.lines[after - 1]
        if kind.startswith("samples"):
            # In these objects, without a resume, an epoch that was left continues.
            assert train(run.driver, loader_of(run.driver, how)) in tails, whole.lines[after - 1]


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
        while (batch := ready.get(timeout=60)) is not end:
            yield batch


@pytest.fixture
def threads_switch_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("threads_switch_often")
@pytest.mark.parametrize("ahead", [1, 4])
def test_a_thread_that_reads_the_loader_ahead_loses_no_batch_and_no_decision(ahead):
    for _ in range(5):
        driver = MORE_DRIVERS["deferred, in order"]()
        seen = train(driver, Threaded(load(driver), ahead))
        # Batches come in the order of the data, so that a batch's number says which samples it has.
        assert all(indices == [2 * place[1], 2 * place[1] + 1] for place, indices in seen)
        visits = collections.Counter((epoch, batch) for (epoch, batch, _), _ in seen)
        assert len(visits) == 3 * len(driver.sampler) < len(seen)
        assert max(visits.values()) <= 3


@pytest.mark.usefixtures("threads_switch_often")
def test_a_thread_that_reads_the_loader_ahead_gives_no_loss_to_another_sample():
    attention = SampleAttention(250, 2, k=0.9, updates=150)
    loader = DataLoader(range(250), batch_sampler=attention, collate_fn=list)
    for epoch in range(3):
        for indices in attention.attend(Threaded(loader, 4)):
            assert attention.indices == indices
            attention.report([index * 256.0**epoch for index in indices])  # eight bits, so remembered exactly
        assert attention.last_summary.updates == 150
    for index in range(250):
        assert attention.loss_of(index) in [index * 256.0**epoch for epoch in range(3)]
