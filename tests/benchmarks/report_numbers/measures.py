"""What two runs are compared by."""

import math

import numpy as np

from tests.benchmarks.report_numbers.folders import Folder


def measure(run: dict, field: str, at: str) -> float:
    """At the last epoch or where it is best; in per cent, other than losses."""
    values = [math.nan if epoch[field] is None else epoch[field] for epoch in run["epochs"]]
    best = min if field == "test_loss" else max
    value = values[-1] if at == "last" else best((each for each in values if not math.isnan(each)), default=math.nan)
    return value if field == "test_loss" else 100 * value


def gains(folder: Folder, condition: tuple[int, str], other="baseline", field="accuracy", at="last") -> list[float]:
    pairs = folder.find(condition, other, "attention")
    return [measure(ours, field, at) - measure(theirs, field, at) for theirs, ours in pairs]


def of_pairs(folder: Folder, condition: tuple[int, str], compare) -> tuple[list[float], list[list[dict]]]:
    """Of each pair of a baseline and attention; a pair that cannot be compared so is left out."""
    values = [(compare(*pair), pair) for pair in folder.find(condition, "baseline", "attention")]
    compared = [(value, pair) for value, pair in values if value is not None]
    return [value for value, _ in compared], [pair for _, pair in compared]


def total(epochs: list[dict], field: str) -> float:
    return sum(epoch[field] for epoch in epochs)


def more_updates(epochs: list[dict]) -> float:
    return 100 * total(epochs, "repeats") / total(epochs, "batches")


def more_seconds(baseline: dict, attention: dict) -> float:
    return 100 * total(attention["epochs"], "seconds") / total(baseline["epochs"], "seconds") - 100


def repeats_before_convergence(baseline: dict, attention: dict) -> float | None:
    accuracies = [epoch["accuracy"] for epoch in baseline["epochs"]]
    converged = 1 + [accuracy >= 0.95 * max(accuracies) for accuracy in accuracies].index(True)
    before = [epoch for epoch in attention["epochs"] if 2 <= epoch["epoch"] < converged]
    return more_updates(before) if before else None


def gain_at_same_loss(*runs: dict) -> float | None:
    points = [[(epoch["train_loss"], epoch["accuracy"]) for epoch in run["epochs"]] for run in runs]
    curves = [sorted((loss, accuracy) for loss, accuracy in of_run if loss is not None) for of_run in points]
    if not all(curves):
        return None
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    theirs, ours = (np.interp(np.linspace(low, high, 50), *np.transpose(curve)) for curve in curves)
    return 100 * float(np.mean(ours - theirs)) if low <= high else None


def gain_at_same_time(baseline: dict, attention: dict, field: str) -> float | None:
    spent, all_time = 0, total(baseline["epochs"], field)
    accuracies = [epoch["accuracy"] for epoch in attention["epochs"] if (spent := spent + epoch[field]) <= all_time]
    return 100 * (accuracies[-1] - baseline["epochs"][-1]["accuracy"]) if accuracies else None


def wrong_by_predicted_class(run: dict, at: str) -> list[int]:
    confusion = run[at]["confusion"]
    classes = range(len(confusion))
    return [sum(confusion[true][predicted] for true in classes if true != predicted) for predicted in classes]


def variance(run: dict, at: str) -> float:
    return float(np.var(wrong_by_predicted_class(run, at)))


def error_of_accuracy(pair: list[dict]) -> float:
    """The standard error of the difference of two accuracies, each on as many images, in points."""
    images = np.sum(pair[0]["last"]["confusion"])
    shares = [np.trace(run["last"]["confusion"]) / images for run in pair]
    return 100 * math.sqrt(sum(share * (1 - share) / images for share in shares))


def error_of_variance(pair: list[dict]) -> float:
    """Of the difference of two variances, each count being Poisson's."""
    of_both = [wrong_by_predicted_class(run, "last") for run in pair]
    parts = [(2 * (c - np.mean(counts)) / len(counts)) ** 2 * c for counts in of_both for c in counts]
    return math.sqrt(sum(parts))
