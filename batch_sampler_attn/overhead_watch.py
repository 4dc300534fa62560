"""Noticing, in time, that the options make for no repeats at all, or for far too many."""

from __future__ import annotations

from bisect import bisect_left

from batch_sampler_attn import notices
from batch_sampler_attn.options import Options
from batch_sampler_attn.summary import EpochSummary

# Without a repeat in so many epochs with a threshold, a word is due.
_QUIET_EPOCHS = 5
# An epoch of fewer batches says little about what is to come.
_LEAST_BATCHES = 20
_LOWER_KS = (1.0, 1.05, 1.1, 1.2, 1.5, 2.0)


class OverheadWatch:
    """Says each thing once.

    Args:
        options: Of the schedule.

    Attributes:
        is_quiet: Whether nothing has repeated so far, and losses are to be noted.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self.is_quiet = options.max_visits != 1
        self._has_warned_of_cost = False
        self._quiet_epochs = 0
        self._lower_ks = [k for k in _LOWER_KS if k < options.k]
        self._threshold: float | None = None
        self._limits: list[float] = []
        # How many first losses lie above so many of the thresholds at these lower k, and no more.
        self._above = [0] * (len(self._lower_ks) + 1)
        # How many lie above the threshold in force, and were not repeated for want of a budget.
        self._held_back = 0

    def note_loss(self, loss: float, threshold: float) -> None:
        """The loss of a batch's first visit, and the threshold in force."""
        if threshold != self._threshold:
            self._threshold = threshold
            floor = self._options.floor
            self._limits = [floor + k * (threshold - floor) / self._options.k for k in self._lower_ks]
        self._above[bisect_left(self._limits, loss)] += 1
        self._held_back += loss > threshold

    def note_epoch(self, summary: EpochSummary) -> None:
        """An epoch came to its end."""
        options, mean_loss = self._options, summary.mean_loss
        # A control's mean never sets a threshold.
        is_compared = summary.epoch + 1 >= options.warmup_epochs and options.max_visits != 1
        if is_compared and mean_loss is not None and mean_loss < options.floor and options.k > 1:
            if options.floor:
                notices.mean_below_floor(mean_loss, summary.epoch, options.floor)
            else:
                notices.negative_mean(mean_loss, summary.epoch)
        elif summary.overhead > 1 and self._is_telling(summary) and not self._has_warned_of_cost:
            self._has_warned_of_cost = True
            notices.costly_epoch(summary.epoch, summary.overhead, options.k)
        if summary.repeats:
            self.is_quiet = False
        elif self._is_telling(summary) and self.is_quiet:
            self._quiet_epochs += 1
            if self._quiet_epochs == _QUIET_EPOCHS:
                self.is_quiet = False
                if self._held_back and options.budget is not None:
                    notices.budget_held_back(options.budget, _QUIET_EPOCHS, self._held_back)
                    return
                notices.nothing_repeats(options.k, _QUIET_EPOCHS, self._shares())

    def _shares(self) -> dict[float, float] | None:
        """The share of batches that each lower k would have repeated; None where the losses stayed on a device."""
        batches = sum(self._above)
        if not batches:
            return None
        return {k: sum(self._above[at:]) / batches for at, k in enumerate(self._lower_ks, start=1)}

    @staticmethod
    def _is_telling(summary: EpochSummary) -> bool:
        return summary.threshold is not None and summary.batches >= _LEAST_BATCHES
