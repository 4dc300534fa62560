"""Visits and summaries, kept in lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batch_sampler_attn.errors import StateError
from batch_sampler_attn.indices import plain_indices
from batch_sampler_attn.recorders.recorder import Recorder
from batch_sampler_attn.recorders.timeline import Timeline
from batch_sampler_attn.recorders.visits import VisitRecord
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.summary import EpochSummary
from batch_sampler_attn.tables import html_table


class MemoryRecorder(Recorder):
    """Keeps every visit and every summary in lists.

    After an older state was loaded, they hold what came before it and what comes then.

    Attributes:
        visits: One ``VisitRecord`` a visit.
        summaries: One ``EpochSummary`` an epoch.
    """

    def __init__(self) -> None:
        self._timeline = Timeline()
        self.visits: list[VisitRecord] = self._timeline.visits
        self.summaries: list[EpochSummary] = []

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        record = VisitRecord(epoch, batch, visit, loss, decision.value, _as_recorded(indices))
        if self._timeline.has_in_last_epoch(record):
            self._timeline.begin_pass()
        self._timeline.add(record)

    def on_epoch_end(self, summary: EpochSummary) -> None:
        self._forget_summaries(summary.epoch)
        self.summaries.append(summary)

    def on_epoch_abandoned(self, epoch: int) -> None:
        self._timeline.abandon(epoch)

    def on_state_loaded(self, epoch: int, visits: int) -> None:
        self._timeline.go_on(epoch, visits)
        self._forget_summaries(epoch)

    def _repr_html_(self) -> str:
        return html_table([summary.as_dict() for summary in self.summaries])

    def _forget_summaries(self, epoch: int) -> None:
        while self.summaries and self.summaries[-1].epoch >= epoch:
            self.summaries.pop()


def _as_recorded(indices: Sequence[Any] | None) -> tuple[Any, ...] | None:
    if indices is None:
        return None
    try:
        return tuple(plain_indices(indices))
    except StateError:
        # Keys of other kinds than numbers and strings can be kept, though not saved.
        return tuple(indices)
