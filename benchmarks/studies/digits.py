"""What the studies on digits share: images, a small model, an epoch of training. The quick start has the same."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from batch_sampler_attn import BatchAttentionSchedule

LEARNING_RATE = 3e-4
BATCH_SIZE = 32


def load_training_images() -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits without the quick start's test images: (1437, 1, 8, 8), scaled to [0, 1], and labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 1, 8, 8)
    train_images, _, train_labels, _ = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    return torch.from_numpy(train_images), torch.from_numpy(train_labels)


def make_model(seed: int) -> nn.Module:
    """A small CNN whose initial weights depend on the seed alone."""
    torch.manual_seed(seed)
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 4 * 4, 10))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: BatchAttentionSchedule,
    images: Tensor,
    labels: Tensor,
    order: torch.Generator,
) -> None:
    """One epoch in an order drawn from ``order``, with the repeats that the schedule asks for."""
    for batch in schedule.attend(torch.randperm(len(images), generator=order).split(BATCH_SIZE)):
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.decide(loss)
