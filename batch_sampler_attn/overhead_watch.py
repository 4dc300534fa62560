"""Noticing, in time, that the options make for no repeats at all, or for far too many."""

from __future__ import annotations

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
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._is_quiet = options.max_visits != 1
        self._has_warned_of_cost = False
        self._quiet_epochs = 0
        self._batches = 0
        # How many first losses would have been above the threshold at each lower k.
        self._above = {k: 0 for k in _LOWER_KS if k < options.k}

    def note_loss(self, loss: float, threshold: float | None) -> None:
        """The loss of a batch's first visit, and the threshold in force."""
        if not self._is_quiet or threshold is None:
            return
        self._batches += 1
        floor = self._options.floor
        unit = (threshold - floor) / self._options.k
        for k in self._above:
            self._above[k] += loss > floor + k * unit

    def note_epoch(self, summary: EpochSummary) -> None:
        """An epoch came to its end."""
        options, mean_loss = self._options, summary.mean_loss
        if mean_loss is not None and mean_loss < options.floor and options.k > 1 and options.max_visits != 1:
            if options.floor:
                notices.mean_below_floor(mean_loss, summary.epoch, options.floor)
            else:
                notices.negative_mean(mean_loss, summary.epoch)
        elif summary.overhead > 1 and self._is_telling(summary) and not self._has_warned_of_cost:
            self._has_warned_of_cost = True
            notices.costly_epoch(summary.epoch, summary.overhead, options.k)
        if summary.repeats:
            self._is_quiet = False
        elif self._is_telling(summary) and self._is_quiet:
            self._quiet_epochs += 1
            if self._quiet_epochs == _QUIET_EPOCHS:
                self._is_quiet = False
                shares = {k: above / self._batches for k, above in self._above.items()}
                notices.nothing_repeats(options.k, _QUIET_EPOCHS, shares)

    @staticmethod
    def _is_telling(summary: EpochSummary) -> bool:
        return summary.threshold is not None and summary.batches >= _LEAST_BATCHES
