"""What deciding alike on two ranks costs an update, against DistributedDataParallel alone.

    python -m benchmarks.studies.ranks_cost [--record FILE]

Two gloo ranks of this machine, one CPU thread each, train the small network of benchmarks.selection, at two sizes of
batch. Three loops take turns, round by round: DDP alone, which reads no loss; DDP with report() before the backward
pass and decide() after the update; DDP with one decide(loss) after the update. Nothing ever repeats, so that all of
them make as many updates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks
from benchmarks.environment import describe_environment, one_line
from benchmarks.selection.training import make_network
from benchmarks.studies.raw_records import keep

RANKS = 2
ARMS = ("DDP alone", "two calls", "one call")
# Images of each rank in a batch, and updates in a round.
SIZES = {44: 40, 192: 12}


class Training:
    """A rank's network and one batch of random images, which every loop trains on."""

    def __init__(self, batch_size: int) -> None:
        generator = torch.Generator().manual_seed(dist.get_rank())
        self.images = torch.rand(batch_size, 3, 32, 32, generator=generator)
        self.labels = torch.randint(0, 10, (batch_size,), generator=generator)
        self.network = DistributedDataParallel(make_network(10, seed=0))
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01)

    def loss(self) -> torch.Tensor:
        """Of the batch, before an update."""
        return nn.functional.cross_entropy(self.network(self.images), self.labels)

    def update(self, loss: torch.Tensor) -> None:
        """Backward and step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def seconds_of(arm: str, training: Training, schedule: BatchAttentionSchedule, updates: int) -> float:
    """Of so many updates in one of the loops."""
    samples = len(training.labels)
    dist.barrier()
    start = time.perf_counter()
    for _ in range(updates) if arm == "DDP alone" else schedule.attend(range(updates)):
        loss = training.loss()
        if arm == "two calls":
            schedule.report(loss, samples=samples)
        training.update(loss)
        if arm == "two calls":
            schedule.decide()
        elif arm == "one call":
            schedule.decide(loss, samples=samples)
    return time.perf_counter() - start


def measure(rank: int, rounds: int, folder: str) -> None:
    """One rank: milliseconds an update, by size of batch, loop and round; rank 0 writes them down."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    times: dict[str, dict[str, list[float]]] = {}
    for batch_size, updates in SIZES.items():
        schedule = BatchAttentionSchedule(max_visits=1, ranks=MeanOverRanks())
        training = Training(batch_size)
        of_size = times[str(batch_size)] = {arm: [] for arm in ARMS}
        for number in range(rounds + 1):
            # Each loop is first as often as the others.
            for arm in ARMS[number % 3 :] + ARMS[: number % 3]:
                seconds = seconds_of(arm, training, schedule, updates)
                if number:  # the first round warms up
                    of_size[arm].append(seconds / updates * 1e3)
    if rank == 0:
        (Path(folder) / "times.json").write_text(json.dumps(times), encoding="utf-8")
    dist.destroy_process_group()


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--record", type=Path, help="append the raw times to this file, as a JSON line")
    arguments = parser.parse_args()
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        start_processes(measure, (arguments.rounds, folder), nprocs=RANKS, start_method="spawn")
        times = json.loads((Path(folder) / "times.json").read_text(encoding="utf-8"))
    environment = describe_environment("cpu")
    for batch_size, of_size in times.items():
        medians = {arm: statistics.median(values) for arm, values in of_size.items()}
        ratios = ", ".join(f"{arm} {medians[arm] / medians['DDP alone']:.3f} times" for arm in ARMS[1:])
        print(f"{batch_size} images a rank: {medians['DDP alone']:.2f} ms alone; {ratios}")
    print(one_line(environment))
    if arguments.record is not None:
        keep(arguments.record, [{"times_ms": times, "load_average": load_average}], environment, is_appended=True)


if __name__ == "__main__":
    main()
