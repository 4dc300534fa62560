"""Recorders of what a schedule decides, and functions to analyse their records.

Figures are in ``batch_sampler_attn.recorders.plots``, which needs matplotlib.
"""

from batch_sampler_attn.passes import Recorder
from batch_sampler_attn.recorders.analysis import (
    RepeatedBatch,
    most_repeated,
    visit_counts,
)
from batch_sampler_attn.recorders.json_lines import JsonLinesRecorder, read_visits
from batch_sampler_attn.recorders.log import LogRecorder, TensorBoardRecorder
from batch_sampler_attn.recorders.memory import MemoryRecorder, VisitRecord

__all__ = [
    "JsonLinesRecorder",
    "LogRecorder",
    "MemoryRecorder",
    "Recorder",
    "RepeatedBatch",
    "TensorBoardRecorder",
    "VisitRecord",
    "most_repeated",
    "read_visits",
    "visit_counts",
]
