"""Every number in the tables of a benchmark report, computed a second time from the raw records, in the obvious way."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from benchmarks.report.__main__ import main

RECORDED = sorted(
    path.parent
    for path in (Path(__file__).parents[1] / "benchmarks" / "records").glob("*/epochs.jsonl")
    if (path.parent / "runs.jsonl").exists()
)
MADE = ["shared device", "device alone", "several folders", "many gains"]

READINGS = ("first", "last", "all")
PAIRED = ("attention", "random", "longer")
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HOLDS, DOES_NOT_HOLD, NOT_ENOUGH_RUNS = "holds", "does not hold", "not enough runs"

CLAIMS = "Claims"
TRAINED = "What was trained"
TABLE_1 = "Table 1: the best over the epochs, and the last epoch"
DIFFERENCES = "Paired differences"
COSTS = "What it costs"
TABLE_2_BEST = "Table 2: wrong predictions by predicted class, at the best epoch"
TABLE_2_LAST = "Table 2 at the last epoch"
FLIPPED = "Do repeats point to wrong labels?"
TITLES = [CLAIMS, TRAINED, TABLE_1, DIFFERENCES, COSTS, TABLE_2_BEST, TABLE_2_LAST, FLIPPED]

PAPER_TABLE_1 = [
    ["paper: resnet34", "none", "baseline", "1", "0.925596", "73.7586", "-", "-", "-", "-"],
    ["paper: resnet34", "none", "attention", "1", "0.856234", "75.3712", "-", "-", "-", "-"],
    ["paper: tnt", "none", "baseline", "1", "1.062034", "67.5982", "-", "-", "-", "-"],
    ["paper: tnt", "none", "attention", "1", "1.073162", "70.9335", "-", "-", "-", "-"],
]
PAPER_WRONG = {
    "baseline": [230, 249, 420, 521, 367, 449, 293, 285, 165, 263],
    "attention": [261, 153, 356, 503, 288, 389, 251, 254, 198, 255],
}
PAPER_VARIANCE = {"baseline": "11144.36", "attention": "9163.96"}
PAPER_MIXED_UP = {"baseline": ["190", "164"], "attention": ["169", "173"]}
PAPER_DATA = {"resnet34": "cifar10", "tnt": "cifar10", "efficientnet_b7": "cifar100"}


# Records, made up ------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    model: str = "small_resnet"
    data: str = "cifar10"
    classes: tuple[str, ...] = tuple(CIFAR10)
    train_images: int = 640
    batch_size: int = 32
    epochs: int = 8
    noises: tuple[int, ...] = (0, 3)
    readings: tuple[str, ...] = READINGS
    seeds: tuple[int, ...] = (0, 1, 2)
    max_visits: int | None = 5
    device: str = "cpu"
    shared: tuple[str, ...] = ("attention",)
    top: float = 0.45
    gain: float = 0.024
    jitter: float = 0.002
    repeats: float = 0.18
    repeats_from: int = 2
    ends_one_sided: bool = False

    @property
    def batches(self) -> int:
        return self.train_images // self.batch_size


def write_records(folder: Path, setting: Setting, unfinished=()) -> Path:
    configuration, digest = make_configuration(setting)
    runs, epochs = [], []
    for noise, seed in itertools.product(setting.noises, setting.seeds):
        for name, lines in make_seed(setting, noise, seed).items():
            identity = {
                "configuration": digest,
                "arm": name[0],
                "epoch_loss": name[1],
                "label_noise": noise,
                "seed": seed,
            }
            is_finished = (*name, noise, seed) not in unfinished
            runs.append({**identity, **make_run(setting, noise, lines, is_finished)})
            epochs += [{**identity, **{k: v for k, v in line.items() if k != "confusion"}} for line in lines]
    folder.mkdir(parents=True)
    (folder / "configuration.json").write_text(configuration)
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    (folder / "epochs.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    return folder


def make_configuration(setting: Setting) -> tuple[str, str]:
    from benchmarks.schema import Configuration

    data = {
        "name": setting.data,
        "train_images": setting.train_images,
        "test_images": 1000,
        "classes": setting.classes,
        "height": 32,
        "width": 24,
        "sha256": "0" * 64,
    }
    fields = {"schema_version": 1, "model": setting.model, "architecture": f"{setting.model}_a", "model_options": {}}
    fields |= {"pretrained": setting.device == "cuda", "parameters": 1234567, "data": data, "epochs": setting.epochs}
    fields |= {"k": 1.25, "batch_size": setting.batch_size, "learning_rate": 0.0003, "max_visits": setting.max_visits}
    fields |= {"precision": "tf32", "channels_last": bool(setting.shared), "deterministic": not setting.shared}
    configuration = Configuration.model_validate_json(json.dumps(fields))
    return configuration.model_dump_json(), configuration.digest()


def make_seed(setting: Setting, noise: int, seed: int) -> dict[tuple[str, str | None], list[dict]]:
    """All arms of a seed, by arm and reading."""
    rng = np.random.default_rng([seed, noise, setting.epochs])
    once = [np.ones(setting.batches, dtype=int)] * setting.epochs
    baseline = [make_epoch(setting, rng, noise, number, "baseline", once[0]) for number in range(1, setting.epochs + 1)]
    baseline[min(2, setting.epochs - 1)]["test_loss"] = None
    arms = {("baseline", None): baseline}
    for reading in setting.readings:
        visits = [make_visits(setting, rng, number) for number in range(1, setting.epochs + 1)]
        for arm in ("attention", "random"):
            arms[arm, reading] = [
                make_epoch(setting, rng, noise, number, arm, rng.permutation(of_epoch))
                for number, of_epoch in enumerate(visits, start=1)
            ]
        arms["attention", reading][1]["train_loss"] = None
        extra = sum(int(of_epoch.sum()) - setting.batches for of_epoch in visits)
        sizes = [setting.batches] * (extra // setting.batches) + [extra % setting.batches]
        arms["longer", reading] = baseline + [
            make_epoch(setting, rng, noise, number, "longer", np.ones(size, dtype=int))
            for number, size in enumerate(filter(None, sizes), start=setting.epochs + 1)
        ]
    return arms


def make_visits(setting: Setting, rng: np.random.Generator, number: int) -> np.ndarray:
    is_in_turn = rng.permutation(setting.batches) < setting.repeats * setting.batches
    is_repeated = is_in_turn & (number >= setting.repeats_from)
    visits = np.where(is_repeated, 1 + rng.geometric(0.6, setting.batches), 1)
    return np.minimum(visits, setting.max_visits or 1000)


def make_epoch(setting: Setting, rng: np.random.Generator, noise: int, number: int, arm: str, visits) -> dict:
    confusion = make_confusion(setting, rng, noise, number, arm)
    updates = int(visits.sum())
    return {
        "epoch": number,
        "batches": len(visits),
        "updates": updates,
        "repeats": updates - len(visits),
        "threshold": None if number == 1 or arm != "attention" else 1.25 * 2 * 0.8 ** (number - 1),
        "train_loss": 2 * 0.8**number * rng.uniform(0.9, 1.1),
        "test_loss": 1.8 + 0.05 * abs(number - 5) + rng.uniform(0, 0.05),
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "macro_f1": macro_f1_by_hand(confusion),
        "seconds": updates * rng.uniform(0.098, 0.102) * (0.85 if arm == "attention" else 1),
        "evaluation_seconds": 0.5,
        "finished_at": "2026-01-02T03:04:05+00:00",
        "shared_device": arm in setting.shared,
        "precision": "tf32",
        "capped_batches": int((visits == setting.max_visits).sum()),
        "nonfinite_losses": 0,
        "most_visits": int(visits.max()),
        "host_reads": 2,
        "batches_by_visits": make_histogram(rng, noise, visits) if arm in ("attention", "random") else None,
        "confusion": confusion.tolist(),
    }


def make_confusion(setting: Setting, rng: np.random.Generator, noise: int, number: int, arm: str) -> np.ndarray:
    classes = len(setting.classes)
    share = setting.top * (1 - math.exp(-number / 2)) + rng.uniform(-setting.jitter, setting.jitter)
    share += {"attention": setting.gain * (1 - noise / 6), "random": 0.01}.get(arm, 0) - noise / 100
    true = rng.permutation(np.arange(1000) % classes)
    predicted = (true + rng.choice(np.arange(1, classes), 1000)) % classes
    if setting.ends_one_sided and arm == "attention" and number == setting.epochs:
        predicted = np.where(true == 0, predicted, 0)
    is_right = np.arange(1000) < round(1000 * share)
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (true, np.where(is_right, true, predicted)), 1)
    return confusion


def macro_f1_by_hand(confusion: np.ndarray) -> float:
    found = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(2 * np.diag(confusion) / np.maximum(found, 1)))


def make_histogram(rng: np.random.Generator, noise: int, visits) -> dict[int, dict[str, int]]:
    flipped = rng.binomial(32, noise / 40 * (visits > 0) / 3 * np.minimum(visits, 3))
    return {
        int(count): {
            "batches": int((visits == count).sum()),
            "with_flipped": int((flipped[visits == count] > 0).sum()),
            "flipped": int(flipped[visits == count].sum()),
        }
        for count in np.unique(visits)
    }


def make_run(setting: Setting, noise: int, lines: list[dict], is_finished: bool) -> dict:
    best = max(lines, key=lambda line: line["accuracy"])
    environment = {"date": "2026-01-02T03:04:05+00:00", "cpu": "A CPU", "cores": 3, "system": "Linux"}
    environment |= {"gpu": "A GPU" if setting.device == "cuda" else None, "python": "3.11.7"}
    place = {"from_epoch": 1, "device": setting.device, "threads": 1, "at_once": 1}
    place["environment"] = environment | {"packages": {"torch": "2.15.0", "numpy": "2.4.6"}}
    return {
        "is_finished": is_finished,
        "flipped_labels": noise * 18,
        "surroundings": [place],
        "best": {name: best[name] for name in ("epoch", "confusion")},
        "last": {name: lines[-1][name] for name in ("epoch", "confusion")},
    }


def make_folders(case: str, folder: Path) -> list[Path]:
    if case == "shared device":
        return [write_records(folder / "one", Setting())]
    if case == "device alone":
        return [write_records(folder / "one", Setting(shared=(), top=0.7, gain=-0.015, jitter=0.01))]
    settings = several_settings() if case == "several folders" else gain_settings()
    unfinished = [("baseline", None, 0, 5), ("longer", "first", 0, 3), ("longer", "first", 0, 4)]
    return [write_records(folder / setting.model, setting, unfinished) for setting in settings]


def several_settings() -> list[Setting]:
    of_paper = Setting("resnet34", train_images=50_000, batch_size=250, epochs=100, readings=("last",), noises=(0,))
    classes = tuple(f"c{place}" for place in range(100))
    of_cifar100 = Setting("efficientnet_b7", "cifar100", classes, epochs=35, readings=("all", "first"), noises=(0,))
    return [
        of_paper._replace(device="cuda", shared=(), max_visits=None, jitter=0.01, repeats_from=5, ends_one_sided=True),
        of_cifar100._replace(seeds=(3, 4, 5, 6), max_visits=None, shared=("baseline",)),
        Setting("tiny", "kennel", ("dog", "owl", "cat"), epochs=2, seeds=(7,), readings=("first",), repeats=0),
    ]


def gain_settings() -> list[Setting]:
    """Their intervals lie on either side of what the verdicts are made by."""
    common = Setting(data="two", classes=("x", "y"), epochs=4, readings=("first",), noises=(0,), jitter=0.006)
    gains = (-0.02, -0.008, 0.003, 0.01, 0.016, 0.03)
    return [
        common._replace(model=f"gain {gain}", gain=gain, top=0.4 + 0.05 * place, repeats=0.04 * place, repeats_from=1)
        for place, gain in enumerate(gains)
    ]


# Records, read ---------------------------------------------------------------------------------------------


class Folder(NamedTuple):
    """Finished runs, by (arm, reading, label noise, seed)."""

    configuration: dict
    runs: dict[tuple, dict]
    epochs: dict[tuple, list[dict]]
    unfinished: int

    @property
    def name(self) -> str:
        return f"{self.configuration['model']} on {self.configuration['data']['name']}"

    @property
    def classes(self) -> list[str]:
        return self.configuration["data"]["classes"]

    def conditions(self) -> list[tuple[int, str]]:
        """Label noise and reading of the attention runs."""
        found = {(noise, READINGS.index(reading)) for arm, reading, noise, _ in self.runs if arm == "attention"}
        return [(noise, READINGS[place]) for noise, place in sorted(found)]

    def seeds(self, condition: tuple[int, str], *arms: str) -> list[int]:
        noise, reading = condition
        every = {seed for *_, seed in self.runs}
        return sorted(s for s in every if all(key(arm, reading, noise, s) in self.runs for arm in arms))

    def of(self, what: dict[tuple, object], condition: tuple[int, str], arm: str, *others: str) -> list:
        """The arm's runs or epochs, of the seeds that the others have too."""
        noise, reading = condition
        return [what[key(arm, reading, noise, seed)] for seed in self.seeds(condition, arm, *others)]

    def pairs(self, condition: tuple[int, str], other: str) -> list[tuple[list[dict], list[dict]]]:
        """The epochs of another arm and of attention."""
        ours = self.of(self.epochs, condition, "attention", other)
        return list(zip(self.of(self.epochs, condition, other, "attention"), ours, strict=True))

    def main_condition(self) -> tuple[int, str] | None:
        """The least label noise, and there the reading ``first``, or the first that there is."""
        return min(self.conditions(), key=lambda each: (each[0], READINGS.index(each[1])), default=None)

    def is_timed(self, condition: tuple[int, str]) -> bool:
        epochs = [epoch for pair in self.pairs(condition, "baseline") for run in pair for epoch in run]
        return bool(epochs) and all(not epoch["shared_device"] for epoch in epochs)


