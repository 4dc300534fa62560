"""Ctrl-C at any moment: what is saved after it, and what the object itself does then."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import batch_sampler_attn
from batch_sampler_attn import SampleAttention
from tests.samples.runs import SAMPLES, LooksAhead

PACKAGE = Path(batch_sampler_attn.__file__).parent
TRACED = str(PACKAGE / "samples"), str(PACKAGE / "flight.py")
OPTIONS = {
    "both": {"k": 0.9, "prune_probability": 0.5, "weighted": True, "updates": 4},
    "at random": {"k": 0.8, "prune_probability": 0.5, "select": "random", "max_visits": 5, "updates": 4},
    "plain at the end": {"k": 0.8, "prune_probability": 0.5, "epochs": 4, "final_full_share": 0.5, "updates": 4},
}
LOADERS = {"in memory": None, "one at a time": 0, "ahead": 2}
UPDATES = 4 * 3

INTERRUPTS = int(os.environ.get("INTERRUPTS", "30"))


def make(options):
    return SampleAttention(SAMPLES, 3, **options)


def train(attention, ahead, seen=None, on_state=None):
    """To the end of four epochs. ``seen`` is told of each update before its losses are reported."""
    seen = [] if seen is None else seen
    loader = None
    if ahead is not None:
        loader = DataLoader(range(SAMPLES), batch_sampler=attention, collate_fn=list)
        loader = LooksAhead(loader, ahead) if ahead else loader
    while attention.epoch < UPDATES / 4:
        for indices in attention.attend(loader):
            place = attention.epoch, attention.updates
            # A loss follows from where it is, so that a batch that comes again has the same.
            losses = [random.Random(f"{place} {index}").lognormvariate(-index % 3, 0.6) for index in indices]
            seen.append((place, indices, attention.weights))
            attention.report(losses)
            if on_state is not None:
                on_state(attention.state_dict())
    return seen


class Interrupted:
    """Trains until as many bytecodes of ours have run, and is interrupted at the next one."""

    def __init__(self, options, ahead, after=None):
        self.attention = make(options)
        self.seen = []
        self.bytecodes = 0
        self.after = after
        before = sys.gettrace()
        # Python 3.12 looks for a frame that wants them as tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self.trace)
        try:
            train(self.attention, ahead, self.seen)
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


@pytest.mark.parametrize("ahead", LOADERS.values(), ids=LOADERS.keys())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_after_an_interrupt_at_any_bytecode_a_saved_state_goes_on_exactly(options, ahead):
    whole = train(make(options), ahead)
    assert len(whole) == UPDATES
    bytecodes = Interrupted(options, ahead).bytecodes
    assert bytecodes > 10_000
    rng = random.Random(0)
    # The last, the first, and some in between.
    moments = {1, bytecodes, *rng.sample(range(1, bytecodes + 1), min(INTERRUPTS, bytecodes))}
    for after in sorted(moments):
        run = Interrupted(options, ahead, after)
        assert run.seen == whole[: len(run.seen)]
        state = json.loads(json.dumps(run.attention.state_dict(), allow_nan=False))
        resumed = make(options)
        resumed.load_state_dict(state)
        made = resumed.epoch * len(resumed) + resumed.updates
        # The last batch that came out was settled whole, or comes again.
        assert made in (len(run.seen), len(run.seen) - 1)
        assert train(resumed, ahead) == whole[made:], after
        # So it does in the very object, without a resume.
        assert train(run.attention, ahead) == whole[made:], after


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on this platform")
# An alarm may come inside a callback of the garbage collector, which is not ours.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_after_an_alarm_at_any_time_a_saved_state_goes_on_exactly():
    def interrupt(*_):
        raise KeyboardInterrupt

    options, rng = OPTIONS["both"], random.Random(0)
    whole = train(make(options), 2)
    begin = time.perf_counter()
    train(make(options), 2)
    seconds = time.perf_counter() - begin
    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        # Most alarms come in time, but that is for the machine to say.
        for _ in range(1000):
            if interrupted == 30:
                break
            attention, seen = make(options), []
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, seconds))
                train(attention, 2, seen)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            resumed = make(options)
            resumed.load_state_dict(attention.state_dict())
            made = resumed.epoch * len(resumed) + resumed.updates
            assert made in (len(seen), len(seen) - 1)
            assert train(resumed, 2) == whole[made:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 30


def test_what_a_trace_or_a_handler_saves_at_any_bytecode_is_before_a_batch_or_behind_it():
    options = OPTIONS["both"]
    between = [make(options).state_dict()["counts"]]
    whole = train(make(options), None, on_state=lambda state: between.append(state["counts"]))
    found = set()

    class Saving(Interrupted):
        def trace(self, frame, event, argument):
            if event == "opcode" and self.bytecodes % 101 == 0 and hasattr(self, "attention"):
                state = self.attention.state_dict()
                if "saved_by_loader" not in state:
                    resumed = make(options)
                    resumed.load_state_dict(json.loads(json.dumps(state)))
                    made = resumed.epoch * len(resumed) + resumed.updates
                    assert train(resumed, None) == whole[made:]
                    found.add(made)
            return super().trace(frame, event, argument)

    assert Saving(options, None).seen == whole
    assert len(found) > UPDATES / 2
