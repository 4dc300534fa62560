"""Save a Batch-attention run in mid-epoch, and resume it in new objects.

``sampler.state_dict()`` contains the state of sampler and schedule, as plain JSON types. Save it after a ``decide``,
with the states of model and optimizer, and the resumed run equals the uninterrupted one bit for bit.
"""

import json
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule

EPOCHS = 8
SAVE_AFTER_UPDATES = 310


def train(checkpoint: Path, *, resume: bool) -> tuple[list[float], nn.Module]:
    """Train to the end, from the start or from the checkpoint; return the loss of each update, and the model."""
    # A resumed run needs no seed: with another one, all that matters still comes from the checkpoint.
    torch.manual_seed(1 if resume else 0)
    digits = load_digits()
    dataset = TensorDataset(torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target))
    schedule = BatchAttentionSchedule(k=1.2, budget=0.2)
    sampler = BatchAttentionSampler(RandomSampler(dataset), 32, schedule=schedule)
    loader = DataLoader(dataset, batch_sampler=sampler)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    if resume:
        weights = torch.load(checkpoint / "weights.pt")
        model.load_state_dict(weights["model"])
        optimizer.load_state_dict(weights["optimizer"])
        sampler.load_state_dict(json.loads((checkpoint / "sampler.json").read_text()))
        print(f"resumed in epoch {schedule.epoch}, batch {schedule.batches}, after {schedule.visits} visits to it")

    losses: list[float] = []
    while schedule.epoch < EPOCHS:
        for x, y in schedule.attend(loader):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            schedule.decide(losses[-1])

            if not resume and len(losses) == SAVE_AFTER_UPDATES:
                weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(weights, checkpoint / "weights.pt")
                (checkpoint / "sampler.json").write_text(json.dumps(sampler.state_dict()))

        print(schedule.last_summary)
    return losses, model


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        losses, model = train(Path(folder), resume=False)
        resumed_losses, resumed_model = train(Path(folder), resume=True)

    print(f"{len(resumed_losses)} losses identical: {resumed_losses == losses[SAVE_AFTER_UPDATES:]}")
    pairs = zip(resumed_model.parameters(), model.parameters(), strict=True)
    print(f"final weights identical: {all(torch.equal(ours, theirs) for ours, theirs in pairs)}")


if __name__ == "__main__":
    main()
