"""Every number in the tables of a benchmark report, computed a second time from the raw records, in the obvious way."""

import collections
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from scipy import stats
from sklearn.metrics import f1_score

from benchmarks.report import figures
from benchmarks.report.__main__ import main
from tests.benchmarks.cifar_helpers import read_lines
from tests.benchmarks.report_records import CASES, READINGS, write_case

RECORDED = sorted(
    path.parent
    for path in (Path(__file__).parents[2] / "benchmarks" / "records").glob("*/epochs.jsonl")
    if (path.parent / "runs.jsonl").exists()
)
HOLDS, DOES_NOT_HOLD, CANNOT_BE_TOLD = "holds", "does not hold", "cannot be told"
HARDLY_ANY_REPEATS, NOT_ENOUGH_RUNS = "hardly any repeats", "not enough runs"
SYMBOLS = {HOLDS: "✓", DOES_NOT_HOLD: "✗", CANNOT_BE_TOLD: "?", HARDLY_ANY_REPEATS: "∅", NOT_ENOUGH_RUNS: "…"}
AT_A_GLANCE, FLIPPED = "Do the claims hold?", "Do repeats point to wrong labels?"
TABLE_2_BEST = "Table 2: wrong predictions by predicted class, at the best epoch"

PAPER_TABLE_1 = [
    ["paper: resnet34", "none", "baseline", "1", "0.925596", "73.7586", *["-"] * 4],
    ["paper: resnet34", "none", "attention", "1", "0.856234", "75.3712", *["-"] * 4],
    ["paper: tnt", "none", "baseline", "1", "1.062034", "67.5982", *["-"] * 4],
    ["paper: tnt", "none", "attention", "1", "1.073162", "70.9335", *["-"] * 4],
]
# Wrong predictions by predicted class, their variance, cat taken for dog, dog taken for cat.
PAPER_TABLE_2 = {
    "baseline": ([230, 249, 420, 521, 367, 449, 293, 285, 165, 263], "11144.36", "190", "164"),
    "attention": ([261, 153, 356, 503, 288, 389, 251, 254, 198, 255], "9163.96", "169", "173"),
}
# Data, K, ImageNet weights.
PAPER_MODELS = dict.fromkeys(("resnet34", "tnt"), ("cifar10", 1.2, False)) | {
    "efficientnet_b7": ("cifar100", 1.5, True)
}
PAPER_OPTIONS = {"resnet34": {}, "tnt": {"patch_size": 4, "first_stride": 1}, "efficientnet_b7": {}}
CLAIMS = {
    "accuracy": "Accuracy is up by 2 to 3 points on CIFAR-10 (section 4.2)",
    "macro_f1": "Macro-F1 is up by 2 to 3 points on CIFAR-10 (section 4.2)",
    "many classes": "Accuracy is up, by less, on CIFAR-100 (section 4.3)",
    "same loss": "Accuracy is higher at the same training loss (section 4.2, figure 5)",
    "overhead": "Training takes 15 to 20 % longer (section 4.2 and conclusion)",
    "same time": "It is ahead after the same training time (section 4.2 and conclusion)",
    "few repeats": "There are almost no repeats until the baseline has nearly converged (conclusion)",
    "variance": "Wrong predictions vary less over the predicted classes (section 4.4, table 2)",
    "noise": "It is ahead with label noise too (section 4.5, figure 8)",
    "more noise": "It is ahead by less as noise grows (section 4.5)",
    "harm": "It does harm where the baseline's accuracy is low (section 4.1 and conclusion)",
    "random": "Not in the paper: it is ahead of as many repeats of random batches",
    "longer": "Not in the paper: it is ahead of plain training for as many updates",
}


# Records ---------------------------------------------------------------------------------------------------


class Folder(NamedTuple):
    """Finished runs with their epochs, by (arm, reading, label noise, seed); a condition is (label noise, reading)."""

    configuration: dict
    runs: dict[tuple, dict]
    unfinished: int

    @property
    def name(self) -> str:
        return f"{self.configuration['model']} on {self.configuration['data']['name']}"

    @property
    def classes(self) -> list[str]:
        return self.configuration["data"]["classes"]

    def conditions(self) -> list[tuple[int, str]]:
        found = {(noise, READINGS.index(reading)) for arm, reading, noise, _ in self.runs if arm == "attention"}
        return [(noise, READINGS[place]) for noise, place in sorted(found)]

    def find(self, condition: tuple[int, str], *arms: str) -> list[list[dict]]:
        """The runs of these arms, of each seed that has them all."""
        noise, reading = condition
        seeds = sorted({seed for *_, seed in self.runs})
        names = [[(arm, None if arm == "baseline" else reading, noise, seed) for arm in arms] for seed in seeds]
        return [[self.runs[name] for name in of_seed] for of_seed in names if set(of_seed) <= set(self.runs)]

    def places(self, runs) -> list[dict]:
        return [place for run in runs for place in run["surroundings"]]

    def is_timed(self, condition: tuple[int, str]) -> bool:
        runs = list(itertools.chain(*self.find(condition, "baseline", "attention")))
        places = {(place["device"], place_text(place["environment"])) for place in self.places(runs)}
        return len(places) == 1 and not any(epoch["shared_device"] for run in runs for epoch in run["epochs"])


