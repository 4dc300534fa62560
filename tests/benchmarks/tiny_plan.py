"""A plan of tiny runs, which note what they do in a log, and die, wait or fail where a test wants it.

python -m tests.benchmarks.tiny_plan FOLDER BEHAVIOUR EXECUTOR
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console

from benchmarks.errors import PlanError
from benchmarks.running import run_all
from benchmarks.schema import RunName, SelectionConfiguration
from benchmarks.storage import Storage
from benchmarks.training import Job, Tested, Trained

EPOCHS = 4
CONFIGURATION = SelectionConfiguration(study="kinds", data=None, data_sha256=None, settings={})


class Lost(BaseException):
    """The end of a worker that is this process."""


class Late:
    """An executor that makes runs in this process, when their results are asked for."""

    def __init__(self):
        Late.most = self.submitted = 0

    def submit(self, function, job):
        def result():
            self.submitted -= 1
            try:
                return function(job)
            except Lost as error:
                raise OSError("connection lost") from error

        self.submitted += 1
        Late.most = max(Late.most, self.submitted)
        done = iter([False] * job.run.seed + [True]).__next__  # the later, the longer it takes
        return SimpleNamespace(done=done, result=result, cancel=lambda: None)


class Training:
    def __init__(self, job):
        torch.manual_seed(job.run.seed)
        self.job, self.epoch, self.weights = job, 0, torch.randn(8, 3)

    @property
    def is_finished(self):
        return self.epoch == EPOCHS

    def train_epoch(self, check):
        self.epoch += 1
        self._note("begins")
        self._behave(check)
        # Not by torch.optim, which imports torch's compiler: that takes a worker longer than a hundred runs.
        self.weights = 0.9 * self.weights + torch.randn(8, 3)
        self._note("ends")
        return Trained({"batches": 1, "updates": 1, "repeats": 0, "train_loss": float(self.weights.mean())})

    def _note(self, what):
        with (self.job.folder / "log").open("a") as log:
            log.write(f"{self.job.run.seed} {self.epoch} {what} {os.getpid()}\n")

    def _behave(self, check):
        mark = self.job.folder / f"marked{self.job.run.seed}-{self.epoch}"
        is_first = not mark.exists()
        mark.touch()
        match self.job.data.split() if self.epoch == 3 or "each" in self.job.data else []:
            case ["die", how] if is_first or how == "always":
                os.kill(os.getpid(), signal.SIGKILL)
            case ["lose", how] if is_first or how == "always":
                raise Lost
            case ["wait"]:  # until told to stop, or to go
                while not (self.job.folder / "go").exists():
                    time.sleep(0.01)
                    check()
            case ["pause"]:
                time.sleep(1.5)
            case ["refuse"]:
                raise PlanError("there is no such thing; give another")
            case ["fail"]:
                raise ZeroDivisionError("a mistake")

    def evaluate(self):
        return Tested({"accuracy": float(self.weights.sigmoid().mean()), "macro_f1": 0.0})

    def describe(self):
        return {}

    def state_dict(self):
        return {"epoch": self.epoch, "weights": self.weights, "random": torch.get_rng_state()}

    def load_state_dict(self, state):
        self.epoch, self.weights = state["epoch"], state["weights"]
        torch.set_rng_state(state["random"])


build = Training


def name(number):
    return RunName("plain", None, 0, number, "tiny")


def make(folder, count, at_once=1, behaviours=("",), executor=None, options=(), needs=lambda run: [], console=None):
    """Make runs; the last behaviour is that of all others."""
    storage, console = Storage(folder, CONFIGURATION), console or Console(quiet=True)
    with storage.opened():
        behaviours = [*behaviours, *[behaviours[-1]] * count]
        jobs = [
            Job(folder=folder, run=run, data=data, data_dir=folder, plan="tests.benchmarks.tiny_plan")
            for run, data in zip(map(name, range(count)), behaviours, strict=False)
            if run not in storage.finished()
        ]
        try:
            run_all(jobs, needs, executor, at_once, console, options)
        finally:
            storage.write_records()


if __name__ == "__main__":
    make(Path(sys.argv[1]), 3, 2, [sys.argv[2]], sys.argv[3])
