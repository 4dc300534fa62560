"""Batch-attention on several ranks, which make the same decisions.

torchrun --standalone --nproc-per-node 2 examples/ddp.py

Each rank takes its share of every batch, and the mean loss over all ranks is compared with the threshold. Runs on CPUs
(gloo) and GPUs (nccl), or as one process with plain python.
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.distributed import MeanOverRanks

EPOCHS = 8
BATCH_SIZE = 16  # of each rank


def train(rank: int, ranks: int, device: torch.device) -> tuple[nn.Module, BatchAttentionSchedule]:
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    dataset = TensorDataset(images[:1400], labels[:1400])

    schedule = BatchAttentionSchedule(k=1.2, budget=0.2, ranks=MeanOverRanks())
    # The same seed on every rank: all draw the same order, and each takes its share.
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(0))
    sampler = BatchAttentionSampler(order, BATCH_SIZE, schedule=schedule, rank=rank, world_size=ranks)
    loader = DataLoader(dataset, batch_sampler=sampler)

    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    if ranks > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader), eta_min=3e-4)

    for _ in range(EPOCHS):
        for x, y in schedule.attend(loader):
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            # Exchanged between the ranks during the backward pass.
            schedule.report(loss, samples=len(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule.decide() is Decision.ADVANCE:
                lr_scheduler.step()
        if rank == 0:
            print(schedule.last_summary)
    return model, schedule


def accuracy(model: nn.Module, device: torch.device) -> float:
    digits = load_digits()
    images, labels = torch.tensor(digits.images[1400:] / 16, dtype=torch.float32), torch.tensor(digits.target[1400:])
    with torch.no_grad():
        predictions: Tensor = model(images.to(device)).argmax(1).cpu()
    return (predictions == labels).float().mean().item()


def main() -> None:
    is_launched = "WORLD_SIZE" in os.environ
    device = torch.device("cpu")
    if is_launched:
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        # In DDP's backward pass, the timeout of this group applies, not that of MeanOverRanks.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if is_launched else (0, 1)

    model, schedule = train(rank, ranks, device)
    if rank == 0:
        # One rank's state resumes all ranks: save {"model": ..., "sampler": sampler.state_dict()} on rank 0.
        print(f"{ranks} ranks, next threshold {schedule.threshold:.4f}")
        print(f"test accuracy: {accuracy(model, device):.3f}")
    if is_launched:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