def read_folder(path: Path) -> Folder:
    runs = {name_of(run): {**run, "epochs": []} for run in read_lines(path / "runs.jsonl")}
    for epoch in read_lines(path / "epochs.jsonl"):
        runs[name_of(epoch)]["epochs"].append(epoch)
    finished = {name: run for name, run in runs.items() if run["is_finished"]}
    return Folder(json.loads((path / "configuration.json").read_text()), finished, len(runs) - len(finished))


def name_of(line: dict) -> tuple:
    return line["arm"], line["epoch_loss"], line["label_noise"], line["seed"]


def place_text(environment: dict) -> str:
    device = environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores"
    return f"{device}, Python {environment['python']}, torch {environment['packages']['torch']}"


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


def mean_with_interval(values: list[float], unit: str = "", spec: str = "+.2f") -> set[str]:
    low, high = (number(end, spec) for end in interval(values))
    reach = joined(" (", low, " to ", high, ")") if len(values) > 1 else ""
    return joined(number(np.mean(values), spec), unit, reach, f", n = {len(values)}") if values else set()


def mean_and_deviation(values: list[float], spec: str) -> set[str]:
    if len(values) < 2 or np.isnan(values).any():
        return number(np.mean(values), spec)
    return joined(number(np.mean(values), spec), " ± ", number(np.std(values, ddof=1), spec))


# What two runs are compared by -----------------------------------------------------------------------------


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


# The claims ------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What a verdict is made by."""

    least_runs: float = 3
    least_dose: float = 1
    least_gain: float = 0.5
    least_change: float = 0
    claimed: float = 2
    least_overhead: float = 15
    most_overhead: float = 20
    widest_overhead: float = 10
    few_repeats: float = 5
    sampling_errors: float = 1


RULES = Limits()


class Finding(NamedTuple):
    """The runs are attention's that were compared; a claim that is not one of differences has no sampling error."""

    claim: str
    rule: str
    values: list[float]
    texts: set[str]
    runs: Sequence[dict] = ()
    error: float | None = None
    caveat: str = ""

    def reach(self, limits: Limits) -> float:
        low, high = interval(self.values)
        return max((high - low) / 2, limits.sampling_errors * (self.error or 0))

    def verdict(self, limits: Limits = RULES) -> str:
        if len(self.values) < limits.least_runs:
            return NOT_ENOUGH_RUNS
        if any(more_updates(run["epochs"]) < limits.least_dose for run in self.runs):
            return HARDLY_ANY_REPEATS
        low, high = np.mean(self.values) - self.reach(limits), np.mean(self.values) + self.reach(limits)
        least, most = limits.least_overhead, limits.most_overhead
        cases = {
            "ahead": [(low > 0, HOLDS), (high < limits.least_gain, DOES_NOT_HOLD)],
            "above 0": [(low > 0, HOLDS), (high < limits.least_change, DOES_NOT_HOLD)],
            "up by 2": [(high < limits.claimed, DOES_NOT_HOLD), (low > 0, HOLDS)],
            "15 to 20": [
                (low > most or high < least, DOES_NOT_HOLD),
                (high - low <= limits.widest_overhead, HOLDS),
            ],
            "at most 5": [(low > limits.few_repeats, DOES_NOT_HOLD), (high <= limits.few_repeats, HOLDS)],
        }[self.rule]
        return next((said for applies, said in cases if applies), CANNOT_BE_TOLD)

    def numbers(self) -> set[str]:
        if self.error is None or self.verdict() != CANNOT_BE_TOLD:
            return self.texts
        reach, is_variance = self.reach(RULES), self.claim == "variance"
        would_show = joined(number(reach, ".0f" if is_variance else ".2f"), "" if is_variance else " points")
        end = f"; cannot be told apart with n = {len(self.values)}, a difference of "
        return joined(self.texts, end, would_show, " would have shown")


def of_difference(claim: str, rule: str, pairs: list[list[dict]], values: list[float], *others) -> Finding:
    error = np.mean([(error_of_variance if claim == "variance" else error_of_accuracy)(pair) for pair in pairs])
    return Finding(claim, rule, values, others[0], [pair[1] for pair in pairs], float(error), *others[1:])


def last_and_best(values_of, unit: str, spec: str = "+.2f", start: str = "") -> tuple[list[float], set[str]]:
    last, best = values_of("last"), values_of("best")
    texts = [mean_with_interval(values, unit, spec) for values in (last, best)]
    return last, joined(start, texts[0], "; at the best epochs ", texts[1])


