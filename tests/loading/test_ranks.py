"""Two ranks that reduce their loss decide alike, and end where one process on the joined batches does."""

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from tests.loading.helpers import (
    Samples,
    no_deadlock,  # noqa: F401  (a fixture of every test here)
)

pytestmark = pytest.mark.usefixtures("one_thread")

RANKS = 2
EPOCHS = 4
BATCH_SIZE = 4


class Shard(DistributedSampler):
    """A rank's part of the data; the second rank's is one sample short if ``is_uneven``."""

    def __init__(self, dataset, rank, is_uneven):
        super().__init__(dataset, num_replicas=RANKS, rank=rank, seed=2)
        self.num_missing = int(is_uneven and rank == 1)

    def __len__(self):
        return super().__len__() - self.num_missing

    def __iter__(self):
        indices = list(super().__iter__())
        return iter(indices[: len(indices) - self.num_missing])


class JoinedBatches(Sampler):
    """In one process, the batches that the ranks have between them."""

    def __init__(self, dataset, is_uneven):
        self.shards = [Shard(dataset, rank, is_uneven) for rank in range(RANKS)]

    def set_epoch(self, epoch):
        for shard in self.shards:
            shard.set_epoch(epoch)

    def __len__(self):
        return -(-len(self.shards[0]) // BATCH_SIZE)

    def __iter__(self):
        parts = [list(shard) for shard in self.shards]
        for start in range(0, len(parts[0]), BATCH_SIZE):
            yield [index for part in parts for index in part[start : start + BATCH_SIZE]]


def train(base, batch_size, repeats, reduce):
    """Full-precision training; ``reduce`` adds a tensor up over the ranks, in place."""
    torch.manual_seed(0)
    schedule = BatchAttentionSchedule(1.02, max_visits=5)
    sampler = BatchAttentionSampler(base, batch_size, schedule=schedule, repeats=repeats)
    loader = DataLoader(Samples(30), batch_sampler=sampler)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    visits = []
    for epoch in range(EPOCHS):
        base.set_epoch(epoch)
        for indices, inputs, targets in schedule.attend(loader):
            outputs = model(inputs.double()).squeeze(1)
            loss_sum = torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets.double(), reduction="sum")
            optimizer.zero_grad()
            loss_sum.backward()
            total = torch.tensor([loss_sum.item(), len(indices)], dtype=torch.float64)
            reduce(total)
            for parameter in model.parameters():
                reduce(parameter.grad)
                parameter.grad /= total[1]
            optimizer.step()
            loss = (total[0] / total[1]).item()
            threshold = schedule.threshold
            visits.append((schedule.decide(loss).value, loss, threshold, indices.tolist()))
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return visits, weights


CASES = [("immediate", True), ("deferred", False)]


def run_rank(rank, folder):
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS)
    results = [
        train(Shard(Samples(30), rank, is_uneven), BATCH_SIZE, repeats, torch.distributed.all_reduce)
        for repeats, is_uneven in CASES
    ]
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results_of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, (folder,), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=["immediate, uneven shards", "deferred, even shards"])
def test_two_ranks_decide_alike_and_equal_one_process_on_the_joined_batches(results_of_ranks, case):
    repeats, is_uneven = CASES[case]
    (visits, weights), (visits_of_other, weights_of_other) = (results[case] for results in results_of_ranks)

    assert [visit[:3] for visit in visits] == [visit[:3] for visit in visits_of_other]
    assert torch.equal(weights, weights_of_other)

    joined_visits, joined_weights = train(JoinedBatches(Samples(30), is_uneven), None, repeats, lambda tensor: None)
    decisions, losses, thresholds, indices = zip(*joined_visits, strict=True)
    assert decisions.count("repeat") > 5
    assert decisions == tuple(visit[0] for visit in visits)
    assert losses == pytest.approx([visit[1] for visit in visits], abs=1e-9)
    assert [threshold or 0 for threshold in thresholds] == pytest.approx([visit[2] or 0 for visit in visits], abs=1e-9)
    assert torch.allclose(weights, joined_weights, rtol=0, atol=1e-9)
    assert list(indices) == [one[3] + other[3] for one, other in zip(visits, visits_of_other, strict=True)]
