"""The finished runs of folders of records as tables: a row a run, and a row for each two runs that are compared."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from benchmarks.environment import one_line
from benchmarks.errors import RecordsError
from benchmarks.reading import Records, read_records
from benchmarks.report.document import escape
from benchmarks.report.statistics import Gain, accuracy_error, noise_in_words, sample, variance_error
from benchmarks.schema import ARMS, Configuration, Epoch, Run

READINGS = ("-", "first", "last", "all")
# The baseline has nearly converged from the first epoch on that reaches this share of its best accuracy.
NEARLY_CONVERGED = 0.95
# Where configurations differ in one of these, they differ in others too, or a reader would not see by what.
_UNSAID = {"schema_version", "parameters", "classes", "sha256", "channels_last"}


class Cifar(NamedTuple):
    """The finished runs of ``benchmarks.cifar``."""

    configurations: dict[str, Configuration]  # by the name of the experiment
    unfinished: Counter[str]  # how many other runs each has
    runs: pd.DataFrame  # a row a run
    pairs: pd.DataFrame  # a row for each run of attention and of another arm with the same seed: attention minus that


def read_folders(folders: Sequence[Path]) -> list[Records]:
    """Records, with those of the same configuration one after another; no two folders may have the same run."""
    found: dict[str, list[Records]] = {}
    for folder in folders:
        records = read_records(folder)
        others = found.setdefault(records.configuration.digest(), [])
        if twice := sorted({str(name) for each in others for name in each.runs.keys() & records.runs.keys()}):
            raise RecordsError(f"{folder} has {', '.join(twice[:3])}, and so has another folder; give each run once")
        others.append(records)
    return [records for each in found.values() for records in each]


def tabulate(read: Sequence[Records]) -> Cifar:
    """The tables; records of the same configuration are put together, and each has a finished run."""
    groups = [[*each] for _, each in itertools.groupby(read, key=lambda records: records.configuration.digest())]
    configurations = [cast("Configuration", each[0].configuration) for each in groups]
    names = name_experiments(configurations)
    unfinished: Counter[str] = Counter()
    rows = []
    for name, records in zip(names, groups, strict=True):
        of_name = [(run, each.epochs[key]) for each in records for key, run in each.runs.items()]
        finished = [(run, epochs) for run, epochs in of_name if run.is_finished]
        if not finished:
            raise RecordsError(f"no run of {name} is finished; give its benchmarks.cifar command again")
        unfinished[name] = len(of_name) - len(finished)
        rows += [_measure(name, run, epochs) for run, epochs in finished]
    runs = pd.DataFrame(rows)
    for column, order in (("arm", ARMS), ("reading", READINGS), ("experiment", sorted(names))):
        runs[column] = pd.Categorical(runs[column], order, ordered=True)
    runs = runs.sort_values(["experiment", "noise", "reading", "arm", "seed"], ignore_index=True)
    return Cifar(dict(sorted(zip(names, configurations, strict=True))), unfinished, runs, _pair(runs))


def _measure(name: str, run: Run, epochs: list[Epoch]) -> dict[str, Any]:
    """A run as a row: per cent at the last epoch, and where they are best."""
    losses = [math.nan if epoch.test_loss is None else epoch.test_loss for epoch in epochs]
    reading, own = run.epoch_loss or "-", f"{escape(name)} | {noise_in_words(run.label_noise)}"
    row: dict[str, Any] = run.model_dump(include={"arm", "seed"})
    row |= {"experiment": name, "reading": reading, "noise": run.label_noise, "run": run, "epochs": epochs}
    # The first cells of a row of a table.
    row["condition"] = f"{own} | {reading}"
    row["named_arm"] = f"{own} | {run.arm}{'' if reading == '-' else f', {reading}'}"
    row["places"] = {(place.device, one_line({**place.environment, "date": ""})) for place in run.surroundings}
    row["is_shared"] = any(epoch.shared_device for epoch in epochs)
    row["test_loss"] = losses[-1]
    row["best_test_loss"] = min((loss for loss in losses if not math.isnan(loss)), default=math.nan)
    row |= {"repeats": repeats_percent(epochs), "most_visits": max(epoch.most_visits for epoch in epochs)}
    row |= {field: sum(getattr(epoch, field) for epoch in epochs) for field in ("batches", "capped_batches", "seconds")}
    for field in ("accuracy", "macro_f1"):
        percents = [100 * getattr(epoch, field) for epoch in epochs]
        row |= {field: percents[-1], f"best_{field}": max(percents)}
    for prefix, evaluated in (("", run.last), ("best_", run.best)):
        assert evaluated is not None  # the reader has checked it
        confusion = np.asarray(evaluated.confusion)
        # Images that were wrongly predicted to be of each class (paper, Table 2).
        wrong = confusion.sum(axis=0) - confusion.diagonal()
        row |= {f"{prefix}confusion": confusion, f"{prefix}wrong": wrong, f"{prefix}variance": float(np.var(wrong))}
    row["error"] = accuracy_error(row["accuracy"], row["confusion"].sum())
    return row | {"variance_error": variance_error(row["wrong"])}


def _pair(runs: pd.DataFrame) -> pd.DataFrame:
    """Every run of attention with every other run of the same experiment, noise and seed, and reading if it has one."""
    is_attention = runs["arm"] == "attention"
    pairs = runs[is_attention].merge(runs[~is_attention], on=["experiment", "noise", "seed"], suffixes=("", "_other"))
    pairs = pairs[(pairs["reading_other"] == pairs["reading"]) | (pairs["reading_other"] == "-")]
    for name in ("accuracy", "best_accuracy", "macro_f1", "best_macro_f1"):
        pairs[name] -= pairs[f"{name}_other"]
    for name in ("variance", "best_variance"):
        pairs[name] = pairs[f"{name}_other"] - pairs[name]  # a lower variance is the gain
    for name in ("error", "variance_error"):
        pairs[name] = np.hypot(pairs[name], pairs[f"{name}_other"])
    epochs = [*zip(pairs["epochs"], pairs["epochs_other"], strict=True)]
    return pairs.assign(
        other=pairs["arm_other"],
        more_seconds=100 * (pairs["seconds"] / pairs["seconds_other"] - 1),
        same_loss=[gain_at_same_loss(*both) for both in epochs],
        same_updates=[gain_at_same_cost(*both, "updates") for both in epochs],
        same_seconds=[gain_at_same_cost(*both, "seconds") for both in epochs],
        early_repeats=[repeats_before_convergence(*both) for both in epochs],
    ).sort_values(["experiment", "noise", "reading", "other", "seed"])


def gain(runs: pd.DataFrame, arm: str, other: str | None, measure: str, digits: int = 2) -> Gain:
    """An arm's measure minus another's, paired by seed; empty without another."""
    if other in (None, arm):
        return Gain(sample([]), digits)
    values = runs.pivot(index="seed", columns="arm", values=measure).reindex(columns=[arm, other])
    return Gain(sample((values[arm] - values[other]).dropna()), digits)


def is_timed(pairs: pd.DataFrame) -> bool:
    """Whether the seconds of these pairs may be compared: one machine, and nothing else on it."""
    places = set().union(*pairs["places"], *pairs["places_other"])
    return len(places) == 1 and not (pairs["is_shared"] | pairs["is_shared_other"]).any()


def repeats_percent(epochs: Sequence[Epoch]) -> float:
    """Repeats in per cent of base batches."""
    return 100 * sum(epoch.repeats for epoch in epochs) / sum(epoch.batches for epoch in epochs)


def repeats_before_convergence(attention: Sequence[Epoch], baseline: Sequence[Epoch]) -> float:
    """Repeats, in per cent of batches, from the second epoch to where the baseline has nearly converged; or NaN."""
    converged = NEARLY_CONVERGED * max(epoch.accuracy for epoch in baseline)
    first = next(index for index, epoch in enumerate(baseline) if epoch.accuracy >= converged)
    return repeats_percent(attention[1:first]) if attention[1:first] else math.nan


def gain_at_same_loss(attention: Sequence[Epoch], baseline: Sequence[Epoch]) -> float:
    """The gain in accuracy, in points: the mean over training losses that both went through, interpolated; or NaN."""
    curves = [
        sorted((epoch.train_loss, epoch.accuracy) for epoch in epochs if epoch.train_loss is not None)
        for epochs in (attention, baseline)
    ]
    if not all(curves):
        return math.nan
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    losses = np.linspace(low, high, 50)
    ours, theirs = (np.interp(losses, *np.transpose(curve)) for curve in curves)
    return float(100 * np.mean(ours - theirs)) if low <= high else math.nan


def gain_at_same_cost(attention: Sequence[Epoch], baseline: Sequence[Epoch], cost: str) -> float:
    """Accuracy at attention's last epoch within the baseline's whole seconds or updates, minus the baseline's last."""
    budget = sum(getattr(epoch, cost) for epoch in baseline)
    spent = itertools.accumulate(getattr(epoch, cost) for epoch in attention)
    in_time = [epoch for epoch, total in zip(attention, spent, strict=True) if total <= budget]
    return 100 * (in_time[-1].accuracy - baseline[-1].accuracy) if in_time else math.nan


def name_experiments(configurations: Sequence[Configuration]) -> list[str]:
    """Model and data of each; where several have the same, what differs, and the digest where that is not enough."""
    fields = []
    for configuration in configurations:
        own = configuration.model_dump()
        own |= own.pop("data") | own.pop("model_options")
        fields.append({name: value for name, value in own.items() if name not in _UNSAID and value is not None})
    names = []
    for own in fields:
        alike = [each for each in fields if (each["model"], each["name"]) == (own["model"], own["name"])]
        said = [_in_words(key, own[key]) for key in own if any(each.get(key) != own[key] for each in alike)]
        whole = f"{own['model']} on {own['name']}" + (f" ({', '.join(said)})" if said else "")
        names.append(" ".join(whole.split()))
    return [
        f"{name} [{configuration.digest()}]" if names.count(name) > 1 else name
        for name, configuration in zip(names, configurations, strict=True)
    ]


def _in_words(key: str, value: Any) -> str:
    if key.endswith("images"):
        return f"{value:,} {key.removeprefix('train_').replace('_', ' ')}"
    return f"{'K' if key == 'k' else key.replace('_', ' ')} {value}"