def leads(claim, rule, folder: Folder, condition: tuple[int, str], other="baseline", field="accuracy", start=""):
    if pairs := folder.find(condition, other, "attention"):
        values_and_texts = last_and_best(lambda at: gains(folder, condition, other, field, at), " points", start=start)
        yield of_difference(claim, rule, pairs, *values_and_texts)


def judged_by(folder: Folder, asked: str) -> tuple[int, str]:
    readings = [reading for _, reading in folder.conditions()]
    return 0, asked if asked in readings else [*readings, asked][0]


def findings(folder: Folder, asked: str) -> list[Finding]:
    """In the order of the claims; nothing is said without values."""
    clean = judged_by(folder, asked)
    parts = find_ahead, find_same_loss, find_repeats, find_variance, find_harm, find_overhead, find_noise
    found = [finding for part in parts for finding in part(folder, clean)]
    order = list(CLAIMS)
    return sorted(found, key=lambda finding: order.index(finding.claim))


def find_ahead(folder: Folder, clean: tuple[int, str]):
    if len(folder.classes) >= 100:
        yield from leads("many classes", "ahead", folder, clean)
    else:
        for field in ("accuracy", "macro_f1"):
            yield from leads(field, "up by 2", folder, clean, field=field)
    for other in ("random", "longer"):
        yield from leads(other, "ahead", folder, clean, other)


def find_same_loss(folder: Folder, clean: tuple[int, str]):
    values, pairs = of_pairs(folder, clean, gain_at_same_loss)
    caveat = "" if clean[1] == "first" else "the arms' training losses are not of the same visits"
    if values:
        yield of_difference("same loss", "ahead", pairs, values, mean_with_interval(values, " points"), caveat)


def find_repeats(folder: Folder, clean: tuple[int, str]):
    values, _ = of_pairs(folder, clean, repeats_before_convergence)
    runs = [attention for _, attention in folder.find(clean, "baseline", "attention")]
    if values:
        yield Finding("few repeats", "at most 5", values, mean_with_interval(values, " % repeats before", ".1f"), runs)


def find_variance(folder: Folder, clean: tuple[int, str]):
    pairs = folder.find(clean, "baseline", "attention")
    if pairs and len(folder.classes) < 100:
        lowered = {at: [variance(theirs, at) - variance(ours, at) for theirs, ours in pairs] for at in ("last", "best")}
        yield of_difference("variance", "above 0", pairs, *last_and_best(lowered.get, "", "+.0f", "lower by "))


def find_harm(folder: Folder, clean: tuple[int, str]):
    values, pairs = gains(folder, clean), folder.find(clean, "baseline", "attention")
    baseline = [measure(theirs, "accuracy", "last") for theirs, _ in pairs]
    if pairs and np.mean(baseline) < 50:
        start = joined(mean_with_interval(values, " points"), ", with the baseline at ")
        texts = joined(start, number(np.mean(baseline), ".1f"), " %")
        yield of_difference("harm", "ahead", pairs, [-value for value in values], texts)


def find_overhead(folder: Folder, clean: tuple[int, str]):
    caveats = {True: "", False: "seconds cannot be compared, so time is counted in updates"}
    for condition in (each for each in folder.conditions() if each[0] == 0):
        values = [more_updates(run["epochs"]) for (run,) in folder.find(condition, "attention")]
        texts = joined(f"{condition[1]}: ", mean_with_interval(values, " % more updates", ".1f"))
        if folder.is_timed(condition):
            values, _ = of_pairs(folder, condition, more_seconds)
            texts = joined(texts, "; ", mean_with_interval(values, " % more seconds", ".1f"))
        yield Finding("overhead", "15 to 20", values, texts, caveat=caveats[folder.is_timed(condition)])
    field = "seconds" if folder.is_timed(clean) else "updates"
    values, pairs = of_pairs(folder, clean, lambda *pair: gain_at_same_time(*pair, field))
    if values:
        caveat, texts = caveats[folder.is_timed(clean)], mean_with_interval(values, " points")
        yield of_difference("same time", "ahead", pairs, values, texts, caveat)


