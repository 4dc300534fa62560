"""How many visits does a batch take until its loss is at the threshold, if nothing stops it?

    python -m benchmarks.studies.visits_to_fit --record FILE

This is where the default of ``max_visits`` comes from. The quick-start's CNN is trained on its digits,
with clean labels and with a tenth of them redrawn at random, at three learning rates.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.progress import track

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.recorders import MemoryRecorder, visit_counts
from benchmarks.environment import describe_environment
from benchmarks.studies.digits import load_training_images, make_model, train_epoch
from benchmarks.studies.raw_records import keep

LEARNING_RATES = (1e-3, 3e-4, 1e-4)
NOISE_SHARES = (0.0, 0.1)
# Without some end, one batch that never fits would stop the measurement.
MAX_VISITS = 1000


def count_visits(learning_rate: float, noise_share: float, seed: int, epochs: int) -> dict[str, Any]:
    """Train once; the record says how many batches took how many visits."""
    images, labels = load_training_images()
    drawing = torch.Generator().manual_seed(seed)
    redrawn = torch.rand(len(labels), generator=drawing) < noise_share
    labels = torch.where(redrawn, torch.randint(0, 10, labels.shape, generator=drawing), labels)
    model = make_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(1.2, max_visits=MAX_VISITS, recorders=[recorder])
    for _ in range(epochs):
        train_epoch(model, optimizer, schedule, images, labels, drawing)
    counts = Counter(itertools.chain.from_iterable(visit_counts(recorder.visits)))
    return {
        "learning_rate": learning_rate,
        "noise_share": noise_share,
        "seed": seed,
        "epochs": epochs,
        "k": 1.2,
        "max_visits": MAX_VISITS,
        "capped_batches": sum(summary.capped_batches for summary in recorder.summaries),
        "batches_by_visits": {str(visits): batches for visits, batches in sorted(counts.items())},
    }


def measure(record: Path, *, seeds: int = 3, epochs: int = 30) -> None:
    """Measure and record.

    Args:
        record: Gets one JSON line a run.
        seeds: How many.
        epochs: Of every run.
    """
    torch.set_num_threads(1)
    environment = describe_environment()
    runs = list(itertools.product(LEARNING_RATES, NOISE_SHARES, range(seeds)))
    keep(record, (count_visits(*run, epochs) for run in track(runs, description="training")), environment)


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
