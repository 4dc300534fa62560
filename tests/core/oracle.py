"""The rule once more, slowly: the whole history is kept and everything is worked out from it each time."""

from __future__ import annotations

import functools
import math
import operator


class Oracle:
    """Answers as the schedule must. An epoch is a list of batches, a batch the list of its visits' losses."""

    def __init__(
        self,
        k=1.2,
        warmup_epochs=1,
        epoch_loss="first",
        max_visits=100,
        nonfinite="advance",
        epoch_length=None,
        budget=None,
        floor=0.0,
    ):
        self.k, self.warmup_epochs, self.epoch_loss, self.max_visits = k, warmup_epochs, epoch_loss, max_visits
        self.nonfinite, self.epoch_length, self.budget, self.floor = nonfinite, epoch_length, budget, floor
        self.ended = []
        # Whether each loss so far, of any epoch, was above the threshold as the budget had raised it.
        self.were_above = []
        self.abandon_epoch()

    def abandon_epoch(self):
        self.finished, self.current, self.capped = [], [], 0

    def decide(self, loss):
        """ "repeat" or "advance"."""
        wants = self.wants_repeat(loss)
        self.current.append(loss)
        if wants and (self.max_visits is None or len(self.current) < self.max_visits):
            return "repeat"
        self.finished.append(self.current)
        self.current = []
        self.capped += wants
        if len(self.finished) == self.epoch_length:
            self.end_epoch()
        return "advance"

    def wants_repeat(self, loss):
        threshold = self.threshold()
        if threshold is None:
            return False
        if self.budget is None:
            return math.isfinite(loss) and loss > threshold
        raised = self.floor + max(1.0, self.strictness()) * (threshold - self.floor)
        self.were_above.append(math.isfinite(loss) and loss > raised)
        repeats = sum(len(losses) - 1 for losses in self.finished) + len(self.current)
        return self.were_above[-1] and repeats + 1 <= self.budget * (len(self.finished) + 1)

    def strictness(self):
        factor = 1.0
        for was_above in self.were_above:
            factor = max(math.exp(-self.budget), factor * math.exp(0.1 if was_above else -0.1 * self.budget))
        return factor

    def threshold(self):
        if len(self.ended) < self.warmup_epochs:
            return None
        mean = self.mean(self.ended[-1])
        return None if mean is None else self.floor + self.k * (mean - self.floor)

    def mean(self, epoch, unfinished=()):
        entered = []
        for losses in [*epoch, unfinished]:
            is_finished = losses is not unfinished
            for position, loss in enumerate(losses):
                is_last = is_finished and position == len(losses) - 1
                wanted = {"first": position == 0, "last": is_last, "all": True}[self.epoch_loss]
                if wanted and math.isfinite(loss):
                    entered.append(loss)
        # Not sum(): from Python 3.12 on it compensates, and would not be the plain double sum.
        return functools.reduce(operator.add, entered, 0.0) / len(entered) if entered else None

    def end_epoch(self):
        summary = self.summary()
        self.ended.append(self.finished)
        self.abandon_epoch()
        return summary

    def summary(self):
        batches = self.finished
        visits = sum(map(len, batches)) + len(self.current)
        losses = [loss for batch in [*batches, self.current] for loss in batch]
        return {
            "epoch": len(self.ended),
            "batches": len(batches),
            "visits": visits,
            "repeats": visits - len(batches),
            "overhead": (visits - len(batches)) / len(batches) if batches else 0.0,
            "mean_loss": self.mean(batches, self.current),
            "threshold": self.threshold(),
            "capped_batches": self.capped,
            "nonfinite_losses": sum(not math.isfinite(loss) for loss in losses),
            "most_visits": max(map(len, [*batches, self.current]), default=0),
            "host_reads": None,
        }