def find_noise(folder: Folder, clean: tuple[int, str]):
    noisy = [each for each in folder.conditions() if each[0] > 0 and each[1] == clean[1]]
    levels = [clean, *(each for each in noisy if folder.find(each, "baseline", "attention"))]
    for condition in levels[1:]:
        yield from leads("noise", "ahead", folder, condition, start=f"{condition[0]} of 32: ")
    for two in itertools.pairwise(levels):
        less, more = ({pair[0]["seed"]: pair for pair in folder.find(each, "baseline", "attention")} for each in two)
        seeds = sorted(set(less) & set(more))
        if not seeds:
            continue
        leads_of = [
            [measure(of[seed][1], "accuracy", "last") - measure(of[seed][0], "accuracy", "last") for seed in seeds]
            for of in (less, more)
        ]
        values = [one - other for one, other in zip(*leads_of, strict=True)]
        errors = [np.mean([error_of_accuracy(of[seed]) for seed in seeds]) for of in (less, more)]
        start = f"{two[0][0]} to {two[1][0]} of 32: the lead shrinks by "
        texts = joined(start, mean_with_interval(values, " points"))
        runs = [of[seed][1] for of in (less, more) for seed in seeds]
        yield Finding("more noise", "above 0", values, texts, runs, float(np.hypot(*errors)))


def reductions(folder: Folder) -> list[str]:
    c, data = folder.configuration, folder.configuration["data"]
    their_data, their_k, their_weights = PAPER_MODELS.get(c["model"], (None, c["k"], c["pretrained"]))
    options = PAPER_OPTIONS.get(c["model"], c["model_options"]) | {"img_size": c["model_options"].get("img_size")}
    their_options = {name: value for name, value in c["model_options"].items() if options.get(name) != value}
    capped = sum(total(run["epochs"], "capped_batches") for run in folder.runs.values())
    said = {
        f"{folder.name}, which the paper has not": their_data != data["name"],
        **{f"{name} {value}": True for name, value in their_options.items()},
        f"{data['train_images']:,} training images": data["train_images"] != 50_000,
        f"{data['test_images']:,} test images": data["test_images"] != 10_000,
        f"{c['epochs']} epochs": c["epochs"] != 100,
        f"batches of {c['batch_size']}": c["batch_size"] != 32,
        f"learning rate {c['learning_rate']:g}": c["learning_rate"] != 0.0001,
        f"K {c['k']:g}": c["k"] != their_k,
        f"with{'' if c['pretrained'] else 'out'} ImageNet weights": c["pretrained"] != their_weights,
        c["precision"]: c["precision"] in ("bf16", "fp16"),
        "on a CPU": any(place["device"] == "cpu" for place in folder.places(folder.runs.values())),
        f"{capped:,} batches left at max_visits, where the paper has no limit": capped > 0,
    }
    return [text for text, is_said in said.items() if is_said]


def mark(said: str) -> str:
    return f"{SYMBOLS[said]} **{said}**"


def at_a_glance(folders: list[Folder], asked: str) -> list[list]:
    first = [{each.claim: each for each in reversed(findings(folder, asked))} for folder in folders]
    rows = [
        [text, *(mark(found[claim].verdict()) if claim in found else "-" for found in first)]
        for claim, text in CLAIMS.items()
    ]
    return [["claim", *(folder.name for folder in folders)], *rows]


def claims(folder: Folder, asked: str) -> list[list]:
    rows = [[mark(each.verdict()), CLAIMS[each.claim], each.numbers(), each.caveat] for each in findings(folder, asked)]
    return [["verdict", "claim", "attention less the other arm", "remark"], *rows]


def how_reduced(folder: Folder) -> str:
    said = reductions(folder)
    return f"Reduced: {', '.join(said)}." if said else "At the paper's size and settings."


# The other tables ------------------------------------------------------------------------------------------


def trained(folders: list[Folder]) -> list[list]:
    rows = [["experiment", "training", "data", "runs", "hardware and versions"]]
    for folder in folders:
        c, data = folder.configuration, folder.configuration["data"]
        details = f"{c['architecture']}, {c['parameters']:,} parameters, "
        details += "ImageNet weights" if c["pretrained"] else "from scratch"
        details += f" ({c['weights']})" if c.get("weights") else ""
        details += f"; Adam {c['learning_rate']:g}, batch {c['batch_size']}, {c['epochs']} epochs, K {c['k']:g}, "
        details += f"max_visits {c['max_visits'] or 'none'}; precision {c['precision']}"
        details += ", channels last" * c["channels_last"] + ", deterministic algorithms" * c["deterministic"]
        size = f"{data['train_images']:,} + {data['test_images']:,} images of {data['height']}x{data['width']}"
        runs = f"{len(folder.runs)}" + f", {folder.unfinished} unfinished left out" * bool(folder.unfinished)
        environments = [place["environment"] for place in folder.places(folder.runs.values())]
        places = sorted({f"{place_text(each)}, {each['date'][:10]}" for each in environments})
        rows.append([folder.name, details, size, runs, "; ".join(places)])
    return rows


def by_condition(folders: list[Folder], head: str, rows_of) -> list[list]:
    rows = [
        [folder.name, noise_text(condition[0]), condition[1], *cells]
        for folder in folders
        for condition in folder.conditions()
        for cells in rows_of(folder, condition)
    ]
    return [["experiment", "labels redrawn", "epoch_loss", *head.split("|")], *rows]


