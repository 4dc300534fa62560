"""Attention to samples, without extra updates: digits with a rare hidden subgroup.

A network classifies digits as even or odd; 8 and 9 are rare, which the labels do not show. Three trainings of as many
updates: plain, with well-fitted samples pruned, and with as many pruned at random. One seed shows how to use it, not
whether it helps; benchmarks/README.md has the measurements.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import SampleAttention

EPOCHS = 12
RARE = (8, 9)


def load() -> tuple[TensorDataset, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training data with few 8s and 9s; test images, their labels (odd or even), and their digits."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    kinds = torch.tensor(digits.target)
    of_training = torch.arange(len(kinds)) < 1200
    is_kept = ~torch.isin(kinds, torch.tensor(RARE)) | (torch.arange(len(kinds)) % 10 == 0)
    train = of_training & is_kept
    return (
        TensorDataset(images[train], kinds[train] % 2),
        images[~of_training],
        kinds[~of_training] % 2,
        kinds[~of_training],
    )


def train(dataset: TensorDataset, attention: SampleAttention, *, is_quiet: bool) -> nn.Module:
    """A network, trained on the batches of ``attention``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8 * 8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(dataset, batch_sampler=attention, num_workers=2, persistent_workers=True)
    for _ in range(EPOCHS):
        for images, labels in attention.attend(loader):
            losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
            loss = attention.weighted_mean(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not is_quiet:
            print(attention.last_summary)
    return model


def main() -> None:
    dataset, images, labels, kinds = load()
    trainings = {
        "plain": SampleAttention(len(dataset), 32, prune_probability=0.0),
        "well-fitted pruned": SampleAttention(len(dataset), 32, prune_probability=0.5, epochs=EPOCHS),
        "as many at random": SampleAttention(len(dataset), 32, prune_probability=0.5, epochs=EPOCHS, select="random"),
    }
    for name, attention in trainings.items():
        model = train(dataset, attention, is_quiet=name != "well-fitted pruned")
        with torch.no_grad():
            is_right = (model(images).argmax(dim=1) == labels).numpy()
        is_rare = np.isin(kinds.numpy(), RARE)
        frequent, rare = is_right[~is_rare].mean(), is_right[is_rare].mean()
        print(f"{name}: {frequent:.3f} of the frequent digits are classified correctly, {rare:.3f} of the rare")
        print(f"test accuracy: {is_right.mean():.3f}")


if __name__ == "__main__":
    main()
