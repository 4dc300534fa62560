"""The rule once more, slowly: the whole history is kept and everything is worked out from it each time."""

from __future__ import annotations

import functools
import math
import operator


class Oracle:
    """Answers as the schedule must. An epoch is a list of batches, a batch the list of its visits' losses."""

    def __init__(
        self, k=1.2, warmup_epochs=1, epoch_loss="first", max_visits=100, nonfinite="advance", epoch_length=None
    ):
        self.k, self.warmup_epochs, self.epoch_loss = k, warmup_epochs, epoch_loss
        self.max_visits, self.nonfinite, self.epoch_length = max_visits, nonfinite, epoch_length
        self.ended = []
        self.finished = []
        self.current = []

    def decide(self, loss):
        """ "repeat" or "advance"."""
        self.current.append(loss)
        if self.wants_repeat(self.current):
            return "repeat"
        self.finished.append(self.current)
        self.current = []
        if len(self.finished) == self.epoch_length:
            self.end_epoch()
        return "advance"

    def wants_repeat(self, losses):
        threshold = self.threshold()
        if threshold is None or not math.isfinite(losses[-1]) or not losses[-1] > threshold:
            return False
        return self.max_visits is None or len(losses) < self.max_visits

    def threshold(self, epochs_before=0):
        ended = self.ended[: len(self.ended) - epochs_before]
        if len(ended) < self.warmup_epochs:
            return None
        mean = self.mean(ended[-1])
        return None if mean is None else self.k * mean

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
        self.finished = []
        return summary

    def summary(self):
        batches = self.finished
        visits = sum(map(len, batches)) + len(self.current)
        losses = [loss for batch in [*batches, self.current] for loss in batch]
        threshold = self.threshold()
        capped = [
            batch for batch in batches if threshold is not None and math.isfinite(batch[-1]) and batch[-1] > threshold
        ]
        return {
            "epoch": len(self.ended),
            "batches": len(batches),
            "visits": visits,
            "repeats": visits - len(batches),
            "overhead": (visits - len(batches)) / len(batches) if batches else 0.0,
            "mean_loss": self.mean(batches, self.current),
            "threshold": threshold,
            "capped_batches": len(capped),
            "nonfinite_losses": sum(not math.isfinite(loss) for loss in losses),
            "most_visits": max(map(len, [*batches, self.current]), default=0),
            "host_reads": None,
        }
