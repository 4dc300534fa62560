"""One run: so many updates of one small network, on the samples that an arm chooses."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from benchmarks.selection.choices import Arm
from benchmarks.selection.settings import Task

BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.1
_LARGEST_SHIFT = 4
_EVALUATED_AT_ONCE = 500


class Outcome(NamedTuple):
    """What a run came to.

    Attributes:
        accuracy: Per cent of the test images.
        macro_f1: Per cent.
        recalls: Per cent of the test images of each kind.
        train_loss: Mean of the last 50 updates.
        updates: That were made.
        forward_samples: Samples that the network was run on while training, those included that were only looked at.
        extra_updates: Repeats, or batches of pooled samples.
        left_out: Samples that were left out.
        seconds: Of training alone.
    """

    accuracy: float
    macro_f1: float
    recalls: list[float]
    train_loss: float
    updates: int
    forward_samples: int
    extra_updates: int
    left_out: int
    seconds: float


def make_network(labels: int, seed: int) -> nn.Module:
    """A small convolutional network, initialised by the seed; torch's generator is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 32, 64, 128):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels = width
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, labels))
    return network.to(memory_format=torch.channels_last)


def train(task: Task, arm: Arm, seed: int, updates: int) -> Outcome:
    """Train for exactly so many updates, and test.

    Args:
        task: The data.
        arm: Says which samples; its epochs are its own.
        seed: Of initial weights and augmentation.
        updates: With one learning-rate schedule over them, whichever the arm.
    """
    network = make_network(task.labels_in_use, seed)
    optimizer = torch.optim.SGD(
        network.parameters(), PEAK_LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=updates)
    last_losses: list[float] = []
    forward_samples = 0
    begin = time.perf_counter()
    network.train()
    for update in range(updates):
        choice = arm.choose(update)
        images, labels = augment(task.images[choice.indices], seed, choice.draw), task.labels[choice.indices]
        if choice.looks_first:
            with torch.no_grad():
                losses = nn.functional.cross_entropy(network(images), labels, reduction="none")
            kept = arm.keep(losses)
            forward_samples += len(images)
            images, labels = images[kept], labels[kept]
        losses = nn.functional.cross_entropy(network(images), labels, reduction="none")
        forward_samples += len(images)
        loss = losses.mean() if choice.weights is None else (losses * choice.weights).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
        arm.report(losses.detach())
        last_losses = [*last_losses[-49:], losses.detach().mean().item()]
    seconds = time.perf_counter() - begin
    predicted = predict(network, task.test_images)
    right = predicted == task.test_labels
    recalls = [100 * right[task.test_kinds == kind].float().mean().item() for kind in range(len(task.counts))]
    return Outcome(
        accuracy=100 * right.float().mean().item(),
        macro_f1=100 * float(f1_score(task.test_labels.numpy(), predicted.numpy(), average="macro")),
        recalls=recalls,
        train_loss=sum(last_losses) / len(last_losses),
        updates=updates,
        forward_samples=forward_samples,
        extra_updates=arm.extra_updates,
        left_out=arm.left_out,
        seconds=seconds,
    )


def augment(images: Tensor, seed: int, draw: int) -> Tensor:
    """Flips and shifts of up to 4 pixels, the same for the same seed and draw.

    Args:
        images: (batch, channels, height, width).
        seed: Of the run.
        draw: Its number.
    """
    samples, _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed * 1_000_003 + draw)
    flips = torch.rand(samples, generator=generator) < 0.5
    shifts = torch.randint(0, 2 * _LARGEST_SHIFT + 1, (2, samples, 1), generator=generator)
    rows = shifts[0] + torch.arange(height)
    columns = torch.arange(width).expand(samples, width)
    columns = shifts[1] + torch.where(flips[:, None], columns.flip(1), columns)
    padded = nn.functional.pad(images, (_LARGEST_SHIFT,) * 4)
    picked = padded[torch.arange(samples)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    # The channels come last as they are picked, which is how the network has them in memory.
    return picked.permute(0, 3, 1, 2)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """(samples,): the label that the network gives each image."""
    network.eval()
    with torch.inference_mode():
        parts = [network(part).argmax(1) for part in images.split(_EVALUATED_AT_ONCE)]
    return torch.cat(parts)
