"""The claims, judged a second time."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tests.benchmarks.report_numbers.folders import Folder
from tests.benchmarks.report_numbers.measures import (
    error_of_accuracy,
    error_of_variance,
    gain_at_same_loss,
    gain_at_same_time,
    gains,
    measure,
    more_seconds,
    more_updates,
    of_pairs,
    repeats_before_convergence,
    variance,
)
from tests.benchmarks.report_numbers.texts import interval, joined, mean_with_interval, number

HOLDS, DOES_NOT_HOLD, CANNOT_BE_TOLD = "holds", "does not hold", "cannot be told"
HARDLY_ANY_REPEATS, NOT_ENOUGH_RUNS = "hardly any repeats", "not enough runs"
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
