"""Visits and summaries in lists."""

from __future__ import annotations

from collections.abc import Sequence

from batch_sampler_attn.checkpoint import plain_index
from batch_sampler_attn.passes import Recorder
from batch_sampler_attn.recorders.visits import Timeline, VisitRecord
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.summary import EpochSummary, html_table


class MemoryRecorder(Recorder):
    """Keeps what happens in two lists. When an older state is loaded, both lose what came after it.

    Attributes:
        visits: A ``VisitRecord`` of each visit.
        summaries: The ``EpochSummary`` of each epoch.
    """

    def __init__(self) -> None:
        self._timeline = Timeline()
        self.visits: list[VisitRecord] = self._timeline.visits
        self.summaries: list[EpochSummary] = []

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        known = None if indices is None else tuple(map(plain_index, indices))
        self._timeline.add(VisitRecord(epoch, batch, visit, loss, decision.value, known))

    def on_epoch_end(self, summary: EpochSummary) -> None:
        self._drop_summaries(summary.epoch)
        self.summaries.append(summary)

    def on_epoch_abandoned(self, epoch: int) -> None:
        self._timeline.abandon(epoch)

    def on_state_loaded(self, epoch: int, visits: int) -> None:
        self._timeline.resume(epoch, visits)
        self._drop_summaries(epoch)

    def _repr_html_(self) -> str:
        return html_table([summary.as_dict() for summary in self.summaries])

    def _drop_summaries(self, epoch: int) -> None:
        while self.summaries and self.summaries[-1].epoch >= epoch:
            self.summaries.pop()
