"""Each epoch's summary as curves."""

from __future__ import annotations

from typing import Any

from batch_sampler_attn.recorders.recorder import Recorder
from batch_sampler_attn.summary import EpochSummary


class TensorBoardRecorder(Recorder):
    """Writes each epoch's summary as scalars named ``batch_attention/...``.

    After an older state was loaded, epochs are written again; in a new process, ``SummaryWriter(purge_step=epoch)``
    hides their first points.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar`` and ``flush``.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def on_epoch_end(self, summary: EpochSummary) -> None:
        for name, value in summary.as_dict().items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(f"batch_attention/{name}", value, summary.epoch)

    def flush(self) -> None:
        self._writer.flush()