def by_arm(folders: list[Folder], head: list[str], first_rows: list[list], cells_of) -> list[list]:
    """Baselines once for each level of noise."""
    rows = []
    for folder in folders:
        for noise in sorted({noise for _, _, noise, _ in folder.runs}):
            arms = [("first", "baseline"), *itertools.product(READINGS, ("attention", "random", "longer"))]
            for reading, arm in arms:
                runs = [run for (run,) in folder.find((noise, reading), arm)]
                name = arm if arm == "baseline" else f"{arm}, {reading}"
                if runs:
                    rows.append([folder.name, noise_text(noise), name, f"{len(runs)}", *cells_of(folder, runs)])
    return [["experiment", "labels redrawn", "arm", "n", *head], *first_rows, *rows]


def noise_text(noise: int) -> str:
    return f"{noise} of 32" if noise else "none"


def table_1(folders: list[Folder]) -> list[list]:
    def cells_of(folder, runs):
        for at, field in itertools.product(("best", "last"), ("test_loss", "macro_f1", "accuracy")):
            values = [measure(run, field, at) for run in runs]
            yield mean_and_deviation(values, ".3f" if field == "test_loss" else ".2f")

    head = "least test loss|highest macro-F1, %|highest accuracy, %|last test loss|last macro-F1, %|last accuracy, %"
    return by_arm(folders, head.split("|"), PAPER_TABLE_1, cells_of)


def differences(folders: list[Folder]) -> list[list]:
    def rows_of(folder, condition):
        for other in ("baseline", "random", "longer"):
            columns = itertools.product(("accuracy", "macro_f1"), ("last", "best"))
            values = [gains(folder, condition, other, field, at) for field, at in columns]
            if values[0]:
                yield [other, *map(mean_with_interval, values)]

    head = "attention less|accuracy, last epoch|accuracy, best epoch|macro-F1, last epoch|macro-F1, best epoch"
    return by_condition(folders, head, rows_of)


def costs(folders: list[Folder]) -> list[list]:
    def rows_of(folder, condition):
        runs = [run["epochs"] for (run,) in folder.find(condition, "attention")]
        epochs = list(itertools.chain(*runs))
        seconds, _ = of_pairs(folder, condition, more_seconds)
        of_time = mean_with_interval(seconds, "", ".1f") if folder.is_timed(condition) else "-"
        yield [
            mean_with_interval([more_updates(run) for run in runs], "", ".1f"),
            of_time if seconds else "no baseline",
            f"{max(epoch['most_visits'] for epoch in epochs)}",
            f"{total(epochs, 'capped_batches'):,} of {total(epochs, 'batches'):,}",
        ]

    head = "more updates, %|more seconds, %|most visits to a batch|batches at max_visits"
    return by_condition(folders, head, rows_of)


def costs_by_epoch(folders: list[Folder]) -> list[list]:
    longest = max(folder.configuration["epochs"] for folder in folders)
    shown = [n for n in range(1, longest + 1) if longest <= 30 or n in (1, longest) or n % 10 == 0]

    def rows_of(folder, condition):
        epochs = [epoch for (run,) in folder.find(condition, "attention") for epoch in run["epochs"]]
        shares = [[more_updates([epoch]) for epoch in epochs if epoch["epoch"] == n] for n in shown]
        yield [number(np.mean(of_epoch), ".1f") if of_epoch else "-" for of_epoch in shares]

    return by_condition(folders, "|".join(map(str, shown)), rows_of)


def table_2(folders: list[Folder], at: str) -> list[list]:
    fitting = [folder for folder in folders if len(folder.classes) <= 20]
    most = max((len(folder.classes) for folder in fitting), default=0)
    is_same = all(folder.classes == fitting[0].classes for folder in fitting)
    columns = fitting[0].classes if fitting and is_same else [f"class {place}" for place in range(1, most + 1)]
    papers = []
    if at == "best" and any(folder.configuration["data"]["name"] == "cifar10" for folder in folders):
        for arm, (wrong, *others) in PAPER_TABLE_2.items():
            papers.append(["paper: tnt", "none", arm, "1", *map(str, wrong), *["-"] * (most - 10), *others])

    def cells_of(folder, runs):
        counts = np.mean([wrong_by_predicted_class(run, at) for run in runs], axis=0)
        yield from [number(mean, ".1f") for mean in counts] + ["-"] * (most - len(counts))
        yield mean_and_deviation([variance(run, at) for run in runs], ".0f")
        for names in (("cat", "dog"), ("dog", "cat")):
            row, column = (folder.classes.index(name) if name in folder.classes else None for name in names)
            is_there = row is not None and column is not None
            yield number(np.mean([run[at]["confusion"][row][column] for run in runs]), ".1f") if is_there else "-"

    head = [*columns, "variance", "cat taken for dog", "dog taken for cat"]
    return by_arm(fitting, head, papers, cells_of)


