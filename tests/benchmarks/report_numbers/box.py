"""The sentences in front of the report, computed a second time."""

import itertools

import numpy as np

from tests.benchmarks.report_numbers.findings import (
    CANNOT_BE_TOLD,
    DOES_NOT_HOLD,
    HARDLY_ANY_REPEATS,
    HOLDS,
    NOT_ENOUGH_RUNS,
    RULES,
    judged_by,
    of_difference,
)
from tests.benchmarks.report_numbers.folders import Folder
from tests.benchmarks.report_numbers.measures import gains, more_updates
from tests.benchmarks.report_numbers.tables import reductions
from tests.benchmarks.report_numbers.texts import joined, number


def standing(folder: Folder, condition: tuple[int, str], other: str) -> str:
    """How attention stands to another arm, in the words of the box."""
    pairs = folder.find(condition, other, "attention")
    found = of_difference("accuracy", "ahead", pairs, gains(folder, condition, other), set())
    words = {HOLDS: "ahead", DOES_NOT_HOLD: "behind", CANNOT_BE_TOLD: "not told apart"}
    words |= {HARDLY_ANY_REPEATS: "it hardly repeats anything", NOT_ENOUGH_RUNS: "fewer than 3 seeds were run"}
    return words[found.verdict(RULES._replace(least_gain=0))]


ALL = "over all conditions (every label noise and epoch_loss)"
JUDGED = ("ahead", "behind", "not told apart")
LEFT_OPEN = ("it hardly repeats anything", "fewer than 3 seeds were run")


def how_many(standings: list[str]) -> str:
    counts = ", ".join(f"{word} in {standings.count(word)}" for word in JUDGED if word in standings)
    return f"{counts or 'judged in none'} of {experiments(len(standings))}"


def left_open(standings: list[str]) -> str:
    return "".join(f"; in {standings.count(words)} {words}" for words in LEFT_OPEN if words in standings)


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
        is_judged = [each in JUDGED for each in standings]
        means = [float(np.mean(gains(*each, other))) for each in itertools.compress(compared, is_judged)]
        start, end = f" is {how_many(standings)}", left_open(standings)
        spread = joined(" (", span(means, "+.2f"), " points of accuracy at the last epoch)") if means else {""}
        told = joined(start, spread, end)
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
    is_one = is_all or reduced == 1
    start = "All of this" if is_all else f"{reduced} of {experiments(len(folders))}"
    start += " is" if is_one else " are"
    end = ", so it neither confirms nor refutes" if is_one else ", so they neither confirm nor refute"
    which = f"reduced size (each experiment says below what was reduced){end}" if reduced else "the paper's own size"
    return [*said, {f"{start} at {which}"}]


def ranges_over_all(folders: list[Folder], asked: str) -> list[set[str] | None]:
    """What the three sentences that judge say of all conditions; None where these are no more than those judged."""
    every = [(folder, condition) for folder in folders for condition in folder.conditions()]
    judged = [(folder, judged_by(folder, asked)) for folder in folders]
    expected: list[set[str] | None] = []
    for other in ("baseline", "random"):
        compared = [each for each in every if each[0].find(each[1], other, "attention")]
        means = [float(np.mean(gains(*each, other))) for each in compared]
        is_more = any(each not in judged for each in compared)
        expected.append(joined(f"{ALL} ", span(means, "+.2f"), " points") if is_more else None)
    shares = [
        [more_updates(run["epochs"]) for (run,) in each.find(condition, "attention")] for each, condition in every
    ]
    is_more = any(each not in judged for each in every)
    means = [float(np.mean(of_condition)) for of_condition in shares]
    expected.append(joined("and ", span(means, ".1f"), f" % {ALL}") if is_more else None)
    return expected
