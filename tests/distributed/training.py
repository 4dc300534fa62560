"""One training, on ranks or in one process on the batches that the ranks have between them, in double precision."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, Sampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks

EPOCHS = 5
BATCH_SIZE = 4
SEED = 2


class Samples(Dataset):
    """Two classes that overlap, so that some batches stay hard."""

    def __init__(self, samples):
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
        noise = torch.randn(samples, generator=generator, dtype=torch.float64)
        self.targets = (self.inputs.sum(1) + noise > 0).double()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return index, self.inputs[index], self.targets[index]


@dataclass(frozen=True)
class Case:
    """How ranks train.

    Attributes:
        wrapper: "ddp" or "fsdp".
        samples: In the data set; 64 give four ranks even shards.
        shards: "ours" by ``rank=``, "torch's" by a ``DistributedSampler``.
        calls: One or two.
        repeats: As a ``BatchAttentionSampler`` takes it; None for a hand-written loop over a plain DataLoader.
        epoch_loss: As the schedule takes it.
    """

    wrapper: str = "ddp"
    samples: int = 32
    shards: str = "ours"
    calls: int = 2
    repeats: str | None = "immediate"
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
    dataset = Samples(case.samples)
    if case.shards == "ours":
        return RandomSampler(dataset, generator=torch.Generator().manual_seed(SEED))
    return DistributedSampler(dataset, num_replicas=ranks, rank=rank, seed=SEED)


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()


def make_schedule(case, ranks):
    return BatchAttentionSchedule(1.02, max_visits=5, epoch_loss=case.epoch_loss, ranks=ranks)


def on_a_rank(rank, case, ranks, epochs=EPOCHS):
    """The visits and the weights of a rank that trains along."""
    schedule = make_schedule(case, MeanOverRanks(timeout_seconds=600))
    shard = {"rank": rank, "world_size": ranks} if case.shards == "ours" else {}
    repeats = case.repeats or "immediate"
    sampler = BatchAttentionSampler(
        make_base(case, rank, ranks), BATCH_SIZE, schedule=schedule, repeats=repeats, **shard
    )
    loader = DataLoader(Samples(case.samples), batch_sampler=sampler)
    model = make_model()
    # On CPUs, FSDP2 is not there in every PyTorch that is supported.
    is_ddp = case.wrapper == "ddp" or torch.__version__ < (2, 14)
    model = DistributedDataParallel(model) if is_ddp else fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    visits = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for indices, inputs, targets in schedule.attend(loader):
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                model(inputs).squeeze(1), targets, reduction="none"
            )
            loss = losses.mean()
            if case.calls == 2:
                schedule.report(loss, samples=len(indices))
            optimizer.zero_grad()
            # Both wrappers average gradients over ranks, whatever the sizes of their batches.
            total = torch.tensor(float(len(indices)))
            dist.all_reduce(total)
            (losses.sum() / total * ranks).backward()
            optimizer.step()
            threshold = schedule.threshold
            decision = schedule.decide() if case.calls == 2 else schedule.decide(loss, samples=len(indices))
            visits.append((decision.value, threshold, indices.tolist()))
    parameters = [full(parameter).flatten() for parameter in model.parameters()]
    return visits, torch.cat(parameters), schedule.threshold


def full(parameter):
    parameter = parameter.detach()
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def in_one_process(case, ranks, epochs=EPOCHS):
    """The same, on the joined batches, by a loop of its own."""
    schedule = make_schedule(case, None)
    joined = Joined(case, ranks)
    sampler = BatchAttentionSampler(joined, schedule=schedule, repeats=case.repeats or "immediate")
    loader = DataLoader(Samples(case.samples), batch_sampler=sampler)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    visits = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for indices, inputs, targets in schedule.attend(loader):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs).squeeze(1), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            threshold = schedule.threshold
            visits.append((schedule.decide(loss).value, threshold, indices.tolist()))
    return visits, torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), schedule.threshold