def key(arm: str, reading: str | None, noise: int, seed: int) -> tuple:
    return arm, None if arm == "baseline" else reading, noise, seed


def read_folder(path: Path) -> Folder:
    runs = {key_of(line): line for line in read_lines(path / "runs.jsonl")}
    finished = {name: run for name, run in runs.items() if run["is_finished"]}
    epochs = {name: [] for name in finished}
    for line in read_lines(path / "epochs.jsonl"):
        if key_of(line) in epochs:
            epochs[key_of(line)].append(line)
    configuration = json.loads((path / "configuration.json").read_text())
    return Folder(configuration, finished, epochs, len(runs) - len(finished))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def key_of(line: dict) -> tuple:
    return key(line["arm"], line["epoch_loss"], line["label_noise"], line["seed"])


# Numbers as text -------------------------------------------------------------------------------------------


def number(value: float, spec: str) -> set[str]:
    """The value as text; a tie, which the order of a sum decides, is rounded up or down."""
    return {format(value + nudge, spec) for nudge in (-1e-9, 0, 1e-9)}


def joined(*parts) -> set[str]:
    texts = [{part} if isinstance(part, str) else part for part in parts]
    return {"".join(chosen) for chosen in itertools.product(*texts)}


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % t interval of the mean."""
    if len(values) < 2:
        return -math.inf, math.inf
    reach = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - reach, np.mean(values) + reach


def mean_with_interval(values: list[float], unit: str, spec: str = "+.2f") -> set[str]:
    if not values:
        return {"no runs"}
    low, high = interval(values)
    reach = joined(" (", number(low, spec), " to ", number(high, spec), ")") if len(values) > 1 else ""
    return joined(number(np.mean(values), spec), unit, reach, f", n = {len(values)}")


def mean_and_deviation(values: list[float], spec: str) -> set[str]:
    if len(values) < 2 or np.isnan(values).any():
        return number(np.mean(values), spec)
    return joined(number(np.mean(values), spec), " ± ", number(np.std(values, ddof=1), spec))


def noise_text(condition: tuple[int, str]) -> str:
    return f"{condition[0]} of 32" if condition[0] else "none"


# What two runs are compared by -----------------------------------------------------------------------------


def measure(epochs: list[dict], field: str, at: str) -> float:
    """In per cent, at the last epoch or where it is highest."""
    return 100 * (epochs[-1][field] if at == "last" else max(epoch[field] for epoch in epochs))


def gains(folder: Folder, condition: tuple[int, str], other: str, field: str, at: str) -> list[float]:
    return [measure(ours, field, at) - measure(theirs, field, at) for theirs, ours in folder.pairs(condition, other)]


def total(epochs: list[dict], field: str) -> float:
    return sum(epoch[field] for epoch in epochs)


def more_updates(epochs: list[dict]) -> float:
    return 100 * total(epochs, "repeats") / total(epochs, "batches")


def more_seconds(baseline: list[dict], attention: list[dict]) -> float:
    return 100 * total(attention, "seconds") / total(baseline, "seconds") - 100


def repeats_before_convergence(baseline: list[dict], attention: list[dict]) -> float:
    best = max(epoch["accuracy"] for epoch in baseline)
    converged = min(epoch["epoch"] for epoch in baseline if epoch["accuracy"] >= 0.95 * best)
    return more_updates([epoch for epoch in attention if epoch["epoch"] < converged] or attention[:1])


def gain_at_same_loss(baseline: list[dict], attention: list[dict]) -> float | None:
    theirs, ours = (
        sorted((epoch["train_loss"], epoch["accuracy"]) for epoch in epochs if epoch["train_loss"] is not None)
        for epochs in (baseline, attention)
    )
    if not theirs or not ours or max(theirs[0], ours[0])[0] > min(theirs[-1], ours[-1])[0]:
        return None
    losses = np.linspace(max(theirs[0][0], ours[0][0]), min(theirs[-1][0], ours[-1][0]), 50)
    return 100 * float(np.mean([accuracy_at(loss, ours) - accuracy_at(loss, theirs) for loss in losses]))


def accuracy_at(loss: float, points: list[tuple[float, float]]) -> float:
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= loss <= right and left < right:
            return low + (high - low) * (loss - left) / (right - left)
    return points[0][1]


def gain_at_same_time(baseline: list[dict], attention: list[dict], field: str) -> float | None:
    time_of_baseline, spent, accuracy = total(baseline, field), 0.0, None
    for epoch in attention:
        spent += epoch[field]
        if spent <= time_of_baseline:
            accuracy = epoch["accuracy"]
    return None if accuracy is None else 100 * (accuracy - baseline[-1]["accuracy"])


def wrong_by_predicted_class(run: dict, at: str) -> list[int]:
    confusion = run[at]["confusion"]
    classes = range(len(confusion))
    return [sum(confusion[true][predicted] for true in classes if true != predicted) for predicted in classes]


def lowered_variance(folder: Folder, condition: tuple[int, str], at: str) -> list[float]:
    runs = [folder.of(folder.runs, condition, *arms) for arms in (("baseline", "attention"), ("attention", "baseline"))]
    return [
        float(np.var(wrong_by_predicted_class(theirs, at)) - np.var(wrong_by_predicted_class(ours, at)))
        for theirs, ours in zip(*runs, strict=True)
    ]


# The claims ------------------------------------------------------------------------------------------------


def judge_ahead(values: list[float], least: float = 0.5) -> str:
    low, high = interval(values)
    if len(values) < 3:
        return NOT_ENOUGH_RUNS
    return HOLDS if low > 0 else DOES_NOT_HOLD if high < least else NOT_ENOUGH_RUNS


def judge_up_by_2(values: list[float]) -> str:
    low, high = interval(values)
    if len(values) < 3:
        return NOT_ENOUGH_RUNS
    return DOES_NOT_HOLD if high < 2 else HOLDS if low > 0 else NOT_ENOUGH_RUNS


def judge_range(values: list[float], least: float, most: float) -> str:
    low, high = interval(values)
    if len(values) < 3:
        return NOT_ENOUGH_RUNS
    touches = low <= most and high >= least
    return DOES_NOT_HOLD if not touches else HOLDS if high - low <= 10 else NOT_ENOUGH_RUNS


def claim_up_by_2(field):
    def judge(folder, condition):
        if len(folder.classes) < 100:
            last, texts = last_and_best(folder, condition, "baseline", field)
            yield judge_up_by_2(last), texts, ""

    return judge


def claim_up_on_cifar100(folder, condition):
    if len(folder.classes) >= 100:
        last, texts = last_and_best(folder, condition, "baseline", "accuracy")
        yield judge_ahead(last), texts, ""


def claim_ahead_of(other):
    def judge(folder, condition):
        last, texts = last_and_best(folder, condition, other, "accuracy")
        yield judge_ahead(last), texts, ""

    return judge


def last_and_best(folder, condition, other, field):
    last, best = (gains(folder, condition, other, field, at) for at in ("last", "best"))
    between = "; at the best epochs "
    return last, joined(mean_with_interval(last, " points"), between, mean_with_interval(best, " points"))


def claim_same_loss(folder, condition):
    values = [gain_at_same_loss(*pair) for pair in folder.pairs(condition, "baseline")]
    values = [value for value in values if value is not None]
    caveat = "" if condition[1] == "first" else "the arms' training losses are not of the same visits"
    yield judge_ahead(values), mean_with_interval(values, " points"), caveat


def claim_overhead(folder, condition):
    for each in folder.conditions():
        if each[0] == condition[0]:
            values = [more_updates(epochs) for epochs in folder.of(folder.epochs, each, "attention")]
            texts = joined(f"{each[1]}: ", mean_with_interval(values, " % more updates", ".1f"))
            if folder.is_timed(each):
                values = [more_seconds(*pair) for pair in folder.pairs(each, "baseline")]
                texts = joined(texts, "; ", mean_with_interval(values, " % more seconds", ".1f"))
            yield judge_range(values, 15, 20), texts, time_caveat(folder, each)


def claim_same_time(folder, condition):
    field = "seconds" if folder.is_timed(condition) else "updates"
    values = [gain_at_same_time(*pair, field) for pair in folder.pairs(condition, "baseline")]
    values = [value for value in values if value is not None]
    yield judge_ahead(values), mean_with_interval(values, " points"), time_caveat(folder, condition)


def time_caveat(folder, condition):
    return "" if folder.is_timed(condition) else "seconds were shared, so time is counted in updates"


def claim_few_repeats(folder, condition):
    values = [repeats_before_convergence(*pair) for pair in folder.pairs(condition, "baseline")]
    yield judge_range(values, 0, 5), mean_with_interval(values, " % repeats before", ".1f"), ""


def claim_lower_variance(folder, condition):
    if len(folder.classes) < 100:
        last, best = (lowered_variance(folder, condition, at) for at in ("last", "best"))
        texts = joined("lower by ", mean_with_interval(last, "", "+.0f"))
        yield judge_ahead(last, 0), joined(texts, "; at the best epochs ", mean_with_interval(best, "", "+.0f")), ""


def noisier(folder, condition):
    return [each for each in folder.conditions() if each[0] > condition[0] and each[1] == condition[1]]


def claim_ahead_with_noise(folder, condition):
    for each in noisier(folder, condition):
        last, texts = last_and_best(folder, each, "baseline", "accuracy")
        yield judge_ahead(last), joined(f"{each[0]} of 32: ", texts), ""


def claim_less_ahead_with_noise(folder, condition):
    for less, more in itertools.pairwise([condition, *noisier(folder, condition)]):
        of_less, of_more = (
            dict(
                zip(
                    folder.seeds(each, "attention", "baseline"),
                    gains(folder, each, "baseline", "accuracy", "last"),
                    strict=True,
                )
            )
            for each in (less, more)
        )
        values = [of_less[seed] - of_more[seed] for seed in of_less if seed in of_more]
        begin = f"{less[0]} to {more[0]} of 32: the lead shrinks by "
        yield judge_ahead(values, 0), joined(begin, mean_with_interval(values, " points")), ""


def claim_harm(folder, condition):
    of_baseline = [measure(epochs, "accuracy", "last") for epochs in folder.of(folder.epochs, condition, "baseline")]
    if of_baseline and np.mean(of_baseline) < 50:
        values = gains(folder, condition, "baseline", "accuracy", "last")
        texts = joined(mean_with_interval(values, " points"), ", with the baseline at ")
        yield judge_ahead([-value for value in values]), joined(texts, number(np.mean(of_baseline), ".1f"), " %"), ""


JUDGES = {
    "Accuracy is up by 2 to 3 points on CIFAR-10 (section 4.2)": claim_up_by_2("accuracy"),
    "Macro-F1 is up by 2 to 3 points on CIFAR-10 (section 4.2)": claim_up_by_2("macro_f1"),
    "Accuracy is up, by less, on CIFAR-100 (section 4.3)": claim_up_on_cifar100,
    "Accuracy is higher at the same training loss (section 4.2, figure 5)": claim_same_loss,
    "Training takes 15 to 20 % longer (section 4.2 and conclusion)": claim_overhead,
    "It is ahead after the same training time (section 4.2 and conclusion)": claim_same_time,
    "There are almost no repeats until the baseline has nearly converged (conclusion)": claim_few_repeats,
    "Wrong predictions vary less over the predicted classes (section 4.4, table 2)": claim_lower_variance,
    "It is ahead with label noise too (section 4.5, figure 8)": claim_ahead_with_noise,
    "It is ahead by less as noise grows (section 4.5)": claim_less_ahead_with_noise,
    "It does harm where the baseline's accuracy is low (section 4.1 and conclusion)": claim_harm,
    "*Not in the paper:* it is ahead of as many repeats of random batches": claim_ahead_of("random"),
    "*Not in the paper:* it is ahead of plain training for as many updates": claim_ahead_of("longer"),
}


def reductions(folder: Folder) -> list[str]:
    configuration, data = folder.configuration, folder.configuration["data"]
    is_on_cpu = any(place["device"] == "cpu" for run in folder.runs.values() for place in run["surroundings"])
    said = {
        f"{folder.name}, which the paper has not": PAPER_DATA.get(configuration["model"]) != data["name"],
        f"{data['train_images']:,} training images": data["train_images"] != 50_000,
        f"{configuration['epochs']} epochs": configuration["epochs"] != 100,
        "on a CPU": is_on_cpu,
    }
    return [text for text, is_said in said.items() if is_said]


def claims(folders: list[Folder]) -> list[list]:
    rows = [["claim", "experiment", "verdict", "attention against baseline", "what it rests on"]]
    judged = [folder for folder in folders if folder.conditions()]
    for claim, judge in JUDGES.items():
        found = []
        for folder in judged:
            for verdict, texts, caveat in judge(folder, folder.main_condition()):
                caveats = ", ".join(reductions(folder) + [caveat] * bool(caveat))
                rest = f"reduced: {caveats}" if caveats else ""
                found.append([claim, folder.name, f"**{verdict}**", texts, rest])
        rows += found or [[claim, "-", f"**{NOT_ENOUGH_RUNS}**", "no runs", ""]]
    return rows


# The other tables ------------------------------------------------------------------------------------------


def trained(folders: list[Folder]) -> list[list]:
    rows = [["experiment", "training", "data", "runs", "updates", "hardware and versions"]]
    for folder in folders:
        data = folder.configuration["data"]
        size = f"{data['train_images']:,} + {data['test_images']:,} images of {data['height']}x{data['width']}"
        runs = f"{len(folder.runs)}" + f", {folder.unfinished} unfinished left out" * bool(folder.unfinished)
        updates = sum(total(epochs, "updates") for epochs in folder.epochs.values())
        places = {place_text(p["environment"]) for run in folder.runs.values() for p in run["surroundings"]}
        details = details_text(folder.configuration)
        rows.append([folder.name, details, size, runs, f"{updates:,}", "; ".join(sorted(places))])
    return rows


def details_text(c: dict) -> str:
    origin = "ImageNet weights" if c["pretrained"] else "from scratch"
    details = f"{c['architecture']}, {c['parameters']:,} parameters, {origin}; Adam {c['learning_rate']:g}, "
    details += f"batch {c['batch_size']}, {c['epochs']} epochs, K {c['k']:g}, max_visits {c['max_visits'] or 'none'}; "
    details += f"precision {c['precision']}" + ", channels last" * c["channels_last"]
    return details + ", deterministic algorithms" * c["deterministic"]


def place_text(environment: dict) -> str:
    device = environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores"
    versions = f"Python {environment['python']}, torch {environment['packages']['torch']}"
    return f"{device}, {versions}, {environment['date'][:10]}"


def arms_of(folder: Folder) -> list[tuple[tuple[int, str], str, str]]:
    """Condition, arm and its name in a table; baselines once for each level of noise."""
    found = []
    for noise in sorted({noise for _, _, noise, _ in folder.runs}):
        if folder.seeds((noise, "first"), "baseline"):
            found.append(((noise, "first"), "baseline", "baseline"))
        for condition in folder.conditions():
            if condition[0] == noise:
                arms = [arm for arm in PAIRED if folder.seeds(condition, arm)]
                found += [(condition, arm, f"{arm}, {condition[1]}") for arm in arms]
    return found


def table_1(folders: list[Folder]) -> list[list]:
    head = ["experiment", "labels redrawn", "arm", "n", "least test loss", "highest macro-F1, %"]
    head += ["highest accuracy, %", "last test loss", "last macro-F1, %", "last accuracy, %"]
    rows = [head, *PAPER_TABLE_1]
    for folder in folders:
        for condition, arm, name in arms_of(folder):
            runs = folder.of(folder.epochs, condition, arm)
            cells = []
            for at in ("best", "last"):
                cells.append(mean_and_deviation([test_loss(epochs, at) for epochs in runs], ".3f"))
                for field in ("macro_f1", "accuracy"):
                    cells.append(mean_and_deviation([measure(epochs, field, at) for epochs in runs], ".2f"))
            rows.append([folder.name, noise_text(condition), name, f"{len(runs)}", *cells])
    return rows


def test_loss(epochs: list[dict], at: str) -> float:
    losses = [math.nan if epoch["test_loss"] is None else epoch["test_loss"] for epoch in epochs]
    return losses[-1] if at == "last" else min((loss for loss in losses if not math.isnan(loss)), default=math.nan)


test_loss.__test__ = False


def differences(folders: list[Folder]) -> list[list]:
    head = ["experiment", "labels redrawn", "epoch_loss", "attention less", "accuracy, last epoch"]
    rows = [[*head, "accuracy, best epoch", "macro-F1, last epoch", "macro-F1, best epoch"]]
    for folder in folders:
        for condition, other in itertools.product(folder.conditions(), ("baseline", "random", "longer")):
            if folder.pairs(condition, other):
                cells = [
                    mean_with_interval(gains(folder, condition, other, field, at), "")
                    for field in ("accuracy", "macro_f1")
                    for at in ("last", "best")
                ]
                rows.append([folder.name, noise_text(condition), condition[1], other, *cells])
    return rows


def costs(folders: list[Folder]) -> list[list]:
    head = ["experiment", "labels redrawn", "epoch_loss", "more updates, %", "more seconds, %"]
    rows = [[*head, "most visits to a batch", "batches at max_visits"]]
    for folder in folders:
        for condition in folder.conditions():
            runs = folder.of(folder.epochs, condition, "attention")
            epochs = [epoch for run in runs for epoch in run]
            seconds = [more_seconds(*pair) for pair in folder.pairs(condition, "baseline")]
            is_timed = folder.is_timed(condition)
            cells = [mean_with_interval([more_updates(run) for run in runs], "", ".1f")]
            cells.append(mean_with_interval(seconds, "", ".1f") if is_timed else "shared device")
            cells.append(f"{max(epoch['most_visits'] for epoch in epochs)}")
            cells.append(f"{total(epochs, 'capped_batches')} of {total(epochs, 'batches'):,}")
            rows.append([folder.name, noise_text(condition), condition[1], *cells])
    return rows


def costs_by_epoch(folders: list[Folder]) -> list[list]:
    longest = max(folder.configuration["epochs"] for folder in folders)
    shown = [n for n in range(1, longest + 1) if longest <= 30 or n in (1, longest) or n % 10 == 0]
    rows = [["experiment", "labels redrawn", "epoch_loss", *map(str, shown)]]
    for folder in folders:
        for condition in folder.conditions():
            runs = folder.of(folder.epochs, condition, "attention")
            cells = []
            for n in shown:
                shares = [more_updates([epoch]) for run in runs for epoch in run if epoch["epoch"] == n]
                cells.append(number(np.mean(shares), ".1f") if shares else "-")
            rows.append([folder.name, noise_text(condition), condition[1], *cells])
    return rows


def table_2(folders: list[Folder], at: str) -> list[list] | None:
    fitting = [folder for folder in folders if len(folder.classes) <= 20]
    if not fitting:
        return None
    most = max(len(folder.classes) for folder in fitting)
    is_same = all(folder.classes == fitting[0].classes for folder in fitting)
    columns = fitting[0].classes if is_same else [f"class {place}" for place in range(1, most + 1)]
    head = ["experiment", "labels redrawn", "arm", "n", *columns]
    rows = [[*head, "variance", "cat taken for dog", "dog taken for cat"]]
    if at == "best" and any(folder.classes == CIFAR10 for folder in fitting):
        rows += [
            ["paper: tnt", "none", arm, "1", *map(str, wrong), f"{np.var(wrong):.2f}", *PAPER_MIXED_UP[arm]]
            for arm, wrong in PAPER_WRONG.items()
        ]
    for folder in fitting:
        for condition, arm, name in arms_of(folder):
            runs = folder.of(folder.runs, condition, arm)
            wrong = np.array([wrong_by_predicted_class(run, at) for run in runs])
            cells = [number(mean, ".1f") for mean in wrong.mean(axis=0)] + ["-"] * (most - len(folder.classes))
            cells.append(mean_and_deviation([float(np.var(counts)) for counts in wrong], ".0f"))
            mixed_up = [taken_for(folder, runs, at, *names) for names in (("cat", "dog"), ("dog", "cat"))]
            rows.append([folder.name, noise_text(condition), name, f"{len(runs)}", *cells, *mixed_up])
    return rows


def taken_for(folder: Folder, runs: list[dict], at: str, true: str, predicted: str) -> set[str] | str:
    if not {true, predicted} <= set(folder.classes):
        return "-"
    row, column = folder.classes.index(true), folder.classes.index(predicted)
    return number(np.mean([run[at]["confusion"][row][column] for run in runs]), ".1f")


def flipped(folders: list[Folder]) -> list[list] | None:
    head = ["experiment", "labels redrawn", "epoch_loss", "batches", "how many", "with a wrong label, %"]
    rows = [[*head, "wrong labels a batch"]]
    for folder in folders:
        for condition in folder.conditions():
            if condition[0] > 0:
                start = [folder.name, noise_text(condition), condition[1]]
                rows += [[*start, *cells] for cells in flipped_groups(folder, condition)]
    return rows if len(rows) > 1 else None


def flipped_groups(folder: Folder, condition: tuple[int, str]) -> list[list]:
    counted = [
        (int(visits), numbers)
        for run in folder.of(folder.epochs, condition, "attention")
        for epoch in run
        for visits, numbers in epoch["batches_by_visits"].items()
    ]
    top = most_repeated([(visits, numbers["batches"]) for visits, numbers in counted])
    groups = {"all": 1, "visited once": None, "repeated": 2, "most repeated, 1% of all": top}
    rows = []
    for group, least in groups.items():
        members = [n for visits, n in counted if (visits == 1 if least is None else visits >= least)]
        batches, with_flipped, wrong = (total(members, f) for f in ("batches", "with_flipped", "flipped"))
        if batches:
            share = number(100 * with_flipped / batches, ".1f")
            rows.append([group, f"{batches:,}", share, number(wrong / batches, ".2f")])
    return rows


def most_repeated(counted: list[tuple[int, int]]) -> float:
    """The least visits of the batches with the most, once these are a hundredth of all."""
    batches = sum(of_visits for _, of_visits in counted)
    least = math.inf
    for visits in sorted({visits for visits, _ in counted if visits > 1}, reverse=True):
        if 100 * sum(of_visits for v, of_visits in counted if v >= least) >= batches:
            break
        least = visits
    return least


def compute_tables(folders: list[Folder]) -> dict[str, list]:
    tables = {
        CLAIMS: [claims(folders)],
        TRAINED: [trained(folders)],
        TABLE_1: [table_1(folders)],
        DIFFERENCES: [differences(folders)],
        COSTS: [costs(folders), costs_by_epoch(folders)],
        TABLE_2_BEST: [table_2(folders, "best")],
        TABLE_2_LAST: [table_2(folders, "last")],
        FLIPPED: [flipped(folders)],
    }
    return {title: found for title, found in tables.items() if found != [None]}


# The report ------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    folders: list[Folder]
    shown: dict[str, list[list[list[str]]]]
    computed: dict[str, list[list[list]]]


@pytest.fixture(scope="module", params=[*MADE, *RECORDED], ids=lambda case: getattr(case, "name", case))
def report(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    paths = make_folders(request.param, folder) if request.param in MADE else [request.param]
    main([*map(str, paths), "--out", str(folder / "out")])
    folders = sorted(map(read_folder, paths), key=lambda each: each.name)
    text = (folder / "out" / "report.md").read_text(encoding="utf-8")
    return Report(folders, parse_tables(text), compute_tables(folders))


def parse_tables(text: str) -> dict[str, list[list[list[str]]]]:
    """The tables below each title, with their heads and without the line of dashes."""
    sections = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        title, _, body = section.partition("\n")
        blocks = re.findall(r"(?:^\|.*\|\n)+", body, re.MULTILINE)
        if blocks:
            sections[title] = [[line[2:-2].split(" | ") for line in drop_dashes(block)] for block in blocks]
    return sections


def drop_dashes(block: str) -> list[str]:
    lines = block.splitlines()
    assert set(lines[1]) == set("|- ")
    return [lines[0], *lines[2:]]


def differing_cells(shown: list[list[list[str]]], computed: list[list[list]]) -> list[str]:
    assert [list(map(len, table)) for table in shown] == [list(map(len, table)) for table in computed]
    wrong = []
    for table, expected_table in zip(shown, computed, strict=True):
        for row, expected_row in zip(table, expected_table, strict=True):
            for head, cell, expected in zip(table[0], row, expected_row, strict=True):
                if cell not in ({expected} if isinstance(expected, str) else expected):
                    wrong.append(f"{row[:4]} {head}: {cell!r}, not {expected!r}")
    return wrong


def test_the_tables_are_those_that_are_computed_here(report):
    assert list(report.shown) == list(report.computed)


@pytest.mark.parametrize("title", TITLES)
def test_every_cell_is_what_the_records_give(report, title):
    assert differing_cells(report.shown.get(title, []), report.computed.get(title, [])) == []


@pytest.mark.parametrize("at", ["best", "last"])
def test_confusion_gives_the_recorded_accuracy_and_macro_f1(report, at):
    for folder in report.folders:
        for name, run in folder.runs.items():
            confusion = np.array(run[at]["confusion"])
            true, predicted = (np.repeat(labels.ravel(), confusion.ravel()) for labels in np.indices(confusion.shape))
            epoch = folder.epochs[name][run[at]["epoch"] - 1]
            f1 = f1_score(true, predicted, labels=range(len(confusion)), average="macro", zero_division=0)
            assert len(true) == folder.configuration["data"]["test_images"]
            assert np.mean(true == predicted) == pytest.approx(epoch["accuracy"], rel=1e-12), name
            assert f1 == pytest.approx(epoch["macro_f1"], rel=1e-12), name


def test_the_best_epoch_is_the_first_of_the_highest_accuracy_and_the_last_is_the_last(report):
    for folder in report.folders:
        for name, run in folder.runs.items():
            accuracies = [epoch["accuracy"] for epoch in folder.epochs[name]]
            assert [epoch["epoch"] for epoch in folder.epochs[name]] == list(range(1, len(accuracies) + 1))
            assert run["best"]["epoch"] == 1 + accuracies.index(max(accuracies))
            assert run["last"]["epoch"] == len(accuracies)


def test_the_updates_of_an_epoch_are_its_visits(report):
    for folder in report.folders:
        for epoch in itertools.chain(*folder.epochs.values()):
            assert epoch["updates"] == epoch["batches"] + epoch["repeats"]
            if epoch["batches_by_visits"] is not None:
                counted = {int(visits): n["batches"] for visits, n in epoch["batches_by_visits"].items()}
                assert sum(counted.values()) == epoch["batches"]
                assert sum(visits * batches for visits, batches in counted.items()) == epoch["updates"]
                assert max(counted) == epoch["most_visits"]


def test_controls_make_the_visits_and_the_updates_of_their_attention_run(report):
    for folder in report.folders:
        for condition in folder.conditions():
            for longer, attention in folder.pairs(condition, "longer"):
                assert total(longer, "updates") == total(attention, "updates")
            for random, attention in folder.pairs(condition, "random"):
                assert [visit_counts(epoch) for epoch in random] == [visit_counts(epoch) for epoch in attention]


def visit_counts(epoch: dict) -> dict[str, int]:
    return {visits: numbers["batches"] for visits, numbers in epoch["batches_by_visits"].items()}


def test_the_papers_variances_are_those_of_its_counts(report):
    rows = [row for row in report.shown.get(TABLE_2_BEST, [[]])[0] if row[0].startswith("paper")]
    for row in rows:
        assert f"{np.var(list(map(int, row[4:14]))):.2f}" == row[14] == PAPER_VARIANCE[row[2]]
    assert len(rows) == (2 if any(folder.classes == CIFAR10 for folder in report.folders) else 0)


def test_the_made_up_records_reach_every_verdict(tmp_path):
    folders = [read_folder(path) for case in MADE for path in make_folders(case, tmp_path / case)]
    rows = [row for folder in folders for row in claims([folder])[1:]]
    assert {row[2].strip("*") for row in rows} == {HOLDS, DOES_NOT_HOLD, NOT_ENOUGH_RUNS}
    assert {row[0] for row in rows if row[3] != "no runs"} == set(JUDGES)
