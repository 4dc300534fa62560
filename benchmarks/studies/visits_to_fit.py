"""How many visits does a batch take until its loss is at the threshold, if nothing stops it?

    python -m benchmarks.studies.visits_to_fit --record FILE

The default of ``max_visits`` comes from here. The quick start's CNN is trained on its digits, with clean labels and with
a tenth of them drawn again at random, at three learning rates.
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
from benchmarks.studies.recording import keep

LEARNING_RATES = (1e-3, 3e-4, 1e-4)
# Without some end, one batch that never fits would stop the measurement.
MAX_VISITS = 1000


def count_visits(learning_rate: float, noise_share: float, seed: int, epochs: int) -> dict[str, Any]:
    """Train once; the record says how many batches took how many visits."""
    images, labels = load_training_images()
    rng = torch.Generator().manual_seed(seed)
    is_noise = torch.rand(len(labels), generator=rng) < noise_share
    labels = torch.where(is_noise, torch.randint(0, 10, labels.shape, generator=rng), labels)
    model, recorder = make_model(seed), MemoryRecorder()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = BatchAttentionSchedule(1.2, max_visits=MAX_VISITS, recorders=[recorder])
    for _ in range(epochs):
        train_epoch(model, optimizer, schedule, images, labels, rng)
    counts = Counter(itertools.chain.from_iterable(visit_counts(recorder.visits)))
    return {
        **{"learning_rate": learning_rate, "noise_share": noise_share, "seed": seed, "epochs": epochs},
        **{"k": 1.2, "max_visits": MAX_VISITS},
        "capped_batches": sum(summary.capped_batches for summary in recorder.summaries),
        "batches_by_visits": {str(visits): batches for visits, batches in sorted(counts.items())},
    }


def measure(record: Path, *, seeds: int = 3, epochs: int = 30) -> None:
    """Train with so many seeds and epochs, and append a JSON line a run to ``record``."""
    torch.set_num_threads(1)
    runs = list(itertools.product(LEARNING_RATES, (0.0, 0.1), range(seeds)))
    lines = (count_visits(*run, epochs) for run in track(runs, description="training"))
    keep(record, lines, describe_environment("cpu"))


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
