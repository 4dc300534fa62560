"""Does Batch-attention help on real images? Three arms, paired by seed, on a CPU.

    baseline    every batch once an epoch
    attention   batches above K times the last epoch's mean loss are repeated at once
    random      the same number of repeats, of batches drawn at random: the control at equal compute

The images are scikit-learn's 8x8 digits. Optimizer, batch size and K are the paper's (Adam, 32, 1.2). The learning
rate is three times its 1e-4, so that repeats occur in a run this short. Nothing was chosen by test accuracy, and the
last epoch is compared, not the best one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.errors import BatchAttentionWarning
from batch_sampler_attn.recorders import MemoryRecorder, visit_counts

ARMS = ("baseline", "attention", "random")
# Okabe and Ito's palette, for colour-blind readers.
COLORS = {"baseline": "#555555", "attention": "#D55E00", "random": "#0072B2"}
LEARNING_RATE = 3e-4
BATCH_SIZE = 32


class Run(NamedTuple):
    """One arm with one seed, by epoch."""

    arm: str
    accuracy: list[float]
    macro_f1: list[float]
    updates: list[int]


def load_images() -> list[torch.Tensor]:
    """Train images (1437, 1, 8, 8), test images (360, 1, 8, 8), train labels and test labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 1, 8, 8)
    split = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    return [torch.from_numpy(part) for part in split]


def make_model(seed: int) -> nn.Module:
    """A small CNN whose initial weights depend on the seed alone."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: BatchAttentionSchedule,
    images: torch.Tensor,
    labels: torch.Tensor,
    order: torch.Generator,
) -> None:
    """One epoch in an order drawn from ``order``, with the schedule's repeats."""
    batches = torch.randperm(len(images), generator=order).split(BATCH_SIZE)
    for batch in schedule.attend(batches):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.decide(loss)


def train(arm: str, schedule: BatchAttentionSchedule, seed: int, epochs: int, on_epoch: Callable[[], None]) -> Run:
    """Train one model. The seed sets its initial weights and the order of its batches, the same in every arm."""
    images, test_images, labels, test_labels = load_images()
    model = make_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    order = torch.Generator().manual_seed(seed)
    run = Run(arm, [], [], [])
    for _ in range(epochs):
        train_epoch(model, optimizer, schedule, images, labels, order)
        with torch.no_grad():
            predicted = model(test_images).argmax(dim=1)
        run.accuracy.append((predicted == test_labels).float().mean().item())
        run.macro_f1.append(float(f1_score(test_labels, predicted, average="macro")))
        run.updates.append(schedule.last_summary.visits)
        on_epoch()
    return run


def train_all_arms(
    seed: int, epochs: int, k: float, epoch_loss: str, progress: queue.Queue[None]
) -> tuple[Run, Run, Run]:
    """All arms with one seed; the control needs the visits that attention made."""
    torch.set_num_threads(1)
    # No budget is set: table and figure show the overhead that a warning would report.
    warnings.simplefilter("ignore", BatchAttentionWarning)
    recorder = MemoryRecorder()

    def on_epoch() -> None:
        progress.put(None)

    never_repeats = BatchAttentionSchedule(k, max_visits=1)
    attention = BatchAttentionSchedule(k, epoch_loss=epoch_loss, recorders=[recorder])  # type: ignore[arg-type]
    baseline_run = train("baseline", never_repeats, seed, epochs, on_epoch)
    attention_run = train("attention", attention, seed, epochs, on_epoch)
    control = EqualComputeControl(visit_counts(recorder.visits), seed=seed)
    return baseline_run, attention_run, train("random", control, seed, epochs, on_epoch)


def run_seeds(seeds: int, epochs: int, k: float, epoch_loss: str, console: Console) -> dict[str, list[Run]]:
    """Every arm with every seed, on all cores, with a progress bar."""
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(min(seeds, os.cpu_count() or 1), mp_context=context) as pool,
        Progress(*columns, console=console) as bar,
    ):
        done: queue.Queue[None] = manager.Queue()
        futures = [pool.submit(train_all_arms, seed, epochs, k, epoch_loss, done) for seed in range(seeds)]
        task = bar.add_task(f"{seeds} seeds x {len(ARMS)} arms, epochs", total=seeds * len(ARMS) * epochs)
        while not all(future.done() for future in futures):
            try:
                done.get(timeout=0.2)
                bar.advance(task)
            except queue.Empty:
                continue
        bar.update(task, completed=seeds * len(ARMS) * epochs)
        for future in futures:
            for run in future.result():
                runs[run.arm].append(run)
    return runs


def write_record(runs: dict[str, list[Run]], record: Path) -> None:
    """Write the raw results: one JSON line per arm and seed."""
    lines = [{"seed": seed, **run._asdict()} for arm in ARMS for seed, run in enumerate(runs[arm])]
    record.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_record(record: Path) -> dict[str, list[Run]]:
    """Read what ``write_record`` wrote; other fields are ignored."""
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for text in record.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        runs[line["arm"]].append(Run(**{name: line[name] for name in Run._fields}))
    return runs


