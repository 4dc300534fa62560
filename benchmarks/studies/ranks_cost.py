"""What deciding alike on two ranks costs an update, against DistributedDataParallel alone.

    python -m benchmarks.studies.ranks_cost --record FILE

Two gloo ranks of this machine, one CPU thread each, train the small network of benchmarks.selection at two batch sizes.
Three loops take turns: DDP alone, which reads no loss; DDP with report() before the backward pass and decide() after
the update; DDP with one decide(loss) after the update. Nothing ever repeats, so that all of them make as many updates.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import tyro
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks
from benchmarks.selection.networks import convolutional
from benchmarks.studies.recording import alternate, keep

RANKS = 2
# Images of each rank in a batch, and updates in a round.
SIZES = {44: 40, 192: 12}


def compare(batch_size: int, updates: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds an update of each loop, round by round, on this rank."""
    schedule = BatchAttentionSchedule(max_visits=1, ranks=MeanOverRanks())
    generator = torch.Generator().manual_seed(dist.get_rank())
    images, labels = torch.rand(batch_size, 3, 32, 32, generator=generator), torch.arange(batch_size) % 10
    network = DistributedDataParallel(convolutional(10, seed=0))
    optimizer = torch.optim.SGD(network.parameters(), 0.01)

    def run(calls: int) -> None:
        dist.barrier()
        for _ in schedule.attend(range(updates)) if calls else range(updates):
            loss = nn.functional.cross_entropy(network(images), labels)
            if calls == 2:
                schedule.report(loss, samples=batch_size)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if calls == 2:
                schedule.decide()
            elif calls == 1:
                schedule.decide(loss, samples=batch_size)

    sides = {"DDP alone": lambda: run(0), "two calls": lambda: run(2), "one call": lambda: run(1)}
    seconds = alternate(rounds, **sides)
    return {name: [1e3 * taken / updates for taken in values] for name, values in seconds.items()}


def measure_rank(rank: int, rounds: int, folder: str) -> None:
    """Compare the loops at each batch size; rank 0 writes times.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    times = {batch_size: compare(batch_size, updates, rounds) for batch_size, updates in SIZES.items()}
    if rank == 0:
        (Path(folder) / "times.json").write_text(json.dumps(times), encoding="utf-8")
    dist.destroy_process_group()


def measure(record: Path, *, rounds: int = 30) -> None:
    """Measure in so many rounds, print medians, and append the raw times to ``record``."""
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        start_processes(measure_rank, (rounds, folder), nprocs=RANKS, start_method="spawn")
        times = json.loads((Path(folder) / "times.json").read_text(encoding="utf-8"))
    keep(record, [{"times_ms": times, "load_average": load_average}])


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
