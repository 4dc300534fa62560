"""Ranks that train together decide alike, and end where one process on the joined batches does, in double precision."""

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, TensorDataset

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks
from tests.distributed.processes import PATIENCE_SECONDS, run_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS, BATCH_SIZE, SEED = 5, 4, 2


def make_dataset(samples):
    """Indices, inputs, and two classes that overlap, so that some batches stay hard."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, generator=generator, dtype=torch.float64)
    return TensorDataset(torch.arange(samples), inputs, (inputs.sum(1) + noise > 0).double())


class Case(NamedTuple):
    """How ranks train."""

    wrapper: str
    samples: int
    shards: str  # "ours" by rank=, "torch's" by a DistributedSampler
    calls: str  # a loss and its samples: in a "report" before the update, in one "decide", or by the "sampler"
    repeats: str = "immediate"
    epoch_loss: str = "first"


class Joined(Sampler):
    """In one process, the batches that the ranks have between them."""

    def __init__(self, case, ranks):
        self.bases = [make_base(case, rank, ranks) for rank in range(ranks)]
        self.ranks, self.case = ranks, case

    def set_epoch(self, epoch):
        for base in self.bases:
            if hasattr(base, "set_epoch"):
                base.set_epoch(epoch)

    def __len__(self):
        return -(-self.case.samples // (BATCH_SIZE * self.ranks))

    def __iter__(self):
        orders = [list(base) for base in self.bases]
        if self.case.shards == "ours":
            # Written again here: every rank takes each ranks-th index.
            orders = [order[rank :: self.ranks] for rank, order in enumerate(orders)]
        for begin in range(0, len(orders[0]), BATCH_SIZE):
            yield [index for order in orders for index in order[begin : begin + BATCH_SIZE]]


def make_base(case, rank, ranks):
    dataset = make_dataset(case.samples)
    if case.shards == "ours":
        return RandomSampler(dataset, generator=torch.Generator().manual_seed(SEED))
    return DistributedSampler(dataset, num_replicas=ranks, rank=rank, seed=SEED)


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()


def make_schedule(case, ranks):
    return BatchAttentionSchedule(1.02, max_visits=5, epoch_loss=case.epoch_loss, ranks=ranks)


def on_a_rank(rank, case, ranks):
    """What ``train`` returns on one rank."""
    schedule = make_schedule(case, MeanOverRanks(timeout_seconds=PATIENCE_SECONDS))
    shard = {"rank": rank, "world_size": ranks} if case.shards == "ours" else {}
    base = make_base(case, rank, ranks)
    sampler = BatchAttentionSampler(base, BATCH_SIZE, schedule=schedule, repeats=case.repeats, **shard)

    def loss_to_train_on(losses):
        if case.calls == "report":
            schedule.report(losses.mean(), samples=len(losses))
        # Both wrappers average gradients over ranks, whatever the sizes of their batches.
        total = torch.tensor(float(len(losses)))
        dist.all_reduce(total)
        return losses.sum() / total * ranks

    def decide(losses):
        if case.calls == "report":
            return schedule.decide()
        return schedule.decide(losses.mean(), samples=len(losses) if case.calls == "decide" else None)

    # On CPUs, FSDP2 is not there in every PyTorch that is supported.
    is_ddp = case.wrapper == "ddp" or torch.__version__ < (2, 14)
    model = DistributedDataParallel(make_model()) if is_ddp else fully_shard(make_model())
    return train(case, schedule, sampler, model, loss_to_train_on, decide)


def in_one_process(case, ranks):
    """The same without ranks."""
    schedule = make_schedule(case, None)
    sampler = BatchAttentionSampler(Joined(case, ranks), schedule=schedule, repeats=case.repeats)
    return train(case, schedule, sampler, make_model(), torch.mean, lambda losses: schedule.decide(losses.mean()))


def train(case, schedule, sampler, model, loss_to_train_on, decide):
    """The decision, threshold and indices of each visit; the weights and the threshold afterwards."""
    loader = DataLoader(make_dataset(case.samples), batch_sampler=sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    visits = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for indices, inputs, targets in schedule.attend(loader):
            losses = binary_cross_entropy_with_logits(model(inputs).squeeze(1), targets, reduction="none")
            optimizer.zero_grad()
            loss_to_train_on(losses).backward()
            optimizer.step()
            threshold = schedule.threshold
            visits.append((decide(losses).value, threshold, indices.tolist()))
    return visits, torch.cat([whole(parameter).flatten() for parameter in model.parameters()]), schedule.threshold


def whole(parameter):
    parameter = parameter.detach()
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


# 29, 30 and 61 samples leave ranks with shards and last batches of different sizes.
CASES = {
    2: [
        Case("ddp", 32, "ours", "decide"),
        Case("ddp", 30, "ours", "report"),
        Case("ddp", 29, "ours", "sampler"),
        Case("ddp", 30, "torch's", "decide", "deferred"),
        Case("fsdp", 29, "ours", "report", "deferred", "last"),
        Case("fsdp", 30, "torch's", "sampler"),
        Case("fsdp", 32, "ours", "decide", "immediate", "all"),
    ],
    4: [Case("ddp", 64, "torch's", "report"), Case("fsdp", 61, "ours", "sampler", "deferred")],
}


def all_cases(rank, ranks):
    return [on_a_rank(rank, case, ranks) for case in CASES[ranks]]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_decide_alike_and_as_one_process_on_the_joined_batches(ranks, tmp_path):
    for case, *of_ranks in zip(CASES[ranks], *run_ranks(all_cases, ranks, tmp_path, ranks), strict=True):
        visits, weights, threshold = of_ranks[0]
        for other_visits, other_weights, other_threshold in of_ranks[1:]:
            assert [visit[:2] for visit in other_visits] == [visit[:2] for visit in visits], case
            assert other_threshold == threshold, case
            assert torch.equal(other_weights, weights), case

        joined_visits, joined_weights, joined_threshold = in_one_process(case, ranks)
        decisions, thresholds, indices = zip(*joined_visits, strict=True)
        assert decisions.count("repeat") > 5, case
        assert [visit[0] for visit in visits] == [*decisions], case
        joined = [[index for rank in of_ranks for index in rank[0][number][2]] for number in range(len(visits))]
        assert joined == [*indices], case
        assert [visit[1] or 0 for visit in visits] == pytest.approx([value or 0 for value in thresholds], abs=1e-10)
        assert threshold == pytest.approx(joined_threshold, abs=1e-10), case
        assert torch.allclose(weights, joined_weights, rtol=0, atol=1e-8), case