def print_table(runs: dict[str, list[Run]], console: Console) -> None:
    """Means and standard deviations over seeds, of the last epoch."""
    seeds = len(runs["baseline"])
    table = Table(title=f"Last epoch, mean ± standard deviation over {seeds} seeds")
    for column in ("arm", "test accuracy %", "macro-F1 %", "updates", "overhead %"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    base_updates = [sum(run.updates) for run in runs["baseline"]]
    for arm in ARMS:
        updates = [sum(run.updates) for run in runs[arm]]
        table.add_row(
            arm,
            mean_and_spread([100 * run.accuracy[-1] for run in runs[arm]]),
            mean_and_spread([100 * run.macro_f1[-1] for run in runs[arm]]),
            f"{np.mean(updates):.0f}",
            mean_and_spread([100 * (n / base - 1) for n, base in zip(updates, base_updates, strict=True)], digits=1),
        )
    console.print(table)


def print_findings(runs: dict[str, list[Run]], console: Console) -> None:
    """The paired differences, with their 95 % intervals."""
    for other in ("baseline", "random"):
        differences = [
            100 * (ours.accuracy[-1] - theirs.accuracy[-1])
            for ours, theirs in zip(runs["attention"], runs[other], strict=True)
        ]
        low, high = paired_interval(differences)
        console.print(
            f"attention minus {other}: {verdict(low, high)}, {np.mean(differences):+.2f} points of accuracy "
            f"(95 % CI {low:+.2f} to {high:+.2f}, n = {len(differences)} paired seeds)",
            highlight=False,
            soft_wrap=True,
        )


def verdict(low: float, high: float) -> str:
    """What an interval of paired differences says."""
    return "better" if low > 0 else "worse" if high < 0 else "no significant difference"


def mean_and_spread(values: list[float], digits: int = 2) -> str:
    """A mean and the standard deviation of a sample, as text."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def paired_interval(differences: list[float]) -> tuple[float, float]:
    """The 95 % t interval of the mean of paired differences."""
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    reach = error * float(stats.t.ppf(0.975, len(differences) - 1))
    return mean - reach, mean + reach


def plot(runs: dict[str, list[Run]], output: Path) -> None:
    """Draw accuracy gains over both other arms, paired by seed, and extra updates, by epoch, as PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    gain_axes, cost_axes = figure.subplots(1, 2)
    base = np.array([run.updates for run in runs["baseline"]])
    epochs = np.arange(1, base.shape[1] + 1)
    ours = 100 * np.array([run.accuracy for run in runs["attention"]])
    labels = {"baseline": "over baseline", "random": "over random repeats"}
    for number, (arm, label) in enumerate(labels.items()):
        gains = ours - 100 * np.array([run.accuracy for run in runs[arm]])
        lows, highs = np.transpose([paired_interval(list(of_epoch)) for of_epoch in gains.T])
        means = gains.mean(axis=0)
        gain_axes.errorbar(
            epochs + 0.2 * number - 0.1,
            means,
            [means - lows, highs - means],
            fmt="o",
            ms=4,
            color=COLORS[arm],
            label=label,
        )
    gain_axes.axhline(0, color="black", linewidth=0.8)
    overhead = 100 * (np.array([run.updates for run in runs["attention"]]) / base - 1)
    cost_axes.bar(epochs, overhead.mean(axis=0), yerr=overhead.std(axis=0, ddof=1), color=COLORS["attention"])
    gain_axes.set(xlabel="epoch", ylabel="points of test accuracy", title="accuracy gain (95 % CI)")
    cost_axes.set(xlabel="epoch", ylabel=f"% of {base[0, 0]} updates per epoch", title="extra updates")
    gain_axes.legend(loc="upper left")
    figure.savefig(output, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2, for a spread (default: 5)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--k", type=float, default=1.2)
    parser.add_argument("--epoch-loss", choices=["first", "last", "all"], default="first")
    parser.add_argument("--output", type=Path, default=Path("quickstart.png"), help="the figure (default: %(default)s)")
    parser.add_argument("--record", type=Path, help="write raw results to this file, one JSON line per arm and seed")
    parser.add_argument("--redraw", type=Path, metavar="RECORD", help="show the results of a record, without training")
    arguments = parser.parse_args()
    if arguments.seeds < 2 or arguments.epochs < 1:
        parser.error(f"got {arguments.seeds} seeds and {arguments.epochs} epochs; use at least 2 seeds and 1 epoch")
    console = Console()
    if arguments.redraw is None:
        runs = run_seeds(arguments.seeds, arguments.epochs, arguments.k, arguments.epoch_loss, console)
    else:
        runs = read_record(arguments.redraw)
    if arguments.record is not None:
        write_record(runs, arguments.record)
    print_table(runs, console)
    print_findings(runs, console)
    plot(runs, arguments.output)
    console.print(f"Gain and cost by epoch: {arguments.output}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
