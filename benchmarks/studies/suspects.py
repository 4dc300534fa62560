"""How well do losses while training find wrong labels, beside cross-validated predictions of the same network?

    python -m benchmarks.studies.suspects --record FILE          # CIFAR-10: four kinds of noise, 5 seeds
    python -m benchmarks.studies.suspects --record FILE --epochs 30 --seeds 3 --noises "uniform 10 %" --ways plain

Every seed draws 10,000 images and which of their labels are wrong. Three ways of the same network and the same updates
for each image: plain training, training with well-fitted samples pruned, and four-fold cross-validation. The same
command resumes: runs that the file has are not made again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from rich.progress import track
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from batch_sampler_attn import SampleAttention
from benchmarks.images import ImageSet, load_images
from benchmarks.selection.data import image_task
from benchmarks.selection.networks import PEAK_LEARNING_RATE, augment, convolutional
from benchmarks.studies.recording import keep
from benchmarks.training import losses_of, step

BATCH_SIZE = 64
FOLDS = 4
PRUNE_PROBABILITIES = {"plain": 0.0, "pruned": 0.5}
# Which of the labels are wrong, and how: drawn among the other nine, or by the map below.
NOISES = {"uniform 3 %": 0.03, "uniform 10 %": 0.1, "uniform 20 %": 0.2, "asymmetric 10 %": 0.1}
# CIFAR-10's usual map of mistakes that people make (Patrini et al., 2017).
MISTAKEN_FOR = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}


class Trained(NamedTuple):
    """A network in evaluation mode, and what training it took and showed."""

    network: nn.Module
    last_losses: NDArray[np.float64]  # (samples,)
    mean_losses: NDArray[np.float64]  # (samples,), over all visits
    updates: int
    seconds: float  # of the processor


def corrupt(labels: NDArray[np.int64], classes: list[str], noise: str, seed: int) -> NDArray[np.int64]:
    """The true labels, (samples,), with exactly the share of ``noise`` of them wrong."""
    rng = np.random.default_rng([seed, list(NOISES).index(noise)])
    wrong = round(NOISES[noise] * len(labels))
    given = labels.copy()
    if noise.startswith("uniform"):
        chosen = rng.permutation(len(labels))[:wrong]
        given[chosen] = (labels[chosen] + rng.integers(1, len(classes), wrong)) % len(classes)
        return given
    target = np.array([classes.index(MISTAKEN_FOR.get(name, name)) for name in classes])
    chosen = rng.permutation(np.flatnonzero(target[labels] != labels))[:wrong]
    given[chosen] = target[labels[chosen]]
    return given


def train(images: Tensor, labels: Tensor, seed: int, epochs: int, prune_probability: float) -> Trained:
    """Train with one-cycle SGD on images, (samples, 3, 32, 32), and labels, (samples,); probability 0 is plain."""
    begin = time.process_time()
    attention = SampleAttention(len(labels), BATCH_SIZE, prune_probability=prune_probability, epochs=epochs, seed=seed)
    network = convolutional(10, seed, strided=True).train()
    parameters = network.parameters()
    optimizer = torch.optim.SGD(parameters, PEAK_LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    updates = epochs * len(attention)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=updates)
    sums, visits = np.zeros(len(labels)), np.zeros(len(labels))
    for epoch in range(epochs):
        for update, indices in enumerate(attention.attend()):
            batch = augment(images[indices], seed, epoch * len(attention) + update)
            losses = step(network, optimizer, batch, labels[indices])
            attention.report(losses)
            rate.step()
            # A batch that joins two passes may have a sample twice.
            np.add.at(sums, indices, losses.numpy())
            np.add.at(visits, indices, 1)
    seconds, last = time.process_time() - begin, np.array([attention.loss_of(sample) for sample in range(len(labels))])
    return Trained(network.eval(), last, sums / visits, updates, seconds)


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """(samples, classes): logits in evaluation mode, without augmentation."""
    return torch.cat([network(part) for part in images.split(500)])


def judge(scores: NDArray[np.float64], is_wrong: NDArray[np.bool_]) -> dict[str, float]:
    """How well scores, highest where a label is suspected most, find the wrong labels; both are (samples,)."""
    ranked, wrong = is_wrong[np.argsort(-scores, kind="stable")], int(is_wrong.sum())
    precision, recall = float(ranked[:wrong].mean()), float(ranked[: 2 * wrong].sum() / wrong)
    average = float(average_precision_score(is_wrong, scores))
    return {"average_precision": average, "precision_at_n": precision, "recall_at_2n": recall}


def measure_one(data: ImageSet, noise: str, seed: int, epochs: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """The ways on the same images and labels."""
    task = image_task(data, "balanced", seed, imbalance=1)
    given = corrupt(task.train.targets.numpy(), data.classes, noise, seed)
    is_wrong, labels = given != task.train.targets.numpy(), torch.from_numpy(given)
    found: dict[str, dict[str, float]] = {}
    cost: dict[str, dict[str, float]] = {}
    for way in set(ways) & PRUNE_PROBABILITIES.keys():
        trained = train(task.train.inputs, labels, seed, epochs, PRUNE_PROBABILITIES[way])
        begin = time.process_time()
        final = losses_of(predict(trained.network, task.train.inputs), labels).numpy()
        for name, scores in (("mean", trained.mean_losses), ("last", trained.last_losses), ("final", final)):
            found[f"{way}, {name}"] = judge(scores, is_wrong)
        cost[way] = {"updates": trained.updates, "seconds": trained.seconds}
        cost[way]["seconds_of_final"] = time.process_time() - begin
        right = predict(trained.network, task.test.inputs).argmax(1) == task.test.targets
        cost[way]["accuracy"] = 100 * right.float().mean().item()
    if "folds" in ways:
        probabilities, updates, begin = np.zeros((len(labels), len(data.classes))), 0, time.process_time()
        for train_on, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(given, given):
            trained = train(task.train.inputs[train_on], labels[train_on], seed, epochs, 0.0)
            probabilities[held_out] = predict(trained.network, task.train.inputs[held_out]).double().softmax(1).numpy()
            updates += trained.updates
        for method in ("self_confidence", "normalized_margin"):
            found[method] = judge(-get_label_quality_scores(given, probabilities, method=method), is_wrong)
        issues = find_label_issues(given, probabilities, n_jobs=1)
        cost["folds"] = {"updates": updates, "seconds": time.process_time() - begin}
        precision = float(is_wrong[issues].mean()) if issues.any() else float("nan")
        recall, number = float(issues[is_wrong].mean()), int(issues.sum())
        found["issues"] = {"precision": precision, "recall": recall, "issues": number}
    run = {"noise": noise, "seed": seed, "images": len(labels), "wrong": int(is_wrong.sum()), "epochs": epochs}
    return {**run, "found": found, "cost": cost}


def measure(
    record: Path,
    *,
    data: str = "cifar10",
    data_dir: Path = Path("data"),
    seeds: int = 5,
    epochs: int = 6,
    noises: tuple[str, ...] = tuple(NOISES),
    ways: tuple[str, ...] = (*PRUNE_PROBABILITIES, "folds"),
) -> None:
    """Append a JSON line a run to ``record``; ``data`` is cifar10, or a folder with train/ and test/."""
    torch.set_num_threads(1)
    images = load_images(data, data_dir)
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    finished = {(line["noise"], line["seed"], line["epochs"]) for line in map(json.loads, lines)}
    planned = [(noise, seed) for seed in range(seeds) for noise in noises]
    missing = [(noise, seed) for noise, seed in planned if (noise, seed, epochs) not in finished]
    runs = (measure_one(images, *run, epochs, ways) for run in track(missing, description="training"))
    keep(record, runs)


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
