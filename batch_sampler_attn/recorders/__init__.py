"""What may be switched on to watch a schedule: a record of visits, and curves; and what can be asked of it.

A recorder of your own is a subclass of ``Recorder``. Pictures, which take matplotlib, are in
``batch_sampler_attn.recorders.plots``.
"""

from batch_sampler_attn.recorders.analysis import most_repeated, most_repeated_samples, visit_counts
from batch_sampler_attn.recorders.json_lines import JsonLinesRecorder
from batch_sampler_attn.recorders.log import LogRecorder, TensorBoardRecorder
from batch_sampler_attn.recorders.memory import MemoryRecorder
from batch_sampler_attn.recorders.reading import read_visits
from batch_sampler_attn.recorders.recorder import Recorder
from batch_sampler_attn.recorders.visits import RepeatedBatch, RepeatedSample, VisitRecord

__all__ = [
    "JsonLinesRecorder",
    "LogRecorder",
    "MemoryRecorder",
    "Recorder",
    "RepeatedBatch",
    "RepeatedSample",
    "TensorBoardRecorder",
    "VisitRecord",
    "most_repeated",
    "most_repeated_samples",
    "read_visits",
    "visit_counts",
]