def flipped(folders: list[Folder]) -> list[list]:
    def rows_of(folder, condition):
        found = collections.defaultdict(lambda: np.zeros(3, int))
        for (run,) in folder.find(condition, "attention") if condition[0] > 0 else ():
            for visits, n in itertools.chain(*(epoch["batches_by_visits"].items() for epoch in run["epochs"])):
                found[int(visits)] += [n["batches"], n["with_flipped"], n["flipped"]]
        repeated = sorted((visits for visits in found if visits > 1), reverse=True)
        hundredth = sum(batches for batches, *_ in found.values()) / 100
        before = [sum(found[visits][0] for visits in repeated[:place]) for place in range(len(repeated))]
        top = [visits for visits, batches in zip(repeated, before, strict=True) if batches < hundredth]
        groups = {"all": list(found), "visited once": [1], "repeated": repeated, "most repeated, 1% of all": top}
        for group, members in groups.items():
            batches, with_flipped, wrong = sum((found[visits] for visits in members), np.zeros(3, int))
            if batches:
                share = number(100 * with_flipped / batches, ".1f")
                yield [group, f"{batches:,}", share, number(wrong / batches, ".2f")]

    return by_condition(folders, "batches|how many|with a wrong label, %|wrong labels a batch", rows_of)


def compute_tables(folders: list[Folder], asked: str) -> dict[str, list[list[list]]]:
    tables = {
        AT_A_GLANCE: [at_a_glance(folders, asked)],
        **{f"Claims: {folder.name}": [claims(folder, asked)] for folder in folders},
        "Paired differences": [differences(folders)],
        "What was trained": [trained(folders)],
        "Table 1: the best over the epochs, and the last epoch": [table_1(folders)],
        "What it costs": [costs(folders), costs_by_epoch(folders)],
    }
    optional = {TABLE_2_BEST: [table_2(folders, at) for at in ("best", "last")], FLIPPED: [flipped(folders)]}
    return tables | {title: found for title, found in optional.items() if len(found[0]) > 1}


# The box at the top ----------------------------------------------------------------------------------------


def standing(folder: Folder, condition: tuple[int, str], other: str) -> str:
    """How attention stands to another arm, in the words of the box."""
    pairs = folder.find(condition, other, "attention")
    found = of_difference("accuracy", "ahead", pairs, gains(folder, condition, other), set())
    words = {HOLDS: "ahead", DOES_NOT_HOLD: "behind", CANNOT_BE_TOLD: "not told apart"}
    words |= {HARDLY_ANY_REPEATS: "hardly repeating anything", NOT_ENOUGH_RUNS: "run with fewer than 3 seeds"}
    return words[found.verdict(RULES._replace(least_gain=0))]


def how_many(standings: list[str]) -> str:
    words = ("ahead", "behind", "not told apart", "hardly repeating anything", "run with fewer than 3 seeds")
    counts = ", ".join(f"{word} in {standings.count(word)}" for word in words if word in standings)
    return f"{counts} of {experiments(len(standings))}"


def experiments(count: int) -> str:
    return f"{count} experiment{'s' * (count != 1)}"


def span(values: list[float], spec: str) -> set[str]:
    ends = (min(values), max(values))[: len(values)]
    return joined(number(ends[0], spec), *[joined(" to ", number(end, spec)) for end in ends[1:]])


def numbers_in_box(folders: list[Folder], asked: str) -> list[set[str]]:
    """What stands in each sentence."""
    runs = sum(len(folder.runs) for folder in folders)
    said = [{f"{runs} runs ({'; '.join(folder.name for folder in folders)}) compare"}]
    judged = [(folder, judged_by(folder, asked)) for folder in folders]
    for other in ("baseline", "random"):
        compared = [(folder, condition) for folder, condition in judged if folder.find(condition, other, "attention")]
        standings = [standing(*each, other) for each in compared]
        # What too few runs or too few repeats leave open has no part in the range of differences.
        is_judged = [each in ("ahead", "behind", "not told apart") for each in standings]
        means = [float(np.mean(gains(*each, other))) for each in itertools.compress(compared, is_judged)]
        start = f" is {how_many(standings)} ("
        end = " points of accuracy at the last epoch, where it could be judged)"
        told = joined(start, span(means, "+.2f"), end) if means else {f"{start}so no difference is given)"}
        said.append(told if compared else {" is not compared"})
    shares = [
        [more_updates(run["epochs"]) for (run,) in each.find(condition, "attention")] for each, condition in judged
    ]
    means = [float(np.mean(of_folder)) for of_folder in shares if of_folder]
    said.append(
        joined("It makes ", span(means, ".1f") if means else "no", " % more updates" if means else " more updates")
    )
    reduced = sum(bool(reductions(folder)) for folder in folders)
    is_all = reduced in (0, len(folders))
    start = "All of this is" if is_all else f"{reduced} of {experiments(len(folders))} are"
    end = ", so it neither confirms nor refutes" if is_all else ", so they neither confirm nor refute"
    which = f"reduced size (each experiment says below what was reduced){end}" if reduced else "the paper's own size"
    return [*said, {f"{start} at {which}"}]


