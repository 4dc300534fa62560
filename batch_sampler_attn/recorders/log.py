"""The summary of each epoch, as named numbers for a logger: W&B, MLflow, TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batch_sampler_attn.passes import Recorder
from batch_sampler_attn.summary import EpochSummary


class LogRecorder(Recorder):
    """Passes the summary of each epoch to a logger, as numbers named ``batch_attention/...``.

    Args:
        log: Called as ``log(numbers, step=epoch)``: ``mlflow.log_metrics``, the ``log`` of a W&B run, or, if your steps
            are not epochs, ``lambda numbers, step: run.log(numbers)``.
        flush: Called when a state is saved; None calls nothing.
    """

    def __init__(self, log: Callable[..., Any], flush: Callable[[], Any] | None = None) -> None:
        self._log = log
        self._flush = flush

    def on_epoch_end(self, summary: EpochSummary) -> None:
        numbers = {f"batch_attention/{name}": value for name, value in summary.as_dict().items() if value is not None}
        self._log(numbers, step=summary.epoch)

    def flush(self) -> None:
        if self._flush is not None:
            self._flush()


class TensorBoardRecorder(LogRecorder):
    """A ``LogRecorder`` that draws the summaries as curves in TensorBoard.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or an object with its ``add_scalar`` and ``flush``. For a
            run that resumes from an older state, ``SummaryWriter(purge_step=epoch)`` hides the points logged again.
    """

    def __init__(self, writer: Any) -> None:
        def log(numbers: dict[str, Any], step: int) -> None:
            for name, value in numbers.items():
                if name != "batch_attention/epoch":
                    writer.add_scalar(name, value, step)

        super().__init__(log, writer.flush)