# The report ------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    folders: list[Folder]
    asked: str
    shown: dict[str, list[list[list[str]]]]
    paragraphs: dict[str, list[str]]
    right: dict[str, list[list[int]]]
    computed: dict[str, list[list[list]]]


@pytest.fixture(scope="module", params=[*CASES, *RECORDED], ids=lambda case: getattr(case, "name", case))
def report(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    is_made = request.param in CASES
    paths = write_case(request.param, folder) if is_made else [request.param]
    asked = CASES[request.param][1] if is_made else "first"
    with pytest.MonkeyPatch.context() as patch:
        # Figures take most of a report's time, and no number is read from them here.
        patch.setattr(figures, "draw_all", lambda *arguments: {})
        main([*map(str, paths), "--out", str(folder / "out"), "--epoch-loss", asked])
    folders = sorted(map(read_folder, paths), key=lambda each: each.name)
    text = (folder / "out" / "report.md").read_text(encoding="utf-8")
    return Report(folders, asked, *parse(text), compute_tables(folders, asked))


def parse(text: str) -> tuple[dict[str, list[list[list[str]]]], dict[str, list[str]], dict[str, list[list[int]]]]:
    """Below each title, the tables, the paragraphs, and which columns are set to the right, as they are on GitHub.

    What stands before the first title is that of "".
    """
    tables, paragraphs, right = (collections.defaultdict(list) for _ in range(3))
    title = ""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    for before, token in itertools.pairwise(tokens):
        if before.type == "heading_open" and before.tag != "h1":
            title = read_inline(token)
        elif before.type == "paragraph_open":
            paragraphs[title].append(read_inline(token))
        elif before.type == "table_open":
            tables[title].append([])
            right[title].append([])
        elif before.type == "tr_open":
            tables[title][-1].append([])
        elif before.type in ("th_open", "td_open"):
            if before.type == "th_open" and before.attrs.get("style") == "text-align:right":
                right[title][-1].append(len(tables[title][-1][-1]))
            tables[title][-1][-1].append(read_inline(token))
    return dict(tables), dict(paragraphs), dict(right)


def read_inline(token: Token) -> str:
    """What is bold is marked so; what is anything else but plain text is not hidden."""
    marks = {"strong_open": "**", "strong_close": "**"}
    parts = token.children or []
    return "".join(
        marks.get(part.type, part.content if part.type == "text" else f"<{part.type} {part.content}>") for part in parts
    )


def test_the_tables_are_those_that_are_computed_here(report):
    sizes, computed_sizes = (
        {title: [[len(row) for row in table] for table in tables] for title, tables in each.items()}
        for each in (report.shown, report.computed)
    )
    assert list(sizes.items()) == list(computed_sizes.items())


def test_every_cell_is_what_the_records_give(report):
    wrong = []
    for title, tables in report.shown.items():
        for table, expected_table in zip(tables, report.computed[title], strict=True):
            for row, expected_row in zip(table, expected_table, strict=True):
                for head, cell, expected in zip(table[0], row, expected_row, strict=True):
                    if cell not in ({expected} if isinstance(expected, str) else expected):
                        wrong.append(f"{title}: {row[:4]} {head}: {cell!r}, not {expected!r}")
    assert wrong == []


def test_columns_of_numbers_and_no_others_are_set_to_the_right(report):
    number_alone, number_first = re.compile(r"-|[-+]?[\d,.]+"), re.compile(r"-|[-+]?[\d,.]+.*")
    for title, tables in report.shown.items():
        for (head, *rows), right in zip(tables, report.right[title], strict=True):
            for place, cells in enumerate(zip(*rows, strict=True)):
                are_filled, where = set(cells) != {"-"}, f"{title}: {head[place]}"
                if place in right:
                    assert all(map(number_first.fullmatch, cells)), where
                    assert are_filled, where
                else:
                    assert not (all(map(number_alone.fullmatch, cells)) and are_filled), where


def test_every_experiment_says_how_it_is_reduced(report):
    for folder in report.folders:
        assert report.paragraphs[f"Claims: {folder.name}"] == [how_reduced(folder)]


def test_the_numbers_in_the_box_are_those_that_are_computed_here(report):
    box = report.paragraphs[""][:5]
    for sentence, expected in itertools.zip_longest(box, numbers_in_box(report.folders, report.asked)):
        assert any(text in sentence for text in expected), (sentence, expected)


@pytest.mark.parametrize("at", ["best", "last"])
def test_confusion_gives_the_recorded_accuracy_and_macro_f1(report, at):
    for folder in report.folders:
        for name, run in folder.runs.items():
            confusion = np.array(run[at]["confusion"])
            true, predicted = (labels.ravel() for labels in np.indices(confusion.shape))
            images = confusion.ravel()
            epoch = run["epochs"][run[at]["epoch"] - 1]
            classes = {"labels": range(len(confusion)), "average": "macro", "zero_division": 0}
            f1 = f1_score(true, predicted, sample_weight=images, **classes)
            assert images.sum() == folder.configuration["data"]["test_images"]
            assert images[true == predicted].sum() / images.sum() == pytest.approx(epoch["accuracy"], rel=1e-12), name
            assert f1 == pytest.approx(epoch["macro_f1"], rel=1e-12), name


def test_the_best_epoch_is_the_first_of_the_highest_accuracy_and_the_last_is_the_last(report):
    for run in itertools.chain(*(folder.runs.values() for folder in report.folders)):
        accuracies = [epoch["accuracy"] for epoch in run["epochs"]]
        assert [epoch["epoch"] for epoch in run["epochs"]] == list(range(1, len(accuracies) + 1))
        assert run["best"]["epoch"] == 1 + accuracies.index(max(accuracies))
        assert run["last"]["epoch"] == len(accuracies)


def test_the_updates_of_an_epoch_are_its_visits(report):
    for run in itertools.chain(*(folder.runs.values() for folder in report.folders)):
        for epoch in run["epochs"]:
            assert epoch["updates"] == epoch["batches"] + epoch["repeats"]
            if epoch["batches_by_visits"] is not None:
                counted = {int(visits): n["batches"] for visits, n in epoch["batches_by_visits"].items()}
                assert sum(counted.values()) == epoch["batches"]
                assert sum(visits * batches for visits, batches in counted.items()) == epoch["updates"]
                assert max(counted) == epoch["most_visits"]


def test_controls_make_the_visits_and_the_updates_of_their_attention_run(report):
    for folder in report.folders:
        for condition in folder.conditions():
            for longer, attention in folder.find(condition, "longer", "attention"):
                assert total(longer["epochs"], "updates") == total(attention["epochs"], "updates")
            for pair in folder.find(condition, "random", "attention"):
                random, attention = ([visit_counts(epoch) for epoch in run["epochs"]] for run in pair)
                assert random == attention


def visit_counts(epoch: dict) -> dict[str, int]:
    return {visits: numbers["batches"] for visits, numbers in epoch["batches_by_visits"].items()}


def test_the_papers_variances_are_those_of_its_counts(report):
    rows = [row for row in report.shown.get(TABLE_2_BEST, [[]])[0] if row[0].startswith("paper")]
    for row in rows:
        assert f"{np.var(list(map(int, row[4:14]))):.2f}" == row[-3]
    assert len(rows) == 2 * any(folder.configuration["data"]["name"] == "cifar10" for folder in report.folders)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """All findings of the made-up records."""
    folder = tmp_path_factory.mktemp("made up")
    folders = [(read_folder(path), CASES[case][1]) for case in CASES for path in write_case(case, folder / case)]
    return [finding for each, asked in folders for finding in findings(each, asked)]


def test_the_made_up_records_reach_every_verdict_of_every_rule(made_up):
    reached = collections.defaultdict(set)
    for finding in made_up:
        reached[finding.rule].add(finding.verdict())
    everything = {HOLDS, DOES_NOT_HOLD, CANNOT_BE_TOLD, HARDLY_ANY_REPEATS, NOT_ENOUGH_RUNS}
    with_repeats = dict.fromkeys(("ahead", "above 0", "up by 2", "at most 5"), everything)
    assert reached == with_repeats | {"15 to 20": everything - {HARDLY_ANY_REPEATS}}
    assert {finding.claim for finding in made_up} == set(CLAIMS)


@pytest.mark.parametrize(
    "limits",
    [
        {"least_runs": 2},
        {"least_runs": 4},
        {"least_dose": 0.7},
        {"least_dose": 1.01},
        {"least_gain": 0.3},
        {"least_gain": 0.7},
        {"least_change": -0.5},
        {"least_change": 0.5},
        {"claimed": 1.7},
        {"claimed": 2.3},
        {"least_overhead": 14},
        {"least_overhead": 16},
        {"most_overhead": 19},
        {"most_overhead": 21},
        {"widest_overhead": 8},
        {"widest_overhead": 12},
        {"few_repeats": 4},
        {"few_repeats": 6},
        {"sampling_errors": 0},
        {"sampling_errors": 0.8},
        {"sampling_errors": 1.25},
    ],
)
def test_the_made_up_records_lie_on_both_sides_of_every_limit(made_up, limits):
    assert [each.verdict() for each in made_up] != [each.verdict(Limits(**limits)) for each in made_up]
